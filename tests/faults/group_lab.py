"""Work on a board whose Redis is a group of servers, and what became of everything that was answered."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from arena import LONG, ROUNDS, SEED
from lab import HERE

from swarm_infrastructure import Blackboard, Submission, job_board
from swarm_infrastructure.blackboard import Claim
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.blackboard.claims import ClaimRequest
from swarm_infrastructure.blackboard.events import EventLog
from swarm_infrastructure.cost_manager.audit import audit_money
from swarm_infrastructure.cost_manager.budgets import Spender
from swarm_infrastructure.cost_manager.ledger import Ledger
from swarm_infrastructure.errors import ClaimLostError, UnavailableError
from swarm_infrastructure.store import Store

__all__ = [
    "LONG", "RECOVERY_S", "ROUNDS", "SEED", "Fate", "Load", "check", "fate_of", "report",
]  # fmt: skip
RECOVERY_S = 10.0  # from the loss of a master to the first answer of the next one: F13
LEASE_S = 2.0
BOARD = job_board("jobs", max_attempts=0, max_crashes=0, lease_s=LEASE_S)


@dataclass
class Load:
    """Workers on one board, and every answer that they were given."""

    store: Store
    namespace: str
    submitted: set[str] = field(default_factory=set)
    claimed: list[tuple[str, int]] = field(default_factory=list)  #: item and token, in the order of the answers
    completed: list[tuple[str, int]] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    refused: int = 0  #: endings that came too late
    unanswered: int = 0  #: calls that ended without an answer: whether they were executed is unknown
    answered_at: list[float] = field(default_factory=list)  #: monotonic, of each completion

    async def __aenter__(self) -> Load:
        self.board = await Blackboard(self.store, BOARD, namespace=self.namespace).__aenter__()
        self.ledger = Ledger(self.store, self.board.keys, ZoneInfo("UTC"))
        self._tasks: list[asyncio.Task[None]] = []
        self._numbers = iter(range(1 << 30))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()
        await self.board.__aexit__(None, None, None)

    def start(self, workers: int = 8) -> None:
        self._tasks += [asyncio.create_task(self._work(f"{id(self)}_{n}")) for n in range(workers)]

    async def stop(self) -> None:
        """Let each worker finish its round."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def _work(self, agent: str) -> None:
        me = asyncio.current_task()
        while me in self._tasks:
            try:
                await self.round(agent)
            except UnavailableError:
                self.unanswered += 1
                await asyncio.sleep(0.02)

    async def round(self, agent: str) -> None:
        """Submit an item, claim some, pay for each, complete it."""
        await self.submit(f"{agent}_{next(self._numbers)}")
        for claim in await self.claim(agent):
            reservation = await self.ledger.reserve(
                Spender(agent_id=agent), 1_000, 10, id=f"{claim.item_id}.{claim.token}"
            )
            await self.ledger.settle(reservation, 700, 7)
            self.settled.add(reservation.id)
            await self.complete(claim)

    async def submit(self, *names: str) -> None:
        answers = await self.board.submit(*(Submission(id=name, section="jobs", payload={}) for name in names))
        assert all(answer.accepted or answer.duplicate_of == answer.id for answer in answers)
        self.submitted |= set(names)

    async def claim(self, agent: str, most: int = 2, lease_s: float = LEASE_S) -> list[Claim]:
        lanes = self.board.claims.lanes("jobs")
        request = ClaimRequest(agent_id=agent, role="worker", lanes=lanes, lease_s=lease_s, most=most)
        [hand] = await self.board.claims.claim(request)
        assert not isinstance(hand, str)
        claims = [each.claim for each in hand]
        self.claimed += [(claim.item_id, claim.token) for claim in claims]
        return claims

    async def complete(self, claim: Claim) -> None:
        try:
            await self.board.complete(claim)
        except ClaimLostError:
            self.refused += 1
        else:
            self.completed.append((claim.item_id, claim.token))
            self.answered_at.append(time.monotonic())

    def answered_since(self, moment: float) -> bool:
        """Whether a completion was answered after *moment*."""
        for task in self._tasks:
            if task.done():
                task.result()  # a worker that failed; it never just ends
        return bool(self.answered_at) and self.answered_at[-1] > moment

    def silence_s(self, since: float) -> float:
        """The longest time from *since* on in which no completion was answered."""
        moments = [since, *(at for at in self.answered_at if at > since)]
        return max(later - earlier for earlier, later in pairwise(moments))


@dataclass(frozen=True)
class Fate:
    """What a board holds of what was answered."""

    submitted_lost: int
    completed_lost: int
    settled_lost: int
    completed_twice: int  #: items of which two holders were told that they had completed it
    claims_twice: int  #: items that were given out twice under the same token

    @property
    def lost(self) -> int:
        return self.submitted_lost + self.completed_lost + self.settled_lost


async def fate_of(load: Load, store: Store) -> Fate:
    """What *store* holds of what *load* was told; I3 and the audits are checked on the way."""
    tokens: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, list[int]] = defaultdict(list)
    submitted: set[str] = set()
    async for event in EventLog(store, load.board.keys).read("-", "+"):
        if event.kind == "submitted":
            submitted.add(event.item)
        elif event.kind == "claimed":
            tokens[event.item].append(event.token)
        elif event.kind == "completed":
            ends[event.item].append(event.token)
    for item, of_item in tokens.items():
        assert of_item == sorted(set(of_item)), f"{item}: tokens {of_item} (seed {SEED})"
    assert all(len(of_item) == 1 for of_item in ends.values()), f"accepted twice (seed {SEED})"
    await check(store, load.namespace)
    settled = {entry.reservation async for entry in Ledger(store, load.board.keys, ZoneInfo("UTC")).entries()}
    return Fate(
        submitted_lost=len(load.submitted - submitted),
        completed_lost=sum(token not in ends[item] for item, token in load.completed),
        settled_lost=len(load.settled - settled),
        completed_twice=sum(n > 1 for n in Counter(item for item, _ in load.completed).values()),
        claims_twice=len(load.claimed) - len(set(load.claimed)),
    )


async def check(store: Store, namespace: str) -> None:
    """No breach on the board and none of its money."""
    report = await audit(store, namespace, BOARD.name)
    assert report.clean, f"{[str(breach) for breach in report.breaches[:5]]} (seed {SEED})"
    board = Blackboard(store, BOARD, namespace=namespace)
    assert await audit_money(Ledger(store, board.keys, ZoneInfo("UTC"))) == []


def report(test: str, **facts: Any) -> None:
    """Keep what a test found; see ``table.py`` for the words."""
    if os.environ.get("SWARM_FAULT_RESULTS"):
        line = {"test": test, "seed": SEED, "rounds": ROUNDS, "lease_s": LEASE_S, **facts, "audit": "clean"}
        folder = HERE / "results"
        folder.mkdir(exist_ok=True)
        with (folder / "faults.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
