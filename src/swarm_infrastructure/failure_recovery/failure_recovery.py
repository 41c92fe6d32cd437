"""FailureRecovery: what a swarm does about failures, in one place.

Puts the parts together: retries, breakers, fallbacks, checkpoints, durable steps, and the record of what went wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ParamSpec, TypeVar

import structlog

from ..blackboard.blackboard import Blackboard
from ..errors import RefusedError, UnavailableError
from .checkpoints import Checkpoint, Checkpoints
from .circuit_breaker import Breakers, BreakerState, CircuitBreaker, CircuitBreakerConfig
from .failures import ACTIONS, Escalation, Failure, Failures, FailureType, RecoveryAction
from .fallback import Assign, FallbackAgents, FallbackChain, Summon
from .retry import RetryBudget, RetryPolicy, backoff_s, with_retry
from .steps import Steps

__all__ = ["FailureRecovery", "Recovery"]

log = structlog.get_logger(__name__)
Given = ParamSpec("Given")
Answer = TypeVar("Answer")
Tell = Callable[[str, Mapping[str, Any]], Awaitable[None]]  #: a type of message and its payload, to whoever listens
Handler = Callable[[Failure], Any]
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was done about a failure."""

    action: RecoveryAction
    failure_id: str
    retry_in_s: float = 0.0  #: of `RETRY`
    fallback_id: str | None = None  #: of `FALLBACK_AGENT`: who has the task now


