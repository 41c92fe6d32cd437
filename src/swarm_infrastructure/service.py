"""What everything that runs in the background has in common: how it is let finish."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

__all__ = ["let_finish"]


async def let_finish(tasks: Collection[asyncio.Task[Any]], grace_s: float, hurry: asyncio.Event | None = None) -> None:
    """Wait until *tasks* are done, *grace_s* is over, or somebody is in a *hurry*. Cancels none of them."""
    if not tasks:
        return
    everything = asyncio.ensure_future(asyncio.wait(tasks))
    hurried = asyncio.ensure_future((hurry or asyncio.Event()).wait())
    try:
        await asyncio.wait({everything, hurried}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        everything.cancel()
        hurried.cancel()
        await asyncio.gather(everything, hurried, return_exceptions=True)
