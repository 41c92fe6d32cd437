"""Waiting for work: agents of one process that wait for the same lanes share one blocked connection and one call."""

from __future__ import annotations

import asyncio
import random as chance
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from ...errors import SectionFullError, SwarmError, UnavailableError
from ...keys import BoardKeys
from ...store import Store
from .values import MOST_PER_CALL, Claimed, ClaimRequest

__all__ = ["WaitingRoom"]

log = structlog.get_logger(__name__)

POLL_S = 5.0  # how long an idle agent trusts the doorbell; a lost ring costs this much latency and no work
STOPPED_S = 0.5  # how soon who may not claim looks whether it may again: a raised budget resumes within a second

Asking = Callable[
    [Sequence[ClaimRequest], tuple[str, ...], float], Awaitable[tuple[list[list[Claimed] | str], float | None]]
]


@dataclass(slots=True, eq=False)
class _Waiting:
    request: ClaimRequest
    answer: asyncio.Future[list[Claimed]]


@dataclass(slots=True)
class _Queue:
    """The requests for one set of lanes, and the task that serves them."""

    lanes: tuple[str, ...]
    lease_s: float
    waiting: deque[_Waiting] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    stopped: int = 0  #: of those who wait: who may not claim now


class WaitingRoom:
    """Where agents wait until there is work for them.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        ask: claims for several requests with the same lanes and lease; gives each its hand, or the gate that is shut, and
            when the next lease or delay of these lanes ends (seconds).
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
        self._claim, self._hand_back, self._random = ask, hand_back, random
        self._queues: dict[tuple[tuple[str, ...], float], _Queue] = {}

    async def wait(self, request: ClaimRequest) -> list[Claimed]:
        """Wait until there is work for *request*: at least one item. Cancel it to stop waiting; nothing is held then.

        Agents that wait for the same lanes share one blocked connection and one call.
        """
        key = (request.lanes, request.lease_s)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(request.lanes, request.lease_s)
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        queue.waiting.append(waiting)
        queue.arrived.set()
        if queue.task is None or queue.task.done():
            queue.task = asyncio.create_task(self._serve(queue), name=f"claims {request.lanes[0]}")
            queue.task.add_done_callback(partial(_tell_waiting, queue))
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            if waiting in queue.waiting:
                queue.waiting.remove(waiting)
            answer = waiting.answer
            if answer.done() and not answer.cancelled() and answer.exception() is None:  # dealt in the same moment
                await self._hand_back(answer.result())
            raise

    def wake_stopped(self) -> None:
        """Let those ask again who held as many claims as they may."""
        for queue in self._queues.values():
            if queue.stopped:
                queue.arrived.set()

    async def close(self) -> None:
        """Stop serving; whoever waits is cancelled."""
        for queue in self._queues.values():
            for waiting in queue.waiting:
                waiting.answer.cancel()
        tasks = [queue.task for queue in self._queues.values() if queue.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._queues.clear()

    async def _serve(self, queue: _Queue) -> None:
        bell: asyncio.Task[str] | None = None
        try:
            while True:
                queue.arrived.clear()
                dealing = asyncio.create_task(self._deal(queue))
                try:
                    due_s, stopped = await asyncio.shield(dealing)
                    queue.stopped = stopped
                except asyncio.CancelledError:  # closing: what was claimed for those who went away is handed back
                    await asyncio.wait({dealing}, timeout=self._store.timeout_s)
                    raise
                if not queue.waiting:
                    if bell is None:
                        return
                elif bell is None and stopped < len(queue.waiting):
                    bell = asyncio.create_task(self._listen(queue))
                patience_s = min(self._poll_s(queue.lease_s), STOPPED_S if stopped else 3600.0)
                if due_s is not None and stopped < len(
                    queue.waiting
                ):  # wake when a lease ends, but not all processes at once
                    patience_s = min(patience_s, max(due_s, 0.0) + 0.002 + self._random.random() * 0.05)
                arrived = asyncio.create_task(queue.arrived.wait())
                try:
                    await asyncio.wait(
                        {arrived, bell} if bell else {arrived}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    arrived.cancel()
                if bell is not None and bell.done():
                    rung, bell = bell.result(), None
                    if rung and all(each.answer.done() for each in queue.waiting):  # nobody here needs it any more
                        await self._pass_on(rung)
        finally:
            if bell is not None:
                bell.cancel()

    async def _deal(self, queue: _Queue) -> tuple[float | None, int]:
        """Claim for all who wait. Returns when the next lease or delay ends (s), and how many may not claim now."""
        asked, due_s, stopped = [each for each in queue.waiting if not each.answer.done()], None, 0
        for start in range(0, len(asked), MOST_PER_CALL):
            part = asked[start : start + MOST_PER_CALL]
            try:
                hands, due_s = await self._claim([each.request for each in part], queue.lanes, queue.lease_s)
            except (UnavailableError, SectionFullError) as error:  # Redis is away, or out of memory: both pass
                log.warning("can't claim, waiting", why=str(error))
                await asyncio.sleep(self._random.random())
                return 0.0, 0
            except SwarmError as error:
                for waiting in part:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(error)
                        queue.waiting.remove(waiting)
                continue
            for waiting, hand in zip(part, hands, strict=True):
                stopped += isinstance(hand, str)
                if isinstance(hand, list) and hand:
                    if waiting.answer.done():  # it went away while we asked
                        await self._hand_back(hand)
                    else:
                        queue.waiting.remove(waiting)
                        waiting.answer.set_result(hand)
            if [] in hands:
                break  # nothing is left
        return due_s, stopped

    async def _listen(self, queue: _Queue) -> str:
        bells = [self._keys.lane(lane).bell for lane in queue.lanes]
        try:
            return await self._store.wait_for_bell(bells, self._poll_s(queue.lease_s))
        except UnavailableError:
            await asyncio.sleep(0.2 + 0.3 * self._random.random())
            return ""

    async def _pass_on(self, bell: str) -> None:
        try:
            await self._store.command("LPUSH", bell, "1", once=True)
        except UnavailableError as error:
            log.debug("a doorbell was lost; idle agents look again by themselves", why=str(error))

    def _poll_s(self, lease_s: float) -> float:
        # at most half a lease: so whoever idles learns of every claim before its lease can end, and wakes when it does
        return min(POLL_S, lease_s / 2) * (0.75 + 0.25 * self._random.random())


def _tell_waiting(queue: _Queue, task: asyncio.Task[None]) -> None:
    """Serving ended: by an error that nobody foresaw, if somebody still waits."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("claiming stopped", lanes=queue.lanes, why=repr(error))
        for waiting in queue.waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
        queue.waiting.clear()
