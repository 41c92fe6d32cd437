"""The runner: lets one agent work. Owns its slots, its leases and its way out.

::

    stop claiming → finish what is in hand, within the grace → hand back the rest → leave

Nothing that happens to an item ends the runner: a handler that raises is a failed attempt, a lost claim is dropped, and
while Redis is away it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import structlog

from ..blackboard import Claimed, ClaimRequest, Lease
from ..blackboard.claims import work_under
from ..cost_manager import Budget
from ..errors import (
    BudgetExceededError,
    CircuitOpenError,
    ClaimLostError,
    ConfigurationError,
    InvalidInputError,
    RateLimitedError,
    RefusedError,
    ReplayError,
    SwarmError,
    UnavailableError,
)
from ..failure_recovery import backoff_s, type_of_error
from ..message_bus import Message, MessageType
from ..service import let_finish
from ..swarm_infrastructure import SwarmInfrastructure
from .base import BaseAgent
from .work import Complete, Fail, HandBack, Outcome, Work

__all__ = ["Runner"]

log = structlog.get_logger(__name__)
REAP_S = 0.5  # how often an agent without a free slot looks for leases that ran out
LOOK_AGAIN_S = 30.0  # the longest that an item waits for a backend: a breaker may be closed by hand meanwhile
ASSIGNED_S = 30.0  # how long an agent tries to get an item that it was given: its lease may have to run out first
TURNS = 3  # of the event loop until a claim that is asked for is on its way
LEAVING_S = 1.0  # of the grace: for handing back what handlers did not finish, and closing
_let_others: Callable[[], None] = getattr(os, "sched_yield", lambda: None)  # Windows has none


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
        self._idle = False  # its task waits for work, or for a free slot: cancel it to end that
        self._freed: asyncio.Future[None] | None = None  # waits for a free slot
        self._busy_since = 0.0
        self._looking: asyncio.TimerHandle | None = None  # for leases that ran out, while no slot is free
        self._reaping: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._dealt: list[tuple[Claimed, Any]] = []  # claimed for us, with how to read it, and not begun
        self._hands: dict[asyncio.Task[None], Lease] = {}
        self._at_work: set[Lease] = set()  # of those, whose handlers have not ended yet
        self._kept_free = 0  # slots for items that it was told to take over
        self._look_again = False  # its task was cancelled to count its slots anew
        self._draining = self._handing_back = self._set_up = False
        self._cycle: asyncio.Task[None] | None = None  # of an agent that cycles by hand
        self.left = False  #: it has stopped, and is not registered any more
        self._gone = asyncio.Event()
        self._short_of_money = False  # said once, until something succeeds again
        self.status = "idle"  #: idle, working or error
        self.finished = 0  #: items that left its hands

    async def start(self) -> None:
        """Register the agent and begin.

        Raises:
            ConfigurationError, RefusedError: the agent asks for what the board does not have.
        """
        agent = self.agent
        serve = self._cycle_forever() if agent.cycles_by_hand() else self._serve()
        try:
            if not agent.cycles_by_hand():
                self._requests(1)  # find a wrong section, status or capability now
            if agent.budget is not None:
                await self._swarm.cost_manager.ledger.declare(Budget(scope=f"role:{agent.role}", **agent.budget))
            await self._swarm.register_agent(agent.agent_id, agent.role, **self.facts())
            if not agent.cycles_by_hand():
                agent.bus.on(MessageType.TASK_ASSIGN, self._assigned)
            await agent.bus.start()
            self._set_up = True
            await agent.setup()
        except BaseException:
            serve.close()
            await self._undo_start()
            raise
        self._task = asyncio.create_task(serve, name=agent.agent_id)

    def facts(self) -> dict[str, Any]:
        """What the board is told of the agent: its capabilities, the lanes that it claims and how many items at once.

        An agent that cycles by hand does not say what it claims.
        """
        agent = self.agent
        facts: dict[str, Any] = {"capabilities": list(agent.capabilities)}
        if agent.claims is not None and not agent.cycles_by_hand():
            facts |= {"lanes": list(self._requests(1).lanes), "slots": agent.slots or agent.claims.batch}
        return facts

    async def _undo_start(self) -> None:
        """Leave no agent behind that is known and listens, but does not work."""
        self.left = True
        self.agent.bus.off(MessageType.TASK_ASSIGN, self._assigned)
        try:
            await self.agent.bus.stop()
            await self._swarm.unregister_agent(self.agent.agent_id)
        except SwarmError as error:
            log.warning("not taken back", agent=self.agent.agent_id, why=str(error))

    @property
    def in_hand(self) -> int:
        """Items that the agent works on now."""
        return len(self._hands) + len(self._dealt)

    def stop_claiming(self) -> None:
        """Take no more items; what is in hand goes on."""
        self._stopping.set()
        if self._idle and self._task is not None:
            self._task.cancel()

    async def stop(self, *, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """Stop claiming, let handlers finish (or until *hurry*), hand back the rest, unregister: all within *grace_s*."""
        if self.left:
            return
        leaving_s = min(LEAVING_S, grace_s / 5)
        grace_s -= leaving_s
        self.stop_claiming()
        self._take_dealt()
        working = set(self._hands) | self.agent.background
        if self._task is not None and self.agent.cycles_by_hand():
            working.add(self._task)
        elif self._task is not None:
            await asyncio.wait({self._task})
        await let_finish(working, grace_s, hurry)
        self._draining = True
        await _end({*working, *self._hands, *self.agent.background, *([self._task] if self._task else [])}, leaving_s)
        try:
            if self._set_up:
                await self.agent.teardown()
        except Exception:  # the rim: it may raise anything, and the others have to leave too
            log.error("teardown failed", agent=self.agent.agent_id, exc_info=True)
        self.left = True  # no heartbeat any more, which would bring it back
        try:
            async with asyncio.timeout(max(leaving_s, 0.1)):
                await self.agent.bus.stop()
                await self._swarm.unregister_agent(self.agent.agent_id)
        except (UnavailableError, TimeoutError) as error:
            log.warning("left without a word: the store is away", agent=self.agent.agent_id, why=str(error))
        finally:
            self._gone.set()

    async def hand_back_all(self) -> None:
        """Hand back what is in hand, at once, and go on: with claims, as far as the gates allow."""
        self._handing_back = True
        self._take_dealt()
        tasks = {*self._hands, *self.agent.background, *([self._cycle] if self._cycle else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._hand_back_tasks()
        self._handing_back = False

    async def wait(self) -> None:
        """Wait until the runner has left. It ends by itself only if something is wrong that a retry can't mend.

        Raises:
            SwarmError: that.
        """
        if self._task is None:
            return
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({self._task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done() and not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error
            await gone  # its loop ends first when it is told to leave
        finally:
            gone.cancel()

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

    async def _serve(self) -> None:
        try:
            await self._claim_forever()
        finally:
            self._take_dealt()
            if self._looking is not None:
                self._looking.cancel()
            if self._reaping is not None:
                self._reaping.cancel()

    async def _claim_forever(self) -> None:
        agent = self.agent
        batch = agent.claims.batch if agent.claims else 1
        slots = agent.slots or batch
        parse = agent.parser()
        lanes = self._requests(1).lanes
        requests = {most: self._requests(most) for most in range(1, min(slots, batch) + 1)}  # checked once
        claims = self._swarm.blackboard.claims
        while not self._stopping.is_set():
            # a slot is free once its handler has ended: the next claim travels right behind the ending, and not behind its
            # answer. As many endings as there are slots may be without one.
            free = self._free_of(slots)
            self._idle = True
            try:
                if free <= 0:
                    await self._until_one_ends(lanes)
                    continue
                asked = min(free, batch)
                claimed = await claims.wait(requests[asked])
            except asyncio.CancelledError:
                if self._stopping.is_set():
                    return  # told to stop: what was claimed in that moment is handed back already
                task = asyncio.current_task()
                if not self._look_again or task is None or task.uncancel():
                    raise
                self._look_again = False
                continue
            finally:
                self._idle = False
            # where there may be more, and room for it, the next claim leaves first: Redis works on it while the handlers work
            self._dealt += ((each, parse) for each in claimed)
            if len(claimed) == asked and self._free_of(slots) > 0:
                self._turn(TURNS)
            else:
                self._take_dealt()

    def _free_of(self, slots: int) -> int:
        """How many items may be taken now."""
        return min(slots - len(self._at_work) - self._kept_free, 2 * slots - len(self._hands)) - len(self._dealt)

    async def _until_one_ends(self, lanes: Sequence[str]) -> None:
        """Wait for a free slot, and meanwhile take back what ran out in our lanes: who claims does so, but we can't now."""
        loop = asyncio.get_running_loop()
        self._freed, self._busy_since = loop.create_future(), loop.time()
        if self._looking is None:  # one timer for many waits: most are shorter, and to make one costs more than to wait
            self._looking = loop.call_later(self._reap_s(), self._look, lanes)
        await self._freed

    def _look(self, lanes: Sequence[str]) -> None:
        self._looking = None
        if self._freed is None or self._freed.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._busy_since >= REAP_S / 2 and (self._reaping is None or self._reaping.done()):
            self._reaping = asyncio.create_task(self._reap(lanes), name=f"{self.agent.agent_id} reaps")
        self._looking = loop.call_later(self._reap_s(), self._look, lanes)

    def _reap_s(self) -> float:
        return REAP_S * (0.75 + self._random.random() / 2)

    async def _reap(self, lanes: Sequence[str]) -> None:
        try:
            await self._swarm.blackboard.claims.reap(lanes)
        except UnavailableError as error:
            log.debug("nothing taken back", agent=self.agent.agent_id, why=str(error))

    async def _rest(self, seconds: float) -> None:
        """Do nothing for so long, or until the runner is stopped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _turn(self, left: int) -> None:
        """Begin with what was dealt, after so many turns of the event loop."""
        if left:
            asyncio.get_running_loop().call_soon(self._turn, left - 1)
            return
        _let_others()  # Redis, if it shares our core, deals the next hand before we work on this one
        self._take_dealt()

    def _take_dealt(self) -> None:
        dealt, self._dealt = self._dealt, []
        for claimed, parse in dealt:
            self._take(claimed, parse)

    def _take(self, claimed: Claimed, parse: Any) -> None:
        lease = self._swarm.blackboard.leases.keep(claimed.claim)
        task = asyncio.get_running_loop().create_task(self._handle(claimed, lease, parse), name=self.agent.agent_id)
        lease.on_lost = task.cancel
        self._hands[task] = lease
        self._at_work.add(lease)
        self.status = "working"
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        lease = self._hands.pop(task)
        if lease in self._at_work:  # it was cancelled before it began
            self._at_work.discard(lease)
            if not lease.lost:
                claims = self._swarm.blackboard.claims
                claims.end(claims.hand_back_of(lease.claim, reason="the agent stopped"))
        self._free()
        self._swarm.blackboard.leases.drop(lease.claim)
        self.finished += 1
        if not self._hands and self.status == "working":
            self.status = "idle"
        if not task.cancelled() and task.exception() is not None:
            log.error("an ending went wrong", agent=self.agent.agent_id, error=repr(task.exception()))

    def _free(self) -> None:
        if self._freed is not None and not self._freed.done():
            self._freed.set_result(None)

    async def _handle(self, claimed: Claimed, lease: Lease, parse: Any) -> None:
        work = Work(claimed, lease, self._swarm, role=self.agent.role)
        outcome = await self._process(claimed, work, parse)
        self._at_work.discard(lease)
        self._free()  # who waits for the slot runs after the ending was given away to be sent
        if outcome is not None:
            await self._finish(work, outcome)

    async def _process(self, claimed: Claimed, work: Work, parse: Any) -> Outcome | None:
        """Let the agent work on an item. What is to become of it; None if it is not ours any more."""
        agent = self.agent
        try:
            work_under(claimed.claim)
            outcome = await agent.process(parse(claimed.item), work) or Complete()
            self._short_of_money = False
            return outcome
        except asyncio.CancelledError:
            if work.lost or not self._draining_now():
                return None  # the claim is gone: whatever we wrote would be refused
            return HandBack(reason="the worker stops")
        except ClaimLostError as error:
            log.warning("dropped", item=claimed.item.id, agent=agent.agent_id, why=error.why)
            return None
        except BudgetExceededError as error:
            if error.on_breach == "fail":
                return failed(error)
            # the agent's claims stand still; the item waits unharmed for money, or for another agent
            if not self._short_of_money:
                log.warning("paused for want of money", agent=agent.agent_id, why=str(error))
            self._short_of_money = True
            return HandBack(reason=f"stop_reason=budget: {error}")
        except CircuitOpenError as error:  # no fault of the item's: it waits until the backend is tried again
            return HandBack(reason=f"stop_reason=breaker: {error}", delay_s=self._after(error.retry_after_s))
        except RateLimitedError as error:  # no fault of the item's either
            return HandBack(reason=f"stop_reason=rate limit: {error}", delay_s=self._after(error.retry_after_s or 1.0))
        except (InvalidInputError, ReplayError) as error:
            return failed(error, give_up=True)  # the same input fails the same way
        except Exception as error:  # the rim: a handler may raise anything
            known = isinstance(error, SwarmError)  # its message says it all
            log.warning(
                "attempt failed",
                item=claimed.item.id,
                agent=agent.agent_id,
                error=str(error) or repr(error),
                exc_info=not known,
            )
            return failed(error)

    def _after(self, wait_s: float) -> float:
        """A little later than *wait_s*, and not all at once; soon enough if somebody ends the wait by hand."""
        return min(wait_s, LOOK_AGAIN_S) * (1 + 0.2 * self._random.random())

    def _draining_now(self) -> bool:
        return self._draining or self._handing_back or self._stopping.is_set()

    async def _finish(self, work: Work, outcome: Outcome) -> None:
        board = self._swarm.blackboard
        while not work.lost:
            try:
                if isinstance(outcome, Complete) and outcome.patch is None:
                    # nearly always: the answer comes straight here, and not by way of two more coroutines
                    await board.claims.end(
                        board.completion_of(
                            work.claim, outcome.to, requires=outcome.requires, result=outcome.result,
                            reason=outcome.reason, delay_s=outcome.delay_s,
                        )
                    )  # fmt: skip
                else:
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
                outcome = failed(error)

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
                kind = await board.fail(work.claim, outcome.error, retry_in_s=delay_s, give_up=outcome.give_up)
                await self._after_failure(work, outcome, kind)
            case HandBack():
                await board.hand_back(work.claim, reason=outcome.reason, delay_s=outcome.delay_s)
            case _:
                raise InvalidInputError(
                    f"{type(self.agent).__name__}.process",
                    found=outcome,
                    needed="work.done(), move(), fail() or hand_back()",
                )

    async def _after_failure(self, work: Work, outcome: Fail, kind: str) -> None:
        """Remember the failure; whoever takes over from this role gets the item; what is given up waits for a person."""
        recovery, agent = self._swarm.failure_recovery, self.agent
        try:
            await recovery.record_failure(outcome.type, agent.agent_id, work.item_id, outcome.error)
            if kind == "quarantined":
                await recovery.escalate(work.item_id, outcome.error, agent_id=agent.agent_id, failure_type=outcome.type)
            elif recovery.fallbacks.of(agent.role) and not self._draining_now():
                # nobody free: it has its next attempt anyway
                await recovery.spawn_fallback_agent(agent.agent_id, agent.role, work.item_id, escalate=False)
        except SwarmError as error:
            log.warning("a failure was not recorded", item=work.item_id, why=str(error))

    # -- tasks given by name ----------------------------------------------------------------------------------------------

    def _assigned(self, message: Message) -> None:
        told = message.payload if isinstance(message.payload, dict) else {}
        task = asyncio.create_task(
            self._take_over(str(told.get("task_id", ""))), name=f"{self.agent.agent_id} takes over"
        )
        self.agent.background.add(task)
        task.add_done_callback(self.agent.background.discard)

    async def _take_over(self, item_id: str) -> None:
        """Claim an item that another agent failed with, as soon as it can be claimed. What is no item of the board is for
        handlers of the agent's own."""
        agent, board, loop = self.agent, self._swarm.blackboard, asyncio.get_running_loop()
        gives_up_at, pause_s = loop.time() + ASSIGNED_S, 0.05
        slots = agent.slots or (agent.claims.batch if agent.claims else 1)
        while not self._stopping.is_set() and loop.time() < gives_up_at:
            if self._free_of(slots) <= 0:
                await asyncio.sleep(pause_s)
                continue
            self._keep_free(1)
            try:
                item = await board.find(item_id)
                if item is None or not (item.holder or board.board.is_ready(item.section, item.status)):
                    return
                # also if it waits for its next attempt: we are that
                claimed = await board.claims.claim_item(item_id, agent.agent_id, role=agent.role, delayed=True)
                if claimed is not None:
                    self._take(claimed, agent.parser())
                    return
            except RefusedError as error:  # somebody was quicker, or it is no id of an item
                log.debug("not taken over", item=item_id, agent=agent.agent_id, why=str(error))
            except UnavailableError as error:
                log.warning("not taken over yet", item=item_id, agent=agent.agent_id, why=str(error))
            finally:
                self._keep_free(-1)
            await asyncio.sleep(pause_s * (0.5 + self._random.random()))
            pause_s = min(pause_s * 2, 1.0)

    def _keep_free(self, slots: int) -> None:
        """Keep so many more slots free of what it claims by itself; a claim that waits counted on them."""
        self._kept_free += slots
        self._free()
        if slots > 0 and self._idle and self._task is not None and not self._look_again:
            self._look_again = True
            self._task.cancel()

    # -- agents that override _process_cycle ------------------------------------------------------------------------------

    async def _cycle_forever(self) -> None:
        agent = self.agent
        while not self._stopping.is_set():
            pause_s = agent.cycle_s
            try:
                self.status = "working"
                self._cycle = asyncio.create_task(agent._process_cycle(), name=f"cycle of {agent.agent_id}")
                await self._cycle
                self.status = "idle"
                await self._close_tasks("the cycle ended without completing it")
            except asyncio.CancelledError:
                await self._hand_back_tasks()
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self.status = "idle"  # the cycle alone was cut off, as by an emergency stop: we go on
            except UnavailableError as error:
                log.warning("cycle interrupted", agent=agent.agent_id, why=str(error))
            except Exception as error:  # the rim: a cycle may raise anything
                self.status, pause_s = "error", agent.cycle_s * 2
                log.warning("cycle failed", agent=agent.agent_id, error=repr(error), exc_info=True)
                await self._close_tasks(f"{type(error).__name__}: {error}")
            await self._rest(pause_s * (0.75 + self._random.random() / 2))

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


def failed(error: BaseException, *, give_up: bool = False) -> Fail:
    """What an exception of a handler means for its item."""
    return Fail(error=f"{type(error).__name__}: {error}", give_up=give_up, type=type_of_error(error))


async def _end(tasks: set[asyncio.Task[None]], within_s: float) -> None:
    """Cancel *tasks*, and once more what is not over *within_s*: whoever waits for a store that is away gives up then."""
    left = {task for task in tasks if not task.done()}
    for n in range(2):
        if left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=max(within_s, 0.1) / (n + 1))
    if left:
        log.error("did not end", tasks=[task.get_name() for task in left])
