"""The watchdog of a worker: says once when agents wait for each other, and drops the notes of waits that are over."""

from __future__ import annotations

import structlog

from ..blackboard import Blackboard
from .cycles import find_cycles, missing_voters
from .scene import read_scene
from .values import Standstill

__all__ = ["Watchdog"]

log = structlog.get_logger(__name__)


class Watchdog:
    """Looks after one board; a sweeper calls `run_once` now and then."""

    def __init__(self, blackboard: Blackboard) -> None:
        self._blackboard = blackboard
        self._known: set[frozenset[str]] = set()

    async def run_once(self) -> list[Standstill]:
        """Look once. Returns the wait cycles that were not there the last time; each is logged as well."""
        if not await self._blackboard.waits.sweep():  # the rule: a board on which nobody waits costs one small read
            self._known.clear()
            return []
        scene = await read_scene(self._blackboard)
        cycles = find_cycles(scene, await missing_voters(self._blackboard, scene.waits))
        fresh = [cycle.standstill(scene) for cycle in cycles if cycle.key not in self._known]
        self._known = {cycle.key for cycle in cycles}
        for each in fresh:
            log.warning("agents wait for each other", agents=each.where, found=each.found, step=each.step)
        return fresh
