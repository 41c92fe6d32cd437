"""Fallbacks: who takes over when an agent or a provider does not do its work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import structlog

from ..blackboard import AgentStatus
from ..blackboard.registry import AgentRegistry
from ..errors import CircuitOpenError, InvalidInputError
from ..keys import check_id
from .circuit_breaker import Breakers, heard_of

__all__ = ["FallbackAgents", "FallbackChain"]

log = structlog.get_logger(__name__)
Answer = TypeVar("Answer")
#: starts an agent in this process, or finds the one that it started; its id, or None
Starter = Callable[[], Awaitable[str | None]]
Assign = Callable[[str, Mapping[str, Any]], Awaitable[bool]]  #: tells an agent of its task; whether it heard
Summon = Callable[[str], Awaitable[str | None]]  #: asks another process to start one; its id, or None


class FallbackChain(Generic[Answer]):
    """Providers of one thing, each behind a breaker of its own: the first that works is taken.

    .. code-block:: python

        visuals = failure_recovery.chain({"runway": runway.generate, "heygen": heygen.generate})
        image = await visuals.call(prompt)

    Args:
        breakers: of the backends.
        providers: by the names of their breakers, best first.
    """

    def __init__(self, breakers: Breakers, providers: Mapping[str, Callable[..., Awaitable[Answer]]]) -> None:
        if not providers:
            raise InvalidInputError("providers of a fallback chain", found="none", needed="at least one")
        for name in providers:
            breakers.get(name)  # a name that can't be one is refused now, and not when the others have failed
        self._breakers, self._providers = breakers, dict(providers)
        self.used = ""  #: who gave the last answer

    async def call(self, *args: Any, **kwargs: Any) -> Answer:
        """What the first provider gives that is not failing.

        A `RefusedError` of a provider is its answer, and nobody else is asked: they would refuse as well.

        Raises:
            Exception: what the last one raised, with the others' as notes; `CircuitOpenError` if no breaker was closed.
        """
        failures: list[tuple[str, Exception]] = []
        for name, provider in self._providers.items():
            try:
                answer = await self._breakers.get(name).call(provider, *args, **kwargs)
            except Exception as error:  # the rim: somebody else's service may raise anything
                if not isinstance(error, CircuitOpenError) and heard_of(error) != "failed":
                    raise
                log.warning("provider failed", provider=name, why=repr(error))
                failures.append((name, error))
            else:
                self.used = name
                return answer
        *others, (_, last) = failures
        for name, failure in others:
            last.add_note(f"before that {name!r}: {failure!r}")
        raise last


class FallbackAgents:
    """Which agents take over from which role, and how they are found or started.

    Args:
        registry: who is alive.
        assign: tells an agent of its task.
        summon: asks another process to start an agent.
    """

    def __init__(self, registry: AgentRegistry, *, assign: Assign | None = None, summon: Summon | None = None) -> None:
        self._registry, self._assign, self._summon = registry, assign, summon
        self._chains: dict[str, tuple[str, ...]] = {}
        self._starters: dict[str, Starter] = {}

    def register(self, role: str, names: Sequence[str]) -> None:
        """Say who takes over from *role*, best first: ids or roles of agents, or names of classes that can be started."""
        if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
            raise InvalidInputError(f"fallbacks of role {role!r}", found=names, needed="a list of names")
        for name in names:
            check_id(f"fallback of role {role!r}", name)
        self._chains[str(role)] = tuple(dict.fromkeys(names))

    def of(self, role: str) -> tuple[str, ...]:
        """Who takes over from *role*, best first."""
        return self._chains.get(str(role), ())

    def starts(self, name: str, starter: Starter | None) -> None:
        """Agents called *name* can be started in this process; None: not any more."""
        if starter is None:
            self._starters.pop(name, None)
        else:
            self._starters[name] = starter

    @property
    def startable(self) -> Sequence[str]:
        """What can be started in this process."""
        return sorted(self._starters)

    async def start(self, name: str) -> str | None:
        """Start an agent in this process. Returns its id, or None if nobody here knows how."""
        starter = self._starters.get(name)
        return await starter() if starter is not None else None

    async def hand_over(self, role: str, failed_agent_id: str, facts: Mapping[str, Any]) -> str | None:
        """Give a task to the first fallback that can be found: one that is idle, else one that can be started, here or
        elsewhere. Returns its id, or None."""
        for name in self.of(role):
            async for agent_id in self._candidates(name, failed_agent_id):
                if self._assign is None or await self._assign(agent_id, facts):
                    log.info("handed over", task=facts.get("task_id"), failed=failed_agent_id, fallback=agent_id)
                    return agent_id
                log.warning("a fallback agent did not hear", agent=agent_id)
        return None

    async def _candidates(self, name: str, failed_agent_id: str) -> AsyncIterator[str]:
        for agent in await self._registry.list():
            named = name in (agent.agent_id, agent.role)
            if named and agent.agent_id != failed_agent_id and agent.status is AgentStatus.IDLE and not agent.gate:
                yield agent.agent_id
        try:
            started = await self.start(name) or (await self._summon(name) if self._summon else None)
        except Exception as error:  # the rim: an agent's own setup may raise anything, and others may do
            log.warning("a fallback agent was not started", name=name, why=repr(error), exc_info=True)
            return
        if started is not None:
            yield started
