"""Waiting for work: agents of one process that wait for the same lanes share one connection and one call.

Who comes is asked for at once, unless the lanes were found empty just now. Who got nothing waits with a claim that stands in
Redis behind the doorbells of the lanes (`Store.call`, *after*): when one rings, or a lease or delay is over, the claim is
executed there and then, and its answer is the first thing that this process hears. A claim that waits can't be changed. So
those it is for are *listening*, and are not asked for otherwise; who goes away meanwhile ends it by a bell of the process'
own.
"""

from __future__ import annotations

import asyncio
import random as chance
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf

import structlog

from ...errors import SectionFullError, SwarmError, UnavailableError
from ...keys import BoardKeys
from ...store import Store
from .values import MOST_PER_CALL, Claimed, ClaimRequest, Hands, new_request

__all__ = ["WaitingRoom"]

log = structlog.get_logger(__name__)

POLL_S = 30.0  # how long an idle agent trusts the doorbell; a lost ring costs this much latency and no work
STOPPED_S = 0.5  # how soon who may not claim looks whether it may again: a raised budget resumes within a second
EMPTY_S = 0.02  # how long lanes that were found empty are taken for that: who comes meanwhile waits for the doorbell
LEAVE_S = 1.0  # how long who goes away waits for its claim to end
WAKE_S = 5.0  # how long the own bell rings for a claim that has ended already

#: Claims for requests with the same lanes and lease; with bells and seconds: once one of them has rung, or so much later.
Asking = Callable[[Sequence[ClaimRequest], "tuple[Sequence[str], float] | None"], Awaitable[Hands]]


@dataclass(slots=True, eq=False)
class _Waiting:
    request: ClaimRequest
    answer: asyncio.Future[list[Claimed]]
    asked: bool = False  #: got nothing so far
    stopped: bool = False  #: may not claim now


@dataclass(slots=True, eq=False)
class _Queue:
    """The requests for one set of lanes, and the task that serves them."""

    lanes: tuple[str, ...]
    lease_s: float
    wake: str  #: bell of its own
    waiting: dict[_Waiting, None] = field(default_factory=dict)  #: in the order of arrival
    listening: list[_Waiting] = field(default_factory=list)  #: those for whom a claim waits in Redis
    claim: asyncio.Task[None] | None = None  #: that claim
    waking: asyncio.Task[None] | None = None  #: rings the own bell for it
    due_at: float | None = (
        None  #: on the loop's clock: when the next lease or delay of these lanes ends, if one was known
    )
    empty_until: float = 0.0  #: on the loop's clock: so long they are taken for empty
    look_at: float = inf  #: on the loop's clock: when those who don't listen ask again
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    closing: bool = False

    @property
    def stopped(self) -> bool:
        return any(each.stopped for each in self.waiting)


