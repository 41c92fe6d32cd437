"""The connections to Redis: one client for commands, one for blocking reads, one for leases.

redis-py 8 repeats a command ten times by itself and cuts reads at five seconds. Both are switched off: what is repeated
here is repeated by `Store.call`, whose functions give the first answer when they are asked again, and each call has a
deadline of its own. (redis-py's own is an ``asyncio.wait_for`` around each write, which in Python 3.11 swallows a
cancellation that comes as the write ends: a worker told to stop would go on.)
"""

from __future__ import annotations

import asyncio
import random as chance
import re
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import structlog
import tenacity
from redis import exceptions as refused
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer

from ..errors import (
    ConfigurationError,
    LibraryMismatchError,
    SectionFullError,
    ServerUnfitError,
    StoreUnavailableError,
)
from .library import PREFIX, Library, shipped
from .subscription import Subscription

__all__ = ["Store", "without_password"]

log = structlog.get_logger(__name__)
Answer = TypeVar("Answer")

# What a restart, a failover, a full backlog or a slow script look like from outside: ask again, later.
_PASSING = (
    refused.ConnectionError,
    refused.TimeoutError,
    refused.BusyLoadingError,
    refused.ReadOnlyError,
    refused.TryAgainError,
    refused.ClusterDownError,
    refused.MasterDownError,
    OSError,
)
_FATAL = (refused.AuthenticationError, refused.AuthorizationError)  # subclasses of ConnectionError, but no retry helps
_PASSING_WORDS = ("BUSY ", "LOADING", "UNKILLABLE", "MASTERDOWN", "NOREPLICAS", "MISCONF")
CONNECTIONS = 200  # of one process, for calls


