"""This runtime, as users have it: a `BaseAgent`, `Swarm.run`, `Blackboard.submit`. Leases and their renewal, priorities,
events, validation and heartbeats are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from swarm_infrastructure import (
    BaseAgent,
    Blackboard,
    Board,
    Claims,
    Item,
    Outcome,
    Section,
    Settings,
    Submission,
    Swarm,
    Work,
    job_board,
)
from swarm_infrastructure.keys import BoardKeys, lane_name
from swarm_infrastructure.store import Store

from ..probe import tick
from .base import Peer

__all__ = ["Ours", "OursAlone", "OursFifty", "OursPipeline", "OursPipelineAlone"]

NAMESPACE = "default"
STAGES = ("scouting", "analysis", "writing", "publishing")
QUEUE = job_board("peers")
PIPELINE = Board(
    name="peers",
    sections={
        stage: Section(
            ready={"waiting": "active"}, then={"active": way}, resting=("done",) if way.endswith("/done") else ()
        )
        for stage, way in zip(
            STAGES, [*(f"{stage}/waiting" for stage in STAGES[1:]), f"{STAGES[-1]}/done"], strict=True
        )
    },
    steps={"active": frozenset({"done", "waiting"})},
    final=frozenset({"done"}),
)


class NoOp(BaseAgent):
    """Does nothing, which leaves the runtime's own cost."""

    async def process(self, item: Item, work: Work) -> Outcome:
        tick()
        return work.done({"ok": True, "n": 1})


class Ours(Peer):
    """One agent that claims a hundred items a call."""

    environment = "ours"
    packages = ("swarm-infrastructure", "redis", "hiredis", "uvloop")
    pace = 40_000
    settings = "one agent, Claims(batch=100), 200 slots; results seen by wait_for, which reads the events as they come"
    delivery = "at least once, completed exactly once: leases, fencing tokens, one function a step, with its event"
    bulk = "submit(*submissions), 500 a call"
    most_waiting = 1_000_000
    board: ClassVar[Board] = QUEUE
    agents: ClassVar[int] = 1  #: for each section
    batch: ClassVar[int] = 100
    slots: ClassVar[int] = 200

    async def open(self) -> None:
        self._store = await Store(self.order.url).__aenter__()
        self._board = await Blackboard(self._store, self.board, namespace=NAMESPACE).__aenter__()
        self._first = next(iter(self.board.sections))

    async def submit(self, payload: dict[str, Any]) -> None:
        await self._board.submit(self._submission(payload))

    async def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        await self._board.submit(*map(self._submission, payloads))

    async def submit_and_wait(self, payload: dict[str, Any]) -> None:
        new = self._submission(payload)
        await self._board.submit(new)
        assert (await self._board.wait_for(new.id)).result is not None

    def work(self) -> None:
        kinds = [
            type("NoOp", (NoOp,), {"claims": Claims(section, batch=self.batch), "slots": self.slots})
            for section in self.board.sections
        ]
        settings = Settings(REDIS_URL=self.order.url, SWARM_ID=NAMESPACE, SWARM_LOG_LEVEL="ERROR")
        Swarm(kinds * self.agents, board=self.board, settings=settings).run()

    def is_drained(self, redis: Any, n: int) -> bool:
        done = lane_name(list(self.board.sections)[-1], "done")
        return int(redis.hget(BoardKeys(NAMESPACE, self.board.name).counts, done) or 0) == n

    def _submission(self, payload: dict[str, Any]) -> Submission:
        return Submission(id=f"i{payload['n']}", section=self._first, payload=payload)


class OursFifty(Ours):
    """Fifty agents that claim one item each."""

    pace = 15_000
    settings = "50 agents in one process, one item each"
    workloads = frozenset({"drain", "scaling"})
    agents, batch, slots = 50, 1, 1


class OursAlone(Ours):
    """One agent that claims one item, and has no other in hand."""

    pace = 1_500
    settings = "one agent, one item at a time"
    workloads = frozenset({"drain"})
    batch, slots = 1, 1


class OursPipeline(Ours):
    """A board of four sections, an agent for each, a hundred items a call."""

    pace = 4_000
    bodies = len(STAGES)
    settings = "a board of four sections, an agent for each, Claims(batch=100), 200 slots"
    workloads = frozenset({"pipeline"})
    board = PIPELINE


class OursPipelineAlone(OursPipeline):
    """The same, one item at a time in each section."""

    pace = 600
    settings = "a board of four sections, an agent for each, one item at a time"
    batch, slots = 1, 1
