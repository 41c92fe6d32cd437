"""The arena: a server that keeps its data, a board on it, worker processes that may be hurt, and the account at the end.

``SWARM_FAULT_ROUNDS`` (2; ``make faults``: 20) is the number of rounds; 20 and more is the long form. The schedule follows
from ``SWARM_FAULT_SEED``. With ``SWARM_FAULT_RESULTS=1`` each test appends a line of JSON to ``results/faults.jsonl``.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Self
from zoneinfo import ZoneInfo

from job_swarm import BOARD
from lab import HERE, PATIENCE_S, ROOT, SLACK_S, until
from ledger import LedgerServer
from nursery import Nursed, Nursery

from swarm_infrastructure import Blackboard, Submission
from swarm_infrastructure.blackboard.events import Event
from swarm_infrastructure.blackboard.lifecycle import Board
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer
from swarm_infrastructure.watchdog.audit import audit_whole

__all__ = [
    "GRACE_S", "LEASE_S", "LONG", "PATIENCE_S", "ROUNDS", "SEED", "SLACK_S", "Arena", "Process", "late_offers", "spread",
]  # fmt: skip

ROUNDS = int(os.environ.get("SWARM_FAULT_ROUNDS", "2"))
LONG = ROUNDS >= 20
SEED = int(os.environ.get("SWARM_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
LEASE_S = 1.0
GRACE_S = 2.0
PER_SUBMIT = 500
Process = subprocess.Popen[bytes] | Nursed


@cache
def nursery() -> Nursery:
    """The one of this run."""
    made = Nursery("job_swarm")
    atexit.register(made.close)
    return made


class Arena:
    """A server, a board on it, workers, and a ledger that nothing touches.

    Args:
        kind: of server.
        folder: for what the test and its workers write.
        lease_s: of the board.
        options: further lines of the server's configuration.
    """

    def __init__(
        self, kind: str, folder: Path, *, lease_s: float = LEASE_S, options: Mapping[str, str] | None = None
    ) -> None:
        self.kind, self.folder, self.lease_s = kind, folder, lease_s
        self.server = RedisServer(kind, persist=True, options=options)
        self.namespace = "f" + secrets.token_hex(5)
        self.random = random.Random(SEED)
        self.processes: list[Process] = []
        self._ledger_server = LedgerServer(folder)
        self._audited = ""

    async def __aenter__(self) -> Self:
        self.ledger = self._ledger_server.start()
        self.server.start()
        self.store = await Store(self.server.url).__aenter__()
        self.board = await self.open_board(self.namespace)
        self._boards = [self.board]
        return self

    async def open_board(self, namespace: str, board: Board = BOARD) -> Blackboard:
        return await Blackboard(self.store, board.with_lease(self.lease_s), namespace=namespace).__aenter__()

    async def another_board(self) -> Blackboard:
        """One more board on the same server, for a round beside others."""
        self._boards.append(await self.open_board("f" + secrets.token_hex(5)))
        return self._boards[-1]

    async def __aexit__(self, *error: object) -> None:
        for process in self.processes:
            self.end(process)
        for board in self._boards:
            await board.__aexit__(None, None, None)
        await self.store.close()
        self.server.stop()
        self.ledger.close()
        self._ledger_server.stop()

    def end(self, process: Process) -> None:
        """Kill a process that was started here, and the workers under it."""
        for pid in {line["pid"] for line in self.ledger.lines("up") if line["parent"] == process.pid}:
            if _parent_of(pid) == process.pid:
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "SWARM_"))}
        return clean | {
            "REDIS_URL": self.server.url,
            "SWARM_ID": self.namespace,
            "SWARM_LEASE_S": str(self.lease_s),
            "SWARM_SHUTDOWN_GRACE_S": str(GRACE_S),
            "SWARM_UNKNOWN_PRICE": "10",
            "SWARM_LOG_LEVEL": "CRITICAL",
            "PYTHONPATH": str(ROOT),
        }

    async def start(self, processes: int = 1, *words: str, **environment: str) -> Process:
        """Start workers: one by itself, or several under a supervisor; returns when they are at work.

        Args:
            processes: how many.
            words: further words of ``job_swarm.py``.
            environment: what differs from `environment`.
        """
        words = ("--processes", str(processes), "--ledger", str(self.ledger.path), *words)
        before = len(self.ledger.lines("up"))
        process: Process
        if processes == 1:
            process = nursery().start(words, self.environment | environment)
        else:
            command = [sys.executable, str(HERE / "job_swarm.py"), *words]
            process = subprocess.Popen(command, env=self.environment | environment, stderr=subprocess.DEVNULL)
        self.processes.append(process)

        def up() -> bool:
            if processes > 1:
                return len(self.ledger.lines("up")) >= before + processes
            return process.poll() is not None or any(line["pid"] == process.pid for line in self.ledger.lines("up"))

        await until(up, "the workers")
        return process

    def workers(self, process: Process) -> list[int]:
        """The worker processes that live now."""
        lines = self.ledger.lines("up")
        own = {line["pid"] for line in lines if line["pid"] == process.pid and process.poll() is None}
        under = {line["pid"] for line in lines if line["parent"] == process.pid}
        return sorted(own | {pid for pid in under if _parent_of(pid) == process.pid})

    async def submit(
        self, *payloads: dict[str, Any], section: str = "jobs", board: Blackboard | None = None
    ) -> list[str]:
        ids = [f"i{secrets.token_hex(6)}" for _ in payloads]
        await (board or self.board).submit(
            *(Submission(id=i, section=section, payload=payload) for i, payload in zip(ids, payloads, strict=True))
        )
        return ids

    async def done(self, ids: Sequence[str], board: Blackboard | None = None) -> bool:
        items = await (board or self.board).find_many(ids)
        return all(item is not None and item.status in ("done", "quarantined") for item in items)

    def started(self, ids: Iterable[str]) -> Counter[str]:
        """How often each of these items was begun."""
        wanted = set(ids)
        return Counter(line["item"] for line in self.ledger.lines("start") if line["item"] in wanted)

    async def account(self, ids: Sequence[str], board: Blackboard | None = None) -> dict[str, list[Event]]:
        """Every item's history; each was accepted exactly once, and the audit is clean."""
        board = board or self.board
        histories = {each: await board.history(each) for each in ids}
        for each, events in histories.items():
            ends = [event.kind for event in events if event.after.endswith("/done/")]
            assert ends == ["completed"], f"{each}: {[event.kind for event in events]} (seed {SEED})"
        self.check_accepted()
        await self.check(board)
        return histories

    def check_accepted(self) -> None:
        """No item was accepted as done twice, as far as workers were told."""
        accepted = Counter(line["item"] for line in self.ledger.lines("accepted") if line["kind"] == "completed")
        assert not {each: n for each, n in accepted.items() if n > 1}, f"accepted twice (seed {SEED})"

    async def check(self, board: Blackboard | None = None) -> None:
        """The audit of every invariant, as ``swarm audit`` makes it."""
        namespace, name = (board or self.board).namespace, (board or self.board).board.name
        report = await audit_whole(self.store, namespace, name, zone=ZoneInfo("UTC"))
        assert report.clean, [str(breach) for breach in report.breaches]
        self._audited = "clean"

    def report(self, test: str, **facts: Any) -> None:
        """Keep what a test found; see ``table.py`` for the words."""
        if os.environ.get("SWARM_FAULT_RESULTS"):
            line = {"test": test, "server": self.kind, "seed": SEED, "rounds": 1, "lease_s": self.lease_s, **facts}
            if self._audited:
                line["audit"] = self._audited
            folder = HERE / "results"
            folder.mkdir(exist_ok=True)
            with (folder / "faults.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def tally(self, ids: Sequence[str]) -> dict[str, int]:
        """For `report`, once `account` has passed: nothing was lost, nothing accepted twice."""
        twice = sum(n > 1 for n in self.started(ids).values())
        return {"n": len(ids), "lost": 0, "accepted_twice": 0, "run_twice": twice}


def _parent_of(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[1])


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"recovery_p50_s": round(median(values), 3), "recovery_max_s": round(max(values), 3)} if values else {}


def late_offers(histories: Mapping[str, Sequence[Event]], hurt_at: float) -> list[float]:
    """Seconds from *hurt_at* until items whose lease ended after it were offered again."""
    ended = [e.at_ms / 1000 for events in histories.values() for e in events if e.kind == "lease_ended"]
    return [at - hurt_at for at in ended if at >= hurt_at]
