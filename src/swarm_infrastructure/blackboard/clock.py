"""Redis' clock, by which a board's leases, delays and windows end."""

from __future__ import annotations

from ..keys import BoardKeys
from ..store import Store

__all__ = ["read_clock_ms"]


async def read_clock_ms(store: Store, keys: BoardKeys) -> int:
    """Milliseconds since the epoch, on Redis' clock as the board's functions have it."""
    return int(await store.call("now", [keys.rules]))
