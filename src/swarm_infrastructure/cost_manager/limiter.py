"""The rate limiter: requests and tokens per minute of a provider, or calls of an agent, counted for the whole fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import LibraryMismatchError
from ..guard import NO_GUARD, Guard
from ..keys import BoardKeys
from ..store import Store
from .records import Open, Wait

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
        self._store, self._keys = store, [keys.rules, keys.rates, keys.breakers]

    async def enter(self, pace: Pace, guard: Guard | None = None, *, call_id: str = "") -> Wait | Open | bool:
        """Ask for one call, which is counted if it may be made now.

        Returns:
            How long to wait before asking again; else whether the call is a probe of the backend behind *guard*.
        """
        args = (call_id, *pace.args(), *(guard.entering() if guard else NO_GUARD))
        match await self._store.call("admit", self._keys, args):
            case [b"yes", passed]:
                return bool(passed == b"probe")
            case [b"wait", ms]:
                return Wait(max(0.001, int(ms) / 1000))
            case [b"open", ms]:
                return Open(max(0.001, int(ms) / 1000))
            case answer:
                raise LibraryMismatchError("admit", answer)

    async def admit(
        self, name: str, *, calls: int | None = None, tokens_limit: int | None = None, tokens: int = 0
    ) -> float:
        """Ask for one call of *tokens* under *name*.

        Returns:
            0.0 if it may be made now, and is counted; else how many seconds to wait before asking again.
        """
        found = await self.enter(Pace(name, calls, tokens_limit, tokens))
        return 0.0 if isinstance(found, bool) else found.seconds

    async def slow_down(self, name: str, wait_s: float) -> None:
        """Let nobody call *name* for *wait_s*."""
        await self._store.call("slow_down", self._keys, [name, round(wait_s * 1000)])
