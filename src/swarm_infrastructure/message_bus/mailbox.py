"""A mailbox: what one agent has heard, on its way to the agent's handlers, one message after the other.

Owns that order, the room for what waits, and what becomes of a handler that fails. Leaves listening to ``hub``, and the
choice of handlers to ``bus``.

While nothing waits and no handler is at work, a message is handled the moment it is heard: to wake a task for each agent of a
process would cost several times what a small handler does. A handler that has to be waited for is waited for in the
mailbox's own task, and what comes meanwhile waits behind it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import structlog

from ..errors import InvalidInputError, SwarmError
from ..telemetry import traceparent_of_work
from .hub import Heard
from .messages import Message

__all__ = ["Handler", "Mailbox"]

log = structlog.get_logger(__name__)
TURN = 32  # messages that are handled before others get a turn on the event loop

Handler = Callable[[Message], Awaitable[Any] | Any]


class _Begun(NamedTuple):
    """A message one of whose handlers has to be waited for."""

    message: Message
    answer: Awaitable[Any]
    handlers: Iterator[Handler]  #: those that are called after that


class Mailbox:
    """Use it from one event loop: `open` it, `post` to it, `close` it.

    Args:
        agent_id: whose it is.
        handlers_of: the handlers of a type of message, in order; what it returns does not change any more.
        room: messages that wait; when it is full the oldest is dropped, and counted. None: as many as come.
    """

    def __init__(
        self, agent_id: str, handlers_of: Callable[[str], Sequence[Handler]], *, room: int | None = None
    ) -> None:
        self._agent_id, self._handlers_of, self._room = agent_id, handlers_of, room
        self._waiting: deque[Heard] = deque()
        self._rest: asyncio.Future[None] | None = None  # on which the task waits for something to do
        self._begun: _Begun | None = None
        self._context = contextvars.copy_context()  # the handlers', whether the task is at work or `post`
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0  #: messages for which there was no room
        self.expired = 0  #: messages that came to their turn too late

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    def open(self) -> None:
        """Begin to handle messages, in the context of who opens it."""
        self._context = contextvars.copy_context()
        self._task = asyncio.create_task(self._work(), name=f"messages of {self._agent_id}", context=self._context)

    async def close(self) -> None:
        """Handle no more: what waits is dropped, and a handler at work is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._waiting.clear()

    def post(self, heard: Heard) -> None:
        """Have a message handled when those before it are."""
        rest = self._rest
        if rest is None or rest.done():
            self._put(heard)
            return
        self._rest = None  # what a handler posts waits until it is through
        self._begun = self._context.run(self._begin, heard)
        if self._begun is None and not self._waiting:
            self._rest = rest  # the task has slept through it
        else:
            rest.set_result(None)

    def _put(self, heard: Heard) -> None:
        if self._room is not None and len(self._waiting) >= self._room:
            self._waiting.popleft()
            self.dropped += 1
            if self.dropped == 1 or self.dropped % 10_000 == 0:
                log.warning(
                    "a mailbox is full; its oldest messages are dropped", agent=self._agent_id, dropped=self.dropped
                )
        self._waiting.append(heard)

    async def _work(self) -> None:
        loop, n = asyncio.get_running_loop(), 0
        try:
            while True:
                if not self._waiting:
                    self._rest = loop.create_future()
                    await self._rest
                else:
                    self._begun = self._begin(self._waiting.popleft())
                if self._begun is not None:
                    begun, self._begun = self._begun, None
                    await self._finish(begun)
                n += 1
                if n % TURN == 0:
                    await asyncio.sleep(0)  # what is urgent has its turn
        finally:
            self._rest = None
            if self._begun is not None and inspect.iscoroutine(self._begun.answer):
                self._begun.answer.close()  # it was not waited for yet

    def _begin(self, heard: Heard) -> _Begun | None:
        """Call the handlers; returns what there is to wait for, if anything."""
        try:
            message = heard.message
        except InvalidInputError as error:
            log.warning("a message can't be read", channel=heard.channel, why=str(error))
            return None
        if heard.is_expired():
            self.expired += 1
            return None
        traceparent_of_work.set(message.traceparent)
        return self._go_on(message, iter(self._handlers_of(message.type)))

    def _go_on(self, message: Message, handlers: Iterator[Handler]) -> _Begun | None:
        for handler in handlers:
            try:
                answer = handler(message)
                if answer is not None and inspect.isawaitable(answer):
                    return _Begun(message, answer, handlers)
            except asyncio.CancelledError:
                self._say_cancelled(message)
            except Exception as error:  # noqa: BLE001 - the rim: a handler may raise anything
                self._say_failed(message, error)
        return None

    async def _finish(self, begun: _Begun | None) -> None:
        while begun is not None:
            try:
                await begun.answer
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._say_cancelled(begun.message)
            except Exception as error:  # noqa: BLE001 - the rim
                self._say_failed(begun.message, error)
            begun = self._go_on(begun.message, begun.handlers)

    def _say_cancelled(self, message: Message) -> None:
        log.warning("what a message handler waited for was cancelled", agent=self._agent_id, message=message.name)

    def _say_failed(self, message: Message, error: Exception) -> None:
        log.warning(
            "a message handler failed", agent=self._agent_id, message=message.name, error=repr(error),
            exc_info=error if not isinstance(error, SwarmError) else None,
        )  # fmt: skip
