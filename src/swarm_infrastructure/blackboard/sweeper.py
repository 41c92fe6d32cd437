"""The sweeper: takes back what ran out in lanes that nobody is looking at, and forgets agents that are long gone.

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

if TYPE_CHECKING:
    from .blackboard import Blackboard

__all__ = ["Sweeper"]

log = structlog.get_logger(__name__)

LANES_PER_CALL = 50
FORGET_AFTER_S = 24 * 3600  # long enough to see in the morning what died at night


class Sweeper:
    """Sweeps one board.

    Args:
        blackboard: the board.
        every_s: seconds between rounds, with half of it as jitter.
        chores: what else is to be done each round.
    """

    def __init__(
        self, blackboard: Blackboard, *, every_s: float = 5.0, chores: Sequence[Callable[[], Awaitable[Any]]] = ()
    ) -> None:
        self._blackboard, self._every_s, self._chores = blackboard, every_s, chores
        self._task: asyncio.Task[None] | None = None

    async def run_once(self) -> int:
        """One round. Returns how many leases ended in it."""
        lanes = await self._blackboard.queries.timed_lanes()
        ended = 0
        for start in range(0, len(lanes), LANES_PER_CALL):
            ended += await self._blackboard.claims.reap(lanes[start : start + LANES_PER_CALL])
        await self._blackboard.agents.forget_dead(FORGET_AFTER_S)
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
        while True:
            await asyncio.sleep(self._every_s * (0.75 + chance.random() / 2))
            try:
                ended = await self.run_once()
                if ended:
                    log.info("leases ended", leases=ended)
            except SwarmError as error:
                log.warning("sweeping failed, trying again", why=str(error))
