"""What the ledger keeps and tells: reservations, alerts, gates shut for want of money, entries, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from .budgets import WINDOWS, Account, Spender, as_pairs
from .money import shown

__all__ = [
    "LONG", "Alert", "Books", "Entry", "Held", "Open", "Paused", "Recorded", "Reservation", "Standing", "Wait",
    "read_account", "read_alerts", "read_counters", "read_entry", "read_reservations", "read_sums",
]  # fmt: skip

LONG = {letter: window for window, letter in WINDOWS.items()}
GATE = re.compile(r"budget\|[^|]+\|[tdh]\|(usd|tokens|requests)(\|-?\d+){4}\|[^|]+\|[^|]+\|[^|]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Money set aside for one call."""

    id: str
    spender: Spender
    usd: int  #: nano-dollars
    tokens: int
    requests: int = 1
    probe: bool = False  #: it tries out whether a backend works again


@dataclass(frozen=True, slots=True)
class Recorded:
    """The call was paid for before; nothing is held for it."""

    answer: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """There is the money, but under its rate limit it is not the call's turn; nothing is held, and nothing counted."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    """The breaker of the backend is open; nothing is held."""

    seconds: float  #: until it may be tried again


Held = tuple[str, int, int, int, tuple[str, ...]]  # a reservation's state, dollars (nano), tokens, requests, counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A scope's spending has reached a threshold. Told once per threshold and window."""

    scope: str
    window: str  #: total, day or hour
    threshold: float  #: 0.8
    spent: int  #: nano-dollars
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused:
    """An agent, or all of a role, that stands still for want of money."""

    who: str  #: ``agent:ID`` or ``role:NAME``
    scope: str  #: whose budget has too little left
    window: str  #: total, day or hour
    unit: str  #: usd, tokens or requests
    needed: int  #: nano-dollars, tokens or requests
    left: int
    limit: int
    resumes_at_ms: int  #: when a new window begins, 0 if never

    @classmethod
    def read(cls, who: str, gate: str) -> Paused | None:
        """What a gate says; None if it was not shut by a budget."""
        if not GATE.fullmatch(gate):
            return None
        _, scope, letter, unit, needed, left, limit, resumes, *_ = gate.split("|")
        return cls(
            who=who, scope=scope, window=LONG[letter], unit=unit, needed=int(needed), left=int(left), limit=int(limit),
            resumes_at_ms=int(resumes),
        )  # fmt: skip

    def __str__(self) -> str:
        def amount(number: int) -> str:
            return shown(number) if self.unit == "usd" else f"{number} {self.unit}"

        window = "" if self.window == "total" else f" per {self.window}"
        option = {"usd": self.window, "tokens": "tokens", "requests": "requests"}[self.unit]
        return (
            f"{self.who} needs {amount(self.needed)}, the budget of {self.scope} has {amount(max(self.left, 0))} of "
            f"{amount(self.limit)}{window} left; raise it: swarm budget raise {self.scope} --{option} AMOUNT"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a scope stands now."""

    accounts: dict[str, Account]  #: by ``total``, ``day`` and ``hour``
    tiers: dict[str, int]  #: nano-dollars of today, by tier
    alerted: bool  #: a threshold of today was reached
    gate: str  #: why it stands still, or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """All accounts at one moment."""

    #: ``window|scope`` → settled and held of dollars, tokens, requests; alert level
    counters: Mapping[str, tuple[int, ...]]
    #: ``window|scope`` → dollars (nano), tokens, requests of lines that were trimmed
    base: Mapping[str, tuple[int, ...]]
    reservations: Mapping[str, Held]
    ending: set[str]  #: reservations that have an end
    newest: str  #: id of the newest line of the ledger, or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the ledger."""

    id: str  #: of the entry
    reservation: str
    kind: str  #: settled, unknown (nobody settled: booked at the estimate), corrected
    at_ms: int
    usd: int  #: nano-dollars; of a correction the difference
    tokens: int
    requests: int
    reserved: int
    fields: tuple[str, ...]  #: the counters it was booked in
    facts: Mapping[str, Any]  #: agent_id, task_id, task_type, model, tier, …
    alerts: tuple[Alert, ...]


def read_counters(rows: Any) -> dict[str, tuple[int, ...]]:
    """``window|scope`` → settled and held of dollars (nano), tokens, requests, then the alert level."""
    pairs = as_pairs(rows) if not isinstance(rows, Mapping) else rows.items()
    return {field.decode(): tuple(int(each) for each in text.split(b",")) for field, text in pairs}


def read_sums(rows: Any) -> dict[str, tuple[int, ...]]:
    """``window|scope`` → dollars (nano), tokens, requests of the base."""
    pairs = as_pairs(rows) if not isinstance(rows, Mapping) else rows.items()
    return {field.decode(): tuple(int(each) for each in text.split(b",")[:3]) for field, text in pairs if field}


def read_reservations(rows: Any) -> dict[str, Held]:
    """Reservations by id."""
    found: dict[str, Held] = {}
    for name, text in as_pairs(rows) if not isinstance(rows, Mapping) else rows.items():
        state, usd, tokens, requests, *pairs = text.split(b"\n", 1)[0].decode().split(" ")
        found[name.decode()] = (state, int(usd), int(tokens), int(requests), tuple(pairs[::2]))
    return found


def read_entry(name: bytes, fields: Any) -> Entry:
    """One entry of the stream."""
    pairs = as_pairs(fields) if not isinstance(fields, Mapping) else fields.items()
    row = {key.decode(): value for key, value in pairs}
    return Entry(
        id=name.decode(), reservation=row["id"].decode(), kind=row["kind"].decode(), at_ms=int(row["at"]),
        usd=int(row["usd"]), tokens=int(row["tokens"]), requests=int(row["requests"]), reserved=int(row["reserved"]),
        fields=tuple(row["rows"].decode().split()[::2]),
        facts=(orjson.loads(row["meta"]) if row["meta"] else {}) | (orjson.loads(row["more"]) if row["more"] else {}),
        alerts=tuple(read_alerts(row["alerts"].decode().split())),
    )  # fmt: skip


def read_alerts(flat: Sequence[str]) -> list[Alert]:
    """Alerts, four words each, as the Lua tells them."""
    return [_alert(flat[at : at + 4]) for at in range(0, len(flat), 4)]


def _alert(parts: Sequence[str]) -> Alert:
    window, _, scope = parts[0].partition("|")
    return Alert(
        scope=scope, window=LONG[window[0]], threshold=float(parts[1]), spent=int(parts[2]), limit=int(parts[3])
    )


def read_account(window: str, row: tuple[int, ...] | None, limit: int | None) -> Account:
    """How a scope stands in a window."""
    usd, held, tokens, _, requests, *_ = row or (0,) * 7
    return Account(window=window, settled=usd, held=held, tokens=tokens, requests=requests, limit=limit)
