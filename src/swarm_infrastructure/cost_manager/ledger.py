"""The ledger: reserve, mark sent, settle or release, over every scope and window at once.

::

    reserve → mark_sent → settle
            ↘ release            (it was never sent)

Whatever becomes of the caller, nothing is freed silently: what was not sent is released when its hold ends, what was sent is
settled at the estimate and corrected if the usage turns up. Repeating a call gives the first answer. What the tasks of one
process ask in the same moment travels in one call.

The oldest lines go (`LedgerBound`); what they booked stays in the *base*, counter by counter, so that a counter is what the
base and the lines that are left say. Counters of tasks go once nothing refers to them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import orjson
import structlog

from ..blackboard.events import Trimmed
from ..blackboard.items import ANSWER_S
from ..blackboard.retention import pages_per_round
from ..errors import BudgetExceededError, InvalidInputError, ReplayError, SwarmError, UnavailableError
from ..guard import NO_GUARD, Guard, Heard
from ..keys import BoardKeys
from ..store import Store
from ..store.batches import Batches
from .budgets import UNITS, WINDOWS, Account, Budget, Limits, Spender, Windows, check_scope, now_ms
from .limiter import Pace
from .money import NANO
from .records import (
    LONG,
    Alert,
    Books,
    Entry,
    Held,
    Open,
    Paused,
    Recorded,
    Reservation,
    Standing,
    Wait,
    read_account,
    read_alerts,
    read_counters,
    read_entry,
    read_reservations,
    read_sums,
)

__all__ = ["Ledger", "LedgerBound"]

log = structlog.get_logger(__name__)

OPEN_S = 15.0  # how long a reservation may wait to be sent
SENT_S = 180.0  # how long a sent call's holder is believed to live, unless the call says otherwise
KEEP_S = 3600.0  # how long a repeat is recognised
MOST_PER_CALL = 100
NO_PACE = ("", "", "", 0, 0)
DAY_S = 86400
HOURS_KEPT_D = 8  # counters of hours, in days: a week and a day to look back on
LINES_PER_TRIM = 100  # of some 20 counters each: a call of 3 ms
TRIMS_PER_ROUND = 200
COUNTERS_PER_PAGE = 500
PAGES_PER_ROUND = 10  # at least; the next round goes on where this one ended
ANSWERS = object()  # stands for the place of a key among those of a call


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerBound:
    """How much of a ledger is kept."""

    days: int = 40  #: older lines go: a month to report on, and some
    lines: int = 500_000  #: at most, however young; 0: any number. 250 to 400 MB


class Ledger:
    """The accounts of one board.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        zone: where calendar days and hours are counted.
        bound: how much of it is kept.
    """

    def __init__(self, store: Store, keys: BoardKeys, zone: ZoneInfo, bound: LedgerBound | None = None) -> None:
        self._store, self._zone, self.bound = store, zone, bound or LedgerBound()
        self._board = keys
        self._keys = [
            keys.rules, keys.limits, keys.spend, keys.reservations, keys.reservations_due, keys.ledger, keys.gates,
            keys.rates, keys.breakers, keys.payloads,
        ]  # fmt: skip
        self._reserving = Batches("reservations", self._reserve_all, most=MOST_PER_CALL)
        self._stepping = Batches("settlements", self._take_steps, most=MOST_PER_CALL)
        self._ahead_ms = 0  # how far the board's clock is ahead of ours
        self._pruned_to = "0"  # where pruning goes on
        self._said_short = False
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
        found = await self.begin(
            spender, usd, tokens, requests=requests, facts=facts, sent=sent, hold_s=hold_s, pause=pause, id=id
        )
        assert isinstance(found, Reservation)  # what else `begin` may find was not asked for
        return found

    async def begin(
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
        item_id: str = "",
        step: str = "",
        pace: Pace | None = None,
        guard: Guard | None = None,
    ) -> Reservation | Recorded | Wait | Open:
        """All that comes before a call, in one call: is it paid for already, is there the money, is it its turn?

        Args:
            item_id: whose *step* may have an answer on record.
            step: of the item.
            pace: the rate limit that the call falls under.
            guard: the breaker that it stands behind. Say how it ended: `report`.

        The other arguments are those of `reserve`; so are the errors.

        Returns:
            The reservation; or the recorded answer, or how long to wait: then nothing is held.

        Raises:
            ReplayError: the item is a replay, and the step is not on record.
        """
        _check(spender)
        reservation = Reservation(id=id or uuid4().hex, spender=spender, usd=usd, tokens=tokens, requests=requests)
        hold_s = hold_s if hold_s is not None else (SENT_S if sent else OPEN_S)
        gate = f"agent:{spender.agent_id}" if pause and spender.agent_id else ""
        meta = orjson.dumps({**(facts or {}), **_who(spender)})
        state = "sent" if sent else "open"
        head = (
            reservation.id, usd, tokens, requests, round(hold_s * 1000), state, gate, meta, ANSWERS if step else "", step,
            *(pace.args() if pace else NO_PACE), *(guard.entering() if guard else NO_GUARD),
        )  # fmt: skip
        match await self._reserve(head, spender, self._board.answers(item_id) if step else ""):
            case [b"answered", answer]:
                return Recorded(answer)
            case [b"wait", ms]:
                return Wait(max(0.001, int(ms) / 1000))
            case [b"open", ms]:
                return Open(max(0.001, int(ms) / 1000))
            case [b"unrecorded"]:
                raise ReplayError(item_id, step)
            case [b"reserved", b"probe"]:
                return replace(reservation, probe=True)
            case _:
                return reservation

    async def would_exceed(self, spender: Spender, usd: int, tokens: int = 0) -> BudgetExceededError | None:
        """Why a call of so much would be refused now, or None. Holds nothing, so it promises nothing.

        Raises:
            InvalidInputError: the spender has a name that no budget can have.
        """
        _check(spender)
        head = (uuid4().hex, usd, tokens, 1, 0, "probe", "", b"", "", "", *NO_PACE, *NO_GUARD)
        try:
            await self._reserve(head, spender, "")
        except BudgetExceededError as error:
            return error
        return None

    async def _reserve(self, head: tuple[Any, ...], spender: Spender, answers: str) -> Any:
        for _ in range(3):
            match await self._reserving.send((head, spender, answers)):
                case [b"window", at_ms]:
                    self._ahead_ms = int(at_ms) - now_ms()
                case [b"exceeded", *rest]:
                    raise self._exceeded(*(each.decode() for each in rest))
                case answer:
                    return answer
        raise SwarmError(f"the clock of Redis at {self._store.shown} jumps; needed one that runs; check its NTP")

    async def _reserve_all(self, batch: Sequence[tuple[tuple[Any, ...], Spender, str]]) -> list[Any]:
        windows, keys = self.windows(), _KeysWithAnswers(self._keys)
        args: list[Any] = [*windows.bounds]
        for head, spender, answers in batch:
            rows = spender.counters(windows)
            args += (*keys.placed(head, answers), len(rows) // 2, *rows)
        return list(await self._store.call("reserve", keys.names, args))

    async def _step(self, name: str, *args: Any, answers: str = "") -> Any:
        return await self._stepping.send((name, args, answers))

    async def _take_steps(self, batch: Sequence[tuple[str, tuple[Any, ...], str]]) -> list[Any]:
        keys, args = _KeysWithAnswers(self._keys), list[Any]()
        for name, facts, answers in batch:
            args += (name, len(facts), *keys.placed(facts, answers))
        return list(await self._store.call("settle", keys.names, args))

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

    async def mark_sent(self, reservation: Reservation, *, hold_s: float = SENT_S) -> bool:
        """Say that the call is about to leave. Do so before the first byte.

        Returns:
            False if the hold was freed meanwhile (we stood still for too long): don't send, reserve again.
        """
        answer = await self._step("sent", reservation.id, round(hold_s * 1000))
        return bool(answer[0] == b"sent")

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
        stage: str = "",
        token: int = 0,
    ) -> list[Alert]:
        """Book what the call cost, once; with *step*, keep its answer for the item in the same breath.

        Money that was spent is always booked, also over a cap and after the hold was freed.

        Args:
            stage: the lane that the item was claimed from, if its holder made the call; *token*: of that claim.

        Returns:
            The thresholds that this reached, each told to one caller only.
        """
        told = await self._step(
            "settled", reservation.id, usd, tokens, requests, round(KEEP_S * 1000), orjson.dumps(dict(facts or {})),
            ANSWERS if step else "", step, answer, round(ANSWER_S * 1000), orjson.dumps(_who(reservation.spender)),
            item_id, stage, token,
            *reservation.spender.counters(self.windows()), answers=self._board.answers(item_id) if step else "",
        )  # fmt: skip
        return read_alerts([each.decode() for each in told[1:]])

    async def report(self, guard: Guard, reservation: Reservation, heard: Heard) -> str:
        """Say how a call ended that stood behind a breaker; said with `settle` in the same moment, it costs no call.

        Returns:
            What that did: counted, opened, closed or late.
        """
        name, *rest = guard.leaving(heard)
        answer = await self._step("reported", reservation.id, name, *rest)
        return str(answer[0].decode())

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

    async def expire(self, most: int = 500) -> tuple[int, int]:
        """End what dead callers left behind. Returns how many holds were freed, and settled at the estimate."""
        freed, unknown, _ = await self._store.call("expire_reservations", self._keys, [most])
        return int(freed), int(unknown)

    async def sweep(self) -> None:
        """What one process in a while has to do: `trim`, and some pages of `prune`."""
        await self.trim()
        size = int(await self._store.command("HLEN", self._board.spend))
        for _ in range(pages_per_round(size, COUNTERS_PER_PAGE, PAGES_PER_ROUND)):
            self._pruned_to, _ = await self._prune_page(self._pruned_to)
            if self._pruned_to == "0":
                break

    async def trim(self) -> int:
        """Trim the ledger to its bound. Returns how many lines went."""
        keys, went = self._board, 0
        for _ in range(TRIMS_PER_ROUND):
            lines, more, last = await self._store.call(
                "trim_ledger", [keys.rules, keys.ledger, keys.spend, keys.events, keys.ledger_base],
                [self._kept_ms, self.bound.lines, LINES_PER_TRIM],
            )  # fmt: skip
            went += int(lines)
            if last and not self._said_short and int(last.split(b"-")[0]) > now_ms() + self._ahead_ms - self._kept_ms:
                self._said_short = True
                log.warning(
                    "the ledger holds as many lines as it may, and less than it is to keep; raise SWARM_LEDGER_KEEP",
                    lines=self.bound.lines, days=self.bound.days,
                )  # fmt: skip
            if more != b"1":
                break
        return went

    @property
    def _kept_ms(self) -> int:
        return self.bound.days * DAY_S * 1000

    async def trimmed(self) -> Trimmed | None:
        """How far the ledger was trimmed; None if it is whole."""
        text = await self._store.command("HGET", self._board.ledger_base, "")
        if text is None:
            return None
        last, lines = text.decode().split(" ")
        return Trimmed(last=last, entries=int(lines))

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
        if (await self._store.command("HGET", self._board.declared, budget.scope) or b"").decode() != declared:
            await self.set_budget(budget)
            await self._store.command("HSET", self._board.declared, budget.scope, declared)

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
        return {name.decode(): Limits.unpack(value.decode()) for name, value in rows.items()}

    # -- reading ----------------------------------------------------------------------------------------------------

    async def accounts(self, scope: str) -> dict[str, Account]:
        """How a scope stands: ``total``, ``day`` and ``hour`` of now."""
        return (await self.status(scope)).accounts

    async def status(self, scope: str, *, tiers: Sequence[str] = ()) -> Standing:
        """How a scope stands, what it spent today in each of *tiers*, and who stands still for it; in one round trip."""
        windows = self.windows()
        fields = {"total": f"t|{scope}", "day": f"{windows.day}|{scope}", "hour": f"{windows.hour}|{scope}"}
        prefix = f"{scope}/tier:" if scope.startswith("agent:") else "tier:"
        by_tier = [f"{windows.day}|{prefix}{tier}" for tier in tiers]
        limit, counters, gate = await self._store.commands(
            ("HGET", self._board.limits, scope), ("HMGET", self._board.spend, *fields.values(), *by_tier),
            ("HGET", self._board.gates, scope),
        )  # fmt: skip
        limits = Limits.unpack(limit.decode()) if limit else Limits()
        rows = read_counters(
            {field.encode(): text for field, text in zip([*fields.values(), *by_tier], counters, strict=True) if text}
        )
        return Standing(
            accounts={
                window: read_account(window, rows.get(field), limits.most.get((window, "usd")))
                for window, field in fields.items()
            },
            tiers={tier: rows[field][0] for tier, field in zip(tiers, by_tier, strict=True) if field in rows},
            alerted=rows.get(fields["day"], (0,) * 7)[6] > 0,
            gate=gate.decode() if gate else "",
        )

    async def paused(self) -> list[Paused]:
        """Who stands still for want of money, and what is needed."""
        gates = await self._store.command("HGETALL", self._board.gates)
        found = [Paused.read(who.decode(), gate.decode()) for who, gate in gates.items()]
        now = now_ms() + self._ahead_ms
        return [each for each in found if each is not None and not 0 < each.resumes_at_ms <= now]

    async def counters(self) -> dict[str, tuple[int, ...]]:
        """Every counter: ``window|scope`` → settled and held of dollars, tokens, requests, then the alert level."""
        return read_counters(await self._store.command("HGETALL", self._board.spend))

    async def standing(self) -> Books:
        """Everything at one moment."""
        spend, base, reservations, due, newest = await self._store.commands(
            ("HGETALL", self._board.spend), ("HGETALL", self._board.ledger_base), ("HGETALL", self._board.reservations),
            ("ZRANGE", self._board.reservations_due, 0, -1), ("XREVRANGE", self._board.ledger, "+", "-", "COUNT", 1),
        )  # fmt: skip
        return Books(
            counters=read_counters(spend), base=read_sums(base), reservations=read_reservations(reservations),
            ending={id.decode() for id in due}, newest=newest[0][0].decode() if newest else "",
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
        return read_reservations(await self._store.command("HGETALL", self._board.reservations))

    async def prune(self) -> int:
        """Drop counters that nothing refers to any more; returns how many went.

        Those of hours 8 days ago and of days that the ledger does not keep; those of a task that is no item of the board any
        more, holds nothing, has no limit of its own, and of whose calls no line is left in the ledger.
        """
        gone, at = 0, "0"
        while True:
            at, went = await self._prune_page(at)
            gone += went
            if at == "0":
                return gone

    async def _prune_page(self, start: str) -> tuple[str, int]:
        at_ms, keys = now_ms() + self._ahead_ms, self._board
        hour = Windows.at(at_ms - HOURS_KEPT_D * DAY_S * 1000, self._zone).hour
        day = Windows.at(at_ms - self._kept_ms, self._zone).day
        cursor, gone = await self._store.call(
            "prune_counters", [keys.rules, keys.spend, keys.ledger_base, keys.items, keys.limits],
            [start, COUNTERS_PER_PAGE, hour, day],
        )  # fmt: skip
        return cursor.decode(), int(gone)


class _KeysWithAnswers:
    """The keys of a call of a batch, with those of the answers of the items that are in it."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.names = list(keys)

    def placed(self, facts: Sequence[Any], answers: str) -> list[Any]:
        """*facts* with the place of the key *answers* in place of `ANSWERS`."""
        if answers and answers not in self.names:
            self.names.append(answers)
        at = self.names.index(answers) + 1 if answers else ""
        return [at if fact is ANSWERS else fact for fact in facts]


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
