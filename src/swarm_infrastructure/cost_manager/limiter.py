"""The rate limiter: requests and tokens per minute of a provider, or calls of an agent, counted for the whole fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..keys import BoardKeys
from ..store import Store

__all__ = ["Pace", "RateLimiter"]

WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """A rate limit that a call of *tokens* falls under.

    Args:
        name: what the fleet counts under: ``model:NAME``, ``agent:ID``.
        calls: per minute, None without a limit.
        tokens_limit: per minute, None without a limit.
        tokens: of this call.
    """

    name: str
    calls: int | None = None
    tokens_limit: int | None = None
    tokens: int = 0

    def args(self) -> tuple[Any, ...]:
        """As the Lua takes it: name, calls, tokens, window, tokens of this call."""
        limits = ("" if limit is None else limit for limit in (self.calls, self.tokens_limit))
        return (self.name, *limits, round(WINDOW_S * 1000), self.tokens)


class RateLimiter:
    """Counts calls in Redis, on its clock. A provider's ``retry-after`` slows everybody, not one worker."""

    def __init__(self, store: Store, keys: BoardKeys) -> None:
        self._store, self._keys = store, [keys.rules, keys.rates]

    async def admit(
        self, name: str, *, calls: int | None = None, tokens_limit: int | None = None, tokens: int = 0
    ) -> float:
        """Ask for one call of *tokens* under *name*.

        Returns:
            0.0 if it may be made now, and is counted; else how many seconds to wait before asking again.
        """
        pace = Pace(name, calls, tokens_limit, tokens)
        answer = await self._store.call("admit", self._keys, pace.args())
        return 0.0 if answer[0] == b"yes" else max(0.001, int(answer[1]) / 1000)

    async def slow_down(self, name: str, wait_s: float) -> None:
        """Let nobody call *name* for *wait_s*."""
        await self._store.call("slow_down", self._keys, [name, round(wait_s * 1000)])