class FailureRecovery:
    """Retries, breakers, fallbacks, checkpoints and the record of failures of one board.

    Args:
        board: the board.
        retry: the policy of `with_retry` and `handle_failure`, unless they are given one.
        breaker: the rules of breakers that are asked for without any.
        tell: passes on what others may want to know.
        assign: tells an agent of a task.
        summon: asks another process to start an agent.
        random: source of jitter.
    """

    def __init__(
        self,
        board: Blackboard,
        *,
        retry: RetryPolicy | None = None,
        breaker: CircuitBreakerConfig | None = None,
        tell: Tell | None = None,
        assign: Assign | None = None,
        summon: Summon | None = None,
        random: Random | None = None,
    ) -> None:
        self._board, self._tell, self._random = board, tell, random or Random()
        self.retry = retry or RetryPolicy()
        self.breaker_states = Breakers(board.store, board.keys, breaker, on_change=self._breaker_changed)
        self.steps = Steps(board.store, board.keys)
        self.checkpoints = Checkpoints(board)
        self.failures = Failures(board.store, board.keys)
        self.fallbacks = FallbackAgents(board.agents, assign=assign, summon=summon)
        self._budgets: dict[str, RetryBudget] = {}
        self._handlers: dict[FailureType, list[Handler]] = {}

    # -- retries and breakers -------------------------------------------------------------------------------------------

    def with_retry(
        self, policy: RetryPolicy | None = None, *, budget: RetryBudget | str | None = None, **how: Any
    ) -> Callable[[Callable[Given, Awaitable[Answer]]], Callable[Given, Awaitable[Answer]]]:
        """Decorate a coroutine function: what may pass by itself is tried again; see `RetryPolicy`.

        Args:
            policy: how often and how patiently.
            budget: of retries, or the name of a backend that has one in this process.
            how: ``sleep`` and ``random``, as `retry_call` takes them.
        """
        shared = self.retry_budget(budget) if isinstance(budget, str) else budget
        return with_retry(policy or self.retry, budget=shared, **{"random": self._random, **how})

    def retry_budget(self, backend: str) -> RetryBudget:
        """How many retries this process has for a backend."""
        return self._budgets.setdefault(backend, RetryBudget())

    def get_circuit_breaker(self, name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        """The breaker of a backend; one state for the whole fleet."""
        return self.breaker_states.get(name, config)

    async def breakers(self) -> Sequence[BreakerState]:
        """Every breaker that is not simply closed."""
        return await self.breaker_states.states()

    def chain(self, providers: Mapping[str, Callable[..., Awaitable[Answer]]]) -> FallbackChain[Answer]:
        """Providers of one thing, best first: the first that works is taken."""
        return FallbackChain(self.breaker_states, providers)

    async def _breaker_changed(self, name: str, word: str) -> None:
        await self._say(f"breaker.{word}", {"breaker": name})

    # -- fallback agents ------------------------------------------------------------------------------------------------

    def register_fallback(self, role: str, names: Sequence[str]) -> None:
        """Say who takes over from *role*, best first: ids or roles of agents, or names of classes that can be started."""
        self.fallbacks.register(role, names)

    async def spawn_fallback_agent(
        self, failed_agent_id: str, agent_role: str, task_id: str, task_data: Mapping[str, Any] | None = None,
        *, escalate: bool = True,
    ) -> str | None:  # fmt: skip
        """Give the task of an agent that failed to its first fallback that is idle or can be started.

        It hears ``task.assign`` with ``is_fallback``; if the task is an item of the board, it claims it. If nobody can be
        found, the task is escalated, unless *escalate* is False.

        Returns:
            Who has the task now, or None.
        """
        facts = {
            "task_id": task_id, "task_type": agent_role, "parameters": dict(task_data or {}), "is_fallback": True,
            "failed_agent_id": failed_agent_id,
        }  # fmt: skip
        found = await self.fallbacks.hand_over(agent_role, failed_agent_id, facts)
        if found is None and escalate:
            chain = ", ".join(self.fallbacks.of(agent_role)) or "none registered"
            await self.escalate(
                task_id, f"{failed_agent_id!r} failed, and no fallback of role {agent_role!r} is there ({chain})",
                agent_id=failed_agent_id, failure_type=FailureType.AGENT_CRASH,
            )  # fmt: skip
        return found

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    async def create_checkpoint(
        self, task_id: str, stage: str, data: Mapping[str, Any], agent_states: Mapping[str, Any] | None = None,
        ttl_hours: float = 24,
    ) -> Checkpoint:  # fmt: skip
        """Keep how far a task has come; see `Checkpoints.create`."""
        return await self.checkpoints.create(task_id, stage, data, agent_states, ttl_hours)

    async def get_checkpoint(self, task_id: str, stage: str | None = None) -> Checkpoint | None:
        """The newest checkpoint of a task, or that of *stage*, or None."""
        return await self.checkpoints.find(task_id, stage)

    async def list_checkpoints(self, task_id: str) -> Sequence[Checkpoint]:
        """The checkpoints of a task, oldest first."""
        return await self.checkpoints.list(task_id)

    async def resume_from_checkpoint(self, task_id: str, stage: str | None = None) -> Checkpoint | None:
        """Where to go on with a task: its newest checkpoint, or that of *stage*; None: from the beginning."""
        found = await self.checkpoints.find(task_id, stage)
        if found is not None:
            log.info("resuming", task=task_id, stage=found.stage)
        return found

    # -- failures -------------------------------------------------------------------------------------------------------

    async def record_failure(
        self, failure_type: FailureType | str, agent_id: str = "", task_id: str = "", error: str | BaseException = ""
    ) -> str:
        """Remember a failure. Returns its id."""
        return await self.failures.record(failure_type, agent_id=agent_id, task_id=task_id, error=_text(error))

    async def mark_recovered(self, failure_id: str) -> None:
        """Remember that what failed is well again."""
        await self.failures.recovered(failure_id)

    async def get_failure_history(
        self, agent_id: str | None = None, failure_type: FailureType | str | None = None, count: int = 100
    ) -> Sequence[Failure]:
        """The newest failures, newest first."""
        return await self.failures.history(agent_id=agent_id, failure_type=failure_type, count=count)

    def register_recovery_handler(self, failure_type: FailureType | str, handler: Handler) -> None:
        """Call *handler* for each failure of a type; a `RecoveryAction` that it gives is taken instead of the usual one."""
        self._handlers.setdefault(FailureType(failure_type), []).append(handler)

    async def handle_failure(
        self,
        failure_type: FailureType | str,
        agent_id: str,
        task_id: str,
        error: str | BaseException = "",
        *,
        agent_role: str = "",
        task_data: Mapping[str, Any] | None = None,
        attempt: int = 1,
    ) -> Recovery:
        """Record a failure and do what its type asks for (`ACTIONS`, or a handler's choice).

        Args:
            failure_type: what went wrong.
            agent_id: who failed.
            task_id: with what.
            error: what it said.
            agent_role: of the agent, if it is not registered; decides its fallbacks.
            task_data: for the fallback.
            attempt: which attempt failed, from 1; after the last one of the policy a retry becomes an escalation.
        """
        kind = FailureType(failure_type)
        failure_id = await self.record_failure(kind, agent_id, task_id, error)
        failure = Failure(id=failure_id, type=kind, at_ms=0, agent_id=agent_id, task_id=task_id, error=_text(error))
        action = ACTIONS[kind]
        for handler in self._handlers.get(kind, ()):
            chosen = handler(failure)
            if inspect.isawaitable(chosen):
                chosen = await chosen
            action = RecoveryAction(chosen) if chosen is not None else action
        if action is RecoveryAction.RETRY and attempt > self.retry.max_retries:
            action = RecoveryAction.ESCALATE
        match action:
            case RecoveryAction.RETRY:
                pause_s = backoff_s(attempt, self.retry, self._random)
                return Recovery(action=action, failure_id=failure_id, retry_in_s=pause_s)
            case RecoveryAction.FALLBACK_AGENT:
                if not agent_role and (known := await self._board.agents.find(agent_id)) is not None:
                    agent_role = known.role
                found = await self.spawn_fallback_agent(agent_id, agent_role, task_id, task_data)
                action = action if found is not None else RecoveryAction.ESCALATE  # it is on the list by now
                return Recovery(action=action, failure_id=failure_id, fallback_id=found)
            case RecoveryAction.ARCHIVE:
                await self._archive(task_id, agent_id, failure)
            case RecoveryAction.ESCALATE | RecoveryAction.MANUAL_REVIEW:
                await self.escalate(task_id, _text(error) or kind, agent_id=agent_id, failure_type=kind)
        return Recovery(action=action, failure_id=failure_id)

    async def _archive(self, task_id: str, agent_id: str, failure: Failure) -> None:
        try:
            await self._board.archive(task_id, agent=agent_id, reason=f"{failure.type}: {failure.error}"[:300])
        except RefusedError as error:  # held, gone, or a board without a way there: somebody has to look
            await self.escalate(task_id, f"can't be archived: {error}", agent_id=agent_id, failure_type=failure.type)

    async def escalate(
        self,
        task_id: str,
        why: str,
        *,
        agent_id: str = "",
        failure_type: FailureType | str = FailureType.UNKNOWN,
        **facts: Any,
    ) -> Escalation:
        """Put a task on the list of what waits for a person, and tell whoever listens."""
        told = await self.failures.escalate(task_id, why, agent_id=agent_id, failure_type=failure_type, **facts)
        log.error("escalated", task=task_id, agent=agent_id, why=told.why)
        await self._say("system.escalation", told.as_dict())
        return told

    async def escalations(self) -> Sequence[Escalation]:
        """What waits for a person, oldest first."""
        return await self.failures.escalations()

    async def resolve_escalation(self, task_id: str) -> bool:
        """Take a task off the list; False if it was not on it."""
        return await self.failures.resolve(task_id)

    async def get_health_status(self) -> dict[str, Any]:
        """How the board's world is.

        Returns:
            ``status`` (healthy, degraded: a breaker is open or something failed within the hour and is not well again,
            failing: something waits for a person), ``open_breakers``, ``failures_last_hour`` by type, ``unrecovered``,
            ``escalations`` (task ids).
        """
        breakers, escalations = await self.breakers(), await self.escalations()
        history = await self.failures.history(count=1000)
        newest_ms = await self._now_ms()
        recent = [each for each in history if newest_ms - each.at_ms < HOUR_MS]
        by_type: dict[str, int] = {}
        for each in recent:
            by_type[each.type] = by_type.get(each.type, 0) + 1
        unrecovered = [each.id for each in recent if not each.recovered_ms]
        shut = [each.name for each in breakers if each.state != "closed"]
        status = "failing" if escalations else "degraded" if shut or unrecovered else "healthy"
        return {
            "status": status, "open_breakers": shut, "failures_last_hour": by_type, "unrecovered": len(unrecovered),
            "escalations": [each.task_id for each in escalations],
        }  # fmt: skip

    async def _now_ms(self) -> int:
        clock = await self._board.store.command("TIME")
        return int(clock[0]) * 1000 + int(clock[1]) // 1000

    async def _say(self, msg_type: str, payload: Mapping[str, Any]) -> None:
        if self._tell is None:
            return
        try:
            await self._tell(msg_type, payload)
        except UnavailableError as error:
            log.warning("not told", message=msg_type, why=str(error))  # it stands in Redis, or will be noticed


def _text(error: str | BaseException) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
