"""The hub: what a process hears of pub/sub, on two connections however many agents it has, handed on within the process.

Pub/sub is for hints: what is published while a connection is down is gone. Each message carries its number in its
channel, so the hub counts exactly what it missed. Control and emergency have a connection of their own, for nothing
overtakes anything within one.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

import structlog

from ..errors import InvalidInputError, UnavailableError
from ..keys import BusKeys
from ..store import Store
from ..store.batches import Batches
from .channels import Channels, check_channel
from .messages import Message

__all__ = ["Gap", "Heard", "Hub"]

log = structlog.get_logger(__name__)
MOST_PER_CALL = 200
TIDY_S = 0.5  # for what only saves memory: nobody waits longer for that
HISTORY = 1000  # messages of each type that are kept


class Heard:
    """A message as it came; read once for all agents of the process."""

    __slots__ = ("_ends_at_s", "_message", "body", "channel", "urgent")

    def __init__(self, channel: str, body: bytes) -> None:
        self.channel, self.body = channel, body
        self.urgent = channel in Channels.URGENT
        self._message: Message | None = None
        self._ends_at_s: float | None = None  # since the epoch

    def is_expired(self) -> bool:
        """Whether its deadline has passed; reckoned once for all who ask."""
        if self._ends_at_s is None:
            self._ends_at_s = self.message.deadline.timestamp()
        return time.time() >= self._ends_at_s

    @property
    def message(self) -> Message:
        """The message. Whoever hears it shares it with others, and leaves it as it is.

        Raises:
            InvalidInputError: it is none.
        """
        if self._message is None:
            self._message = Message.from_json(self.body)
        return self._message


Listener = Callable[[Heard], None]


class Gap(NamedTuple):
    """Messages of a channel that this process has missed."""

    channel: str
    missed: int


class Hub:
    """Publishes and listens for one process.

    Args:
        store: the Redis that carries the bus.
        namespace: whose messages these are.
        history: messages of each type that are kept for `history`; 0 keeps none.
    """

    def __init__(self, store: Store, namespace: str, *, history: int = HISTORY) -> None:
        self._store, self.keys, self._history = store, BusKeys(namespace), history
        self._head = [self.keys.rules, self.keys.numbers, self.keys.types]
        self._publishing = Batches("messages", self._publish, most=MOST_PER_CALL)
        self._listeners: dict[str, dict[object, Listener]] = defaultdict(dict)
        self._hints: dict[bytes, dict[object, Callable[[bytes], None]]] = {}
        self._joining: set[asyncio.Task[None]] = set()
        self._last: dict[bytes, int] = {}  # Redis channel → number of the newest message that we know of
        self._names: dict[bytes, str] = {}
        self.missed: dict[str, int] = {}  #: channel → messages that never came, since the start
        self._gap_handlers: list[Callable[[Gap], Any]] = []
        self._lines: dict[bool, Any] = {}  # urgent or not → its subscription, made when first needed

    # -- publishing -------------------------------------------------------------------------------------------------

    async def publish(self, channel: str, message: Message, *, history: bool = True) -> int:
        """Tell *message* to whoever listens to *channel* now. Returns how many processes do.

        What the tasks of this process publish in the same moment travels in one call.

        Raises:
            InvalidInputError: the channel's name, or the message is too large.
            StoreUnavailableError: Redis does not answer; it may have been told.
        """
        check_channel(channel)
        return await self._publishing.send((channel, message.to_json(), message.type, history))

    async def _publish(self, batch: Sequence[tuple[str, bytes, str, bool]]) -> list[int]:
        keys, args = list(self._head), list[Any]()
        places: dict[str, int] = {}
        for channel, body, msg_type, history in batch:
            place: int | str = ""
            if history and self._history:
                place = places.get(msg_type, 0)
                if not place:
                    keys.append(self.keys.history(msg_type))
                    place = places[msg_type] = len(keys)
            args += (self.keys.channel(channel), body, msg_type, place, self._history)
        # once: a repeat of a call whose reply was lost would be heard twice
        return list(await self._store.call("tell", keys, args, once=True))

    # -- calls: lists that one handler takes from -------------------------------------------------------------------

    async def request(self, service: str, message: Message) -> None:
        """Lay a call down for whoever serves *service*; it is gone when nobody has taken it before it expires."""
        key = self.keys.requests(service)
        await self._store.commands(
            ("RPUSH", key, message.to_json()), ("PEXPIRE", key, max(1, round(message.ttl * 1000)), "NX"),
            ("PEXPIRE", key, max(1, round(message.ttl * 1000)), "GT"), once=True,  # else it might be executed twice
        )  # fmt: skip

    async def withdraw(self, service: str, message: Message) -> None:
        """Take a call back that nobody has taken: its caller has given up. If Redis does not answer at once, it expires."""
        await self._tidy("LREM", self.keys.requests(service), 1, message.to_json())

    async def next_request(self, service: str, timeout_s: float) -> bytes | None:
        """Take the oldest call of a service; None if there is none within *timeout_s*."""
        found = await self._store.pop([self.keys.requests(service)], timeout_s)
        return None if found is None else found[1]

    async def forget(self, channel: str) -> None:
        """Forget the number of a channel that nobody will use again, if Redis answers at once."""
        await self._tidy("HDEL", self.keys.numbers, self.keys.channel(channel))

    async def _tidy(self, *command: str | bytes | int) -> None:
        try:
            async with asyncio.timeout(TIDY_S):
                await self._store.command(*command, once=True)
        except (UnavailableError, TimeoutError) as error:
            log.debug("not tidied up", command=command[0], why=str(error))

    # -- history ----------------------------------------------------------------------------------------------------

    async def history(self, msg_type: str | None = None, count: int = 100) -> list[Message]:
        """The newest *count* messages of a type, or of all types, newest first."""
        if count < 1:
            raise InvalidInputError("count", found=count, needed="1 or more")
        types = [str(msg_type)] if msg_type else [
            each.decode() for each in await self._store.command("SMEMBERS", self.keys.types)
        ]  # fmt: skip
        if not types:
            return []
        found = await self._store.commands(
            *(("XREVRANGE", self.keys.history(each), "+", "-", "COUNT", count) for each in types)
        )
        if gone := [each for each, rows in zip(types, found, strict=True) if not rows]:
            await self._store.command("SREM", self.keys.types, *gone)
        told = [(_stream_id(name), Message.from_json(_fields(row)[b"m"])) for rows in found for name, row in rows]
        # by Redis' clock, and within one of its milliseconds by their senders'
        told.sort(key=lambda each: (each[0][0], each[1].timestamp, each[0][1]), reverse=True)
        return [message for _, message in told[:count]]

    # -- listening --------------------------------------------------------------------------------------------------

    async def listen(self, channels: Iterable[str], listener: Listener) -> Callable[[], Any]:
        """Have *listener* called with each message of *channels*, until the function that this returns is called and awaited.

        Raises:
            StoreUnavailableError: Redis does not answer; nothing is listened to.
        """
        names, token = [check_channel(name) for name in channels], object()
        for name in names:
            self._listeners[name][token] = listener
            self._names[self.keys.channel(name).encode()] = name

        async def unlisten() -> None:
            for urgent, part in self._by_line(names):
                for name in part:
                    self._listeners[name].pop(token, None)
                    if not self._listeners[name]:  # what comes while nobody listens is not missed
                        del self._listeners[name]
                        self._last.pop(self.keys.channel(name).encode(), None)
                await self._line(urgent).discard(self.keys.channel(name) for name in part)

        lines = [(self._line(urgent), part) for urgent, part in self._by_line(names)]
        adding = (
            line.add([self.keys.channel(name) for name in part], timeout_s=self._store.timeout_s)
            for line, part in lines
        )
        try:
            await asyncio.gather(*adding)
        except BaseException:
            await unlisten()
            raise
        return unlisten

    def listen_to_hints(self, redis_channel: str, callback: Callable[[bytes], None]) -> Callable[[], None]:
        """Have *callback* called with what is published on a Redis channel as it is, without numbers, as a topic says that
        it has something new. Begins in the background; what this returns ends it."""
        token, name = object(), redis_channel.encode()
        self._hints.setdefault(name, {})[token] = callback
        self._join(self._line(False).add([redis_channel], timeout_s=None))

        def unlisten() -> None:
            if self._hints.get(name, {}).pop(token, None) is not None:
                self._join(self._line(False).discard([redis_channel]))

        return unlisten

    def _join(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="hints")
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    def on_gap(self, handler: Callable[[Gap], Any]) -> None:
        """Have *handler* called when messages were missed."""
        self._gap_handlers.append(handler)

    @property
    def reconnects(self) -> int:
        """How often a connection had to be made anew."""
        return sum(line.reconnects for line in self._lines.values())

    def sever(self) -> None:
        """Cut the connections, as a network would: for tests of what happens then."""
        for line in self._lines.values():
            line.sever()

    async def close(self) -> None:
        """Stop listening."""
        await self._publishing.flush()
        for task in self._joining:
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)
        await asyncio.gather(*(line.close() for line in self._lines.values()))
        self._lines.clear()
        self._listeners.clear()

    def _line(self, urgent: bool) -> Any:
        if urgent not in self._lines:
            self._lines[urgent] = self._store.subscription(
                on_message=self._heard, on_numbers=self._caught_up, numbers=self.keys.numbers
            )
        return self._lines[urgent]

    @staticmethod
    def _by_line(names: Sequence[str]) -> list[tuple[bool, list[str]]]:
        """*names* by the connection that they are heard on, the urgent one first."""
        urgent = [name for name in names if name in Channels.URGENT]
        others = [name for name in names if name not in Channels.URGENT]
        return [(line, part) for line, part in ((True, urgent), (False, others)) if part]

    def _heard(self, channel: bytes, data: bytes) -> None:
        if channel in self._hints:
            for callback in list(self._hints[channel].values()):
                _call(callback, data)
            return
        text, _, body = data.partition(b" ")
        name = self._names.get(channel, "")
        if name not in self._listeners:
            return  # it came as we stopped listening
        if not text.isdigit():
            log.warning("something that is no message was published", channel=name)
            return
        self._reach(channel, int(text), counted=1)
        heard = Heard(name, body)
        for listener in list(self._listeners[name].values()):
            try:
                listener(heard)
            except Exception:  # the rim: it may raise anything, and must not make the whole process deaf
                log.error("a listener failed", exc_info=True)

    def _caught_up(self, channels: Sequence[bytes], numbers: Sequence[bytes | None]) -> None:
        for channel, number in zip(channels, numbers, strict=True):
            for callback in list(self._hints.get(channel, {}).values()):
                _call(callback, b"")  # there may be something new: nobody told us while we were away
            self._reach(channel, int(number or 0), counted=0)

    def _reach(self, channel: bytes, number: int, *, counted: int) -> None:
        """Note that *number* is the newest of *channel*; what lies between the last one and it was missed."""
        last = self._last.get(channel)
        self._last[channel] = number
        # less than before: Redis came back without what it counted last, and begins from there
        missed = number - counted - last if last is not None else 0
        if missed <= 0:
            return
        name = self._names[channel]
        self.missed[name] = self.missed.get(name, 0) + missed
        log.warning("messages were missed", channel=name, missed=missed)
        for handler in self._gap_handlers:
            _call(handler, Gap(name, missed))


def _call(callback: Callable[[Any], Any], told: Any) -> None:
    """What a listener raises must not make the whole process deaf."""
    try:
        callback(told)
    except Exception:  # the rim: it may raise anything
        log.error("a listener failed", exc_info=True)


def _stream_id(name: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(b"-"))


def _fields(row: Any) -> dict[bytes, bytes]:
    return row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))
