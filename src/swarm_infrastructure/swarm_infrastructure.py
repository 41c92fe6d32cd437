"""SwarmInfrastructure: builds the systems from the settings and joins them.

It owns their lifetimes and the verbs that touch two of them; what concerns one system is called there
(``swarm.blackboard``, …). The task calls of the product document are doors to the board's claims.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from .blackboard import NEWS, Blackboard, Board, Claim, Place
from .blackboard.leases import Lease
from .blackboard.retention import LogBound
from .config import Settings
from .consensus import Debates
from .cost_manager import AgentBudget, Alert, Budget, CostManager, LedgerBound, LLMTier, Prices, TierTable
from .cost_manager.money import to_dollars
from .cost_manager.tiers import client_of
from .errors import ClaimLostError, ConfigurationError, ItemNotFoundError, RPCError, SwarmError, UnavailableError
from .failure_recovery import Checkpoint, CircuitBreakerConfig, FailureRecovery, RetryPolicy, backoff_s, retry_call
from .llm import LLMClient
from .message_bus import (
    Channels,
    Controls,
    Heard,
    Hub,
    Message,
    MessageBus,
    MessageType,
    SchemaRegistry,
    TaskQueues,
    Timers,
    Topics,
)
from .monitoring import Traces, TraceType, configure_logs
from .store import Store
from .store.embedded import Located, locate
from .usage import TokenUsage

__all__ = ["SwarmInfrastructure", "with_infrastructure", "with_retry_and_tracking"]

log = structlog.get_logger(__name__)
SUMMON_S = 3.0  # how long a process is waited for that may start a fallback agent: a start takes some 10 ms
Answer = TypeVar("Answer")


class SwarmInfrastructure:
    """Everything that a swarm runs on. Use it as ``async with SwarmInfrastructure() as swarm``.

    Args:
        board: the board; the news board by default.
        settings: `Settings.load()` by default: the environment and ``.env``.
        replace_board: put this board in place of another one of its name.
        retry: how failed tasks of `fail_task`, and what `with_retry` decorates, are tried again.
        breaker: when the breakers of backends open, and how they close again.
        llm: who answers `Work.ask`: one client for every model, or clients by model or provider (``openai``,
            ``anthropic``); by default those that the settings have keys for.
        prices: what models cost; by default genai-prices and the file that ``SWARM_PRICES`` names.
        tiers: which models a task may use.
        budget: of the whole swarm; by default ``GLOBAL_DAILY_BUDGET``.
    """

    def __init__(
        self,
        board: Board = NEWS,
        settings: Settings | None = None,
        *,
        replace_board: bool = False,
        retry: RetryPolicy | None = None,
        breaker: CircuitBreakerConfig | None = None,
        llm: LLMClient | Mapping[str, LLMClient] | None = None,
        prices: Prices | None = None,
        tiers: TierTable | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        self.board = board if self.settings.lease_s is None else board.with_lease(self.settings.lease_s)
        self.retry = retry or RetryPolicy(max_retries=self.settings.default_max_retries)
        self.breaker = breaker or CircuitBreakerConfig(failure_threshold=self.settings.circuit_breaker_threshold)
        self.traces = Traces()
        self.located: Located | None = None  #: where Redis was found, once connected
        self._replace_board = replace_board
        self._llm, self._prices, self._tiers, self._budget = llm, prices, tiers, budget
        self._clients: dict[str, LLMClient] = {}
        self._stack = AsyncExitStack()
        self._blackboard: Blackboard | None = None
        self._cost_manager: CostManager | None = None
        self._failure_recovery: FailureRecovery | None = None
        self._hub: Hub | None = None
        self._queues: TaskQueues | None = None
        self._message_bus: MessageBus | None = None
        self._debates: Debates | None = None
        self._topics: Topics | None = None
        self._schemas: SchemaRegistry | None = None
        self._timers: Timers | None = None
        self._decided = asyncio.Event()  # set and renewed when some debate ends
        self._hears_debates: asyncio.Task[Callable[[], Any]] | None = None
        self._tasks: dict[tuple[str, str], Lease] = {}  # what `claim_task` took: (agent, item) → lease
        self._random = Random()

    @property
    def blackboard(self) -> Blackboard:
        """The board; there once connected."""
        if self._blackboard is None:
            raise SwarmError("the swarm is not connected; use: async with SwarmInfrastructure() as swarm")
        return self._blackboard

    @property
    def log_bound(self) -> LogBound:
        """How much of a board's event log the settings keep."""
        return LogBound(entries=self.settings.events_keep, at_least_s=self.settings.events_keep_s)

    @property
    def cost_manager(self) -> CostManager:
        """Prices, budgets and the ledger; there once connected."""
        if self._cost_manager is None:
            raise SwarmError("the swarm is not connected; use: async with SwarmInfrastructure() as swarm")
        return self._cost_manager

    @property
    def failure_recovery(self) -> FailureRecovery:
        """Retries, breakers, fallbacks, checkpoints and durable steps; there once connected."""
        if self._failure_recovery is None:
            self._failure_recovery = FailureRecovery(
                self.blackboard, retry=self.retry, breaker=self.breaker, tell=self._tell_everybody, assign=self._assign_task,
                summon=self._summon_agent, random=self._random,
            )  # fmt: skip
        return self._failure_recovery

    async def _tell_everybody(self, msg_type: str, facts: Mapping[str, Any]) -> None:
        await self.message_bus.broadcast(Message.create(msg_type, self.message_bus.agent_id, payload=dict(facts)))

    async def _assign_task(self, agent_id: str, facts: Mapping[str, Any]) -> bool:
        bus = self.message_bus
        message = Message.create(MessageType.TASK_ASSIGN, bus.agent_id, recipient=agent_id, payload=dict(facts))
        return await bus.send_to_agent(agent_id, message)

    async def _summon_agent(self, name: str) -> str | None:
        try:
            found = await self.message_bus.call(fallback_service(name), "start", timeout=SUMMON_S)
        except RPCError as error:  # nobody serves it, or who does could not start it
            log.info("no process starts this agent", name=name, why=str(error))
            return None
        return str(found) if found else None

    @property
    def message_bus(self) -> MessageBus:
        """The bus as this process has it; there once connected. It listens once it is started: ``await bus.start()``."""
        if self._message_bus is None:
            self._message_bus = self.bus_of(f"process-{secrets.token_hex(4)}")
        return self._message_bus

    def bus_of(self, agent_id: str, role: str = "") -> MessageBus:
        """The bus as an agent has it, not yet started."""
        if self._hub is None or self._queues is None:
            raise SwarmError("the swarm is not connected; use: async with SwarmInfrastructure() as swarm")
        return MessageBus(self._hub, self._queues, agent_id, role=role)

    @property
    def task_queues(self) -> TaskQueues:
        """The work queues of the namespace; there once connected."""
        if self._queues is None:
            raise SwarmError("the swarm is not connected; use: async with SwarmInfrastructure() as swarm")
        return self._queues

    @property
    def topics(self) -> Topics:
        """The durable topics of the namespace; there once connected."""
        if self._topics is None:
            store = self.blackboard.store
            assert self._hub is not None  # as there is a board
            self._topics = Topics(store, self.settings.namespace, listen=self._hub.listen_to_hints, random=self._random)
        return self._topics

    @property
    def schemas(self) -> SchemaRegistry:
        """The schemas of the namespace's messages; there once connected."""
        if self._schemas is None:
            self._schemas = SchemaRegistry(self.blackboard.store, self.settings.namespace)
        return self._schemas

    @property
    def timers(self) -> Timers:
        """The timers of the namespace, as this process knows them; they tick while a worker runs, or once started."""
        if self._timers is None:
            self._timers = Timers(self.blackboard.store, self.settings.namespace, self.topics, random=self._random)
        return self._timers

    @property
    def debates(self) -> Debates:
        """The debates of the board; there once connected."""
        if self._debates is None:
            board = self.blackboard
            self._debates = Debates(
                board.store, board.keys, self._tell_of_debate, listen=self._hear_of_debate, random=self._random,
                waits=board.waits,
            )  # fmt: skip
        return self._debates

    async def _tell_of_debate(self, msg_type: str, facts: Mapping[str, Any]) -> None:
        bus = self.message_bus
        message = Message.create(msg_type, bus.agent_id, payload=dict(facts))
        if msg_type != MessageType.DEBATE_INVITE:
            await bus.publish(Channels.DEBATES, message)
        elif facts["voters"] or facts["roles"]:
            told = [bus.send_to_agent(agent_id, message) for agent_id in facts["voters"]]
            await asyncio.gather(*told, *(bus.send_to_tier(role, message) for role in facts["roles"]))
        else:
            await bus.broadcast(message)

    async def _hear_of_debate(self, debate_id: str) -> None:
        """Return when some debate has ended: which one, `Debates.wait` looks up."""
        if self._hears_debates is None:
            assert self._hub is not None
            self._hears_debates = asyncio.create_task(self._hub.listen([Channels.DEBATES], self._debate_heard))
        decided = self._decided
        try:
            await asyncio.shield(self._hears_debates)  # of all that wait; one that gives up must not end it
        except SwarmError:
            self._hears_debates = None
            raise
        await decided.wait()

    def _debate_heard(self, heard: Heard) -> None:
        if heard.message.type == MessageType.DEBATE_CONSENSUS:
            self._decided.set()
            self._decided = asyncio.Event()

    @property
    def controls(self) -> Controls:
        """Pause, resume, drain, shut down or stop agents; there once connected."""
        return Controls(self.blackboard, self.message_bus.broadcast, sender=self.message_bus.agent_id)

    async def connect(self) -> Self:
        """Find or start Redis, check it, open the board."""
        settings = self.settings
        if not structlog.is_configured():
            configure_logs(settings)
        try:
            self.located = await asyncio.to_thread(locate, settings)
            if self.located.server is not None:
                self._stack.push_async_callback(asyncio.to_thread, self.located.server.stop)
            store = await self._stack.enter_async_context(
                Store(
                    self.located.url,
                    timeout_s=settings.store_timeout_s,
                    retry_s=settings.store_retry_s,
                    durability=settings.durability,
                    replicas=settings.replicas,
                    replace_library=self.located.started,  # we are its only user: no other build is at work
                )
            )
            if not store.appends:
                log.warning(
                    "Redis keeps no append-only file: if it crashes, answered calls are lost; "
                    "set appendonly yes there, and SWARM_DURABILITY=local here to insist on it", redis=store.shown
                )  # fmt: skip
            self._blackboard = await self._stack.enter_async_context(
                Blackboard(
                    store,
                    self.board,
                    namespace=settings.namespace,
                    replace_board=self._replace_board,
                    dead_after_s=settings.dead_after_s,
                )
            )
            self._hub = Hub(store, settings.namespace)
            self._stack.push_async_callback(self._hub.close)
            self._queues = TaskQueues(store, settings.namespace, bound=self.log_bound)
            self._stack.push_async_callback(self._queues.close)
            self._cost_manager = CostManager.of(
                self._blackboard,
                prices=self._prices or Prices(settings.prices_path, settings.unknown_price or "deny"),
                tiers=self._tiers or TierTable.from_settings(settings),
                tz=settings.budget_tz,
                enable_alerts=settings.enable_cost_alerts,
                bound=LedgerBound(days=settings.ledger_keep_days, lines=settings.ledger_keep),
            )
            self._cost_manager.register_alert_handler(self._tell_of_alert)
            budget = self._budget
            if budget is None and settings.global_daily_budget is not None:
                budget = Budget(daily_limit=settings.global_daily_budget)
            if budget is not None:
                await self._cost_manager.ledger.declare(budget)
        except BaseException:
            await self._stack.aclose()
            raise
        log.debug("connected", redis=self.located.how)
        return self

    async def disconnect(self) -> None:
        """Close everything; the private Redis stops with its last user."""
        try:
            if self._hears_debates is not None:
                self._hears_debates.cancel()
            if self._timers is not None:
                await self._timers.stop()
            if self._message_bus is not None:
                await self._message_bus.stop()
        except UnavailableError as error:
            log.warning("not everything could be ended: the store is away", why=str(error))
        finally:
            await self._stack.aclose()
        self._blackboard = self._cost_manager = self._failure_recovery = None
        self._hub = self._queues = self._message_bus = None
        self._debates = self._hears_debates = self._topics = self._timers = self._schemas = None
        self._clients.clear()

    async def _tell_of_alert(self, alert: Alert) -> None:
        payload = {
            "scope": alert.scope, "window": alert.window, "threshold": alert.threshold,
            "spent": float(to_dollars(alert.spent)), "limit": float(to_dollars(alert.limit)),
        }  # fmt: skip
        try:
            await self._tell_everybody(MessageType.BUDGET_ALERT, payload)
        except UnavailableError as error:
            log.warning("an alert was not told", why=str(error))  # it stands in the ledger

    async def revive(self) -> None:
        """Start the private Redis again if it died. Nothing to do for a Redis of somebody else's."""
        if self.located is not None and self.located.server is not None:
            await asyncio.to_thread(self.located.server.start)

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()

    # -- agents -----------------------------------------------------------------------------------------------------

    async def register_agent(
        self,
        agent_id: str,
        role: str,
        capabilities: Sequence[str] = (),
        *,
        budget: AgentBudget | Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        """Make an agent known to the board.

        Args:
            agent_id: its id.
            role: what it does.
            capabilities: what it can do.
            budget: what it may spend: an `AgentBudget`, or its limits. What was raised since it was first declared stays.
            facts: about it, as JSON data.
        """
        if budget is not None:
            own = budget if isinstance(budget, AgentBudget) else AgentBudget(agent_id=agent_id, **budget)
            await self.cost_manager.ledger.declare(own)
        await self.blackboard.register_agent(agent_id, role, capabilities, **facts)

    async def unregister_agent(self, agent_id: str) -> None:
        """Hand back what the agent holds through this process, and forget it."""
        for claim in self.tasks_of(agent_id):
            await self._end_task(claim.agent_id, claim.item_id, "hand_back", reason="the agent left")
        await self.blackboard.agents.unregister(agent_id)

    async def agent_heartbeat(self, agent_id: str) -> None:
        """Say that an agent lives."""
        await self.blackboard.heartbeat(agent_id)

    # -- tasks: the board's claims, by name ---------------------------------------------------------------------------

    async def claim_task(self, agent_id: str, section: str, item_id: str) -> bool:
        """Claim one item for an agent; False if it is not ready, or somebody else was quicker.

        The lease is renewed until `complete_task` or `fail_task`.
        """
        item = await self.blackboard.find(item_id)
        if item is None or item.section != section:
            return False
        claimed = await self.blackboard.claims.claim_item(item_id, agent_id, lanes=(item.claimed_from,))
        if claimed is None:
            return False
        key = (agent_id, item_id)
        self._tasks[key] = self.blackboard.leases.keep(claimed.claim)
        return True

    async def complete_task(
        self,
        agent_id: str,
        section: str,
        item_id: str,
        result: Any = None,
        move_to: Place | str | None = None,
        *,
        patch: dict[str, Any] | None = None,
    ) -> bool:
        """Complete a claimed item: it goes where its section leads, ready for the next role, and keeps the result.

        Args:
            agent_id: who claimed it.
            section: where it was claimed.
            item_id: the item.
            result: JSON data kept with it.
            move_to: a section (it takes the entry status there) or ``section/status``.
            patch: merged into its payload.

        Raises:
            ClaimLostError: the agent does not hold it any more; nothing was written.
            WrongStatusError: the board allows no such step; the claim still holds.
        """
        self.blackboard.board.section(str(section))
        to = move_to
        if to is not None and not isinstance(to, Place) and "/" not in str(to):
            to = self.blackboard.board.place(str(to))
        await self._end_task(agent_id, item_id, "complete", to=to, result=result, patch=patch)
        return True

    async def fail_task(self, agent_id: str, section: str, item_id: str, error: str | BaseException) -> str:
        """Report that the work on a claimed item failed; it is tried again after a while.

        Returns:
            ``failed``, or ``quarantined`` if that was its last attempt.

        Raises:
            ClaimLostError: the agent does not hold it any more; nothing was written.
        """
        self.blackboard.board.section(str(section))
        item = await self.blackboard.get(item_id)
        delay_s = backoff_s(max(item.attempts, 1), self.retry, self._random)
        text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
        return str(await self._end_task(agent_id, item_id, "fail", error=text, retry_in_s=delay_s))

    def tasks_of(self, agent_id: str) -> list[Claim]:
        """What the agent holds through `claim_task`."""
        return [lease.claim for (agent, _), lease in self._tasks.items() if agent == agent_id]

    async def _end_task(self, agent_id: str, item_id: str, verb: str, **facts: Any) -> Any:
        claim = await self._task(agent_id, item_id)
        try:
            answer = await getattr(self.blackboard, verb)(claim, **facts)
        except ClaimLostError:
            self._tasks.pop((agent_id, item_id), None)  # nothing is left to end
            raise
        self._tasks.pop((agent_id, item_id), None)
        return answer

    async def _task(self, agent_id: str, item_id: str) -> Claim:
        lease = self._tasks.get((agent_id, item_id))
        if lease is not None:
            if lease.lost:
                self._tasks.pop((agent_id, item_id), None)
                raise ClaimLostError(item_id, agent_id, lease.claim.token, lease.lost)
            return lease.claim
        item = await self.blackboard.find(item_id)  # claimed by another process under the same name, perhaps
        if item is None:
            raise ItemNotFoundError(item_id, self.board.name)
        if item.holder != agent_id:
            raise ClaimLostError(item_id, agent_id, item.token, f"{item.holder or 'nobody'} holds it")
        section = self.board.section(item.section)
        return Claim(
            item_id=item_id, agent_id=agent_id, token=item.token, ends_at_ms=0, lease_s=section.lease_s,
            lane=item.claimed_from, taken_at=asyncio.get_running_loop().time(),
        )  # fmt: skip

    async def create_checkpoint(
        self, task_id: str, stage: str, data: Mapping[str, Any], agent_states: Mapping[str, Any] | None = None,
        ttl_hours: float = 24,
    ) -> Checkpoint:  # fmt: skip
        """Keep how far a task has come; see `Checkpoints.create`."""
        return await self.failure_recovery.create_checkpoint(task_id, stage, data, agent_states, ttl_hours)

    async def resume_from_checkpoint(self, task_id: str, stage: str | None = None) -> Checkpoint | None:
        """Where to go on with a task: its newest checkpoint, or that of *stage*; None: from the beginning."""
        return await self.failure_recovery.resume_from_checkpoint(task_id, stage)

    # -- watching -----------------------------------------------------------------------------------------------------

    async def track_llm_usage(
        self,
        agent_id: str,
        task_id: str,
        task_type: str,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        duration_ms: float = 0.0,
        confidence: float | None = None,
    ) -> float:
        """Book a model call made outside of the runtime.

        Returns:
            Dollars.

        Raises:
            UnknownPriceError: no price is known for *model*; nothing was booked.
        """
        usage = TokenUsage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        cost = await self.cost_manager.record_usage(agent_id, task_id, task_type, model, usage, duration_ms, confidence)
        log.info(
            "model call", agent=agent_id, task=task_id, task_type=task_type, model=str(model), prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens, ms=duration_ms, confidence=confidence, cost=cost,
        )  # fmt: skip
        return cost

    async def check_budget(self, agent_id: str, estimated_cost: float = 0.0, task_type: str = "") -> tuple[bool, str]:
        """Whether the agent has that much left, in dollars, and if not why."""
        return await self.cost_manager.check_can_proceed(agent_id, estimated_cost, task_type)

    # -- models -----------------------------------------------------------------------------------------------------

    def models_for(self, tier: LLMTier) -> Sequence[str]:
        """The models of *tier* that somebody here can be asked for, best first; the tier's first if nobody can."""
        models = self.cost_manager.tiers.models(tier)
        if isinstance(self._llm, Mapping):
            found = [each for each in models if each in self._llm or client_of(each) in self._llm]
        elif self._llm is None:
            settings = self.settings
            ours = {"openai": settings.openai_is_configured, "anthropic": settings.anthropic_is_configured}
            found = [each for each in models if ours[client_of(each)]]
        else:  # one client for every model: the tier's other models of the same provider
            found = [each for each in models if client_of(each) == client_of(models[0])]
        return found or models[:1]

    def model_for(self, tier: LLMTier) -> str:
        """The first of `models_for`."""
        return self.models_for(tier)[0]

    def client_for(self, model: str) -> LLMClient:
        """Who is asked for *model*.

        Raises:
            ConfigurationError: nobody here can be; it names what to set.
            MissingExtraError: the provider's SDK is not installed.
        """
        provider = client_of(model)
        if isinstance(self._llm, Mapping):
            found = self._llm.get(model) or self._llm.get(provider)
            if found is None:
                raise ConfigurationError(
                    f"no client for model {model!r}; found those for {', '.join(self._llm)}; add one to llm="
                )
            return found
        if self._llm is not None:
            return self._llm
        if provider not in self._clients:
            self._clients[provider] = self._connect_to(provider, model)
        return self._clients[provider]

    def _connect_to(self, provider: str, model: str) -> LLMClient:
        settings = self.settings
        client: Any
        if provider == "anthropic" and settings.anthropic_api_key is not None:
            from .llm import AnthropicClient

            client = AnthropicClient(
                api_key=settings.anthropic_api_key.get_secret_value(), timeout_s=settings.llm_timeout_s
            )
        elif provider == "openai" and settings.openai_is_configured:
            from .llm import OpenAIClient

            key = settings.openai_api_key
            client = OpenAIClient(
                api_key=key.get_secret_value() if key else "none", base_url=settings.openai_base_url,
                timeout_s=settings.llm_timeout_s,
            )  # fmt: skip
        else:
            raise ConfigurationError(
                f"nobody can be asked for model {model!r}: found no key for {provider}; set "
                f"{'ANTHROPIC_API_KEY' if provider == 'anthropic' else 'OPENAI_API_KEY or OPENAI_BASE_URL'}, "
                "or give the swarm a client: llm=..."
            )
        self._stack.push_async_callback(client.aclose)
        answering: LLMClient = client
        return answering

    # -- traces -----------------------------------------------------------------------------------------------------

    def start_trace(self, trace_type: TraceType) -> str:
        """Open a trace for the running task; events of the board carry its id until it ends."""
        return self.traces.start(trace_type)

    def end_trace(self, trace_id: str, status: str = "success") -> float:
        """Close a trace. Returns how long it was open, seconds."""
        return self.traces.end(trace_id, status)

    async def get_stats(self) -> dict[str, Any]:
        """``{"board", "sections", "agents"}``: items by section and status, agents and what they hold."""
        return {
            "board": self.board.name,
            "sections": await self.blackboard.get_all_stats(),
            "agents": await self.blackboard.get_all_agents(),
        }


def fallback_service(name: str) -> str:
    """The service of processes that can start agents called *name*."""
    return f"fallback.{name}"


def with_infrastructure(function: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[Answer]]:
    """Decorate a coroutine function whose first argument is a swarm: it is called with a connected one, which is closed
    at its end."""

    @functools.wraps(function)
    async def connected(*args: Any, **kwargs: Any) -> Answer:
        async with SwarmInfrastructure() as swarm:
            return await function(swarm, *args, **kwargs)

    return connected


def with_retry_and_tracking(
    swarm: SwarmInfrastructure,
    agent_id: str,
    task_type: str,
    model: str,
    *,
    task_id: str = "",
    trace_type: TraceType = TraceType.AGENT_DECISION,
    retry: RetryPolicy | None = None,
) -> Callable[[Callable[..., Awaitable[Answer]]], Callable[..., Awaitable[Answer]]]:
    """Decorate a coroutine function that calls a model and returns its `TokenUsage`, or something with a ``usage``.

    While the service does not answer it is called again; when it has answered, the call is booked once. All of it
    stands in one trace.

    Raises:
        UnavailableError: the service did not answer after all retries.
    """

    def decorate(function: Callable[..., Awaitable[Answer]]) -> Callable[..., Awaitable[Answer]]:
        policy = retry or swarm.retry
        booked = swarm.cost_manager.track_costs(agent_id, task_type, model, task_id=task_id)

        @functools.wraps(function)
        async def tracked(*args: Any, **kwargs: Any) -> Answer:
            trace_id, status = swarm.start_trace(trace_type), "error"
            try:
                answer = await retry_call(lambda: booked(function)(*args, **kwargs), policy)
                status = "success"
                return answer
            finally:
                swarm.end_trace(trace_id, status)

        return tracked

    return decorate
