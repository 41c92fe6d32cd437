"""CostManager: what the product's code calls to choose a model, to ask a budget, and to book what was spent."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from ..blackboard import Blackboard
from ..errors import BudgetExceededError, InvalidInputError, ModelUnavailableError
from ..guard import Guard
from ..keys import BoardKeys
from ..store import Store
from ..usage import TokenUsage
from .budgets import AgentBudget, Budget, BudgetStatus, Limits, Spender, status_of, zone
from .early_stop import Decision, EarlyStop
from .ledger import SENT_S, Ledger, LedgerBound
from .limiter import Pace, RateLimiter
from .money import NANO, to_dollars, to_nano
from .pricing import Prices
from .records import Alert, Entry, Open, Paused, Recorded, Reservation, Wait
from .tiers import LLMTier, TierTable

__all__ = ["CostManager", "MeteredCall"]

log = structlog.get_logger(__name__)
Handler = Callable[..., Awaitable[None] | None]
Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])
DAY_MS = 86_400_000


@dataclass(slots=True, eq=False)
class MeteredCall:
    """One model call under a budget. Use it as ``async with cost_manager.call(...) as call``.

    ::

        async with cost_manager.call(spender, model, input_tokens=900, max_output_tokens=500) as call:
            await call.send()                  # before the first byte
            answer = await client.create(...)
            await call.settle(usage)

    Left without `send`, the hold is freed. Left after `send` without `settle`, it is booked at the estimate: nobody
    knows what the provider counted.
    """

    costs: CostManager
    reservation: Reservation
    model: str
    pricing: Mapping[str, Any] = field(default_factory=dict)
    marked: bool = False  #: the ledger knows it as sent: its hold is never freed for nothing
    sent: bool = False
    cost: int | None = None  #: nano-dollars, once settled

    async def send(self, *, hold_s: float = SENT_S) -> None:
        """Say that the call leaves now.

        Raises:
            ModelUnavailableError: the hold was freed meanwhile, as this process stood still; don't send, reserve again.
        """
        if not self.marked and not await self.costs.ledger.mark_sent(self.reservation, hold_s=hold_s):
            why = "the money set aside was freed before the call was sent: this process stood still for too long"
            raise ModelUnavailableError(self.model, why, may_be_paid=False)
        self.marked = self.sent = True

    async def settle(
        self,
        usage: TokenUsage,
        *,
        usd: int | None = None,
        facts: Mapping[str, Any] | None = None,
        **answer: Any,
    ) -> int:
        """Book what it cost, and keep its answer for the item.

        Args:
            usage: what the provider counted.
            usd: nano-dollars, where it is known otherwise than from *usage*.
            facts: for the ledger.
            answer: ``item_id``, ``step``, ``answer``, ``stage`` and ``token``, as `Ledger.settle` takes them.

        Returns:
            Nano-dollars.
        """
        cost = self.costs.prices.cost(self.model, usage, **self.pricing) if usd is None else usd
        await self._book(cost, usage.total_tokens, facts, **answer)
        return cost

    async def settle_unbilled(self, why: str) -> None:
        """Book nothing: the provider refused the call, so it costs nothing."""
        await self._book(0, 0, {"error": why})

    async def settle_unknown(self, why: str) -> None:
        """Book the estimate: what the provider counted can't be known."""
        await self._book(self.reservation.usd, self.reservation.tokens, {"error": why, "unknown": True})

    async def _book(self, usd: int, tokens: int, facts: Mapping[str, Any] | None, **answer: Any) -> None:
        requests = self.reservation.requests
        alerts = await self.costs.ledger.settle(self.reservation, usd, tokens, requests=requests, facts=facts, **answer)
        self.cost = usd
        await self.costs.tell(alerts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.cost is not None:
            return
        if self.sent:
            await asyncio.shield(self.settle_unknown(repr(error) if error else "left without settling"))
        elif self.marked:
            await asyncio.shield(self.settle_unbilled("not sent"))
        else:
            await asyncio.shield(self.costs.ledger.release(self.reservation))


class CostManager:
    """Prices, tiers, budgets and the ledger of one board.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        prices: what models cost.
        tiers: which models a task may use.
        tz: name of the time zone in which days and hours are counted.
        early_stop: when a task is not worth more money.
        enable_alerts: whether handlers are told of thresholds; the ledger keeps them in any case.
        bound: how much of the ledger is kept.
    """

    def __init__(
        self,
        store: Store,
        keys: BoardKeys,
        *,
        prices: Prices | None = None,
        tiers: TierTable | None = None,
        tz: str = "UTC",
        early_stop: EarlyStop | None = None,
        enable_alerts: bool = True,
        bound: LedgerBound | None = None,
    ) -> None:
        self.prices, self.tiers = prices or Prices(), tiers or TierTable()
        self.early_stop, self.enable_alerts = early_stop or EarlyStop(), enable_alerts
        self.ledger = Ledger(store, keys, zone(tz), bound)
        self.limiter = RateLimiter(store, keys)
        self._store, self._keys = store, keys
        self._stop_handlers: list[Handler] = []
        self._alert_handlers: list[Handler] = []

    @classmethod
    def of(cls, blackboard: Blackboard, **how: Any) -> Self:
        """The one that shares a board's Redis."""
        return cls(blackboard.store, blackboard.keys, **how)

    # -- prices and tiers -------------------------------------------------------------------------------------------

    def calculate_cost(self, model: str, tokens: TokenUsage) -> float:
        """What a call cost, in dollars.

        Raises:
            UnknownPriceError: no price is known for *model*.
        """
        return float(to_dollars(self.prices.cost(str(model), tokens)))

    def estimate_cost(self, model: str, prompt_tokens: int, max_output_tokens: int) -> float:
        """What a call may cost at most, in dollars."""
        return float(to_dollars(self.prices.estimate(str(model), prompt_tokens, max_output_tokens)))

    def get_tier(self, task_type: str) -> LLMTier:
        """The tier that a type of task is given to."""
        return self.tiers.get_tier(task_type)

    def get_tier_for_model(self, model: str) -> LLMTier | None:
        """The tier that a model belongs to, or None."""
        return self.tiers.tier_of_model(str(model))

    async def select_model(
        self, task_type: str, agent_budget: AgentBudget | str, required_quality: float = 0.7, *, needed: float = 0.0
    ) -> str:
        """The first model of the task's tier that the agent's budget still allows, else of the next cheaper tier.

        Args:
            task_type: decides the tier; a *required_quality* above 0.9 asks for the premium one, below 0.4 for the fast one.
            agent_budget: the agent, or its budget.
            required_quality: 0 to 1.
            needed: dollars that the call may cost.

        Raises:
            BudgetExceededError: no tier has that much left.
        """
        agent_id = agent_budget if isinstance(agent_budget, str) else agent_budget.agent_id
        tier: LLMTier | None = self.get_tier(task_type)
        if required_quality > 0.9:
            tier = LLMTier.PREMIUM
        elif required_quality < 0.4:
            tier = LLMTier.FAST
        least = max(to_nano(needed, field="needed"), 1)
        refusal = None
        while tier is not None:
            refusal = await self.ledger.would_exceed(Spender(agent_id=agent_id, tier=tier), least)
            if refusal is None:
                return self.tiers.models(tier)[0]
            tier = self.tiers.cheaper(tier)
        assert refusal is not None
        raise refusal

    # -- budgets ----------------------------------------------------------------------------------------------------

    async def set_budget(self, budget: Budget) -> None:
        """Put a budget in place; agents that it lets go on do so within a second."""
        await self.ledger.set_budget(budget)

    async def get_budget(self, scope: str) -> Limits | None:
        """The limits of an agent (by its id) or of a scope, or None."""
        return (await self.ledger.limits()).get(_scope(scope))

    async def get_budget_status(self, scope: str) -> BudgetStatus:
        """How an agent (by its id) or a scope stands: what was spent, what is left, whether it stands still."""
        name = _scope(scope)
        by_tier = name == "swarm" or name.startswith("agent:")
        found = await self.ledger.status(name, tiers=[tier.value for tier in LLMTier] if by_tier else ())
        return status_of(name, found.accounts, found.tiers, alerted=found.alerted, paused=found.gate)

    async def paused(self) -> list[Paused]:
        """Who stands still for want of money, and what lets them go on."""
        return await self.ledger.paused()

    async def check_can_proceed(
        self, agent_id: str, estimated_cost: float, task_type: str = "", *, task_id: str = ""
    ) -> tuple[bool, str]:
        """Whether a call of *estimated_cost* dollars would be granted now, and if not why. Reserves nothing: only
        `call` can promise."""
        tier = str(self.get_tier(task_type)) if task_type else ""
        spender = Spender(agent_id=agent_id, task_id=task_id, tier=tier)
        refusal = await self.ledger.would_exceed(spender, to_nano(estimated_cost, field="estimated_cost"))
        return (True, "") if refusal is None else (False, str(refusal))

    # -- calls ------------------------------------------------------------------------------------------------------

    async def reserve(
        self,
        spender: Spender,
        model: str,
        *,
        input_tokens: int,
        max_output_tokens: int,
        wait_s: float = 2.0,
        facts: Mapping[str, Any] | None = None,
        **pricing: Any,
    ) -> MeteredCall:
        """Set aside what a call may cost at most.

        Args:
            spender: whose call it is.
            model: which model.
            input_tokens: how many it will read, at most.
            max_output_tokens: how many it may write; the call must be made with this limit.
            wait_s: how long to wait if only what is held for other calls stands in the way.
            facts: for the ledger.
            pricing: ``provider``, ``service_tier``, ``batch``, ``cache_write``, as `Prices.estimate` takes them.

        Raises:
            UnknownPriceError: no price is known; nothing may be sent.
            BudgetExceededError: some budget has less left.
        """
        begun = await self.begin(
            spender, model, input_tokens=input_tokens, max_output_tokens=max_output_tokens, wait_s=wait_s, facts=facts,
            **pricing,
        )  # fmt: skip
        assert isinstance(begun, MeteredCall)  # neither a record nor a pace was asked for
        return begun

    async def begin(
        self,
        spender: Spender,
        model: str,
        *,
        input_tokens: int,
        max_output_tokens: int,
        wait_s: float = 2.0,
        facts: Mapping[str, Any] | None = None,
        hold_s: float | None = None,
        item_id: str = "",
        step: str = "",
        pace: Pace | None = None,
        guard: Guard | None = None,
        **pricing: Any,
    ) -> MeteredCall | Recorded | Wait | Open:
        """As `reserve`, with all else that comes before a call, in one round trip: its record, and its turn.

        Args:
            hold_s: the call leaves at once, and its caller is believed to live for so long: `MeteredCall.send` costs
                nothing then, and whoever dies before it is booked at the estimate.
            item_id: whose *step* may have an answer on record.
            step: of the item.
            pace: the rate limit that the call falls under.
            guard: the breaker that it stands behind.

        Returns:
            The call; or the recorded answer, or how long to wait for its turn or for the backend: then nothing is held.
        """
        if max_output_tokens <= 0:
            raise InvalidInputError("max_output_tokens", found=max_output_tokens, needed="a number above 0")
        usd = self.prices.estimate(model, input_tokens, max_output_tokens, **pricing)
        spender = spender if spender.tier else Spender(
            spender.agent_id, spender.role, spender.task_id, str(self.get_tier_for_model(model) or ""), spender.tags
        )  # fmt: skip
        until, pause_s = time.monotonic() + wait_s, 0.02
        while True:
            last = time.monotonic() >= until
            try:
                held = await self.ledger.begin(
                    spender, usd, input_tokens + max_output_tokens, facts={"model": model, **(facts or {})}, pause=last,
                    sent=hold_s is not None, hold_s=hold_s, item_id=item_id, step=step, pace=pace, guard=guard,
                )  # fmt: skip
            except BudgetExceededError as error:
                if last:
                    raise
                if not error.held:  # no other call's end will help
                    until = 0.0
                    continue
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 0.5)
            else:
                if not isinstance(held, Reservation):
                    return held
                settled = {name: value for name, value in pricing.items() if name != "cache_write"}
                return MeteredCall(self, held, model, settled, marked=hold_s is not None)

    @asynccontextmanager
    async def call(self, spender: Spender, model: str, **how: Any) -> AsyncIterator[MeteredCall]:
        """`reserve`, as ``async with``."""
        async with await self.reserve(spender, model, **how) as metered:
            yield metered

    async def record_usage(
        self,
        agent_id: str,
        task_id: str,
        task_type: str,
        model: str,
        tokens: TokenUsage,
        duration_ms: float = 0.0,
        confidence_score: float | None = None,
        *,
        role: str = "",
        tags: Sequence[str] = (),
        request_id: str | None = None,
    ) -> float:
        """Book a call that was made outside of the runtime. It is booked over a cap too: the money is spent.

        Args:
            request_id: names the call; the same one is booked once.

        Returns:
            Dollars.

        Raises:
            UnknownPriceError: no price is known for *model*; nothing was booked.
        """
        usd = self.prices.cost(str(model), tokens)
        tier = str(self.get_tier_for_model(model) or self.get_tier(task_type))
        spender = Spender(agent_id=agent_id, role=role, task_id=task_id, tier=tier, tags=tuple(tags))
        facts = {"model": str(model), "task_type": task_type, "ms": duration_ms, "confidence": confidence_score}
        alerts = await self.ledger.record(spender, usd, tokens.total_tokens, facts=facts, id=request_id)
        await self.tell(alerts)
        if confidence_score is not None:
            decision = self.early_stop.decide(task_type, confidence_score)
            if decision.stop:
                await self._trigger_stop(agent_id, task_id, confidence_score, decision=decision)
        return float(to_dollars(usd))

    async def check_rate_limit(self, agent_id: str, max_calls_per_minute: int = 60) -> bool:
        """Count one call of an agent; False if it has made as many as it may this minute."""
        return await self.limiter.admit(f"agent:{agent_id}", calls=max_calls_per_minute) == 0.0

    def track_costs(
        self, agent_id: str, task_type: str, model: str, *, task_id: str = ""
    ) -> Callable[[Function], Function]:
        """Decorate a coroutine function that returns a `TokenUsage`, or something with a ``usage`` that is one: each call
        is booked once."""

        def decorate(function: Function) -> Function:
            @functools.wraps(function)
            async def tracked(*args: Any, **kwargs: Any) -> Any:
                began = time.perf_counter()
                answer = await function(*args, **kwargs)
                usage = answer if isinstance(answer, TokenUsage) else getattr(answer, "usage", None)
                if not isinstance(usage, TokenUsage):
                    raise InvalidInputError(
                        f"answer of {function.__name__}", found=answer, needed="a TokenUsage, or a usage attribute"
                    )
                await self.record_usage(
                    agent_id,
                    task_id or function.__name__,
                    task_type,
                    model,
                    usage,
                    (time.perf_counter() - began) * 1000,
                )
                return answer

            return tracked  # type: ignore[return-value]

        return decorate

    # -- handlers ---------------------------------------------------------------------------------------------------

    def register_stop_handler(self, handler: Handler) -> None:
        """Have *handler(agent_id, task_id, confidence, reason)* called when a task is stopped early."""
        self._stop_handlers.append(handler)

    def register_alert_handler(self, handler: Handler) -> None:
        """Have *handler(alert)* called when spending reaches a threshold; once per threshold and window."""
        self._alert_handlers.append(handler)

    async def stop_early(
        self, agent_id: str, task_id: str, confidence_score: float, *, decision: Decision | None = None
    ) -> Decision:
        """Tell the handlers that a task is not worth more money; counted in the agent's tallies."""
        decision = decision or self.early_stop.decide("", confidence_score)
        await self._store.command(
            "HINCRBY", self._keys.tallies, f"{agent_id}|early_stop_{decision.reason}", 1, once=True
        )
        log.info("stopped early", agent=agent_id, task=task_id, confidence=confidence_score, reason=decision.reason)
        for handler in self._stop_handlers:
            await _called(handler, agent_id, task_id, confidence_score, decision.reason)
        return decision

    _trigger_stop = stop_early  #: the name in the product document

    async def tell(self, alerts: Sequence[Alert]) -> None:
        """Log alerts and hand them to the handlers."""
        for alert in alerts:
            log.warning(
                "a budget's threshold is reached", scope=alert.scope, window=alert.window, share=alert.threshold,
                spent=str(to_dollars(alert.spent)), limit=str(to_dollars(alert.limit)),
            )  # fmt: skip
            for handler in self._alert_handlers if self.enable_alerts else ():
                await _called(handler, alert)

    # -- reports ----------------------------------------------------------------------------------------------------

    async def get_agent_report(self, agent_id: str, days: int = 7) -> dict[str, Any]:
        """What an agent spent in the last *days*: ``cost``, ``calls``, ``tokens``, and those by model, tier, task and day.

        ``complete_since_ms`` is above 0 if the ledger had to give up lines of that time: what came before is not in it.
        """
        entries = [entry async for entry in self._since(days) if entry.facts.get("agent_id") == agent_id]
        return _report(entries) | await self._completeness(days)

    async def get_global_report(self, days: int = 7) -> dict[str, Any]:
        """As `get_agent_report`, of all agents, and by agent."""
        entries = [entry async for entry in self._since(days)]
        return _report(entries) | await self._completeness(days)

    async def get_optimization_recommendations(self, days: int = 7) -> list[str]:
        """Sentences about what would save money, each with the figures it rests on."""
        entries = [entry async for entry in self._since(days)]
        report, advice = _report(entries), []
        premium = report["by_tier"].get("premium", {"cost": 0.0})["cost"]
        if report["cost"] and premium > 0.5 * report["cost"]:
            advice.append(
                f"premium models took ${premium:.4f} of ${report['cost']:.4f}; try balanced for the easier tasks"
            )
        reserved = sum(entry.reserved for entry in entries if entry.kind == "settled")
        used = sum(entry.usd for entry in entries if entry.kind == "settled" and entry.reserved)
        if used and reserved > 4 * used:
            advice.append(f"calls cost {used / reserved:.0%} of what is reserved for them; lower max_output_tokens")
        sure = Counter(
            entry.facts["task_type"]
            for entry in entries
            if (entry.facts.get("confidence") or 0) > 0.9 and "task_type" in entry.facts
        )
        for task_type, n in sure.most_common(3):
            if n >= 20 and self.get_tier(task_type) is not LLMTier.FAST:
                advice.append(f"{n} answers of {task_type!r} had a confidence above 0.9; try a cheaper tier for it")
        return advice

    async def _completeness(self, days: int) -> dict[str, int]:
        trimmed = await self.ledger.trimmed()
        last_ms = int(trimmed.last.partition("-")[0]) if trimmed else 0
        return {"complete_since_ms": last_ms if last_ms >= int(time.time() * 1000) - days * DAY_MS else 0}

    async def _since(self, days: int) -> AsyncIterator[Entry]:
        first_ms = int(time.time() * 1000) - days * DAY_MS
        async for entry in self.ledger.entries(after=str(max(first_ms, 0))):
            yield entry


