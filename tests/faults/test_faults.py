"""Real worker processes on a real Redis, and what is done to them: killed, frozen, cut off, told to stop.

Each test ends with an audit. The number of rounds is ``SWARM_FAULT_ROUNDS`` (2; ``make faults``: 20), the schedule follows
from ``SWARM_FAULT_SEED``; with ``SWARM_FAULT_RESULTS=1`` each test appends a line of JSON to ``results/``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from job_swarm import BOARD
from lab import HERE, PATIENCE_S, ROOT, SLACK_S, until
from ledger import Ledger

from swarm_infrastructure import Blackboard, Submission
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.blackboard.events import Event
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

pytestmark = pytest.mark.timeout(1800)
ROUNDS = int(os.environ.get("SWARM_FAULT_ROUNDS", "2"))
SEED = int(os.environ.get("SWARM_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
LEASE_S = 1.0
GRACE_S = 2.0
NEWS_LEASE_S = 4.0  # the news swarm computes: on a busy machine its loop may stand still for half a second


class Arena:
    """A server that keeps its data, a board on it, worker processes, and a ledger that nothing touches."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.server = RedisServer(kind, persist=True)
        self.namespace = "f" + secrets.token_hex(5)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.random = random.Random(SEED)
        self.processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Arena:
        self.server.start()
        self.store = await Store(self.server.url).__aenter__()
        self.board = await Blackboard(self.store, BOARD.with_lease(LEASE_S), namespace=self.namespace).__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in self.processes:
            self._end(process)
        await self.board.__aexit__(None, None, None)
        await self.store.close()
        self.server.stop()
        self.ledger.close()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for pid in {line["pid"] for line in self.ledger.lines("up") if line["parent"] == process.pid}:
            if Path(f"/proc/{pid}/stat").exists() and _parent_of(pid) == process.pid:
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
            "SWARM_LEASE_S": str(LEASE_S),
            "SWARM_SHUTDOWN_GRACE_S": str(GRACE_S),
            "SWARM_LOG_LEVEL": "CRITICAL",
            "PYTHONPATH": str(ROOT),
        }

    async def start(self, processes: int) -> subprocess.Popen[bytes]:
        words = [
            sys.executable,
            str(HERE / "job_swarm.py"),
            "--processes",
            str(processes),
            "--ledger",
            str(self.ledger.path),
        ]
        before = len(self.ledger.lines("up"))
        process = subprocess.Popen(words, env=self.environment, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        await until(lambda: len(self.ledger.lines("up")) >= before + processes, "the workers")
        return process

    def workers(self, process: subprocess.Popen[bytes]) -> list[int]:
        """The worker processes that live now."""
        pids = {line["pid"] for line in self.ledger.lines("up") if process.pid in (line["parent"], line["pid"])}
        return sorted(pid for pid in pids if _parent_of(pid) in (process.pid, os.getpid()))

    async def submit(self, *payloads: dict[str, Any], section: str = "jobs") -> list[str]:
        ids = [f"i{secrets.token_hex(6)}" for _ in payloads]
        await self.board.submit(
            *(Submission(id=i, section=section, payload=payload) for i, payload in zip(ids, payloads, strict=True))
        )
        return ids

    async def done(self, ids: list[str]) -> bool:
        items = await self.board.find_many(ids)
        return all(item is not None and item.status in ("done", "quarantined") for item in items)

    async def account(self, ids: list[str]) -> dict[str, list[Event]]:
        """Every item's history; each was accepted exactly once, and the audit is clean."""
        histories = {each: await self.board.history(each) for each in ids}
        for each, events in histories.items():
            ends = [event.kind for event in events if event.after.endswith("/done/")]
            assert ends == ["completed"], f"{each}: {[event.kind for event in events]} (seed {SEED})"
        accepted = Counter(line["item"] for line in self.ledger.lines("accepted") if line["kind"] == "completed")
        assert not {each: n for each, n in accepted.items() if n > 1}, f"accepted twice (seed {SEED})"
        await self.check()
        return histories

    async def check(self) -> None:
        report = await audit(self.store, self.namespace, BOARD.name)
        assert report.clean, [str(breach) for breach in report.breaches]

    def report(self, test: str, **facts: Any) -> None:
        if os.environ.get("SWARM_FAULT_RESULTS"):
            folder = HERE / "results"
            folder.mkdir(exist_ok=True)
            line = {"test": test, "server": self.kind, "seed": SEED, "rounds": ROUNDS, "lease_s": LEASE_S, **facts}
            with (folder / "faults.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def _parent_of(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[1])


def spread(values: list[float]) -> dict[str, float]:
    return {"recovery_p50_s": round(median(values), 3), "recovery_max_s": round(max(values), 3)} if values else {}


@pytest.fixture
async def arena(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Arena]:
    async with Arena(request.config.getoption("--redis-kind"), tmp_path) as arena:
        yield arena


def late_offers(histories: dict[str, list[Event]], hurt_at: float) -> list[float]:
    """Seconds from *hurt_at* until items whose lease ended after it were offered again."""
    ended = [e.at_ms / 1000 for events in histories.values() for e in events if e.kind == "lease_ended"]
    return [at - hurt_at for at in ended if at >= hurt_at]


async def test_a_killed_worker_loses_nothing_and_its_items_come_back_within_lease_and_a_second(arena: Arena) -> None:
    swarm = await arena.start(3)
    recoveries: list[float] = []
    every: list[str] = []
    for _ in range(ROUNDS):
        ids = await arena.submit(*({"do": "sleep", "s": arena.random.uniform(0.02, 0.2)} for _ in range(60)))
        every += ids
        started = set(ids)
        await until(lambda ids=started: any(line["item"] in ids for line in arena.ledger.lines("start")), "a start")
        await asyncio.sleep(arena.random.uniform(0.0, 0.6))
        victim = arena.random.choice(arena.workers(swarm))
        os.kill(victim, signal.SIGKILL)
        killed_at = time.time()
        await until(lambda ids=ids: arena.done(ids), "all items done")
        histories = {each: await arena.board.history(each) for each in ids}
        recoveries += late_offers(histories, killed_at)
        await until(lambda: len(arena.workers(swarm)) == 3, "a new worker in the place of the killed one")
    await arena.account(every)
    assert all(s <= LEASE_S + SLACK_S for s in recoveries), f"{recoveries} (seed {SEED})"
    arena.report("kill -9 a worker", items=len(every), reoffered=len(recoveries), lost=0, **spread(recoveries))


async def test_items_of_the_last_worker_are_taken_by_one_that_comes_later(arena: Arena) -> None:
    only = await arena.start(1)
    [item] = await arena.submit({"do": "sleep", "s": 60, "once_crashed_s": 0})
    await until(lambda: arena.ledger.lines("start"), "the start")
    os.kill(only.pid, signal.SIGKILL)
    killed_at = time.time()
    only.wait()
    await arena.start(1)
    came_s = time.time() - killed_at
    await until(lambda: arena.done([item]), "the item done")
    histories = await arena.account([item])
    [late] = late_offers(histories, killed_at)
    assert late <= max(LEASE_S, came_s) + SLACK_S
    assert [event.kind for event in histories[item]] == ["submitted", "claimed", "lease_ended", "claimed", "completed"]
    arena.report("kill -9 the last worker", items=1, **spread([late]))


async def test_workers_outlive_a_killed_redis_and_finish(arena: Arena) -> None:
    swarm = await arena.start(2)
    workers = arena.workers(swarm)
    ids = await arena.submit(*({"do": "sleep", "s": 0.05} for _ in range(150)))
    backs: list[float] = []
    for down_s in (0.5, LEASE_S * 2):
        seen = len(arena.ledger.lines("start"))
        await until(lambda seen=seen: len(arena.ledger.lines("start")) > seen + 20, "work")
        arena.server.kill()
        await asyncio.sleep(down_s)
        arena.server.restart()
        back_at = time.time()
        seen = len(arena.ledger.lines("start"))
        await until(lambda seen=seen: len(arena.ledger.lines("start")) > seen, "the first claim after it came back")
        backs.append(arena.ledger.lines("start")[seen]["at"] - back_at)
    await until(lambda: arena.done(ids), "all items done")
    assert arena.workers(swarm) == workers  # nobody left, nobody was started again
    await arena.account(ids)
    arena.report("kill -9 Redis", items=len(ids), lost=0, first_claim_max_s=round(max(backs), 3))


async def test_a_frozen_workers_completion_is_refused_when_it_wakes(arena: Arena) -> None:
    frozen = await arena.start(1)
    ids = await arena.submit(*({"do": "sleep", "s": 0.3} for _ in range(4)))
    await until(lambda: len(arena.ledger.lines("start")) == 4, "four starts")
    tokens = {line["token"] for line in arena.ledger.lines("start")}
    os.kill(frozen.pid, signal.SIGSTOP)
    await arena.start(1)
    await until(lambda: arena.done(ids), "the other one's completions")
    await asyncio.sleep(LEASE_S * 3)
    os.kill(frozen.pid, signal.SIGCONT)
    more = await arena.submit(*({"do": "sleep", "s": 0.05} for _ in range(40)))
    await until(lambda: arena.done(more), "further work")
    awake = [line for line in arena.ledger.lines("start") if line["pid"] == frozen.pid and line["item"] in more]
    assert awake  # it goes on with other items
    histories = await arena.account([*ids, *more])
    for each in ids:
        assert histories[each][-1].token not in tokens
    accepted = {line["token"] for line in arena.ledger.lines("accepted")}
    assert not accepted & tokens
    arena.report("SIGSTOP for 3 leases", items=len(ids), refused=len(ids), accepted_twice=0)


async def test_a_worker_told_to_stop_finishes_short_work_and_hands_back_long_work_at_once(arena: Arena) -> None:
    swarm = await arena.start(1)
    short = await arena.submit({"do": "sleep", "s": 0.4}, {"do": "sleep", "s": 0.4})
    long = await arena.submit({"do": "sleep", "s": 60}, {"do": "sleep", "s": 60})
    await until(lambda: len(arena.ledger.lines("start")) == 4, "four starts")
    await arena.submit({"do": "sleep", "s": 0})  # nobody may take this one any more
    swarm.send_signal(signal.SIGTERM)
    told_at = time.time()
    code = await asyncio.to_thread(swarm.wait, PATIENCE_S)
    gone_s = time.time() - told_at

    assert code == 0
    assert gone_s <= GRACE_S
    assert len(arena.ledger.lines("start")) == 4
    assert await arena.done(short)
    for each in long:
        item = await arena.board.get(each)
        assert (item.status, item.holder, item.attempts, item.crashes) == ("waiting", "", 0, 0)
        handed_back = (await arena.board.history(each))[-1]
        assert handed_back.kind == "handed_back"
        assert handed_back.at_ms / 1000 - told_at <= GRACE_S + 0.5
    await arena.check()
    arena.report("SIGTERM", exit_s=round(gone_s, 3), run_again=0, handed_back=len(long))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_does_not_wait_for_handlers(arena: Arena, number: signal.Signals) -> None:
    swarm = await arena.start(1)
    [item] = await arena.submit({"do": "sleep", "s": 60})
    await until(lambda: arena.ledger.lines("start"), "the start")
    swarm.send_signal(number)
    await asyncio.sleep(0.2)
    assert swarm.poll() is None  # it drains
    swarm.send_signal(number)
    told_at = time.time()
    await asyncio.to_thread(swarm.wait, PATIENCE_S)
    assert time.time() - told_at < GRACE_S
    assert (await arena.board.get(item)).status == "waiting"
    await arena.check()


async def test_poison_is_started_exactly_as_often_as_its_section_allows(arena: Arena) -> None:
    swarm = await arena.start(2)
    [deadly, failing] = await arena.submit({"do": "exit"}, {"do": "raise"}, section="frail")
    healthy = await arena.submit(*({"do": "sleep", "s": 0.02} for _ in range(20)))
    await until(lambda: arena.done([deadly, failing, *healthy]), "quarantine")
    starts = Counter(line["item"] for line in arena.ledger.lines("start"))
    # what stood beside the deadly item in a dying worker's hands crashed too, so the failing one may have crashed away
    assert starts[deadly] == 3
    assert starts[failing] <= 5
    for each in (deadly, failing):
        assert (await arena.board.get(each)).status == "quarantined"
    assert (await arena.board.get(deadly)).crashes == 3
    await until(lambda: len(arena.workers(swarm)) == 2, "both workers")
    await arena.account(healthy)
    arena.report("poison", starts=starts[deadly])


async def test_connections_cut_all_the_time_lose_nothing(arena: Arena) -> None:
    await arena.start(2)
    ids = await arena.submit(*({"do": "sleep", "s": 0.03} for _ in range(200)))
    cuts = 0
    while not await arena.done(ids):
        await arena.store.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        cuts += 1
        await asyncio.sleep(0.25)
        assert cuts < PATIENCE_S * 4
    histories = await arena.account(ids)
    crashes = sum(event.kind == "lease_ended" for events in histories.values() for event in events)
    assert crashes == 0  # a broken connection is no crash
    arena.report("CLIENT KILL every 0.25 s", items=len(ids), cuts=cuts, lost=0, run_twice=crashes)


def news_lines(n: int, seed: int) -> str:
    """*n* articles that are news and unlike each other."""
    chance = random.Random(seed)
    towns = [
        f"{a}{b}"
        for a in ("Har", "Mill", "Oak", "Stone", "Low", "Brack", "Elm")
        for b in ("ford", "bury", "wick", "combe")
    ]
    things = [
        "bridge",
        "library",
        "ferry",
        "market hall",
        "tram line",
        "sea wall",
        "reservoir",
        "museum",
        "bakery",
        "mill",
    ]
    verbs = ["reopened", "closed", "was sold", "was repaired", "was painted", "was moved", "was flooded", "was praised"]
    lines = []
    for i in range(n):
        words = [
            "".join(chance.choices("bcdfglmnprst", k=1) + chance.choices("aeiou", k=1)) * 2 + str(i % 7)
            for _ in range(30)
        ]
        town, thing, verb = chance.choice(towns), chance.choice(things), chance.choice(verbs)
        text = (
            f"The {thing} of {town} {verb} on Monday after {chance.randrange(2, 90)} days of work by the council. "
            f"Residents of {' and '.join(chance.sample(towns, 3))} said that {' '.join(words[:12])} would help them a lot. "
            f"The cost was {chance.randrange(100, 9999)} thousand, which {' '.join(words[12:22])} had been promised last year. "
            f"A second {chance.choice(things)} will be built near {' '.join(words[22:])} before the winter comes."
        )
        title = f"{thing} of {town} {verb} ({i})"
        lines.append(json.dumps({"title": title, "content": text, "source": {"name": f"Paper {i % 9}"}}))
    return "\n".join(lines)


async def drive_news(arena: Arena, feed: Path, rounds: int, read: int) -> list[float]:
    """Run the news swarm in three processes, again and again, and kill one of its workers each time."""
    recoveries = []
    for n in range(rounds):
        out, summary = arena.folder / f"out{n}", arena.folder / f"summary{n}.json"
        words = [sys.executable, str(ROOT / "examples/news_swarm/main.py"), str(feed), "--processes", "3"]
        namespace = f"{arena.namespace}n{n}"
        words += ["--out", str(out), "--summary", str(summary)]
        environment = arena.environment | {"SWARM_ID": namespace, "SWARM_LEASE_S": str(NEWS_LEASE_S)}
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        arena.processes.append(process)
        await until(lambda out=out: out.is_dir() and any(out.iterdir()), "the first story")
        await asyncio.sleep(arena.random.uniform(0, 1.0))
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        workers = [pid for pid in children if b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(arena.random.choice(workers), signal.SIGKILL)
        killed_at = time.time()
        _, errors = await asyncio.to_thread(process.communicate, None, 120)
        assert process.returncode == 0, errors.decode()

        told = json.loads(summary.read_text())
        assert told["read"] == read
        assert told["published"] + told["duplicates"] + told["rejected"] + told["failed"] == read
        assert told["failed"] == 0
        assert sorted(folder.name[-8:] for folder in out.iterdir()) == sorted(i[-8:] for i in told["ids"]["published"])
        async with Blackboard(
            arena.store, (await _news_board()).with_lease(NEWS_LEASE_S), namespace=namespace
        ) as board:
            histories = {each: await board.history(each) for each in told["ids"]["published"]}
            for each, events in histories.items():
                kinds = [event.kind for event in events if event.after == "published/published/"]
                assert kinds == ["completed"], f"{each}: {kinds} (seed {SEED})"
        recoveries += late_offers(histories, killed_at)
        report = await audit(arena.store, namespace, "news_swarm")
        assert report.clean, [str(breach) for breach in report.breaches]
    assert all(s <= NEWS_LEASE_S + SLACK_S for s in recoveries), f"{recoveries} (seed {SEED})"
    return recoveries


async def _news_board() -> Any:
    from examples.news_swarm.board import BOARD as NEWS_SWARM

    return NEWS_SWARM


async def test_the_news_swarm_publishes_each_story_once_though_its_workers_are_killed(arena: Arena) -> None:
    feed = arena.folder / "feed.jsonl"
    feed.write_text(news_lines(150, SEED))
    recoveries = await drive_news(arena, feed, ROUNDS, 150)
    arena.report("news swarm, kill -9 a worker", items=150, reoffered=len(recoveries), lost=0, **spread(recoveries))


async def test_real_articles_are_all_accounted_for_though_workers_are_killed(arena: Arena) -> None:
    feed = ROOT.parent / "shared" / "data" / "newsapi_articles.json"
    if not feed.exists():
        pytest.skip("newsapi_articles.json is not beside this checkout")
    recoveries = await drive_news(arena, feed, ROUNDS, 460)
    arena.report("real news, kill -9 a worker", items=460, reoffered=len(recoveries), lost=0, **spread(recoveries))
