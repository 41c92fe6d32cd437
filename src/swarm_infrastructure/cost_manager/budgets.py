"""Budgets: who may spend how much in which time, and what happens when it is spent.

A *scope* is what a budget is for: ``swarm``, ``agent:writer_1``, ``role:writer``, ``task:script_001``, ``tag:election``,
``tier:premium``. Each model call is booked in all its scopes; a window is a calendar hour or day of the settings' time
zone, or for ever.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from ..errors import InvalidInputError
from ..keys import check_id, check_name
from .money import to_dollars, to_nano

__all__ = ["AgentBudget", "Budget", "BudgetStatus", "Limits", "Spender", "Windows", "check_scope"]

Amount = float | int | str | Decimal
OnExceeded = Literal["pause", "downgrade", "fail"]

THRESHOLDS = (0.5, 0.8, 0.95, 1.0)
WINDOWS = {"total": "t", "day": "d", "hour": "h"}
UNITS = ("usd", "tokens", "requests")
_SCOPE = re.compile(r"swarm|(agent|role|task|tag|tier):[^\s|,/]+")


def check_scope(scope: str) -> str:
    """Return *scope* if a budget can be for it.

    Raises:
        InvalidInputError: it is no ``swarm``, ``agent:ID``, ``role:NAME``, ``task:ID``, ``tag:NAME`` or ``tier:NAME``.
    """
    if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
        raise InvalidInputError(
            "scope", found=scope, needed="swarm, agent:ID, role:NAME, task:ID, tag:NAME or tier:NAME"
        )
    kind, _, name = scope.partition(":")
    if kind in ("agent", "task"):
        check_id(f"{kind} id", name)
    elif kind != "swarm":
        check_name(kind, name)
    return scope


@dataclass(frozen=True, slots=True)
class Windows:
    """The hour and the day that a moment falls into.

    Args:
        hour: its name in counters, such as ``h2026-11-21T05+0000``.
        day: such as ``d2026-11-21``.
        bounds: start and end of the hour, start and end of the day, in milliseconds since 1970.
    """

    hour: str
    day: str
    bounds: tuple[int, int, int, int]

    @classmethod
    def at(cls, at_ms: int, zone: ZoneInfo) -> Self:
        """Those of *at_ms* in *zone*; days are 23 or 25 hours long where the clock is changed."""
        moment = datetime.fromtimestamp(at_ms / 1000, zone)
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        next_day = (midnight + timedelta(days=1)).replace(fold=0)
        past_s = moment.minute * 60 + moment.second  # half-hour zones have whole local hours too
        hour_ms = (at_ms // 1000 - past_s) * 1000
        offset = moment.strftime("%z")  # the hour that comes twice in autumn is two windows
        return cls(
            f"h{moment:%Y-%m-%dT%H}{offset}",
            f"d{moment:%Y-%m-%d}",
            (hour_ms, hour_ms + 3_600_000, round(midnight.timestamp() * 1000), round(next_day.timestamp() * 1000)),
        )


@dataclass(frozen=True, slots=True)
class Spender:
    """Who a call is made for: every budget that it falls under."""

    agent_id: str = ""
    role: str = ""
    task_id: str = ""
    tier: str = ""
    tags: tuple[str, ...] = ()

    def counters(self, windows: Windows) -> tuple[str, ...]:
        """Field and limit name of each counter, in turn, as ``reserve`` takes them."""
        return _counters(self, windows)

    def _rows(self, windows: Windows) -> tuple[str, ...]:
        every = ("t", windows.day, windows.hour)
        rows: list[tuple[str, str, Sequence[str]]] = [("swarm", "swarm", every)]
        if self.tier:
            rows.append((f"tier:{self.tier}", f"tier:{self.tier}", every))
        if self.role:
            rows.append((f"role:{self.role}", f"role:{self.role}", every))
        rows += [(f"tag:{tag}", f"tag:{tag}", every) for tag in self.tags]
        if self.task_id:
            rows.append((f"task:{self.task_id}", f"task:{self.task_id}", ("t",)))
        if self.agent_id:
            agent = f"agent:{self.agent_id}"
            rows.append((agent, agent, every))
            if self.tier:
                rows.append((f"{agent}/tier:{self.tier}", f"{agent}/tier:{self.tier}", (windows.day,)))
            if self.task_id:
                rows.append((f"{agent}/task:{self.task_id}", f"{agent}/task", ("t",)))
        return tuple(part for scope, name, own in rows for window in own for part in (f"{window}|{scope}", name))


@lru_cache(maxsize=512)  # asked for when a call reserves and when it settles; a task seldom comes again
def _counters(spender: Spender, windows: Windows) -> tuple[str, ...]:
    return spender._rows(windows)


@dataclass(frozen=True, slots=True)
class Limits:
    """What Redis knows of a budget: whole nano-dollars, tokens and requests per window, and what a breach does."""

    most: Mapping[tuple[str, str], int] = field(default_factory=dict)  #: (window, unit) → limit
    on_exceeded: str = "pause"
    thresholds: tuple[float, ...] = THRESHOLDS

    def pack(self) -> str:
        """As the limits hash holds it: nine numbers or nothing, what a breach does, thresholds."""
        numbers = [str(self.most.get((window, unit), "")) for window in WINDOWS for unit in UNITS]
        return ",".join([*numbers, self.on_exceeded, " ".join(f"{each:g}" for each in self.thresholds)])

    @classmethod
    def unpack(cls, text: str) -> Self:
        """Read what `pack` wrote."""
        *numbers, on_exceeded, thresholds = text.split(",")
        names = [(window, unit) for window in WINDOWS for unit in UNITS]
        return cls(
            {name: int(number) for name, number in zip(names, numbers, strict=True) if number},
            on_exceeded,
            tuple(float(each) for each in thresholds.split()),
        )

    def with_limit(self, window: str, unit: str, amount: int | None) -> Self:
        """The same with one limit changed, or taken away."""
        most = {name: value for name, value in self.most.items() if name != (window, unit)}
        return type(self)(
            most if amount is None else most | {(window, unit): amount}, self.on_exceeded, self.thresholds
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of one scope. Dollars; None is no limit.

    Args:
        scope: ``swarm``, ``agent:ID``, ``role:NAME``, ``task:ID``, ``tag:NAME`` or ``tier:NAME``.
        daily_limit: dollars a calendar day.
        hourly_limit: dollars a calendar hour.
        run_limit: dollars for ever, which for a swarm in a namespace of its own is a run.
        max_tokens: tokens a day.
        max_requests: calls a day.
        alert_threshold: where the first warning is given, as a share; the thresholds above it stay.
        on_exceeded: ``pause`` (the work goes back unharmed, the agent stops until there is money), ``downgrade`` (the next
            cheaper tier is tried first) or ``fail`` (the attempt fails).

    Raises:
        InvalidInputError: a limit that is negative, no number, or more than nine million dollars.
    """

    scope: str = "swarm"
    daily_limit: Amount | None = None
    hourly_limit: Amount | None = None
    run_limit: Amount | None = None
    max_tokens: int | None = None
    max_requests: int | None = None
    alert_threshold: float = 0.5
    on_exceeded: OnExceeded = "pause"

    def __post_init__(self) -> None:
        check_scope(self.scope)
        if not 0 < self.alert_threshold <= 1:
            raise InvalidInputError("alert_threshold", found=self.alert_threshold, needed="a share above 0, at most 1")
        if self.on_exceeded not in ("pause", "downgrade", "fail"):
            raise InvalidInputError("on_exceeded", found=self.on_exceeded, needed="pause, downgrade or fail")
        self.limits()

    def limits(self) -> dict[str, Limits]:
        """Limit name → limits, as Redis holds them."""
        dollars = {"day": self.daily_limit, "hour": self.hourly_limit, "total": self.run_limit}
        names = {"day": "daily_limit", "hour": "hourly_limit", "total": "run_limit"}
        most = {
            (window, "usd"): to_nano(amount, field=names[window])
            for window, amount in dollars.items()
            if amount is not None
        }
        for unit, number in (("tokens", self.max_tokens), ("requests", self.max_requests)):
            if number is not None:
                if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**53:
                    raise InvalidInputError(f"max_{unit}", found=number, needed="a whole number, 0 or more")
                most["day", unit] = number
        return {self.scope: self._limits(most)}

    def _limits(self, most: Mapping[tuple[str, str], int]) -> Limits:
        thresholds = sorted({self.alert_threshold, *(each for each in THRESHOLDS if each > self.alert_threshold)})
        return Limits(most, self.on_exceeded, tuple(thresholds))


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBudget(Budget):
    """The budget of one agent: that of `Budget`, and limits for each of its tasks and tiers.

    Args:
        agent_id: whose.
        task_limit: dollars that it may spend on one task.
        tier_limits: tier → share of its daily limit, such as ``{"premium": 0.2}``. Tiers left out have no share of their own.
    """

    scope: str = field(init=False, default="")
    agent_id: str
    daily_limit: Amount | None = 50.0
    hourly_limit: Amount | None = 10.0
    task_limit: Amount | None = 5.0
    alert_threshold: float = 0.8
    tier_limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scope", f"agent:{check_id('agent id', self.agent_id)}")
        for tier, share in self.tier_limits.items():
            check_name("tier", str(tier))
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise InvalidInputError(f"tier_limits[{tier!r}]", found=share, needed="a share from 0 to 1")
        if self.tier_limits and self.daily_limit is None:
            raise InvalidInputError(
                "tier_limits", found=dict(self.tier_limits), needed="a daily_limit to take shares of"
            )
        # zero-argument super() knows nothing of the class that slots=True makes
        Budget.__post_init__(self)

    def limits(self) -> dict[str, Limits]:
        """As `Budget.limits`, with one for its tasks and one for each tier that has a share."""
        limits = Budget.limits(self)
        if self.task_limit is not None:
            limits[f"{self.scope}/task"] = self._limits(
                {("total", "usd"): to_nano(self.task_limit, field="task_limit")}
            )
        for tier, share in self.tier_limits.items():
            part = int(limits[self.scope].most["day", "usd"] * Decimal(repr(share)))
            limits[f"{self.scope}/tier:{tier}"] = self._limits({("day", "usd"): part})
        return limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One counter: what was spent in a window, what is held for calls under way, and the limit."""

    window: str
    settled: int  #: nano-dollars
    held: int
    tokens: int
    requests: int
    limit: int | None  #: nano-dollars

    @property
    def left(self) -> int | None:
        """What a new call may still cost; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.settled - self.held)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """How a scope stands now. Dollars; a limit of None is none, and what is left then is infinite."""

    scope: str
    daily_spent: float
    hourly_spent: float
    total_spent: float
    held: float  #: of the day: reserved for calls under way
    daily_limit: float
    hourly_limit: float
    run_limit: float
    daily_remaining: float
    hourly_remaining: float
    daily_percent: float  #: 0 to 100 of the limit, 0 without one
    hourly_percent: float
    tokens_today: int
    requests_today: int
    tier_spent: Mapping[str, float]  #: tier → dollars today
    is_exceeded: bool  #: nothing is left in some window
    alert_triggered: bool  #: a threshold was reached today
    paused: str  #: why the agent stands still, "" if it does not


