"""What every fault test needs: a server, a board, worker processes that may be hurt, and the account at the end."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATIENCE_S = 45.0  # for what must happen; a machine that runs other tests too is slow, and a failure may take its time
SLACK_S = 1.0  # what the design allows between the end of a lease and the next offer
ENDS = frozenset({"completed", "failed", "quarantined", "handed_back", "lease_ended"})
Found = TypeVar("Found")


async def until(
    condition: Callable[[], Found | Awaitable[Found]],
    what: str,
    *,
    within_s: float = PATIENCE_S,
    every_s: float = 0.005,
) -> Found:
    """The first answer of *condition* that is true."""
    gives_up_at = time.monotonic() + within_s
    while True:
        answer = condition()
        found = await answer if inspect.isawaitable(answer) else answer
        if found:
            return found
        assert time.monotonic() < gives_up_at, f"after {within_s:g} s still waiting for: {what}"
        await asyncio.sleep(every_s)
