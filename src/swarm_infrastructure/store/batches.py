"""Batches: requests of one process that fall together travel in one call.

Each caller is answered when its own request is in Redis. While calls are under way the next requests gather, so that the
batches grow with the load by themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from ..errors import SwarmError

__all__ = ["Batches"]

log = structlog.get_logger(__name__)
Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Batches(Generic[Request, Answer]):
    """Gathers requests.

    Args:
        name: of the task that sends.
        send: sends a batch; gives an answer for each, in order. An exception among them is raised to its caller alone.
        most: requests per batch.
        at_once: calls under way. With more than one, Redis works on a batch while the next is made ready; but a repeated
            call may come after the one that followed it.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[Request]], Awaitable[Sequence[Answer | Exception]]],
        *,
        most: int,
        at_once: int = 1,
    ) -> None:
        self._name, self._send, self._most, self._at_once = name, send, most, at_once
        self._waiting: deque[tuple[Request, asyncio.Future[Answer]]] = deque()
        self._gathering = False  # a task will send what waits in the next turn of the loop
        self._sending = 0
        self._senders: set[asyncio.Task[None]] = set()

    def send(self, request: Request) -> asyncio.Future[Answer]:
        """Send *request* with those of the same moment."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if not self._gathering and self._sending < self._at_once:
            self._gathering = True
            self._sending += 1
            sender = asyncio.create_task(self._send_all(), name=self._name)
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        return answer

    async def flush(self) -> None:
        """Wait until everything that was given to `send` is sent."""
        while self._senders:
            await asyncio.wait(self._senders)

    async def cancel(self) -> None:
        """Give up what was given to `send` and has no answer; whoever waits for it is cancelled."""
        for _, answer in self._waiting:
            answer.cancel()
        self._waiting.clear()
        senders = list(self._senders)
        for sender in senders:
            sender.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
        self._gathering, self._sending = False, 0  # some of them had not begun

    async def _send_all(self) -> None:
        self._gathering = False  # this is the next turn of the loop: the requests of the last one have joined
        try:
            while self._waiting:
                await self._send_one()
        finally:
            self._sending -= 1

    async def _send_one(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._send([request for request, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            if not isinstance(error, SwarmError):
                log.error("a batch could not be sent", batch=self._name, requests=len(batch), exc_info=True)
            answers = [error] * len(batch)  # whatever it was: nobody may be left waiting
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
                future.exception()  # looked at: a failed request of a caller that went away is nothing to warn of
            else:
                future.set_result(answer)
