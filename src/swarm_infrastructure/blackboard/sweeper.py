"""The sweeper: takes back what ran out in lanes that nobody is looking at, forgets agents that are long gone, and looks after
what the board keeps (see ``retention``).

Every claim does the first for its own lanes, so nothing waits for the sweeper; it keeps the picture true where no agent
is left to claim.
"""

from __future__ import annotations

import asyncio
import random as chance
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from ..errors import SwarmError
from .retention import LogBound, Retention, take_turn

if TYPE_CHECKING:
    from .blackboard import Blackboard

__all__ = ["Sweeper"]

log = structlog.get_logger(__name__)

LANES_PER_CALL = 50
IDLE_EVERY_S = 60.0  # where nothing is done
LONGER = 12  # times the pause before, after a round in which nothing was done: one more such round, and it is a minute
FORGET_AFTER_S = 24 * 3600  # long enough to see in the morning what died at night


class Sweeper:
    """Sweeps one board.

    Args:
        blackboard: the board.
        every_s: seconds between rounds, and up to a quarter more.
        busy: whether anything was done here since it was asked last. If not, the pauses grow, up to a minute: what there is
            to sweep then was left by others, and they, or whoever claims next, sweep it too.
        chores: what else is to be done each round.
        upkeep: what else is to be done where it is this process' turn, like the board's own retention.
        bound: of the board's event log.
    """

    def __init__(
        self,
        blackboard: Blackboard,
        *,
        every_s: float = 5.0,
        busy: Callable[[], bool] = lambda: True,
        chores: Sequence[Callable[[], Awaitable[Any]]] = (),
        upkeep: Sequence[Callable[[], Awaitable[Any]]] = (),
        bound: LogBound | None = None,
    ) -> None:
        self._blackboard, self._every_s, self._bound = blackboard, every_s, bound
        self._chores, self._upkeep, self._busy = chores, upkeep, busy
        self._retention = Retention(blackboard.store, blackboard.keys, blackboard.board, bound)
        self._locks: Sweeper | None = None
        self._task: asyncio.Task[None] | None = None

    async def run_once(self) -> int:
        """One round. Returns how many leases ended in it. What is kept is looked after by one process at a time."""
        lanes = await self._blackboard.queries.timed_lanes()
        ended = 0
        for start in range(0, len(lanes), LANES_PER_CALL):
            ended += await self._blackboard.claims.reap(lanes[start : start + LANES_PER_CALL])
        if await take_turn(self._blackboard.store, self._blackboard.keys.tending, self._every_s / 2):
            await self._retention.run_once()
            await self._blackboard.agents.forget_dead(FORGET_AFTER_S)
            for each in self._upkeep:
                await each()
        if self._blackboard.lock_desk is not None:  # the locks are a board of their own
            self._locks = self._locks or Sweeper(self._blackboard.lock_desk, every_s=self._every_s, bound=self._bound)
            ended += await self._locks.run_once()
        for chore in self._chores:
            await chore()
        return ended

    async def start(self) -> None:
        """Sweep until `stop`."""
        self._task = asyncio.create_task(self._run(), name="sweeper")

    async def stop(self) -> None:
        """Stop sweeping."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = self._every_s
        while True:
            await asyncio.sleep(pause_s * (1 + chance.random() / 4))
            pause_s = min(LONGER * pause_s, max(IDLE_EVERY_S, self._every_s))
            try:
                ended = await self.run_once()
                if ended:
                    log.info("leases ended", leases=ended)
                if ended or self._busy():
                    pause_s = self._every_s
            except SwarmError as error:
                log.warning("sweeping failed, trying again", why=str(error))