def _scope(name: str) -> str:
    return name if name == "swarm" or ":" in name else f"agent:{name}"


async def _called(handler: Handler, *args: Any) -> None:
    try:
        answer = handler(*args)
        if inspect.isawaitable(answer):
            await answer
    except Exception:  # the rim: what was told is done; a handler that fails must not undo it
        log.error("a handler failed", handler=getattr(handler, "__name__", repr(handler)), exc_info=True)


def _report(entries: Sequence[Entry]) -> dict[str, Any]:
    groups: dict[str, dict[str, list[int]]] = {
        f"by_{name}": defaultdict(lambda: [0, 0, 0]) for name in ("agent", "role", "model", "tier", "task", "task_type", "day")
    }  # fmt: skip
    total = [0, 0, 0]
    for entry in entries:
        day = next((field.partition("|")[0][1:] for field in entry.fields if field.startswith("d")), "")
        facts = {"agent": entry.facts.get("agent_id"), "task": entry.facts.get("task_id"), "day": day}
        rows = [total]
        for name, group in groups.items():
            value = facts.get(name[3:]) or entry.facts.get(name[3:])
            if value:
                rows.append(group[str(value)])
        for row in rows:
            row[0] += entry.usd
            row[1] += entry.requests
            row[2] += entry.tokens

    def shown(row: list[int]) -> dict[str, Any]:
        return {"cost": row[0] / NANO, "calls": row[1], "tokens": row[2]}

    return shown(total) | {name: {key: shown(row) for key, row in group.items()} for name, group in groups.items()}
