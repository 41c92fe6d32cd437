"""Accounts in plain Python: what the ledger ought to answer and to hold after each call.

Written from the design and the docstrings, never from the Lua, so that the two can disagree. Dicts, and a clock that
only `MoneyModel.advance` moves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

WINDOWS = ("total", "day", "hour")
UNITS = ("usd", "tokens", "requests")
THRESHOLDS = ("0.5", "0.8", "0.95", "1")
SETTLED_KEPT_MS = 3_600_000  # a repeat is recognised for an hour
ENDED_KEPT_MS = 86_400_000  # usage that turns up within a day corrects what was booked at the estimate

Amounts = tuple[int, int, int]  # nano-dollars, tokens, requests
Counter = tuple[str, str]  # window by its name, scope: ("d2026-03-01", "agent:ada")
Row = tuple[Counter, str]  # a counter, and the name of the limit that holds for it


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom a call is made for."""

    agent: str = ""
    role: str = ""
    task: str = ""
    tier: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Breach:
    """Why nothing was reserved."""

    scope: str
    window: str
    unit: str
    needed: int
    left: int
    limit: int
    breach: str
    resumes_ms: int  # 0: never by itself
    held: int  # what may come back by itself, if that would be enough


@dataclass(kw_only=True)
class Held:
    """A reservation that is remembered."""

    state: str  # open, sent, settled, released, unknown
    amounts: Amounts
    rows: list[Row]
    due_ms: int  # when its holder is given up, or when it is forgotten


@dataclass(kw_only=True)
class Limit:
    """What holds for one name."""

    most: dict[tuple[str, str], int] = field(default_factory=dict)  # window, unit
    breach: str = "pause"


@dataclass(kw_only=True)
class Account:
    """One counter."""

    settled: list[int] = field(default_factory=lambda: [0, 0, 0])
    held: list[int] = field(default_factory=lambda: [0, 0, 0])
    told: int = 0  # how many thresholds its owners know of

    def would_be(self, unit: int, amount: int) -> int:
        return self.settled[unit] + self.held[unit] + amount


@dataclass(frozen=True)
class Gate:
    """An agent or a role stands still. *row* is None if a person stopped it."""

    row: Row | None = None
    unit: int = 0
    needed: int = 0
    resumes_ms: int = 0


