"""One Redis server, and the connections that this process has to it.

redis-py 8 repeats a command ten times by itself and cuts reads at five seconds. Both are switched off: what is repeated
is repeated by `Store.call`, and each call has a deadline of its own. (redis-py's own is an ``asyncio.wait_for`` around
each write, which in Python 3.11 swallows a cancellation that comes as the write ends: a worker told to stop would go on.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakSet

from redis import Redis as SyncRedis
from redis import exceptions as refused
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry as SyncRetry

from ..errors import ConfigurationError, StoreUnavailableError
from ..redis_url import SCHEMES, server_group
from .wire import Wire

__all__ = ["Node", "ask_once", "without_password"]

CONNECTIONS = 200  # of one process to one server, for plain commands and for calls that wait for replicas


def without_password(url: str) -> str:
    """*url* as it may be shown: passwords replaced by ``***``."""
    try:
        group = server_group(url)
    except ValueError:  # nobody can tell where a password is in it
        return f"{url.partition('://')[0]}://***"
    parts = urlsplit(url)
    if group is not None:
        parts = parts._replace(query="")  # the sentinels' password stands there
    userinfo, at, host = parts.netloc.rpartition("@")
    user, colon, _password = userinfo.partition(":")
    if not colon:
        return url if group is None else urlunsplit(parts)
    return urlunsplit(parts._replace(netloc=f"{user}:***{at}{host}"))


def ask_once(url: str, *words: str | int, timeout_s: float = 5.0) -> Any:
    """The answer to one command, for code that runs no event loop: what sets servers up.

    Raises:
        StoreUnavailableError: there is none within *timeout_s*, or it is an error; with what it says.
    """
    client = SyncRedis.from_url(url, socket_timeout=timeout_s, retry=SyncRetry(NoBackoff(), 0), decode_responses=True)
    with client:
        try:
            return client.execute_command(*words)  # type: ignore[no-untyped-call]
        except (refused.RedisError, OSError) as error:
            raise StoreUnavailableError(without_password(url), f"{words[0]}: {error}") from error


class _PackedInC:
    """Packs commands with hiredis: redis-py's asyncio connections do it in Python, at half the cost of a whole batch."""

    _pack = HiredisRespSerializer().pack

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = self._pack(*args)
        return packed


class _TcpConnection(_PackedInC, Connection):
    pass


class _TlsConnection(_PackedInC, SSLConnection):
    pass


class _UnixConnection(_PackedInC, UnixDomainSocketConnection):
    pass


_CONNECTIONS = {
    Connection: _TcpConnection,
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class Node:
    """The connections to one server: for calls, for leases, for plain commands, for reads that block, and those that listen.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_s: how long a connection may take to stand, and an answer to come.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url, self.shown, self._timeout_s = url, without_password(url), timeout_s
        self.calls = self._wire()
        self.leases = self._wire()  # apart, so that a burst of calls can't delay a renewal
        # redis-py refuses a call that finds every connection busy; ours wait for their turn, but for renewals
        self.turns = asyncio.Semaphore(CONNECTIONS)
        # protocol= is left alone: naming it changes the shape of redis-py's answers
        self.commands = Redis.from_pool(self._pool(max_connections=CONNECTIONS + 1))
        self._idle: list[Wire] = []
        self._lent: set[Wire] = set()
        self._listening = self._pool(protocol=3)
        self._listeners: WeakSet[Connection] = WeakSet()

    def __repr__(self) -> str:
        return f"Node({self.shown!r})"

    def listener(self) -> Connection:
        """A connection for pub/sub, of RESP3, that does not stand yet; its user closes it."""
        connection: Connection = self._listening.make_connection()  # type: ignore[no-untyped-call]
        self._listeners.add(connection)
        return connection

    @contextmanager
    def blocking(self) -> Iterator[Wire]:
        """A wire for one's own use, for what blocks a connection."""
        wire = self._idle.pop() if self._idle else self._wire()
        self._lent.add(wire)
        try:
            yield wire
        except BaseException:
            wire.sever()  # an answer is outstanding: the next one to ask would get it
            raise
        finally:
            self._lent.discard(wire)
        self._idle.append(wire)

    @property
    def busy(self) -> int:
        """How many answers are outstanding, and connections in use."""
        wires = sum(wire.busy for wire in (self.calls, self.leases, *self._lent))
        return wires + len(self.commands.connection_pool._in_use_connections)

    def sever(self) -> None:
        """Cut every connection, as a network would: what is under way fails."""
        for wire in (self.calls, self.leases, *self._lent):
            wire.sever()
        for connection in [*self._listeners, *self.commands.connection_pool._in_use_connections]:
            if connection._writer is not None:
                connection._writer.close()

    async def close(self) -> None:
        """Close every connection."""
        for wire in (self.calls, self.leases, *self._lent, *self._idle):
            await wire.close()
        await self.commands.aclose()

    def _wire(self) -> Wire:
        pool = self._pool(protocol=2)
        return Wire(pool.make_connection, timeout_s=self._timeout_s)

    def _pool(self, **options: Any) -> ConnectionPool:
        try:
            pool = ConnectionPool.from_url(
                self.url,
                socket_timeout=None,
                socket_connect_timeout=self._timeout_s,
                retry=Retry(NoBackoff(), 0),
                retry_on_error=[],
                health_check_interval=0,
                **options,
            )
            pool.connection_class = _CONNECTIONS[pool.connection_class]
            return pool
        except ValueError as error:
            raise ConfigurationError(
                f"REDIS_URL: found {self.shown!r}, needed {SCHEMES} ({error}); correct it"
            ) from error
