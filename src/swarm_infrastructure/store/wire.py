"""A wire: one connection on which many calls are under way at once.

Calls are written in the order in which they are asked: at once if no other is under way, else those of one turn of the loop
together. Answers come in the same order, as Redis promises. A caller that goes away leaves its place to an answer that nobody
reads; the connection goes on. redis-py makes the connection (addresses, TLS, passwords, names) and reads its errors. Its own
clients keep one connection busy for each call under way, and a call takes five times the processor time that it takes here
(see docs/performance.md).

What blocks a connection (BLPOP, WAIT) needs a wire that nobody else asks on: see `Node.blocking`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis import exceptions as refused
from redis._parsers.base import BaseParser
from redis.asyncio import Connection

__all__ = ["Wire"]

_INCOMPLETE = object()


class Wire:
    """One connection, made when it is needed and again when it broke.

    Args:
        make: a connection that does not stand yet, of RESP2.
        timeout_s: how long an answer may take. If one takes longer, the connection is given up with all that is under way.
    """

    def __init__(self, make: Callable[[], Connection], *, timeout_s: float) -> None:
        self._make, self._timeout_s = make, timeout_s
        self._line: _Line | None = None
        self._connecting: asyncio.Task[_Line] | None = None

    @property
    def busy(self) -> int:
        """How many answers are outstanding."""
        return self._line.busy if self._line is not None else 0

    async def ask(self, *words: Any) -> Any:
        """The answer to one command.

        Raises:
            redis.exceptions.RedisError: it is an error, or there is none: then it may have been executed all the same.
        """
        line = self._line
        if line is None or line.lost:
            line = await self._connected()
        return await line.send((words,), self._timeout_s)[0]

    async def ask_all(self, many: Sequence[Sequence[Any]], *, within_s: float) -> list[Any]:
        """The answers to several commands, sent together and executed one after the other; errors stand among them.

        Raises:
            redis.exceptions.RedisError: there was no connection.
        """
        line = self._line
        if line is None or line.lost:
            line = await self._connected()
        sent = line.send(many, within_s)
        answers: list[Any] = []
        try:
            for each in sent:  # they come in this order: who has waited for the last one finds the others there
                try:
                    answers.append(await each)
                except refused.RedisError as error:
                    answers.append(error)
        finally:
            for each in sent[len(answers) :]:
                each.cancel()
        return answers

    def sever(self) -> None:
        """Cut it, as a network would: what is under way fails, and so does connecting."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._line is not None:
            self._line.abort()

    async def close(self) -> None:
        """Close it. A call after that would open it again."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._line is not None:
            self._line.abort()
            await self._line.gone
            self._line = None

    async def _connected(self) -> _Line:
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect(), name="connect")
            self._connecting.add_done_callback(_retrieve)
        connecting = self._connecting
        await asyncio.wait({connecting})
        if connecting.cancelled():  # by `sever` or `close`: who asks was not cancelled, and may ask elsewhere
            raise refused.ConnectionError("Connection closed.")
        return connecting.result()

    async def _connect(self) -> _Line:
        connection = self._make()
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            if connection._writer is not None:  # it stood, but was not greeted
                connection._writer.transport.abort()
                connection._reader = connection._writer = None
            raise
        self._line = _Line(connection)
        return self._line


class _Line(asyncio.Protocol):
    """A connection that stands, in place of the one that made it."""

    def __init__(self, connection: Connection) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection  # not let go before the socket is
        self._reader = hiredis.Reader(
            protocolError=refused.InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()  # by when, and where, each answer is expected
        self._watch: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []
        self.lost = False
        self.gone: asyncio.Future[None] = self._loop.create_future()
        assert connection._writer is not None
        self._transport: Any = connection._writer.transport
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self._lose(refused.ConnectionError, "Connection closed by server.")

    @property
    def busy(self) -> int:
        return len(self._waiting)

    def send(self, many: Sequence[Sequence[Any]], within_s: float) -> list[asyncio.Future[Any]]:
        packed = [hiredis.pack_command(tuple(words)) for words in many]  # before anything else: it may refuse
        answers: list[asyncio.Future[Any]] = [self._loop.create_future() for _ in many]
        if self.lost:
            for answer in answers:
                answer.set_exception(refused.ConnectionError("Connection lost."))
            return answers
        if not self._waiting:  # Redis has nothing to do: it may begin while we make the next call
            self._transport.write(b"".join(packed))
        else:
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent += packed
        due = self._loop.time() + within_s
        self._waiting.extend((due, answer) for answer in answers)
        if self._watch is not None and self._watch.when() > due:  # set for an earlier call, which was allowed more time
            self._watch.cancel()
            self._watch = None
        if self._watch is None:
            self._watch = self._loop.call_later(within_s, self._look)
        return answers

    def _flush(self) -> None:
        """Write what was asked in this turn of the loop together: a write costs more than what is in it."""
        unsent, self._unsent = self._unsent, []
        if not self.lost:
            self._transport.write(b"".join(unsent))

    def abort(self) -> None:
        self._lose(refused.ConnectionError, "Connection closed.")
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (found := self._reader.gets()) is not _INCOMPLETE:
                _, answer = self._waiting.popleft()
                if answer.done():
                    continue  # its caller went away
                if isinstance(found, refused.RedisError):
                    answer.set_exception(found)
                else:
                    answer.set_result(found)
        except (refused.InvalidResponse, IndexError) as error:  # no Redis, or more answers than questions
            self._lose(refused.ConnectionError, f"no answer of Redis: {error}")
            self._transport.abort()

    def eof_received(self) -> None:
        self._lose(refused.ConnectionError, "Connection closed by server.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(refused.ConnectionError, f"Connection lost: {exc}" if exc else "Connection closed by server.")
        self._connection._reader = self._connection._writer = None
        if not self.gone.done():
            self.gone.set_result(None)

    def _look(self) -> None:
        """Is the oldest call overdue? One timer serves all of them, for answers come in order."""
        self._watch = None
        if not self._waiting:
            return
        left_s = self._waiting[0][0] - self._loop.time()
        if left_s > 0:
            self._watch = self._loop.call_later(left_s, self._look)
            return
        self._lose(refused.TimeoutError, "no answer in time")
        self._transport.abort()

    def _lose(self, kind: type[refused.RedisError], why: str) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self.lost = True
        while self._waiting:
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(kind(why))


def _retrieve(task: asyncio.Task[_Line]) -> None:
    """Look at the outcome: a connection that failed when nobody waited any more is nothing to warn of."""
    if not task.cancelled():
        task.exception()
