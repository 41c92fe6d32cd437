"""The runner: lets one agent work. Owns its slots, its leases and its way out.

::

    stop claiming → finish what is in hand, within the grace → hand back the rest → leave

Nothing that happens to an item ends the runner: a handler that raises is a failed attempt, a lost claim is dropped, and
while Redis is away it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import structlog

from ..blackboard import Claimed, ClaimRequest, Lease
from ..cost_manager import Budget
from ..errors import (
    BudgetExceededError,
    ClaimLostError,
    ConfigurationError,
    InvalidInputError,
    RefusedError,
    SwarmError,
    UnavailableError,
)
from ..failure_recovery import backoff_s
from ..service import let_finish
from ..swarm_infrastructure import SwarmInfrastructure
from .base import BaseAgent
from .work import Complete, Fail, HandBack, Outcome, Work

__all__ = ["Runner"]

log = structlog.get_logger(__name__)
LEAVING_S = 1.0  # of the grace: for handing back what handlers did not finish, and closing


class Runner:
    """Runs one agent.

    Args:
        agent: the agent.
        swarm: connected.
        random: source of jitter.
    """

    def __init__(self, agent: BaseAgent, swarm: SwarmInfrastructure, *, random: Random | None = None) -> None:
        self.agent, self._swarm = agent, swarm
        self._random = random or Random()
        self._stopping = asyncio.Event()
        self._stopped: asyncio.Task[bool] | None = None
        self._task: asyncio.Task[None] | None = None
        self._hands: dict[asyncio.Task[None], Lease] = {}
        self._draining = self._handing_back = self._left = False
        self._short_of_money = False  # said once, until something succeeds again
        self.status = "idle"  #: idle, working or error
        self.finished = 0  #: items that left its hands

    async def start(self) -> None:
        """Register the agent and begin.

        Raises:
            ConfigurationError, RefusedError: the agent asks for what the board does not have.
        """
        agent = self.agent
        serve = self._cycle_forever() if agent.cycles_by_hand() else self._claim_forever()
        try:
            if not agent.cycles_by_hand():
                self._requests(1)  # find a wrong section, status or capability now
            if agent.budget is not None:
                await self._swarm.cost_manager.ledger.declare(Budget(scope=f"role:{agent.role}", **agent.budget))
            await self._swarm.register_agent(agent.agent_id, agent.role, agent.capabilities)
            await agent.bus.start()
            await agent.setup()
        except BaseException:
            serve.close()
            raise
        self._task = asyncio.create_task(serve, name=agent.agent_id)

    @property
    def in_hand(self) -> int:
        """Items that the agent works on now."""
        return len(self._hands)

    def stop_claiming(self) -> None:
        """Take no more items; what is in hand goes on."""
        self._stopping.set()

    async def stop(self, *, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Stop claiming, let handlers finish (or until *hurry*), hand back the rest, unregister: all within *grace_s*."""
        if self._left:
            return
        grace_s -= min(LEAVING_S, grace_s / 5)
        self.stop_claiming()
        if self._task is not None and self.agent.cycles_by_hand():
            await self._wait_for({self._task}, grace_s, hurry)
        elif self._task is not None:
            await asyncio.wait({self._task})
        await self._wait_for(set(self._hands), grace_s, hurry)
        self._draining = True
        rest = [*self._hands, *([self._task] if self._task else [])]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        try:
            await self.agent.teardown()
            await self.agent.bus.stop()
            await self._swarm.unregister_agent(self.agent.agent_id)
            self._left = True
        except UnavailableError as error:
            log.warning("left without a word: the store is away", agent=self.agent.agent_id, why=str(error))

    async def hand_back_all(self) -> None:
        """Hand back what is in hand, at once, and go on: with claims, as far as the gates allow."""
        self._handing_back = True
        hands = list(self._hands)
        for task in hands:
            task.cancel()
        await asyncio.gather(*hands, return_exceptions=True)
        await self._hand_back_tasks()
        self._handing_back = False

    async def wait(self) -> None:
        """Wait until the runner ends by itself: it does so only if something is wrong that a retry can't mend."""
        if self._task is not None:
            await asyncio.shield(self._task)

    @staticmethod
    async def _wait_for(tasks: set[asyncio.Task[None]], grace_s: float, hurry: asyncio.Event | None) -> None:
        await let_finish(tasks, grace_s, hurry)
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- agents that override process -----------------------------------------------------------------------------------

    def _requests(self, most: int) -> ClaimRequest:
        agent, desk = self.agent, self._swarm.blackboard.claims
        if agent.claims is None:
            raise ConfigurationError(
                f"agent {agent.agent_id!r} claims nothing; give {type(agent).__name__} a line like: claims = Claims('section')"
            )
        lanes: list[str] = []
        for section in agent.claims.sections:
            ready = self._swarm.board.section(section).ready
            statuses = [each for each in agent.claims.statuses if each in ready] or (agent.claims.statuses or None)
            lanes += desk.lanes(section, statuses=statuses, capabilities=agent.capabilities)
        return ClaimRequest(
            agent_id=agent.agent_id, role=agent.role, lanes=tuple(lanes), most=most,
            lease_s=min(self._swarm.board.section(section).lease_s for section in agent.claims.sections),
        )  # fmt: skip

    async def _claim_forever(self) -> None:
        agent = self.agent
        batch = agent.claims.batch if agent.claims else 1
        slots = agent.slots or batch
        parse = agent.parser()
        request = self._requests(1)
        lanes, lease_s = request.lanes, request.lease_s
        while not self._stopping.is_set():
            free = slots - len(self._hands)
            if free <= 0:
                await self._until_stopped_or(self._until_one_ends())
                continue
            request = ClaimRequest(
                agent_id=agent.agent_id, role=agent.role, lanes=lanes, most=min(free, batch), lease_s=lease_s
            )
            claimed = await self._until_stopped_or(self._swarm.blackboard.claims.wait(request))
            for each in claimed or ():
                self._take(each, parse)

    async def _until_one_ends(self) -> None:
        await asyncio.wait(set(self._hands), return_when=asyncio.FIRST_COMPLETED)

    async def _until_stopped_or(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The answer of *work*, or None if the runner is stopped first; then *work* is cancelled."""
        task = asyncio.ensure_future(work)
        stopped = self._stop_signal()
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return None if task.cancelled() else task.result()

    def _stop_signal(self) -> asyncio.Task[bool]:
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stopping.wait())
        return self._stopped

    def _take(self, claimed: Claimed, parse: Any) -> None:
        lease = self._swarm.blackboard.leases.keep(claimed.claim)
        task = asyncio.create_task(self._handle(claimed, lease, parse))
        lease.on_lost = lambda _why: cancel(task)
        self._hands[task] = lease
        self.status = "working"
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        lease = self._hands.pop(task)
        self._swarm.blackboard.leases.drop(lease.claim)
        self.finished += 1
        if not self._hands and self.status == "working":
            self.status = "idle"
        if not task.cancelled() and task.exception() is not None:
            log.error("an ending went wrong", agent=self.agent.agent_id, error=repr(task.exception()))

    async def _handle(self, claimed: Claimed, lease: Lease, parse: Any) -> None:
        agent, work = self.agent, Work(claimed, lease, self._swarm, role=self.agent.role)
        outcome: Outcome
        try:
            outcome = await agent.process(parse(claimed.item), work) or Complete()
            self._short_of_money = False
        except asyncio.CancelledError:
            if lease.lost or not self._draining_now():
                return  # the claim is gone: whatever we wrote would be refused
            outcome = HandBack(reason="the worker stops")
        except ClaimLostError as error:
            log.warning("dropped", item=claimed.item.id, agent=agent.agent_id, why=error.why)
            return
        except BudgetExceededError as error:
            if error.on_breach == "fail":
                outcome = Fail(error=f"{type(error).__name__}: {error}")
            else:  # the agent's claims stand still; the item waits unharmed for money, or for another agent
                outcome = HandBack(reason=f"stop_reason=budget: {error}")
                if not self._short_of_money:
                    log.warning("paused for want of money", agent=agent.agent_id, why=str(error))
                self._short_of_money = True
        except InvalidInputError as error:
            outcome = Fail(error=f"{type(error).__name__}: {error}", give_up=True)  # the same input fails the same way
        except Exception as error:  # the rim: a handler may raise anything
            known = isinstance(error, SwarmError)  # its message says it all
            log.warning(
                "attempt failed",
                item=claimed.item.id,
                agent=agent.agent_id,
                error=str(error) or repr(error),
                exc_info=not known,
            )
            outcome = Fail(error=f"{type(error).__name__}: {error}")
        await self._finish(work, outcome)

    def _draining_now(self) -> bool:
        return self._draining or self._handing_back or self._stopping.is_set()

    async def _finish(self, work: Work, outcome: Outcome) -> None:
        while not work.lost:
            try:
                await self._end(work, outcome)
                return
            except ClaimLostError as error:
                log.warning("dropped", item=work.item.id, agent=self.agent.agent_id, why=error.why)
                return
            except UnavailableError:
                await asyncio.sleep(0.2 + self._random.random())  # the lease decides how long this makes sense
            except RefusedError as error:
                if isinstance(outcome, Fail):
                    raise
                log.error("the board refused an outcome", item=work.item.id, agent=self.agent.agent_id, why=str(error))
                outcome = Fail(error=f"{type(error).__name__}: {error}")

    async def _end(self, work: Work, outcome: Outcome) -> None:
        board = self._swarm.blackboard
        match outcome:
            case Complete():
                await board.complete(
                    work.claim, outcome.to, requires=outcome.requires, patch=outcome.patch, of=work.item,
                    result=outcome.result, reason=outcome.reason, delay_s=outcome.delay_s,
                )  # fmt: skip
            case Fail():
                delay_s = outcome.retry_in_s
                if delay_s is None:
                    delay_s = backoff_s(max(1, work.attempt), self.agent.retry, self._random)
                await board.fail(work.claim, outcome.error, retry_in_s=delay_s, give_up=outcome.give_up)
            case HandBack():
                await board.hand_back(work.claim, reason=outcome.reason, delay_s=outcome.delay_s)
            case _:
                raise InvalidInputError(
                    f"{type(self.agent).__name__}.process",
                    found=outcome,
                    needed="work.done(), move(), fail() or hand_back()",
                )

    # -- agents that override _process_cycle ------------------------------------------------------------------------------

    async def _cycle_forever(self) -> None:
        agent = self.agent
        while not self._stopping.is_set():
            pause_s = agent.cycle_s
            try:
                self.status = "working"
                await agent._process_cycle()
                self.status = "idle"
                await self._close_tasks("the cycle ended without completing it")
            except asyncio.CancelledError:
                await self._hand_back_tasks()
                raise
            except UnavailableError as error:
                log.warning("cycle interrupted", agent=agent.agent_id, why=str(error))
            except Exception as error:  # the rim: a cycle may raise anything
                self.status, pause_s = "error", agent.cycle_s * 2
                log.warning("cycle failed", agent=agent.agent_id, error=repr(error), exc_info=True)
                await self._close_tasks(f"{type(error).__name__}: {error}")
            await self._until_stopped_or(asyncio.sleep(pause_s * (0.75 + self._random.random() / 2)))

    async def _close_tasks(self, why: str) -> None:
        """What a cycle claimed and left open counts as a failed attempt: else it would be held for ever."""
        for claim in self._swarm.tasks_of(self.agent.agent_id):
            try:
                await self._swarm.fail_task(claim.agent_id, claim.lane.split("/")[0], claim.item_id, why)
            except SwarmError as error:
                log.warning("not closed", item=claim.item_id, agent=claim.agent_id, why=str(error))

    async def _hand_back_tasks(self) -> None:
        for claim in self._swarm.tasks_of(self.agent.agent_id):
            try:
                await self._swarm.blackboard.hand_back(claim, reason="the worker stops")
            except SwarmError as error:
                log.warning("not handed back", item=claim.item_id, agent=claim.agent_id, why=str(error))


def cancel(task: asyncio.Task[None]) -> None:
    """Cancel *task*; a callback must give None."""
    task.cancel()
