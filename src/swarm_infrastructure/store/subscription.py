"""A subscription: one connection that listens to pub/sub channels, and comes back by itself when it breaks.

It speaks RESP3, so that it can ask for values on the connection that brings the messages: what it is told then is exact
to the message, for Redis answers in the order in which it pushes.
"""

from __future__ import annotations

import asyncio
import math
import random as chance
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import structlog
from redis import exceptions as refused
from redis.asyncio import Connection

from ..errors import StoreUnavailableError

__all__ = ["Subscription"]

log = structlog.get_logger(__name__)
PING_S = 10.0  # a connection that went silent without closing is found within two of these
CONNECT_S = 5.0  # for a connection that is accepted but not answered
TURN = 16  # messages that are handed on before others get a turn on the event loop
CHANNELS_PER_CALL = 1000


class Subscription:
    """Listens to channels. What is published while the connection is down is lost, and `on_numbers` tells how much.

    Args:
        connect: a new connection, of RESP3, to the server that publishes; it does not stand yet.
        doubt: told why a connection broke or could not be made.
        shown: the server's address without its password.
        on_message: called with channel and body of each message.
        on_numbers: called after each (re)connection with the channels and what the hash *numbers* holds for them, at the
            very place in the stream of messages at which Redis read it.
        numbers: the key of that hash.
        random: source of jitter.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        doubt: Callable[[Exception], None],
        shown: str,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_numbers: Callable[[Sequence[bytes], Sequence[bytes | None]], None],
        numbers: str,
        random: chance.Random | None = None,
    ) -> None:
        self._connect, self._doubt, self._shown, self._random = connect, doubt, shown, random or chance.Random()
        self._on_message, self._on_numbers, self._numbers = on_message, on_numbers, numbers
        self._channels: dict[bytes, int] = {}  # → how many of us listen to it
        self._standing: set[bytes] = set()  # what Redis has confirmed on this connection
        self._waiting: list[tuple[set[bytes], asyncio.Future[None]]] = []
        self._asked: deque[list[bytes]] = deque()  # the channels of each HMGET under way, in order
        self._connection: Connection | None = None
        self._heard_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self.reconnects = 0  #: how often the connection had to be made anew

    async def add(self, channels: Iterable[str], *, timeout_s: float | None = None) -> None:
        """Listen to *channels* too; returns when Redis has confirmed it.

        Raises:
            StoreUnavailableError: it has not within *timeout_s*. It is listened to as soon as Redis is back.
        """
        names = [name.encode() for name in channels]
        new = [name for name in names if name not in self._channels]
        for name in names:
            self._channels[name] = self._channels.get(name, 0) + 1
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._listen(), name="subscription"),
                asyncio.create_task(self._ping(), name="subscription ping"),
            ]
        elif new and self._connection is not None:
            try:
                await self._subscribe(self._connection, new)
            except (refused.RedisError, OSError) as error:
                log.debug("not subscribed yet: the connection is gone", why=str(error))  # the next one does it
        missing = set(names) - self._standing
        if missing:
            confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((missing, confirmed))
            try:
                async with asyncio.timeout(timeout_s):
                    await confirmed
            except TimeoutError as error:
                raise StoreUnavailableError(self._shown, "a subscription was not confirmed") from error

    async def discard(self, channels: Iterable[str]) -> None:
        """Listen to *channels* once less; the last one ends it."""
        gone = []
        for name in (each.encode() for each in channels):
            left = self._channels.get(name, 0) - 1
            if left > 0:
                self._channels[name] = left
            elif self._channels.pop(name, None) is not None:
                self._standing.discard(name)
                gone.append(name)
        if gone and self._connection is not None:
            try:
                await self._connection.send_command("UNSUBSCRIBE", *gone)
            except (refused.RedisError, OSError) as error:
                log.debug("not unsubscribed: the connection is gone", why=str(error))

    def sever(self) -> None:
        """Cut the connection, as a network would; it comes back by itself."""
        if self._connection is not None and self._connection._writer is not None:
            self._connection._writer.close()

    async def close(self) -> None:
        """Stop listening."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for _, confirmed in self._waiting:
            if not confirmed.done():
                confirmed.set_exception(StoreUnavailableError(self._shown, "the subscription was closed"))
        self._waiting.clear()

    async def _listen(self) -> None:
        failures = 0
        while True:
            connection: Connection | None = None
            try:
                async with asyncio.timeout(CONNECT_S):
                    connection = await self._connect()
                    await connection.connect()  # type: ignore[no-untyped-call]
                    self._connection, self._heard_at = connection, asyncio.get_running_loop().time()
                    self._standing.clear()
                    self._asked.clear()
                    await self._subscribe(connection, list(self._channels))
                failures = 0
                await self._read(connection)
            except (refused.RedisError, OSError, asyncio.IncompleteReadError) as error:
                failures += 1
                self.reconnects += 1
                self._doubt(error)
                log.info("listening again", server=self._shown, why=str(error) or repr(error))
            finally:
                self._connection = None
                if connection is not None:
                    await connection.disconnect(nowait=True)
            # full jitter up to 1 s: a fleet that lost Redis together does not come back together
            await asyncio.sleep(self._random.uniform(0, min(1.0, 0.02 * 2 ** min(failures, 10))))

    async def _subscribe(self, connection: Connection, names: Sequence[bytes]) -> None:
        for start in range(0, len(names), CHANNELS_PER_CALL):
            part = list(names[start : start + CHANNELS_PER_CALL])
            self._asked.append(part)
            await connection.send_command("SUBSCRIBE", *part)
            await connection.send_command("HMGET", self._numbers, *part)

    async def _read(self, connection: Connection) -> None:
        n = 0
        while True:
            answer: Any = await connection.read_response(timeout=math.inf, disconnect_on_error=False, push_request=True)
            self._heard_at = asyncio.get_running_loop().time()
            match answer:
                case [b"message", channel, body]:
                    self._on_message(channel, body)
                    n += 1
                    if n % TURN == 0:  # a full buffer is read without waiting once: let the others work too
                        await asyncio.sleep(0)
                case [b"subscribe", channel, _]:
                    self._standing.add(channel)
                    self._confirm()
                case [b"unsubscribe", *_]:
                    pass
                case list():  # the answer to HMGET: pushes are told apart by their first word
                    self._on_numbers(self._asked.popleft(), answer)

    def _confirm(self) -> None:
        for missing, confirmed in self._waiting:
            missing -= self._standing
            if not missing and not confirmed.done():
                confirmed.set_result(None)
        self._waiting = [each for each in self._waiting if not each[1].done()]

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(PING_S * (0.9 + self._random.random() / 10))
            connection = self._connection
            if connection is None or not connection.is_connected:
                continue
            if loop.time() - self._heard_at > 2 * PING_S:
                log.warning("a subscription is silent", server=self._shown)
                self.sever()
                continue
            try:
                await connection.send_command("PING")
            except (refused.RedisError, OSError) as error:
                log.debug("no ping", why=str(error))  # the reader finds out, and connects again
