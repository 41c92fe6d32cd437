"""Time for tests: a board's clock moved by hand.

Redis' own clock decides everything about leases, delays and heartbeats. A board keeps an offset to it that only a test
writes; every function adds it, in every process, so that a test can let an hour pass at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

__all__ = ["ManualClock"]


class ManualClock:
    """Moves a board's clock forwards.

    Args:
        add_ms: adds milliseconds to the board's offset and returns the new one.
    """

    def __init__(self, add_ms: Callable[[int], Awaitable[int]]) -> None:
        self._add_ms = add_ms

    async def advance(self, *, s: float) -> None:
        """Let *s* seconds pass on the board."""
        await self._add_ms(round(s * 1000))
