"""The store: what is asked of Redis, and how often.

`Store.call` repeats a function, which gives the first answer when it is asked again, for as long as Redis does not answer.
At the level ``replica`` a call that writes is answered when the replicas have it: the function, a mark on its slot and a
WAIT go down one connection in one round trip, so that they meet the same master.

Leaves the connections to ``nodes`` and the question which server is the right one to ``topology``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as chance
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import structlog
import tenacity
from redis import exceptions as refused
from redis.asyncio import Connection, Redis

from ..errors import (
    ConfigurationError,
    LibraryMismatchError,
    SectionFullError,
    ServerUnfitError,
    StoreUnavailableError,
)
from ..keys import mark_beside
from ..redis_url import SCHEMES
from .library import PREFIX, Library, shipped
from .nodes import Node, without_password
from .subscription import Subscription
from .topology import topology_of

__all__ = ["Store", "without_password"]

log = structlog.get_logger(__name__)
Answer = TypeVar("Answer")
Word = str | bytes | int | float

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
_PASSING_WORDS = ("BUSY ", "LOADING", "UNKILLABLE", "MASTERDOWN", "NOREPLICAS", "MISCONF", "UNBLOCKED")
# Plain commands that change nothing, so that no replica needs to have them; any other one is taken for a write.
_READS = frozenset(
    ["EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "HSCAN", "HVALS", "LLEN", "LRANGE", "MGET", "PTTL",
     "SMEMBERS", "TIME", "TTL", "TYPE", "XINFO", "XLEN", "XRANGE", "XREVRANGE", "ZCARD", "ZCOUNT", "ZRANGE",
     "ZRANGEBYSCORE", "ZSCAN", "ZSCORE"]
)  # fmt: skip
# Plain commands whose answers redis-py gives as they come, numbers, texts and lists of texts: they go down the wire of calls.
_AS_THEY_COME = frozenset(
    ["GET", "HDEL", "HGET", "HINCRBY", "HKEYS", "HLEN", "HMGET", "HSET", "HVALS", "LLEN", "LPUSH", "LRANGE", "LREM", "MGET",
     "PUBLISH", "RPUSH", "XLEN", "ZCARD", "ZREM"]
)  # fmt: skip
SCAN_PAGE = 1000
REDIRECTIONS = 5  # of one call; each is a slot that has moved once more
WAIT_SHARE = 0.8  # of a call's time for the replicas: the rest is the call's own


class _NotCopiedError(refused.ConnectionError):
    """Too few replicas have what was written."""


class Store:
    """A Redis server that carries boards, and the functions on it.

    Use it as ``async with Store(url) as store``; entering checks that the server can do the work.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``.
        timeout_s: how long one call may wait for its answer.
        retry_s: for how long a call is repeated before `StoreUnavailableError`; 0 asks once.
        durability: "local" insists on an append-only file; "replica" also answers a call that writes only when replicas
            have it; None takes the server as it is.
        replicas: how many of them, at the level "replica".
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
        durability: Literal["local", "replica"] | None = None,
        replicas: int = 1,
        library: Library | None = None,
        replace_library: bool = False,
        random: chance.Random | None = None,
    ) -> None:
        self.timeout_s, self.retry_s, self.durability = timeout_s, retry_s, durability
        self.replicas = replicas if durability == "replica" else 0  #: that must have a write before it is answered
        self.appends = False  #: whether every server writes an append-only file; known once it is checked
        self.disruptions = 0  #: calls that had to be repeated because Redis did not answer
        self._library = library or shipped()
        self._replace_library = replace_library
        self._random = random or chance.Random()
        try:
            self.url, self.shown = url, without_password(url)
            self._topology = topology_of(url, timeout_s=timeout_s, random=self._random)
        except ValueError as error:
            raise ConfigurationError(f"REDIS_URL: found no URL, needed {SCHEMES}; correct it") from error

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
        await self._topology.close()

    # -- calls ------------------------------------------------------------------------------------------------------

    async def call(
        self, function: str, keys: Sequence[str], args: Sequence[Any] = (), *, leases: bool = False, once: bool = False,
        after: tuple[Sequence[str], float] | None = None,
    ) -> Any:  # fmt: skip
        """Call a function of the library; repeat it while Redis does not answer.

        Safe for every function of ours: each is idempotent by an identity that it carries (request, token, version).

        Args:
            function: its bare name, as in ``lua/``.
            keys: every key it touches.
            args: str, bytes or int.
            leases: use the connection kept for renewals, so that a burst of other calls can't delay them.
            once: don't repeat; for callers with a rhythm of their own.
            after: doorbells and seconds. Block until one of them rings, at most so long, and only then call: the call waits
                in Redis behind the bell, and is executed without another way there and back. A repeat does not wait.

        Raises:
            StoreUnavailableError: no answer for ``retry_s``. The call may have been executed.
            SectionFullError: Redis is out of memory and the function would make it grow.
            LibraryMismatchError: the server does not know the function, and may not be given it.
        """
        key = keys[0] if keys else None
        words = self.words(function, keys, args)
        copied = key if self.replicas and function not in self._library.readers else None

        # plain functions that give coroutines: each coroutine on the way costs every call, and every answer
        def send(node: Node, asking: bool) -> Awaitable[Any]:
            nonlocal after
            if after is not None and not asking:
                (bells, timeout_s), after = after, None
                return self._wait_and_ask(node, bells, timeout_s, words, copied)
            if copied is None and not asking:
                return (node.leases if leases else node.calls).ask(*words)
            return send_in_turn(node, asking)

        async def send_in_turn(node: Node, asking: bool) -> Any:
            async with contextlib.nullcontext() if leases else node.turns, asyncio.timeout(self.timeout_s):
                [answer] = await self._exchange(node.commands, [words], copied, asking=asking)
            return answer

        def ask() -> Awaitable[Any]:
            if only is not None and copied is None and after is None:  # nowhere to be sent on to
                return (only.leases if leases else only.calls).ask(*words)
            return self._redirected(key, send)

        only = self._topology.only
        try:
            return await self._insist(ask, once=once)
        except refused.ResponseError as error:
            if "unction not found" not in str(error):
                raise self._explain(function, error) from error
        await self._check_library()  # a server that came back empty, or a node that never had it
        try:
            return await self._insist(ask, once=once)
        except refused.ResponseError as error:
            raise self._explain(function, error) from error

    @staticmethod
    def words(function: str, keys: Sequence[str], args: Sequence[Word] = ()) -> tuple[Word, ...]:
        """The call of one of our functions, as a command."""
        return ("FCALL", PREFIX + function, len(keys), *keys, *args)

    async def command(self, *parts: Word, once: bool = False) -> Any:
        """Send a plain command that may be repeated (a read, or a write that lands the same twice).

        A write waits for replicas like a function's, unless it is sent *once*: then it is a hint. In a cluster a command
        that names none of our keys goes to every primary: lists are joined, numbers added up, else the first answer counts.
        """
        key = _key_of(parts)
        copied = key if self.replicas and not once and str(parts[0]).upper() not in _READS else None

        async def send(node: Node, asking: bool) -> Any:
            if copied is None and not asking:
                return await node.commands.execute_command(*parts)  # type: ignore[no-untyped-call]
            [answer] = await self._exchange(node.commands, [parts], copied, asking=asking)
            return answer

        async def send_by_wire(node: Node, asking: bool) -> Any:
            if not asking:
                return await node.calls.ask(*parts)
            async with node.turns, asyncio.timeout(self.timeout_s):
                return await send(node, asking)

        async def ask() -> Any:
            if key is not None and copied is None and parts[0] in _AS_THEY_COME:
                return await self._redirected(key, send_by_wire)
            if key is not None:
                return await self._ask(key, send)
            answers = await self._ask_all(send)
            first, *others = answers
            return sum(others, first) if type(first) in (list, int) else first

        try:
            return await self._insist(ask, once=once)
        except refused.ResponseError as error:
            raise self._explain(str(parts[0]), error) from error

    async def commands(self, *many: Sequence[Word], once: bool = False) -> list[Any]:
        """Send plain commands on one slot in one round trip, as one transaction: nothing happens in between.

        Redis 7 refuses any transaction when it is out of memory, one that only reads too; then they go one by one.
        """
        together = True
        key = next((found for parts in many if (found := _key_of(parts)) is not None), None)
        writes = any(str(parts[0]).upper() not in _READS for parts in many)
        copied = key if self.replicas and writes and not once else None

        async def send(node: Node, asking: bool) -> list[Any]:
            if asking:  # it would hold for one command of the transaction: the slot will have moved in a moment
                raise refused.TryAgainError("TRYAGAIN a slot is being moved")
            return await self._exchange(node.commands, many, copied, together=together)

        async def ask() -> list[Any]:
            return await self._ask(key, send)

        try:
            try:
                return await self._insist(ask, once=once)
            except refused.OutOfMemoryError:
                together = False
                return await self._insist(ask, once=once)
        except refused.ResponseError as error:
            raise self._explain(str(many[0][0]), error) from error

    async def scan(self, pattern: str) -> AsyncIterator[bytes]:
        """The keys that *pattern* matches, some perhaps twice: on every primary, unless its hash tag names one slot."""
        tag = re.search(r"\{[^*?\[\\{}]+\}", pattern)
        places: Sequence[Node | str] = [tag[0]] if tag else await self._insist(self._topology.nodes)
        for place in places:
            cursor: int | bytes = 0
            while True:
                cursor, page = await self._scan_page(place, pattern, cursor)
                for key in page:
                    yield key
                if int(cursor) == 0:
                    break

    async def _scan_page(self, place: Node | str, pattern: str, cursor: int | bytes) -> Any:
        async def send(node: Node, asking: bool) -> Any:
            words = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_PAGE)
            return await node.commands.execute_command(*words)  # type: ignore[no-untyped-call]

        try:
            return await self._insist(lambda: self._ask(place, send))
        except refused.ResponseError as error:
            raise self._explain("SCAN", error) from error

    async def _exchange(
        self, client: Redis, many: Sequence[Sequence[Word]], copied: str | None, *,
        together: bool = False, asking: bool = False,
    ) -> list[Any]:  # fmt: skip
        """Send commands down one connection in one round trip; with *copied*, a key, wait until replicas have them."""
        if copied is None and not asking:
            async with client.pipeline(transaction=together) as pipeline:
                for parts in many:
                    pipeline.execute_command(*parts)
                return list(await pipeline.execute())
        async with client.pipeline(transaction=False) as pipeline:
            opening: list[tuple[Word, ...]] = [("ASKING",)] if asking else []
            closing: list[tuple[Word, ...]] = []
            if together:
                opening, closing = [*opening, ("MULTI",)], [("EXEC",)]
            closing += self._proof(copied)
            # a name in bytes has no shape: redis-py would give one to the word QUEUED, too
            raw = [(str(parts[0]).encode(), *parts[1:]) for parts in many] if together else many
            for parts in (*opening, *raw, *closing):
                pipeline.execute_command(*parts)
            answers = await pipeline.execute(raise_on_error=False)
        self._judge(answers, copied)
        if not together:
            return list(answers[len(opening) : len(opening) + len(many)])
        shapes = client.response_callbacks  # which a pipeline applies to its own transactions only
        results = answers[len(opening) + len(many)]
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [
            shapes[name](result) if (name := str(parts[0]).upper()) in shapes else result
            for parts, result in zip(many, results, strict=True)
        ]

    async def _wait_and_ask(
        self, node: Node, bells: Sequence[str], timeout_s: float, words: Sequence[Word], copied: str | None
    ) -> Any:
        """Send a command behind a BLPOP, which holds it back in Redis."""
        many = [("BLPOP", *bells, max(timeout_s, 0.01)), words, *self._proof(copied)]
        with node.blocking() as wire:
            answers = await wire.ask_all(many, within_s=timeout_s + self.timeout_s)
        self._judge(answers, copied)
        return answers[1]

    def _proof(self, copied: str | None) -> list[tuple[Word, ...]]:
        """What follows a write on its connection, if replicas must have it."""
        if copied is None:
            return []
        patience_ms = max(1, round(self.timeout_s * WAIT_SHARE * 1000))
        return [("FCALL", PREFIX + "mark", 1, mark_beside(copied)), ("WAIT", self.replicas, patience_ms)]

    def _judge(self, answers: Sequence[Any], copied: str | None) -> None:
        """Raise the first error among *answers*, or that too few replicas have the write."""
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        if copied is not None and answers[-1] < self.replicas:
            raise _NotCopiedError(f"{answers[-1]} of {self.replicas} replicas have the call (SWARM_REPLICAS)")

    def subscription(
        self,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_numbers: Callable[[Sequence[bytes], Sequence[bytes | None]], None],
        numbers: str,
    ) -> Subscription:
        """A connection of its own that listens to channels; see `Subscription`. Close it."""
        listens: list[Node] = []

        async def connect() -> Connection:
            listens[:] = [await self._topology.node(numbers)]
            return listens[0].listener()

        def doubt(error: Exception) -> None:
            for node in listens:
                if not isinstance(error, refused.AskError) or self._topology.redirect(node, error) is None:
                    self._topology.doubt(node)

        return Subscription(
            connect, doubt, self.shown, on_message=on_message, on_numbers=on_numbers, numbers=numbers,
            random=self._random,
        )  # fmt: skip

    async def pop(self, lists: Sequence[str], timeout_s: float) -> tuple[str, bytes] | None:
        """Block until one of the lists has an entry, at most *timeout_s*, and take its first: which list, and the entry.

        An entry is lost if the connection breaks while it is on its way: for hints, and for what its sender repeats.

        Raises:
            StoreUnavailableError: Redis is gone; wait before the next try.
        """
        [found] = await self._block(lists[0], [("BLPOP", *lists, max(timeout_s, 0.01))], timeout_s)
        return None if found is None else (str(found[0].decode()), found[1])

    async def next_entries(
        self, stream: str, after: str, timeout_s: float, *, most: int, behind: Sequence[Word] = ()
    ) -> tuple[list[tuple[bytes, dict[bytes, bytes]]], Any]:
        """Block until *stream* has entries behind the id *after*, at most *timeout_s*; the first of them, or [].

        Args:
            stream: its key.
            after: an id.
            timeout_s: how long to wait.
            most: entries at once.
            behind: a command (see `words`) that waits in Redis until then, on the stream's slot; its answer is the second
                of what is returned, None if it is an error.

        Raises:
            StoreUnavailableError: Redis is gone; wait before the next try.
        """
        words = ("XREAD", "COUNT", most, "BLOCK", max(1, round(timeout_s * 1000)), "STREAMS", stream, after)
        found, *more = await self._block(stream, [words, behind] if behind else [words], timeout_s)
        entries = found[0][1] if found else []
        told = [(entry_id, dict(zip(flat[::2], flat[1::2], strict=True))) for entry_id, flat in entries]
        return told, more[0] if more and not isinstance(more[0], Exception) else None

    async def _block(self, key: str, many: Sequence[Sequence[Word]], timeout_s: float) -> list[Any]:
        """Send commands, the first of which blocks; an error of another stands among the answers."""

        async def send(node: Node, asking: bool) -> list[Any]:
            if asking:
                raise refused.TryAgainError("TRYAGAIN a slot is being moved")
            with node.blocking() as wire:
                answers = await wire.ask_all(many, within_s=timeout_s + self.timeout_s)
            self._judge(answers[:1], None)
            return answers

        try:
            return await self._redirected(key, send)
        except (*_PASSING, refused.ResponseError) as error:
            if not _is_passing(error):
                raise self._explain(str(many[0][0]), error) from error
            self.disruptions += 1
            raise StoreUnavailableError(self.shown, _why(error)) from error

    async def _ask(self, place: Node | str | None, send: Callable[[Node, bool], Awaitable[Answer]]) -> Answer:
        """Ask one server, or that of a key, or any, once."""

        async def in_turn(node: Node, asking: bool) -> Answer:
            async with node.turns, asyncio.timeout(self.timeout_s):
                return await send(node, asking)

        return await self._redirected(place, in_turn)

    async def _ask_all(self, send: Callable[[Node, bool], Awaitable[Answer]]) -> list[Answer]:
        """Ask every server that takes writes, once."""
        return [await self._ask(node, send) for node in await self._topology.nodes()]

    async def _redirected(self, place: Node | str | None, send: Callable[[Node, bool], Awaitable[Answer]]) -> Answer:
        node = place if isinstance(place, Node) else await self._topology.node(place)
        asking = False
        for _ in range(REDIRECTIONS):
            try:
                return await send(node, asking)
            except refused.AskError as error:  # and MovedError, which is a kind of it
                pointed = self._topology.redirect(node, error)
                if pointed is None:
                    raise
                node, asking = pointed, not isinstance(error, refused.MovedError)
            except (*_PASSING, refused.ResponseError) as error:
                if _is_passing(error):
                    self._topology.doubt(node)
                raise
        raise refused.TryAgainError("TRYAGAIN the slot moves from one server to the next")

    async def _insist(self, ask: Callable[[], Awaitable[Answer]], *, once: bool = False) -> Answer:
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
        if isinstance(error, refused.MovedError):
            return ServerUnfitError(
                self.shown,
                found="a cluster",
                needed="a URL that says so",
                step="set REDIS_URL=redis+cluster://host:port",
            )
        if "cluster support disabled" in text:
            return ServerUnfitError(
                self.shown,
                found="a server without a cluster",
                needed="a node of a cluster",
                step="set REDIS_URL=redis://host",
            )
        if "unknown command" in text.lower() and "fcall" in text.lower():
            return ServerUnfitError(
                self.shown, found="a server without functions", needed="Redis >= 7.0 or Valkey", step="upgrade it"
            )
        return LibraryMismatchError(what, text)

    # -- checks -----------------------------------------------------------------------------------------------------

    async def info(self) -> dict[str, Any]:
        """What ``INFO`` says, as a flat dict; of a cluster, what one of its primaries says."""
        return next(iter((await self.info_of_each()).values()))

    async def info_of_each(self) -> dict[str, dict[str, Any]]:
        """What ``INFO`` says on each server that takes writes, by the address that may be shown."""

        async def send(node: Node, asking: bool) -> tuple[str, dict[str, Any]]:
            return node.shown, dict(await node.commands.info())

        try:
            return dict(await self._insist(lambda: self._ask_all(send)))
        except refused.ResponseError as error:
            raise self._explain("INFO", error) from error

    async def _check_server(self) -> None:
        try:
            found = await self.info_of_each()
        except (refused.InvalidResponse, UnicodeDecodeError) as error:
            raise ServerUnfitError(
                self.shown, found="an answer that is not Redis'", needed="a Redis server", step="check REDIS_URL"
            ) from error
        for shown, facts in found.items():
            self._check_facts(shown, facts)
        self.appends = all(facts.get("aof_enabled") for facts in found.values())

    def _check_facts(self, shown: str, facts: dict[str, Any]) -> None:
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise ServerUnfitError(
                shown,
                found=f"maxmemory-policy {policy}, which deletes items when memory is short",
                needed="maxmemory-policy noeviction",
                step="set it in redis.conf, or: redis-cli CONFIG SET maxmemory-policy noeviction",
            )
        if self.durability is not None and not facts.get("aof_enabled"):
            raise ServerUnfitError(
                shown,
                found="appendonly no, so that a crash loses what came after its snapshot",
                needed=f"appendonly yes, for SWARM_DURABILITY={self.durability}",
                step="set it in redis.conf, or: redis-cli CONFIG SET appendonly yes",
            )
        version = str(facts.get("redis_version", "0"))
        found = re.match(r"\d+", version)
        if facts.get("cluster_enabled") == 1 and facts.get("cluster_state") == "fail":
            raise StoreUnavailableError(self.shown, "its cluster is down")
        if found and int(found[0]) < 7 and "valkey_version" not in facts:
            raise ServerUnfitError(
                shown,
                found=f"Redis {version}, which has no functions",
                needed="Redis >= 7.0 or Valkey",
                step="upgrade it",
            )

    async def library_digest(self) -> str | None:
        """Which build of the function library the server holds (`Library.digest`), or None if it holds none.

        Of a cluster: None if a primary holds none, and a foreign build before ours.
        """
        digests = await self._digests()
        if None in digests:
            return None
        return next((each for each in digests if each != self._library.digest), self._library.digest)

    async def _digests(self) -> list[str | None]:
        async def send(node: Node, asking: bool) -> str | None:
            try:
                found = await node.commands.fcall(PREFIX + "digest", 0)
            except refused.ResponseError as error:
                if "unction not found" not in str(error):
                    raise
                return None
            return found.decode() if isinstance(found, bytes) else str(found)

        try:
            return await self._insist(lambda: self._ask_all(send))
        except refused.ResponseError as error:
            raise self._explain("digest", error) from error

    async def _check_library(self) -> None:
        digests = await self._digests()
        if None in digests:
            await self.load_library(replace=False)
            digests = await self._digests()
        foreign = [found for found in digests if found != self._library.digest]
        if not foreign:
            return
        if not self._replace_library:
            raise LibraryMismatchError(
                "library swarm_v1",
                f"build {str(foreign[0])[:12]}",
                f"build {self._library.digest[:12]} of this version",
            )
        await self.load_library(replace=True)

    async def load_library(self, *, replace: bool) -> None:
        """Load the library on every primary; with *replace*, in place of another build (see `LibraryMismatchError`)."""

        async def send(node: Node, asking: bool) -> None:
            try:
                await node.commands.function_load(self._library.source, replace=replace)
            except refused.ResponseError as error:
                if "already exists" not in str(error) or replace:
                    raise  # else somebody loaded it at the same moment, or it was there; the digest is compared next

        try:
            await self._insist(lambda: self._ask_all(send))
        except refused.ResponseError as error:
            raise self._explain("FUNCTION LOAD", error) from error


def _key_of(parts: Iterable[Word]) -> str | None:
    """The key of a command: its first word that carries a hash tag, as every key of ours does; None if it names none."""
    for part in parts:
        word = part.decode(errors="replace") if isinstance(part, bytes) else part
        if isinstance(word, str) and word.startswith("swarm:{"):
            return word
    return None


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
