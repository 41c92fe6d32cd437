"""Publishing: how messages get into topics. Owns the way from an object to a partition, and the call that takes it there.

A message is stored once for each id: one that is published again within ten minutes (or 250,000 messages of its topic,
whichever is less) is answered with the place of the first. Calls whose reply was lost are repeated on the strength of that.
"""

from __future__ import annotations

import random as chance
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from ...errors import InvalidInputError, LibraryMismatchError, SwarmError, TopicFullError, TopicNotFoundError
from ...keys import BusKeys
from ...store import Store
from ...store.batches import Batches
from ...telemetry import current_traceparent
from ..codec import Codec
from ..messages import MAX_MESSAGE_BYTES, Message
from .values import Published

__all__ = ["Outgoing", "Publisher", "Route", "partition_of"]

MOST_PER_CALL = 256
BYTES_PER_CALL = 4 * 1024 * 1024  # a call of 256 small messages; large ones share it with fewer
LONGEST_KEY, LONGEST_ID = 1024, 256


@dataclass(frozen=True, slots=True)
class Route:
    """A topic as the function library is told of it."""

    name: str
    partitions: int
    block: tuple[str, ...]  #: its keys: two of ids published lately, then the partitions
    channel: str  #: where hints are given

    @classmethod
    def of(cls, keys: BusKeys, name: str, partitions: int) -> Route:
        """The route to a topic with so many partitions."""
        topic = keys.topic(name)
        block = (topic.recent(0), topic.recent(1), *(topic.partition(number) for number in range(partitions)))
        return cls(name, partitions, block, keys.channel(f"topic.{name}"))


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way."""

    route: Route
    partition: int
    id: str
    key: str
    type: str
    content_type: str
    traceparent: str
    body: bytes

    def words(self, index: int) -> list[Any]:
        """What the functions take, for the topic that is number *index* of the call."""
        return [
            index, self.partition, self.id, self.key, self.type, self.content_type, self.traceparent, self.body,
        ]  # fmt: skip


def partition_of(key: str, partitions: int) -> int:
    """The partition of *key*: the same in every process and for ever."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % partitions


class Envoy:
    """Collects the topics of one call: their keys, and what is said of them."""

    def __init__(self, first_key: int) -> None:
        self.keys: list[str] = []
        self._first_key = first_key  # position in KEYS, from 1
        self._topics: dict[str, int] = {}
        self._said: list[Any] = []

    def words(self, message: Outgoing) -> list[Any]:
        """What is said of *message*."""
        return message.words(self.index_of(message.route))

    def index_of(self, route: Route) -> int:
        """Which topic of the call this is, from 1; entered if it is new."""
        index = self._topics.get(route.name)
        if index is None:
            index = self._topics[route.name] = len(self._topics) + 1
            self._said += (route.name, self._first_key + len(self.keys), route.partitions, route.channel)
            self.keys += route.block
        return index

    @property
    def said(self) -> list[Any]:
        """What is said of the topics."""
        return [len(self._topics), *self._said]


def refusal(answer: Any, route: Route) -> SwarmError | None:
    """The error that an answer stands for, or None if it is no refusal."""
    match answer:
        case [b"full", topic, found, most, group]:
            return TopicFullError(topic.decode(), found=int(found), needed=int(most), group=group.decode())
        case [b"topic"]:
            return TopicNotFoundError(route.name)
        case _:
            return None


class Publisher:
    """Puts messages into topics; those of one moment travel together.

    Args:
        store: the Redis.
        keys: of the bus.
        random: spreads messages without a key.
    """

    def __init__(self, store: Store, keys: BusKeys, random: chance.Random) -> None:
        self._store, self._keys, self._random = store, keys, random
        self._batches: Batches[Outgoing, Published] = Batches("publish", self._send, most=MOST_PER_CALL)

    async def make(
        self, route: Route, codec: Codec, body: Any, *, key: str = "", id: str | None = None, type: str | None = None
    ) -> Outgoing:
        """*body* as a message to this topic.

        Raises:
            InvalidInputError: it is too large, or can't be written.
        """
        content_type, text = await codec.encode(body)
        what = f"a message to topic {route.name!r}"
        if len(text) > MAX_MESSAGE_BYTES:
            raise InvalidInputError(
                what, found=f"{len(text):,} bytes", needed=f"at most {MAX_MESSAGE_BYTES:,}",
                step="put the data on the board or into a file and send where it is",
            )  # fmt: skip
        envelope = body if isinstance(body, Message) else None
        id = id or (envelope.id if envelope else uuid4().hex)
        if len(id) > LONGEST_ID or len(key) > LONGEST_KEY:
            raise InvalidInputError(
                f"{what}: id and key",
                found=f"{len(id)} and {len(key)} characters",
                needed=f"at most {LONGEST_ID} and {LONGEST_KEY}",
            )
        if type is None:
            type = envelope.type if envelope else (body.__class__.__name__ if isinstance(body, BaseModel) else "")
        partition = partition_of(key, route.partitions) if key else self._random.randrange(route.partitions)
        trace = (envelope.traceparent if envelope else None) or current_traceparent() or ""
        return Outgoing(route, partition, id, key, type, content_type, trace, text)

    async def publish(self, messages: Sequence[Outgoing]) -> list[Published]:
        """Put *messages* in, in this order; each is in Redis when this returns.

        Raises:
            TopicFullError: of the first that was refused; the others are in.
            TopicNotFoundError: the topic is not open as this program knows it.
            StoreUnavailableError: Redis does not answer; whether they are in is not known, with the same ids it may be repeated.
        """
        futures = [self._batches.send(message) for message in messages]
        return [await future for future in futures]

    async def _send(self, messages: Sequence[Outgoing]) -> list[Published | Exception]:
        answers: list[Published | Exception] = []
        part: list[Outgoing] = []
        size = 0
        for message in messages:
            if part and size + len(message.body) > BYTES_PER_CALL:
                answers += await self._call(part)
                part, size = [], 0
            part.append(message)
            size += len(message.body)
        return answers + await self._call(part)

    async def _call(self, messages: Sequence[Outgoing]) -> list[Published | Exception]:
        envoy = Envoy(first_key=3)
        words = [word for message in messages for word in envoy.words(message)]
        keys = [self._keys.rules, self._keys.topics, *envoy.keys]
        try:
            answers = await self._store.call("publish", keys, [*envoy.said, *words])
        except SwarmError as error:  # of this part alone: the parts before it are in
            return [error] * len(messages)
        return [_published(message, answer) for message, answer in zip(messages, answers, strict=True)]


def _published(message: Outgoing, answer: Any) -> Published | Exception:
    match answer:
        case [b"stored" | b"duplicate" as word, partition, entry]:
            return Published(
                topic=message.route.name, id=message.id, partition=int(partition), entry=entry.decode(),
                duplicate=word == b"duplicate",
            )  # fmt: skip
        case _:
            return refusal(answer, message.route) or LibraryMismatchError("publish", answer)