def status_of(
    scope: str, accounts: Mapping[str, Account], tiers: Mapping[str, int], *, alerted: bool, paused: str
) -> BudgetStatus:
    """Put together what `BudgetStatus` says; *accounts* by ``total``, ``day`` and ``hour``."""

    def dollars(nano: int | None) -> float:
        return float("inf") if nano is None else float(to_dollars(nano))

    def percent(account: Account) -> float:
        return 100 * account.settled / account.limit if account.limit else 0.0

    total, day, hour = accounts["total"], accounts["day"], accounts["hour"]
    return BudgetStatus(
        scope=scope, daily_spent=dollars(day.settled), hourly_spent=dollars(hour.settled),
        total_spent=dollars(total.settled), held=dollars(day.held), daily_limit=dollars(day.limit),
        hourly_limit=dollars(hour.limit), run_limit=dollars(total.limit), daily_remaining=dollars(day.left),
        hourly_remaining=dollars(hour.left), daily_percent=percent(day), hourly_percent=percent(hour),
        tokens_today=day.tokens, requests_today=day.requests,
        tier_spent={tier: dollars(nano) for tier, nano in tiers.items()},
        is_exceeded=any(account.left == 0 for account in accounts.values()), alert_triggered=alerted, paused=paused,
    )  # fmt: skip


def zone(name: str) -> ZoneInfo:
    """The time zone called *name*.

    Raises:
        InvalidInputError: there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidInputError(
            "SWARM_BUDGET_TZ", found=name, needed="a time zone such as UTC or Europe/Berlin"
        ) from error


def now_ms() -> int:
    """This computer's clock; Redis says if it is off."""
    return time.time_ns() // 1_000_000


def as_pairs(rows: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Each two of *rows*."""
    flat = list(rows)
    return list(zip(flat[::2], flat[1::2], strict=True))
