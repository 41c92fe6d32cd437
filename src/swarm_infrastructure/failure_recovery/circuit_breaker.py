"""Circuit breakers: a backend that failed too often in a row is left alone for a while, by the whole fleet.

::

    closed ── failures in a row ──→ open ── recovery time ──→ half-open ── probes succeed ──→ closed
                                      ↑───────── a probe fails ────────────┘

The state is in Redis and follows its clock: a new process reads it and never resets it, and half-open lets a fixed number
of probes pass at once over all processes. A probe that never reports (its process died) makes room for another when its
time is over. What began before the breaker opened says nothing of the backend afterwards, and is not counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar
from uuid import uuid4

import structlog

from ..errors import CircuitOpenError, InvalidInputError, LibraryMismatchError, RefusedError, UnavailableError
from ..guard import Guard, Heard
from ..keys import BoardKeys
from ..store import Store

__all__ = ["BreakerState", "Breakers", "CircuitBreaker", "CircuitBreakerConfig"]

log = structlog.get_logger(__name__)
Given = ParamSpec("Given")
Answer = TypeVar("Answer")
NO_RATE = ("", "", "", 0, 0)
MAX_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """When a breaker opens, and how it closes again.

    Raises:
        InvalidInputError: a number that makes no sense.
    """

    failure_threshold: int = 5  #: failures in a row that open it
    recovery_timeout: float = 60.0  #: seconds that it stays open
    half_open_max_calls: int = 3  #: probes that it lets pass at once after that
    success_threshold: int = 1  #: probes that have to succeed before it closes
    probe_timeout: float = 30.0  #: seconds; a probe that has not reported by then makes room for another

    def __post_init__(self) -> None:
        for name in ("failure_threshold", "half_open_max_calls", "success_threshold"):
            if type(number := getattr(self, name)) is not int or number < 1:
                raise InvalidInputError(f"CircuitBreakerConfig.{name}", found=number, needed="a whole number from 1")
        for name in ("recovery_timeout", "probe_timeout"):
            if not 0.001 <= (seconds := getattr(self, name)) <= 30 * 86400:
                raise InvalidInputError(
                    f"CircuitBreakerConfig.{name}", found=seconds, needed="seconds, 0.001 to 30 days"
                )

    def guard(self, name: str) -> Guard:
        """The breaker of *name* with these rules, as calls carry it."""
        return Guard(
            name=name, failures=self.failure_threshold, recovery_s=self.recovery_timeout, probes=self.half_open_max_calls,
            probe_s=self.probe_timeout, successes=self.success_threshold,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerState:
    """How a breaker stands, for the whole fleet."""

    name: str
    state: Literal["closed", "open", "half_open"]
    failures: int = 0  #: in a row
    wait_s: float = 0.0  #: until it lets a probe pass; 0 if it does now
    probes: int = 0  #: under way

    @property
    def passes(self) -> bool:
        """Whether a call would pass now, as far as that can be told."""
        return self.state != "open" or self.wait_s == 0


class Breakers:
    """The breakers of one board's backends.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        config: of breakers that are asked for without one.
        on_change: told the name and ``opened`` or ``closed`` by the process whose call did it.
    """

    def __init__(
        self,
        store: Store,
        keys: BoardKeys,
        config: CircuitBreakerConfig | None = None,
        *,
        on_change: Callable[[str, str], Awaitable[None]] | None = None,
    ) -> None:
        self._store, self._keys, self._on_change = store, keys, on_change
        self.config = config or CircuitBreakerConfig()
        self._known: dict[str, CircuitBreaker] = {}

    def get(self, name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        """The breaker called *name*; with *config* it has these rules from now on, in this process.

        Raises:
            InvalidInputError: a name with blanks, or of more than 200 characters.
        """
        known = self._known.get(name)
        if known is None or (config is not None and known.config != config):
            if not name or len(name) > MAX_NAME or any(each.isspace() or each == "|" for each in name):
                raise InvalidInputError(
                    "breaker", found=name, needed=f"1 to {MAX_NAME} characters without blanks and |"
                )
            known = self._known[name] = CircuitBreaker(self, name, config or self.config)
        return known

    async def states(self) -> list[BreakerState]:
        """Every breaker that is not simply closed, by name."""
        rows, clock, ahead = await self._store.commands(
            ("HGETALL", self._keys.breakers), ("TIME",), ("HGET", self._keys.rules, "clock_offset_ms")
        )
        now_ms = int(clock[0]) * 1000 + int(clock[1]) // 1000 + int(ahead or 0)
        pairs = rows.items() if hasattr(rows, "items") else zip(rows[::2], rows[1::2], strict=True)
        return sorted((_read(name.decode(), text.decode(), now_ms) for name, text in pairs), key=lambda each: each.name)

    async def state(self, name: str) -> BreakerState:
        """How the breaker of *name* stands."""
        found = {each.name: each for each in await self.states()}
        return found.get(name, BreakerState(name=name, state="closed"))

    async def open(self, name: str, for_s: float = 60.0) -> None:
        """Open a breaker by hand."""
        self.get(name)
        await self._leave(name, "", "open", 1, round(for_s * 1000), 1)

    async def close(self, name: str) -> None:
        """Close a breaker by hand, its failures forgotten."""
        self.get(name)
        await self._leave(name, "", "close", 1, 0, 1)

    # -- for `CircuitBreaker`, and whoever reports in another way -------------------------------------------------------

    async def enter(self, guard: Guard, call_id: str) -> None:
        """Let a call pass, or raise `CircuitOpenError`."""
        keys = [self._keys.rules, self._keys.rates, self._keys.breakers]
        match await self._store.call("admit", keys, (call_id, *NO_RATE, *guard.entering())):
            case [b"yes", _]:
                return
            case [b"open", ms]:
                raise CircuitOpenError(guard.name, max(0.001, int(ms) / 1000))
            case answer:
                raise LibraryMismatchError("admit", answer)

    async def leave(self, guard: Guard, call_id: str, heard: Heard) -> str:
        """Say how a call ended. Returns what that did: counted, opened, closed or late."""
        name, *rest = guard.leaving(heard)
        word = await self._leave(name, call_id, *rest)
        await self.tell(name, word)
        return word

    async def tell(self, name: str, word: str) -> None:
        """Log a change of state and pass it on."""
        if word not in ("opened", "closed"):
            return
        log.warning(f"breaker {word}", breaker=name)
        if self._on_change is not None:
            await self._on_change(name, word)

    async def _leave(self, name: str, *args: Any) -> str:
        word = await self._store.call("leave_breaker", [self._keys.rules, self._keys.breakers], (name, *args))
        return str(word.decode())


class CircuitBreaker:
    """The breaker of one backend. Use `call`, or ``async with`` around one call.

    What a service says by a `RefusedError` is no failure: it answered. A call that is cancelled says nothing of it.
    """

    def __init__(self, breakers: Breakers, name: str, config: CircuitBreakerConfig) -> None:
        self.name, self.config = name, config
        self.guard = config.guard(name)
        self._breakers = breakers

    async def call(
        self, function: Callable[Given, Awaitable[Answer]], *args: Given.args, **kwargs: Given.kwargs
    ) -> Answer:
        """Await ``function(*args, **kwargs)``, if the breaker lets it pass.

        Raises:
            CircuitOpenError: the breaker is open; nothing was called.
        """
        async with Passage(self._breakers, self.guard):
            return await function(*args, **kwargs)

    def __call__(self) -> Passage:
        """``async with breaker():`` around one call."""
        return Passage(self._breakers, self.guard)

    async def state(self) -> BreakerState:
        """How it stands, for the whole fleet."""
        return await self._breakers.state(self.name)


class Passage:
    """One call through a breaker."""

    def __init__(self, breakers: Breakers, guard: Guard) -> None:
        self._breakers, self._guard, self._id = breakers, guard, uuid4().hex

    async def __aenter__(self) -> Self:
        await self._breakers.enter(self._guard, self._id)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await asyncio.shield(self._breakers.leave(self._guard, self._id, heard_of(error)))
        except UnavailableError as lost:  # of the store; a probe's time runs out by itself
            log.warning("a breaker was not told", breaker=self._guard.name, why=str(lost))


def heard_of(error: BaseException | None) -> Heard:
    """What the end of a call says of its backend."""
    if error is None or isinstance(error, RefusedError):
        return "ok"
    return "failed" if isinstance(error, Exception) else "unknown"


def _read(name: str, text: str, now_ms: int) -> BreakerState:
    state, failures, until_ms, _, *tickets = text.split()
    alive = [int(ticket.rpartition(":")[2]) for ticket in tickets if int(ticket.rpartition(":")[2]) > now_ms]
    known: Any = state
    return BreakerState(
        name=name, state=known, failures=int(failures), probes=len(alive),
        wait_s=max(0, int(until_ms) - now_ms) / 1000 if state == "open" else 0.0,
    )  # fmt: skip
