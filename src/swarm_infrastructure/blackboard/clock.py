"""Redis' clock, by which a board's leases, delays and windows end."""

from __future__ import annotations

from ..keys import BoardKeys
from ..store import Store

__all__ = ["list_older", "read_clock_ms"]


async def read_clock_ms(store: Store, keys: BoardKeys) -> int:
    """Milliseconds since the epoch, on Redis' clock as the board's functions have it."""
    return int(await store.call("now", [keys.rules]))


async def list_older(store: Store, keys: BoardKeys, times: str, age_s: float) -> list[str]:
    """The names in *times*, a sorted set of milliseconds since the epoch, that are from at least so long ago."""
    return [name.decode() for name in await store.call("list_older", [keys.rules, times], [int(age_s * 1000)])]