class MoneyModel:
    """The accounts of one board.

    Args:
        base_ms: the board's clock (milliseconds since 1970) when the model's shows 0.
    """

    def __init__(self, base_ms: int) -> None:
        self.base_ms, self.now_ms = base_ms, 0
        self.accounts: dict[Counter, Account] = defaultdict(Account)
        self.reservations: dict[str, Held] = {}
        self.limits: dict[str, Limit] = {}
        self.gates: dict[str, Gate] = {}
        self.answers: dict[tuple[str, str], bytes] = {}
        self.entries: list[tuple[str, str, Amounts]] = []

    # -- time and windows ---------------------------------------------------------------------------------------------

    def advance(self, ms: int) -> None:
        self.now_ms += ms
        while any(each.due_ms == self.now_ms for each in self.reservations.values()):
            self.now_ms += 1000  # whether that is just over or not is decided by milliseconds that really pass

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp((self.base_ms + self.now_ms) / 1000, UTC)

    def windows(self) -> dict[str, str]:
        return {"total": "t", "day": f"{self.moment:d%Y-%m-%d}", "hour": f"{self.moment:h%Y-%m-%dT%H}+0000"}

    def _ends_ms(self, window: str) -> int:
        if window == "total":
            return 0
        hour = self.moment.replace(minute=0, second=0, microsecond=0)
        end = hour + timedelta(hours=1) if window == "hour" else hour.replace(hour=0) + timedelta(days=1)
        return round(end.timestamp() * 1000)

    def rows(self, who: Who, names: Mapping[str, str] | None = None) -> list[Row]:
        """Every counter that a call falls under, in the order in which they are asked; *names* are the windows'."""
        names = names or self.windows()
        found: list[Row] = []

        def add(scope: str, windows: Iterable[str], limit: str = "") -> None:
            found.extend(((names[window], scope), limit or scope) for window in windows)

        add("swarm", WINDOWS)
        for kind, name in (("tier", who.tier), ("role", who.role), *(("tag", tag) for tag in who.tags)):
            if name:
                add(f"{kind}:{name}", WINDOWS)
        if who.task:
            add(f"task:{who.task}", ["total"])
        if who.agent:
            agent = f"agent:{who.agent}"
            add(agent, WINDOWS)
            if who.tier:
                add(f"{agent}/tier:{who.tier}", ["day"])
            if who.task:
                add(f"{agent}/task:{who.task}", ["total"], f"{agent}/task")
        return found

    # -- a call -------------------------------------------------------------------------------------------------------

    def reserve(self, id: str, who: Who, amounts: Amounts, *, sent: bool, hold_ms: int, pause: bool) -> Breach | None:
        """All of it is held in every scope and window, or nothing in any."""
        self.expire()
        if id in self.reservations:
            return None
        rows = self.rows(who)
        for row in rows:
            for unit in range(3):
                if breach := self._breach(row, unit, amounts[unit]):
                    if pause and who.agent and breach.breach == "pause":
                        stopped = breach.scope if breach.scope.startswith("role:") else f"agent:{who.agent}"
                        if stopped not in self.gates or self._opens(self.gates[stopped]):
                            self.gates[stopped] = Gate(row, unit, amounts[unit], breach.resumes_ms)
                    return breach
        for counter, _ in rows:
            for unit in range(3):
                self.accounts[counter].held[unit] += amounts[unit]
        state = "sent" if sent else "open"
        self.reservations[id] = Held(state=state, amounts=amounts, rows=rows, due_ms=self.now_ms + hold_ms)
        return None

    def _limit(self, row: Row, unit: int) -> int | None:
        (window, _), name = row
        long = next(each for each in WINDOWS if each[0] == window[0])
        limit = self.limits.get(name)
        return limit.most.get((long, UNITS[unit])) if limit else None

    def _breach(self, row: Row, unit: int, amount: int) -> Breach | None:
        (window, scope), name = row
        most, account = self._limit(row, unit), self.accounts[row[0]]
        if most is None or account.would_be(unit, amount) <= most:
            return None
        long = next(each for each in WINDOWS if each[0] == window[0])
        held = account.held[unit] if account.settled[unit] + amount <= most else 0
        left = max(0, most - account.would_be(unit, 0))
        return Breach(scope, long, UNITS[unit], amount, left, most, self.limits[name].breach, self._ends_ms(long), held)

    def mark_sent(self, id: str, hold_ms: int) -> bool:
        """False: it has ended, or nobody knows it; don't send."""
        held = self.reservations.get(id)
        if held is None or held.state not in ("open", "sent"):
            return False
        held.state, held.due_ms = "sent", self.now_ms + hold_ms
        return True

    def settle(
        self, id: str, amounts: Amounts, rows: list[Row], *, item: str = "", step: str = "", answer: bytes = b""
    ) -> list[tuple[str, str, str]]:
        """Booked once, whatever became of the hold; *rows* are for what nothing was reserved for. Gives the alerts."""
        held = self.reservations.get(id)
        if held and held.state == "settled":
            return []
        rows = held.rows if held else rows
        kind, booked = "settled", amounts
        if held and held.state == "unknown":
            kind, booked = "corrected", _minus(amounts, held.amounts)
        elif held and held.state in ("open", "sent"):
            self._free(held)
        self._book(id, kind, booked, rows)
        told = self._tell(rows)
        if step:
            self.answers.setdefault((item, step), answer)
        self.reservations[id] = Held(state="settled", amounts=amounts, rows=[], due_ms=self.now_ms + SETTLED_KEPT_MS)
        return told

    def _book(self, id: str, kind: str, amounts: Amounts, rows: list[Row]) -> None:
        self.entries.append((id, kind, amounts))
        for counter, _ in rows:
            for unit in range(3):
                self.accounts[counter].settled[unit] += amounts[unit]

    def _free(self, held: Held) -> None:
        for counter, _ in held.rows:
            for unit in range(3):
                self.accounts[counter].held[unit] -= held.amounts[unit]

    def _tell(self, rows: list[Row]) -> list[tuple[str, str, str]]:
        """Scope, window and the highest threshold of each account that nobody was told of in this window."""
        told = []
        for row in rows:
            most, account = self._limit(row, 0), self.accounts[row[0]]
            if not most:
                continue
            reached = [each for each in THRESHOLDS if account.settled[0] >= most * Fraction(each)]
            if len(reached) > account.told:
                account.told = len(reached)
                long = next(each for each in WINDOWS if each[0] == row[0][0][0])
                told.append((row[0][1], long, reached[-1]))
        return told

    def release(self, id: str) -> bool:
        """Freed, if it was not sent."""
        held = self.reservations.get(id)
        if held is None or held.state not in ("open", "released"):
            return False
        if held.state == "open":
            self._free(held)
            held.state, held.due_ms = "released", self.now_ms + SETTLED_KEPT_MS
        return True

    def expire(self) -> tuple[int, int]:
        """What holders left behind: freed if it was not sent, else booked at the estimate; what ended is forgotten."""
        freed = unknown = 0
        for id, held in sorted(self.reservations.items(), key=lambda each: each[1].due_ms):
            if held.due_ms > self.now_ms:
                continue
            if held.state not in ("open", "sent"):
                del self.reservations[id]
                continue
            self._free(held)
            if held.state == "sent":
                self._book(id, "unknown", held.amounts, held.rows)
                unknown += 1
            freed += held.state == "open"
            held.state, held.due_ms = "unknown" if held.state == "sent" else "released", self.now_ms + ENDED_KEPT_MS
        return freed, unknown

    def due(self) -> int:
        return sum(each.due_ms <= self.now_ms for each in self.reservations.values())

    # -- limits and gates ---------------------------------------------------------------------------------------------

    def change_limit(self, name: str, window: str, unit: str, amount: int | None) -> dict[tuple[str, str], int]:
        limit = self.limits.setdefault(name, Limit())
        limit.most.pop((window, unit), None)
        if amount is not None:
            limit.most[window, unit] = amount
        return limit.most

    def set_budget(self, scope: str, limits: dict[str, Limit]) -> None:
        """In place of the old ones, those of the scope's parts among them."""
        self.limits = {name: each for name, each in self.limits.items() if not name.startswith(f"{scope}/")} | limits

    def pause(self, who: str) -> None:
        self.gates[who] = Gate()

    def resume(self, who: str) -> bool:
        return self.gates.pop(who, None) is not None

    def open_gates(self) -> None:
        """After each call: who stood still for want of money goes on if what it needs is there, or a new window began."""
        self.gates = {who: gate for who, gate in self.gates.items() if not self._opens(gate)}

    def _opens(self, gate: Gate) -> bool:
        if gate.row is None:
            return False
        most = self._limit(gate.row, gate.unit)
        over = 0 < gate.resumes_ms <= self.base_ms + self.now_ms
        return over or most is None or self.accounts[gate.row[0]].would_be(gate.unit, gate.needed) <= most

    def stands_still(self, agent: str, role: str) -> bool:
        return not self.gates.keys().isdisjoint({"*", f"role:{role}", f"agent:{agent}"})

    # -- what can be seen ---------------------------------------------------------------------------------------------

    def counters(self) -> dict[str, list[int]]:
        """``window|scope`` → settled and held of dollars, tokens, requests."""
        return {
            f"{window}|{scope}": [part for unit in range(3) for part in (each.settled[unit], each.held[unit])]
            for (window, scope), each in self.accounts.items()
            if each != Account()
        }

    def remembered(self) -> dict[str, tuple[Any, ...]]:
        return {id: (each.state, *each.amounts) for id, each in self.reservations.items()}


def _minus(one: Amounts, other: Amounts) -> Amounts:
    return one[0] - other[0], one[1] - other[1], one[2] - other[2]
