"""The ledger: reserve, mark sent, settle or release, over every scope and window at once.

::

    reserve → mark_sent → settle
            ↘ release            (it was never sent)

Whatever becomes of the caller, nothing is freed silently: what was not sent is released when its hold ends, what was sent is
settled at the estimate and corrected if the usage turns up. Repeating a call gives the first answer. What the tasks of one
process ask in the same moment travels in one call.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import orjson

from ..errors import BudgetExceededError, InvalidInputError, SwarmError, UnavailableError
from ..keys import BoardKeys
from ..store import Store
from ..store.batches import Batches
from .budgets import UNITS, WINDOWS, Account, Budget, Limits, Spender, Windows, as_pairs, check_scope, now_ms
from .money import NANO, shown

__all__ = ["Alert", "Entry", "Ledger", "Paused", "Reservation"]

OPEN_S = 15.0  # how long a reservation may wait to be sent
SENT_S = 180.0  # how long a sent call's holder is believed to live, unless the call says otherwise
KEEP_S = 3600.0  # how long a repeat is recognised
ANSWER_S = 7 * 86400.0  # how long a paid answer is kept for its item
MOST_PER_CALL = 100
ANSWERS = object()  # stands for the place of a key among those of a call
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


class Ledger:
    """The accounts of one board.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        zone: where calendar days and hours are counted.
    """

    def __init__(self, store: Store, keys: BoardKeys, zone: ZoneInfo) -> None:
        self._store, self._zone = store, zone
        self._board = keys
        self._keys = [
            keys.rules, keys.limits, keys.spend, keys.reservations, keys.reservations_due, keys.ledger, keys.gates,
        ]  # fmt: skip
        self._reserving = Batches("reservations", self._reserve, most=MOST_PER_CALL)
        self._stepping = Batches("settlements", self._take_steps, most=MOST_PER_CALL)
        self._ahead_ms = 0  # how far the board's clock is ahead of ours
        self._pruned = ""  # the hour in which counters were pruned last
        self._windows = Windows("", "", (0, 0, 0, 0))  # the last ones, for as long as they last

    def windows(self) -> Windows:
        """The hour and day of now, by the board's clock as far as it is known."""
        at_ms = now_ms() + self._ahead_ms
        begins_ms, ends_ms, *_ = self._windows.bounds
        if not begins_ms <= at_ms < ends_ms:
            self._windows = Windows.at(at_ms, self._zone)
        return self._windows

    # -- a call -----------------------------------------------------------------------------------------------------

    async def reserve(
        self,
        spender: Spender,
        usd: int,
        tokens: int,
        *,
        requests: int = 1,
        facts: Mapping[str, Any] | None = None,
        sent: bool = False,
        hold_s: float | None = None,
        pause: bool = True,
        id: str | None = None,
    ) -> Reservation:
        """Set money aside in every scope and window, or in none.

        Args:
            spender: whose call it is.
            usd: nano-dollars that it may cost at most.
            tokens: input and output that it may use at most.
            requests: calls.
            facts: for the ledger.
            sent: the call leaves at once; saves `mark_sent`, and its hold is never freed for nothing.
            hold_s: how long the caller is believed to live.
            pause: on a breach of a budget that pauses, stop the agent's claims until there is money.
            id: names the reservation; the same id reserves once.

        Raises:
            BudgetExceededError: some scope has less left. ``held`` tells how much of it may come back by itself.
            InvalidInputError: the spender has a name that no budget can have.
        """
        _check(spender)
        reservation = Reservation(id=id or uuid4().hex, spender=spender, usd=usd, tokens=tokens, requests=requests)
        hold_s = hold_s if hold_s is not None else (SENT_S if sent else OPEN_S)
        gate = f"agent:{spender.agent_id}" if pause and spender.agent_id else ""
        meta = orjson.dumps({**(facts or {}), **_who(spender)})
        head = (reservation.id, usd, tokens, requests, round(hold_s * 1000), "sent" if sent else "open", gate, meta)
        for _ in range(3):
            match await self._reserving.send((head, spender)):
                case [b"reserved" | b"again", *_]:
                    return reservation
                case [b"window", at_ms]:
                    self._ahead_ms = int(at_ms) - now_ms()
                case [b"exceeded", *rest]:
                    raise self._exceeded(*(each.decode() for each in rest))
        raise SwarmError(f"the clock of Redis at {self._store.shown} jumps; needed one that runs; check its NTP")

    async def _reserve(self, batch: Sequence[tuple[tuple[Any, ...], Spender]]) -> list[Any]:
        windows = self.windows()
        args: list[Any] = [*windows.bounds]
        for head, spender in batch:
            rows = spender.counters(windows)
            args += (*head, len(rows) // 2, *rows)
        return list(await self._store.call("reserve", self._keys, args))

    async def _step(self, name: str, *args: Any, answers: str = "") -> Any:
        return await self._stepping.send((name, args, answers))

    async def _take_steps(self, batch: Sequence[tuple[str, tuple[Any, ...], str]]) -> list[Any]:
        keys, args = list(self._keys), list[Any]()
        for name, facts, answers in batch:
            if answers and answers not in keys:
                keys.append(answers)
            at = keys.index(answers) + 1 if answers else ""
            args += (name, len(facts), *(at if fact is ANSWERS else fact for fact in facts))
        return list(await self._store.call("settle", keys, args))

    def _exceeded(
        self,
        scope: str,
        letter: str,
        unit: str,
        needed: str,
        settled: str,
        held: str,
        limit: str,
        breach: str,
        resumes: str,
    ) -> BudgetExceededError:
        scale = NANO if unit == "usd" else 1
        error = BudgetExceededError(
            scope,
            window=LONG[letter],
            unit=unit,
            needed=int(needed) / scale,
            left=max(0, int(limit) - int(settled) - int(held)) / scale,
            limit=int(limit) / scale,
            on_breach=breach,
            resumes_at_ms=int(resumes),
        )
        error.held = int(held) / scale if int(settled) + int(needed) <= int(limit) else 0.0
        return error

    async def mark_sent(self, reservation: Reservation, *, hold_s: float = SENT_S) -> None:
        """Say that the call is about to leave. Do so before the first byte.

        Raises:
            BudgetExceededError: the hold was freed meanwhile (we stood still for too long): reserve again.
        """
        match await self._step("sent", reservation.id, round(hold_s * 1000)):
            case [b"sent"]:
                return
            case _:
                raise BudgetExceededError(
                    f"reservation {reservation.id}", window="hold", needed=reservation.usd / NANO, on_breach="retry"
                )

    async def settle(
        self,
        reservation: Reservation,
        usd: int,
        tokens: int,
        *,
        requests: int = 1,
        facts: Mapping[str, Any] | None = None,
        item_id: str = "",
        step: str = "",
        answer: bytes = b"",
    ) -> list[Alert]:
        """Book what the call cost, once; with *step*, keep its answer for the item in the same breath.

        Money that was spent is always booked, also over a cap and after the hold was freed.

        Returns:
            The thresholds that this reached, each told to one caller only.
        """
        told = await self._step(
            "settled", reservation.id, usd, tokens, requests, round(KEEP_S * 1000), orjson.dumps(dict(facts or {})),
            ANSWERS if step else "", step, answer, round(ANSWER_S * 1000), orjson.dumps(_who(reservation.spender)),
            *reservation.spender.counters(self.windows()), answers=self._board.answers(item_id) if step else "",
        )  # fmt: skip
        flat = [each.decode() for each in told[1:]]
        return [_alert(flat[at : at + 4]) for at in range(0, len(flat), 4)]

    async def release(self, reservation: Reservation) -> bool:
        """Free what was held for a call that was not sent. False if it was sent, or is unknown."""
        answer = await self._step("released", reservation.id, round(KEEP_S * 1000))
        return bool(answer[0] == b"released")

    async def record(
        self, spender: Spender, usd: int, tokens: int, *, facts: Mapping[str, Any] | None = None, id: str | None = None
    ) -> list[Alert]:
        """Book a call that nothing was reserved for. It may go over a cap: the money is spent.

        Raises:
            InvalidInputError: the spender has a name that no budget can have.
        """
        _check(spender)
        reservation = Reservation(id=id or uuid4().hex, spender=spender, usd=0, tokens=0, requests=0)
        return await self.settle(reservation, usd, tokens, facts=facts)

    async def answer(self, item_id: str, step: str) -> bytes | None:
        """The answer that was paid for this step of this item, or None."""
        found: bytes | None = await self._store.command("HGET", self._board.answers(item_id), step)
        return found

    async def expire(self, most: int = 500) -> tuple[int, int]:
        """End what dead callers left behind. Returns how many holds were freed, and settled at the estimate."""
        freed, unknown, _ = await self._store.call("expire_reservations", self._keys, [most])
        return int(freed), int(unknown)

    async def sweep(self) -> None:
        """What has to be done now and then: `expire`, and once an hour `prune`."""
        await self.expire()
        hour = self.windows().hour
        if hour != self._pruned:
            await self.prune()
            self._pruned = hour

    # -- limits -----------------------------------------------------------------------------------------------------

    async def set_budget(self, budget: Budget) -> None:
        """Put a budget in place of the scope's old one. Agents that it lets go on do so within a second."""
        limits, old = budget.limits(), await self.limits()
        gone = [name for name in old if name.startswith(f"{budget.scope}/") and name not in limits]
        args = [part for name, limit in limits.items() for part in (name, "*", limit.pack())]
        await self._store.call("set_limits", self._keys, [*args, *(part for name in gone for part in (name, "*", ""))])

    async def declare(self, budget: Budget) -> None:
        """Put a budget in place that code or the settings declare: once, so that what was raised since stays raised."""
        limits = budget.limits()
        declared = ";".join(f"{name}={limit.pack()}" for name, limit in limits.items())
        mark = f"declared {budget.scope}"
        if (await self._store.command("HGET", self._board.limits, mark) or b"").decode() != declared:
            await self.set_budget(budget)
            await self._store.command("HSET", self._board.limits, mark, declared)

    async def change_limit(self, scope: str, window: str, unit: str, amount: int | None) -> Limits:
        """Change one limit of a scope and leave the others. Returns them all.

        Args:
            scope: or the name of a limit within one: ``agent:ID/task``, ``agent:ID/tier:NAME``.
            window: total, day or hour.
            unit: usd, tokens or requests.
            amount: nano-dollars, tokens or requests; None takes the limit away.

        Raises:
            InvalidInputError: there is no such scope, window or unit, or the amount is no whole number from 0 to 2**53 - 1.
        """
        check_scope(scope.partition("/")[0])
        if window not in WINDOWS:
            raise InvalidInputError("window", found=window, needed=", ".join(WINDOWS))
        if unit not in UNITS:
            raise InvalidInputError("unit", found=unit, needed=", ".join(UNITS))
        if amount is not None and (type(amount) is not int or not 0 <= amount < 2**53):
            raise InvalidInputError(f"the limit in {unit}", found=amount, needed="a whole number, 0 or more")
        for _ in range(20):
            found = (await self._store.command("HGET", self._board.limits, scope) or b"").decode()
            limits = (Limits.unpack(found) if found else Limits()).with_limit(window, unit, amount)
            answer = await self._store.call("set_limits", self._keys, [scope, found, limits.pack()])
            if answer[0] == b"set":
                return limits
        raise UnavailableError(f"the limits of {scope} are changed by others all the time; try again")

    async def limits(self) -> dict[str, Limits]:
        """Every limit, by name: a scope, or ``agent:ID/task``, ``agent:ID/tier:NAME``."""
        rows = await self._store.command("HGETALL", self._board.limits)
        found = {name.decode(): value.decode() for name, value in rows.items()}
        return {name: Limits.unpack(text) for name, text in found.items() if not name.startswith("declared ")}

    # -- reading ----------------------------------------------------------------------------------------------------

    async def accounts(self, scope: str, *, limit_name: str | None = None) -> dict[str, Account]:
        """How a scope stands: ``total``, ``day`` and ``hour`` of now."""
        windows = self.windows()
        fields = {"total": f"t|{scope}", "day": f"{windows.day}|{scope}", "hour": f"{windows.hour}|{scope}"}
        limit, counters = await self._store.commands(
            ("HGET", self._board.limits, limit_name or scope), ("HMGET", self._board.spend, *fields.values())
        )
        limits = Limits.unpack(limit.decode()) if limit else Limits()
        return {
            window: _account(window, text, limits.most.get((window, "usd")))
            for window, text in zip(fields, counters, strict=True)
        }

    async def paused(self) -> list[Paused]:
        """Who stands still for want of money, and what is needed."""
        gates = await self._store.command("HGETALL", self._board.gates)
        found = [Paused.read(who.decode(), gate.decode()) for who, gate in gates.items()]
        now = now_ms() + self._ahead_ms
        return [each for each in found if each is not None and not 0 < each.resumes_at_ms <= now]

    async def counters(self) -> dict[str, tuple[int, ...]]:
        """Every counter: ``window|scope`` → settled and held of dollars, tokens, requests, then the alert level."""
        return _counters(await self._store.command("HGETALL", self._board.spend))

    async def standing(self) -> tuple[dict[str, tuple[int, ...]], dict[str, Held], set[str], str]:
        """Everything at one moment: counters, reservations, those of them that have an end, the newest entry's id or ""."""
        spend, reservations, due, newest = await self._store.commands(
            ("HGETALL", self._board.spend), ("HGETALL", self._board.reservations),
            ("ZRANGE", self._board.reservations_due, 0, -1), ("XREVRANGE", self._board.ledger, "+", "-", "COUNT", 1),
        )  # fmt: skip
        return (
            _counters(spend), _reservations(reservations), {id.decode() for id in due},
            newest[0][0].decode() if newest else "",
        )  # fmt: skip

    async def entries(
        self, *, after: str = "-", count: int | None = None, newest: bool = False
    ) -> AsyncIterator[Entry]:
        """Lines of the ledger, oldest first (with *newest*, the other way round)."""
        left, edge = count, after
        while left is None or left > 0:
            page = 1000 if left is None else min(left, 1000)
            command = ("XREVRANGE", self._board.ledger, "+" if edge == "-" else edge, "-") if newest else (
                "XRANGE", self._board.ledger, edge, "+")  # fmt: skip
            rows = await self._store.command(*command, "COUNT", page)
            for name, fields in rows:
                yield read_entry(name, fields)
            if len(rows) < page:
                return
            left = None if left is None else left - len(rows)
            edge = "(" + rows[-1][0].decode()

    async def reservations(self) -> dict[str, Held]:
        """Each reservation that is remembered: state, dollars (nano), tokens, requests, counters."""
        return _reservations(await self._store.command("HGETALL", self._board.reservations))

    async def prune(self, *, hours_d: int = 8, days_d: int = 40) -> int:
        """Drop counters of hours and days that are long over; the ledger keeps what they were made of."""
        at_ms = now_ms() + self._ahead_ms
        hour = Windows.at(at_ms - hours_d * 86_400_000, self._zone).hour
        day = Windows.at(at_ms - days_d * 86_400_000, self._zone).day
        old = [
            field for field in await self.counters()
            if (field[0] == "h" and field.split("|")[0] < hour) or (field[0] == "d" and field.split("|")[0] < day)
        ]  # fmt: skip
        return int(await self._store.command("HDEL", self._board.spend, *old)) if old else 0


def _counters(rows: Any) -> dict[str, tuple[int, ...]]:
    pairs = as_pairs(rows) if not isinstance(rows, Mapping) else rows.items()
    return {field.decode(): tuple(int(each) for each in text.split(b",")) for field, text in pairs}


def _reservations(rows: Any) -> dict[str, Held]:
    found: dict[str, Held] = {}
    for name, text in as_pairs(rows) if not isinstance(rows, Mapping) else rows.items():
        state, usd, tokens, requests, *pairs = text.split(b"\n", 1)[0].decode().split(" ")
        found[name.decode()] = (state, int(usd), int(tokens), int(requests), tuple(pairs[::2]))
    return found


def read_entry(name: bytes, fields: Any) -> Entry:
    """One entry of the stream."""
    pairs = as_pairs(fields) if not isinstance(fields, Mapping) else fields.items()
    row = {key.decode(): value for key, value in pairs}
    flat = row["alerts"].decode().split()
    return Entry(
        id=name.decode(), reservation=row["id"].decode(), kind=row["kind"].decode(), at_ms=int(row["at"]),
        usd=int(row["usd"]), tokens=int(row["tokens"]), requests=int(row["requests"]), reserved=int(row["reserved"]),
        fields=tuple(row["rows"].decode().split()[::2]),
        facts=(orjson.loads(row["meta"]) if row["meta"] else {}) | (orjson.loads(row["more"]) if row["more"] else {}),
        alerts=tuple(_alert(flat[at : at + 4]) for at in range(0, len(flat), 4)),
    )  # fmt: skip


def _alert(parts: list[str]) -> Alert:
    window, _, scope = parts[0].partition("|")
    return Alert(
        scope=scope, window=LONG[window[0]], threshold=float(parts[1]), spent=int(parts[2]), limit=int(parts[3])
    )


def _account(window: str, text: bytes | None, limit: int | None) -> Account:
    usd, held, tokens, _, requests, *_ = [int(each) for each in text.split(b",")] if text else [0] * 7
    return Account(window=window, settled=usd, held=held, tokens=tokens, requests=requests, limit=limit)


def _check(spender: Spender) -> None:
    """Refuse names that no budget can have: they would not come apart again in counters and in the ledger."""
    named = {"agent": spender.agent_id, "role": spender.role, "task": spender.task_id, "tier": spender.tier}
    for kind, name in [*named.items(), *(("tag", tag) for tag in spender.tags)]:
        if name or kind == "tag":
            check_scope(f"{kind}:{name}")


def _who(spender: Spender) -> dict[str, Any]:
    return {
        "agent_id": spender.agent_id, "role": spender.role, "task_id": spender.task_id, "tier": spender.tier,
        "tags": list(spender.tags),
    }  # fmt: skip
