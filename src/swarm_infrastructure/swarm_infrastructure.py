"""SwarmInfrastructure: builds the systems from the settings and joins them.

It owns their lifetimes and the verbs that touch two of them; what concerns one system is called there
(``swarm.blackboard``, …). The task calls of the product document are doors to the board's claims.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Any, Self

import structlog

from .blackboard import NEWS, Blackboard, Board, Claim, Place
from .blackboard.leases import Lease
from .config import Settings
from .errors import ClaimLostError, ItemNotFoundError, SwarmError
from .failure_recovery import RetryPolicy, backoff_s
from .monitoring import Traces, TraceType, configure_logs
from .store import Store
from .store.embedded import Located, locate

__all__ = ["SwarmInfrastructure"]

log = structlog.get_logger(__name__)


class SwarmInfrastructure:
    """Everything that a swarm runs on. Use it as ``async with SwarmInfrastructure() as swarm``.

    Args:
        board: the board; the news board by default.
        settings: `Settings.load()` by default: the environment and ``.env``.
        replace_board: put this board in place of another one of its name.
        retry: how failed tasks of `fail_task` are tried again.
    """

    def __init__(
        self,
        board: Board = NEWS,
        settings: Settings | None = None,
        *,
        replace_board: bool = False,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.settings = settings or Settings.load()
        self.board = board if self.settings.lease_s is None else board.with_lease(self.settings.lease_s)
        self.retry = retry or RetryPolicy()
        self.traces = Traces()
        self.located: Located | None = None  #: where Redis was found, once connected
        self._replace_board = replace_board
        self._stack = AsyncExitStack()
        self._blackboard: Blackboard | None = None
        self._tasks: dict[tuple[str, str], Lease] = {}  # what `claim_task` took: (agent, item) → lease
        self._random = Random()

    @property
    def blackboard(self) -> Blackboard:
        """The board; there once connected."""
        if self._blackboard is None:
            raise SwarmError("the swarm is not connected; use: async with SwarmInfrastructure() as swarm")
        return self._blackboard

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
                    replace_library=self.located.started,  # we are its only user: no other build is at work
                )
            )
            self._blackboard = await self._stack.enter_async_context(
                Blackboard(
                    store,
                    self.board,
                    namespace=settings.namespace,
                    replace_board=self._replace_board,
                    dead_after_s=settings.dead_after_s,
                )
            )
        except BaseException:
            await self._stack.aclose()
            raise
        log.debug("connected", redis=self.located.how)
        return self

    async def disconnect(self) -> None:
        """Close everything; the private Redis stops with its last user."""
        await self._stack.aclose()
        self._blackboard = None

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

    async def register_agent(self, agent_id: str, role: str, capabilities: Sequence[str] = (), **facts: Any) -> None:
        """Make an agent known to the board."""
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
        answer = await getattr(self.blackboard, verb)(claim, **facts)
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
    ) -> None:
        """Count the tokens of a model call made outside of the runtime for an agent (`AgentState.total_tokens_used`)."""
        await self.blackboard.agents.count_tokens(agent_id, prompt_tokens + completion_tokens)
        log.info(
            "model call", agent=agent_id, task=task_id, task_type=task_type, model=str(model), prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens, ms=duration_ms, confidence=confidence,
        )  # fmt: skip

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