class WaitingRoom:
    """Where agents wait until there is work for them.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        ask: claims for several requests with the same lanes and lease, at once or behind doorbells.
        hand_back: gives claims back that nobody wants any more.
        random: source of jitter.
    """

    def __init__(
        self,
        store: Store,
        keys: BoardKeys,
        *,
        ask: Asking,
        hand_back: Callable[[Sequence[Claimed]], Awaitable[None]],
        random: chance.Random,
    ) -> None:
        self._store, self._keys = store, keys
        self._ask, self._hand_back, self._random = ask, hand_back, random
        self._queues: dict[tuple[tuple[str, ...], float], _Queue] = {}

    async def wait(self, request: ClaimRequest) -> list[Claimed]:
        """Wait until there is work for *request*: at least one item. Cancel it to stop waiting; nothing is held once it has
        ended.
        """
        key = (request.lanes, request.lease_s)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(request.lanes, request.lease_s, self._keys.wake(new_request()))
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        queue.waiting[waiting] = None
        queue.changed.set()
        if queue.task is None or queue.task.done():
            queue.task = asyncio.create_task(self._serve(queue), name=f"claims {request.lanes[0]}")
            queue.task.add_done_callback(partial(_tell_waiting, queue))
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            await self._leave(queue, waiting)
            raise

    def wake_stopped(self) -> None:
        """Let those ask again who held as many claims as they may."""
        for queue in self._queues.values():
            if queue.stopped:
                for each in queue.waiting:
                    each.asked = each.asked and not each.stopped
                queue.changed.set()

    async def close(self) -> None:
        """Stop serving; whoever waits is cancelled, and what was claimed for them meanwhile is handed back."""
        queues = [queue for queue in self._queues.values() if queue.task is not None]
        for queue in queues:
            queue.closing = True
            queue.changed.set()
            for waiting in queue.waiting:
                waiting.answer.cancel()
        await asyncio.gather(*(self._wake(queue) for queue in queues if queue.listening))
        tasks = [task for queue in queues for task in (queue.task, queue.claim) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self._store.timeout_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._queues.clear()

    async def _leave(self, queue: _Queue, waiting: _Waiting) -> None:
        queue.waiting.pop(waiting, None)
        answer, claim = waiting.answer, queue.claim
        if answer.done() and not answer.cancelled() and answer.exception() is None:  # dealt in the same moment
            await self._hand_back(answer.result())
        elif waiting in queue.listening and claim is not None and not queue.closing:
            await self._wake(queue)
            await asyncio.wait({claim}, timeout=LEAVE_S)

    async def _wake(self, queue: _Queue) -> None:
        """End the claim that waits in Redis. Who is cancelled meanwhile does not keep the bell from ringing."""
        if queue.waking is None:
            queue.waking = asyncio.create_task(self._ring(queue), name=f"wake {queue.lanes[0]}")
        await asyncio.wait({queue.waking})

    async def _ring(self, queue: _Queue) -> None:
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._store.commands(
                    ("LPUSH", queue.wake, "1"), ("PEXPIRE", queue.wake, round(WAKE_S * 1000)), once=True
                )
        except (UnavailableError, TimeoutError) as error:
            log.debug("a claim that waits was not woken; what it gets is handed back", why=str(error))

    # -- serving ----------------------------------------------------------------------------------------------------

    async def _serve(self, queue: _Queue) -> None:
        while not queue.closing:
            queue.changed.clear()
            if queue.empty_until > asyncio.get_running_loop().time():
                for each in queue.waiting:  # but who was stopped is not listened for before he has asked
                    each.asked = each.asked or not each.stopped
            new = [each for each in queue.waiting if not each.asked]
            if new:
                await self._deal(queue, new, None)
            if queue.claim is not None and queue.claim.done():
                ended, queue.claim, queue.listening = queue.claim, None, []
                ended.result()
            if not queue.waiting and queue.claim is None:
                await queue.changed.wait()  # somebody comes soon: to wait costs less than a new task
                continue
            if any(not each.asked for each in queue.waiting):
                continue
            if queue.claim is None:
                self._listen(queue)
            await self._until_changed(queue)

    def _listen(self, queue: _Queue) -> None:
        """Let a claim for those who wait and may claim stand in Redis until there is work."""
        listening, room = [], MOST_PER_CALL
        for each in queue.waiting:
            if not each.stopped and room > 0:
                listening.append(each)
                room -= each.request.most
        if not listening:
            return
        bells = [*(self._keys.lane(lane).bell for lane in queue.lanes), queue.wake]
        queue.listening, queue.waking = listening, None
        queue.claim = asyncio.create_task(
            self._deal(queue, listening, (bells, self._patience_s(queue))), name=f"claims later {queue.lanes[0]}"
        )
        queue.claim.add_done_callback(lambda _: queue.changed.set())

    async def _until_changed(self, queue: _Queue) -> None:
        """Wait for somebody new, for the end of the claim that waits, or until those who don't listen should ask again."""
        idle = [each for each in queue.waiting if each not in queue.listening]
        if not idle:
            queue.look_at = inf
            await queue.changed.wait()
            return
        patience_s = self._patience_s(queue)
        if any(each.stopped for each in idle):
            patience_s = min(patience_s, STOPPED_S)
        now = asyncio.get_running_loop().time()
        queue.look_at = min(queue.look_at, now + patience_s)  # others who come and go don't put it off
        try:
            async with asyncio.timeout_at(queue.look_at):
                await queue.changed.wait()
        except TimeoutError:
            queue.look_at = inf
            for each in idle:
                each.asked = False

    async def _deal(self, queue: _Queue, asked: Sequence[_Waiting], after: tuple[Sequence[str], float] | None) -> None:
        """Claim for *asked*, and remember what was learned of the lanes."""
        loop = asyncio.get_running_loop()
        for start in range(0, len(asked), MOST_PER_CALL):
            part = asked[start : start + MOST_PER_CALL]
            try:
                hands = await self._ask([each.request for each in part], after)
            except (UnavailableError, SectionFullError) as error:  # Redis is away, or out of memory: both pass
                log.warning("can't claim, waiting", why=str(error))
                await asyncio.sleep(self._random.random())
                for each in part:
                    each.asked = False
                queue.due_at = queue.empty_until = 0.0
                return
            except SwarmError as error:
                _fail(queue, part, error)
                continue
            queue.due_at = None if hands.due_s is None else loop.time() + hands.due_s
            queue.empty_until = 0.0
            for waiting, hand in zip(part, hands.dealt, strict=True):
                waiting.asked, waiting.stopped = True, isinstance(hand, str)
                if isinstance(hand, list):
                    if len(hand) < waiting.request.most:
                        queue.empty_until = loop.time() + EMPTY_S
                    if hand:
                        await self._give(queue, waiting, hand)
            if [] in hands.dealt:  # nothing is left
                for each in asked[start + MOST_PER_CALL :]:
                    each.asked = True
                break

    async def _give(self, queue: _Queue, waiting: _Waiting, hand: list[Claimed]) -> None:
        if waiting.answer.done():  # it went away while we asked
            await self._hand_back(hand)
            return
        queue.waiting.pop(waiting, None)
        waiting.answer.set_result(hand)

    def _patience_s(self, queue: _Queue) -> float:
        # at most half a lease: so whoever idles learns of every claim before its lease can end, and wakes when it does
        patience_s = min(POLL_S, queue.lease_s / 2) * (0.75 + 0.25 * self._random.random())
        if queue.due_at is not None:  # wake when a lease ends, but not all processes at once
            due_s = max(queue.due_at - asyncio.get_running_loop().time(), 0.0)
            patience_s = min(patience_s, due_s + 0.002 + self._random.random() * 0.05)
        return patience_s


def _fail(queue: _Queue, waiting: Sequence[_Waiting], error: BaseException) -> None:
    for each in waiting:
        queue.waiting.pop(each, None)
        if not each.answer.done():
            each.answer.set_exception(error)


def _tell_waiting(queue: _Queue, task: asyncio.Task[None]) -> None:
    """Serving ended: by an error that nobody foresaw, if somebody still waits."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("claiming stopped", lanes=queue.lanes, why=repr(error))
        _fail(queue, list(queue.waiting), error)