def without_password(url: str) -> str:
    """*url* as it may be shown: the password replaced by ``***``."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


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


class Store:
    """A Redis server that carries boards, and the functions on it.

    Use it as ``async with Store(url) as store``; entering checks that the server can do the work.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout_s: how long one call may wait for its answer.
        retry_s: for how long a call is repeated before `StoreUnavailableError`; 0 asks once.
        library: the function library to insist on; the one of this package unless a test breaks it on purpose.
        replace_library: put our build in place of a foreign one. Right only where nobody else uses the server.
        random: source of the jitter between repetitions.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        retry_s: float = 20.0,
        library: Library | None = None,
        replace_library: bool = False,
        random: chance.Random | None = None,
    ) -> None:
        try:
            self.url, self.shown = url, without_password(url)
        except ValueError as error:
            raise ConfigurationError(
                "REDIS_URL: found no URL, needed redis://, rediss:// or unix://; correct it"
            ) from error
        self.timeout_s, self.retry_s = timeout_s, retry_s
        self.disruptions = 0  #: calls that had to be repeated because Redis did not answer
        self._library = library or shipped()
        self._replace_library = replace_library
        self._random = random or chance.Random()
        # redis-py refuses a call that finds every connection busy; ours wait for their turn
        self._turns, self._lease_turn = asyncio.Semaphore(CONNECTIONS), asyncio.Semaphore(1)
        self._commands = self._client()
        self._leases = self._client(max_connections=1)
        self._blocking = self._client()

    def _client(self, *, max_connections: int = CONNECTIONS) -> Redis:
        # protocol= is left alone: naming it changes the shape of redis-py's answers
        return Redis.from_pool(self._pool(max_connections=max_connections))

    def _pool(self, **options: Any) -> ConnectionPool:
        try:
            pool = ConnectionPool.from_url(
                self.url,
                socket_timeout=None,
                socket_connect_timeout=self.timeout_s,
                retry=Retry(NoBackoff(), 0),
                retry_on_error=[],
                health_check_interval=0,
                **options,
            )
            pool.connection_class = _CONNECTIONS[pool.connection_class]
            return pool
        except ValueError as error:
            raise ConfigurationError(
                f"REDIS_URL: found {self.shown!r}, needed redis://, rediss:// or unix:// ({error}); correct it"
            ) from error

    async def __aenter__(self) -> Self:
        try:
            await self._check_server()
            await self._check_library()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        for client in (self._commands, self._leases, self._blocking):
            await client.aclose()

    # -- calls ------------------------------------------------------------------------------------------------------

    async def call(
        self, function: str, keys: Sequence[str], args: Sequence[Any] = (), *, leases: bool = False, once: bool = False
    ) -> Any:
        """Call a function of the library; repeat it while Redis does not answer.

        Safe for every function of ours: each is idempotent by an identity that it carries (request, token, version).

        Args:
            function: its bare name, as in ``lua/``.
            keys: every key it touches.
            args: str, bytes or int.
            leases: use the connection kept for renewals, so that a burst of other calls can't delay them.
            once: don't repeat; for callers with a rhythm of their own.

        Raises:
            StoreUnavailableError: no answer for ``retry_s``. The call may have been executed.
            SectionFullError: Redis is out of memory and the function would make it grow.
            LibraryMismatchError: the server does not know the function, and may not be given it.
        """
        client = self._leases if leases else self._commands
        turns = self._lease_turn if leases else self._turns

        async def send() -> Any:
            return await client.fcall(PREFIX + function, len(keys), *keys, *args)

        try:
            return await self._insist(send, turns, once=once)
        except refused.ResponseError as error:
            if "unction not found" not in str(error):
                raise self._explain(function, error) from error
        await self._check_library()  # a server that came back empty, or a node that never had it
        try:
            return await self._insist(send, turns, once=once)
        except refused.ResponseError as error:
            raise self._explain(function, error) from error

    async def command(self, *parts: str | bytes | int | float, once: bool = False) -> Any:
        """Send a plain command that may be repeated (a read, or a write that lands the same twice)."""

        async def send() -> Any:
            return await self._commands.execute_command(*parts)  # type: ignore[no-untyped-call]

        try:
            return await self._insist(send, once=once)
        except refused.ResponseError as error:
            raise self._explain(str(parts[0]), error) from error

    async def commands(self, *many: Sequence[str | bytes | int | float], once: bool = False) -> list[Any]:
        """Send plain commands in one round trip, as one transaction: nothing happens in between.

        Redis 7 refuses any transaction when it is out of memory, one that only reads too; then they go one by one.
        """
        together = True

        async def send() -> list[Any]:
            async with self._commands.pipeline(transaction=together) as pipeline:
                for parts in many:
                    pipeline.execute_command(*parts)
                return await pipeline.execute()

        try:
            try:
                return await self._insist(send, once=once)
            except refused.OutOfMemoryError:
                together = False
                return await self._insist(send, once=once)
        except refused.ResponseError as error:
            raise self._explain(str(many[0][0]), error) from error

    def subscription(
        self,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_numbers: Callable[[Sequence[bytes], Sequence[bytes | None]], None],
        numbers: str,
    ) -> Subscription:
        """A connection of its own that listens to channels; see `Subscription`. Close it."""
        return Subscription(
            self._pool(protocol=3), self.shown, on_message=on_message, on_numbers=on_numbers, numbers=numbers,
            random=self._random,
        )  # fmt: skip

    async def wait_for_bell(self, bells: Sequence[str], timeout_s: float) -> str:
        """Block until one of the doorbells rings, at most *timeout_s*; which one it was, or "".

        A bell is a hint: nothing is lost with it, the caller looks again after the timeout in any case.

        Raises:
            StoreUnavailableError: Redis is gone; wait before the next try.
        """
        rung = await self.pop(bells, timeout_s)
        return "" if rung is None else rung[0]

    async def pop(self, lists: Sequence[str], timeout_s: float) -> tuple[str, bytes] | None:
        """Block until one of the lists has an entry, at most *timeout_s*, and take its first: which list, and the entry.

        An entry is lost if the connection breaks while it is on its way: for hints, and for what its sender repeats.

        Raises:
            StoreUnavailableError: Redis is gone; wait before the next try.
        """
        try:
            async with asyncio.timeout(timeout_s + self.timeout_s):  # a server that went silent without closing
                found: Any = await self._blocking.blpop(list(lists), timeout=max(timeout_s, 0.01))
                return None if found is None else (str(found[0].decode()), found[1])
        except (*_PASSING, TimeoutError) as error:
            if _is_fatal(error):
                raise self._explain("BLPOP", error) from error
            self.disruptions += 1
            raise StoreUnavailableError(self.shown, _why(error)) from error

    async def _insist(
        self, send: Callable[[], Awaitable[Answer]], turns: asyncio.Semaphore | None = None, *, once: bool = False
    ) -> Answer:
        async def ask() -> Answer:
            async with turns or self._turns, asyncio.timeout(self.timeout_s):
                return await send()

        try:
            return await ask()  # the usual case, without the machinery below
        except (*_PASSING, refused.ResponseError) as error:
            if _is_fatal(error):
                raise self._explain("AUTH", error) from error
            if not _is_passing(error):
                raise
            self.disruptions += 1
            if once or self.retry_s <= 0:
                raise StoreUnavailableError(self.shown, _why(error)) from error
            log.warning("redis does not answer, asking again", server=self.shown, why=_why(error))
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_is_passing),
            # full jitter up to 1 s: a fleet that lost Redis together does not come back together
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            stop=tenacity.stop_after_delay(self.retry_s),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    answer = await ask()
        except Exception as error:
            if _is_fatal(error):
                raise self._explain("AUTH", error) from error
            if _is_passing(error):
                raise StoreUnavailableError(self.shown, _why(error)) from error
            raise
        return answer

    def _explain(self, what: str, error: Exception) -> Exception:
        text = str(error)
        if _is_fatal(error):
            return ServerUnfitError(
                self.shown, found=text, needed="a user and password it knows", step="set REDIS_PASSWORD or REDIS_URL"
            )
        if isinstance(error, refused.OutOfMemoryError):
            return SectionFullError(
                "(all)", found="Redis at its maxmemory", needed="free memory; completions still work meanwhile"
            )
        if isinstance(error, refused.NoPermissionError):
            return ServerUnfitError(
                self.shown,
                found=text,
                needed="the rights of a worker",
                step="grant it FCALL and the commands that the functions call",
            )
        if "unknown command" in text.lower() and "fcall" in text.lower():
            return ServerUnfitError(
                self.shown, found="a server without functions", needed="Redis >= 7.0 or Valkey", step="upgrade it"
            )
        return LibraryMismatchError(what, text)

    # -- checks -----------------------------------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """What ``INFO`` says, as a flat dict."""
        try:
            facts = await self._insist(lambda: self._commands.info())
        except refused.ResponseError as error:
            raise self._explain("INFO", error) from error
        return dict(facts)

    async def _check_server(self) -> None:
        try:
            facts = await self.info()
        except (refused.InvalidResponse, UnicodeDecodeError) as error:
            raise ServerUnfitError(
                self.shown, found="an answer that is not Redis'", needed="a Redis server", step="check REDIS_URL"
            ) from error
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise ServerUnfitError(
                self.shown,
                found=f"maxmemory-policy {policy}, which deletes items when memory is short",
                needed="maxmemory-policy noeviction",
                step="set it in redis.conf, or: redis-cli CONFIG SET maxmemory-policy noeviction",
            )
        version = str(facts.get("redis_version", "0"))
        found = re.match(r"\d+", version)
        if facts.get("cluster_enabled") == 1 and facts.get("cluster_state") == "fail":
            raise StoreUnavailableError(self.shown, "its cluster is down")
        if found and int(found[0]) < 7 and "valkey_version" not in facts:
            raise ServerUnfitError(
                self.shown,
                found=f"Redis {version}, which has no functions",
                needed="Redis >= 7.0 or Valkey",
                step="upgrade it",
            )

    async def library_digest(self) -> str | None:
        """Which build of the function library the server holds (`Library.digest`), or None if it holds none."""

        async def ask() -> Any:
            return await self._commands.fcall(PREFIX + "digest", 0)

        try:
            found = await self._insist(ask)
        except refused.ResponseError as error:
            if "unction not found" not in str(error):
                raise self._explain("digest", error) from error
            return None
        return found.decode() if isinstance(found, bytes) else str(found)

    async def _check_library(self) -> None:
        found = await self.library_digest()
        if found is None:
            await self.load_library(replace=False)
            found = await self.library_digest()
        if found == self._library.digest:
            return
        if not self._replace_library:
            raise LibraryMismatchError(
                "library swarm_v1", f"build {str(found)[:12]}", f"build {self._library.digest[:12]} of this version"
            )
        await self.load_library(replace=True)

    async def load_library(self, *, replace: bool) -> None:
        """Load the library; with *replace*, in place of another build (see `LibraryMismatchError`)."""

        async def send() -> Any:
            return await self._commands.function_load(self._library.source, replace=replace)

        try:
            await self._insist(send)
        except refused.ResponseError as error:
            if "already exists" in str(error) and not replace:
                return  # somebody loaded it at the same moment; the digest is compared next
            raise self._explain("FUNCTION LOAD", error) from error


def _is_fatal(error: BaseException | None) -> bool:
    """Whether it is about who we are. While it connects, redis-py wraps such an error in a plain ConnectionError."""
    return isinstance(error, _FATAL) or (error is not None and _is_fatal(error.__cause__))


def _is_passing(error: BaseException) -> bool:
    if _is_fatal(error):
        return False
    if isinstance(error, _PASSING):
        return True
    return isinstance(error, refused.ResponseError) and str(error).startswith(_PASSING_WORDS)


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
