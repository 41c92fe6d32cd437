"""Topics: durable streams of messages, read by groups.

::

    publish ──► partition 0 ──► group "a": consumer, consumer      a partition is in one consumer's hands at a time
       key      partition 1 ──► group "b": consumer                an acknowledged message stays until it is old: replay
                …           └─► dead letters, with the reason      a group begins where it likes

A message's key decides its partition, so messages of a key stay in order. A topic's partitions are fixed when it is first
opened. What is published is in Redis when `publish` returns; each group gets it at least once, and what its handler
answers is accepted exactly once, because the acknowledgement and the answer are one step (`Delivery.done`).

What may go wrong: a consumer dies (its lease ends, the next one goes on); Redis is away (everybody waits and repeats:
calls are idempotent); a message can't be processed (a dead letter, the others go on); a group falls behind (nothing that it
needs is trimmed; at `most` messages publishing is refused, by the name of that group).
"""

from __future__ import annotations

import random as chance
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Protocol
from uuid import uuid4

from ...errors import GroupNotFoundError, InvalidInputError, LibraryMismatchError, TopicMismatchError
from ...keys import BusKeys, TopicKeys, check_id, check_name
from ...store import Store
from ..codec import JSON, Codec
from .deliveries import Deliveries, Fields, read_entry, read_fields
from .publishing import Envoy, Outgoing, Publisher, Route, refusal
from .values import (
    DeadLetter,
    GroupLag,
    PartitionLag,
    Published,
    To,
    TopicMessage,
    TopicSettings,
    begin_after,
)

__all__ = ["Listen", "Topic", "Topics"]

MOST_PARTITIONS = 256  # each costs every idle take a look
LETTERS_PER_CALL = 200


class Listen(Protocol):
    """Hears hints on a Redis channel: ``listen(channel, callback)``; what it returns is called to stop."""

    def __call__(self, channel: str, callback: Callable[[bytes], None], /) -> Callable[[], None]:
        """Begin to listen."""
        ...


class Topics:
    """The topics of a namespace.

    Args:
        store: the Redis.
        namespace: of the bus.
        listen: hears hints that something was published; None: consumers poll, and hear nothing in between.
        codec: writes and reads bodies.
        random: source of jitter.
    """

    def __init__(
        self, store: Store, namespace: str, *, listen: Listen | None = None, codec: Codec = JSON,
        random: chance.Random | None = None,
    ) -> None:  # fmt: skip
        self.store, self.namespace, self.listen, self.codec = store, check_name("namespace", namespace), listen, codec
        self.keys = BusKeys(namespace)
        self.random = random or chance.Random()
        self.publisher = Publisher(store, self.keys, self.random)
        self._open: dict[str, Topic] = {}

    async def open(
        self, name: str, *, partitions: int | None = None, keep_s: float | None = None, keep_entries: int | None = None,
        most: int | None = None, codec: Codec | None = None,
    ) -> Topic:  # fmt: skip
        """The topic called *name*; made if there is none.

        Args:
            name: of the topic.
            partitions: how many consumers of a group can work at once; fixed when the topic is made; None: as it is, 8 if
                it is new.
            keep_s: acknowledged messages older than this go; 0: none for its age; None: as it is, a week if it is new.
            keep_entries: acknowledged messages beyond so many go; 0: no limit; None: as it is, no limit if it is new.
            most: messages that the topic may hold; 0: no limit; None: as it is, a million if it is new. At the bound
                everything acknowledged goes, and if that makes no room, publishing is refused.
            codec: writes and reads its bodies in this process; None: as it was opened here before, else as plain JSON.

        Raises:
            TopicMismatchError: it has another number of partitions.
        """
        check_name("topic", name)
        if partitions is not None and not 1 <= partitions <= MOST_PARTITIONS:
            raise InvalidInputError(f"topic {name!r}: partitions", found=partitions, needed=f"1 to {MOST_PARTITIONS}")
        for what, number in (("keep_s", keep_s), ("keep_entries", keep_entries), ("most", most)):
            if number is not None and number < 0:
                raise InvalidInputError(f"topic {name!r}: {what}", found=number, needed="0 or more")
        keep_ms = None if keep_s is None else round(keep_s * 1000)
        args = [name, *("" if each is None else each for each in (partitions, keep_ms, keep_entries, most))]
        match await self.store.call("open_topic", [self.keys.rules, self.keys.topics], args):
            case [b"opened", found, kept_ms, kept, bound]:
                settings = TopicSettings(
                    partitions=int(found), keep_s=int(kept_ms) / 1000, keep_entries=int(kept), most=int(bound)
                )
            case [b"partitions", found]:
                raise TopicMismatchError(name, found=int(found), needed=int(partitions or 0))
            case answer:
                raise LibraryMismatchError("open_topic", answer)
        if codec is None:
            codec = self._open[name].codec if name in self._open else self.codec
        topic = self._open[name] = Topic(self, name, settings, codec)
        return topic

    async def get(self, name: str) -> Topic:
        """The topic called *name*, as it was opened here before; else opened as it is."""
        return self._open.get(name) or await self.open(name)

    async def names(self) -> list[str]:
        """The topics that there are."""
        return sorted(name.decode() for name in await self.store.command("HKEYS", self.keys.topics))

    async def trim(self) -> int:
        """Trim every topic (see `Topic.trim`); a chore for a sweeper. Returns how many messages went."""
        return sum([await (await self.get(name)).trim() for name in await self.names()])


class Topic:
    """A topic; made by `Topics.open`."""

    def __init__(self, topics: Topics, name: str, settings: TopicSettings, codec: Codec) -> None:
        self.name, self.settings = name, settings
        self.store, self.bus_keys, self.listen, self.codec = topics.store, topics.keys, topics.listen, codec
        self.keys: TopicKeys = topics.keys.topic(name)
        self.route = Route.of(topics.keys, name, settings.partitions)
        self._topics = topics
        self._partitions = [self.keys.partition(number) for number in range(settings.partitions)]

    # -- publishing -------------------------------------------------------------------------------------------------

    async def publish(self, body: Any, *, key: str = "", id: str | None = None, type: str | None = None) -> Published:
        """Put a message in; it is in Redis when this returns.

        Args:
            body: a model, JSON data or a `Message`.
            key: messages of one key stay in order; "": any partition.
            id: published twice within ten minutes, it is stored once; None: a new one, or the `Message`'s.
            type: a word for the reader; None: the model's or the `Message`'s.

        Raises:
            InvalidInputError: it is too large, or can't be written.
            TopicFullError: the topic is at its bound; names the group that lags.
            StoreUnavailableError: Redis does not answer; may be repeated with the same *id*.
        """
        [published] = await self._topics.publisher.publish([await self.message(body, key=key, id=id, type=type)])
        return published

    async def publish_many(
        self, bodies: Sequence[Any], *, keys: Sequence[str] | None = None, ids: Sequence[str] | None = None
    ) -> list[Published]:
        """Put messages in, in this order, in as few calls as may be; see `publish`.

        Args:
            bodies: as for `publish`.
            keys: one for each.
            ids: one for each.
        """
        given: Sequence[str | None] = ids or [None] * len(bodies)
        messages = [
            await self.message(body, key=key, id=id)
            for body, key, id in zip(bodies, keys or [""] * len(bodies), given, strict=True)
        ]
        return await self._topics.publisher.publish(messages)

    async def message(self, body: Any, *, key: str = "", id: str | None = None, type: str | None = None) -> Outgoing:
        """A message to this topic, on its way; for the functions that publish."""
        return await self._topics.publisher.make(self.route, self.codec, body, key=key, id=id, type=type)

    async def output(self, to: To, of: TopicMessage) -> Outgoing:
        """What a handler answers to a message, as a message to its topic."""
        topic = await self._topics.get(to.topic)
        return await topic.message(to.body, key=of.key if to.key is None else to.key, id=to.id)

    # -- groups -----------------------------------------------------------------------------------------------------

    def consume(
        self,
        group: str,
        *,
        begin: str | datetime = "earliest",
        batch: int = 100,
        slots: int = 0,
        lease_s: float = 30.0,
        max_attempts: int = 5,
        poll_s: float = 0.5,
        name: str | None = None,
    ) -> Deliveries:
        """Consume as a member of *group*: ``async with topic.consume("g") as deliveries: async for delivery in deliveries:``.

        Args:
            group: each group gets every message, each of its messages goes to one consumer.
            begin: where a group begins that is new: ``earliest``, ``latest``, an entry's id or a time (that one included;
                one beyond the end is the end).
            batch: messages taken at once, over all partitions.
            slots: partitions in hand at once, and so messages in work; 0: as many as there are.
            lease_s: after how long others take over from a consumer that died; renewed as long as it lives.
            max_attempts: failures or crashes after which a message is a dead letter; 0: never.
            poll_s: how often an idle consumer looks by itself.
            name: of this consumer; unique.
        """
        check_name("group", group)
        for what, number, least in (("batch", batch, 1), ("slots", slots, 0), ("max_attempts", max_attempts, 0)):
            if number < least:
                raise InvalidInputError(f"consume({what}=)", found=number, needed=f"{least} or more")
        if not lease_s > 0 or not poll_s > 0:
            raise InvalidInputError("consume(lease_s=, poll_s=)", found=(lease_s, poll_s), needed="more than 0 seconds")
        return Deliveries(
            self, group, begin=begin_after(begin), batch=batch, slots=slots, lease_s=lease_s, max_attempts=max_attempts,
            poll_s=poll_s, name=check_id("consumer", name or f"{group}-{uuid4().hex[:12]}"), random=self._topics.random,
        )  # fmt: skip

    async def replay(self, group: str, from_: str | datetime) -> None:
        """Set *group* to another place: an entry's id or a time (that message is delivered again), earliest or latest.

        What its consumers have in hand is theirs no more.

        Raises:
            GroupNotFoundError: there is no such group.
        """
        keys = [self.bus_keys.rules, self.keys.group(check_name("group", group)), *self._partitions]
        match await self.store.call("replay_group", keys, [group, begin_after(from_)]):
            case b"replayed":
                return
            case b"group":
                raise GroupNotFoundError(self.name, group)
            case answer:
                raise LibraryMismatchError("replay_group", answer)

    async def drop_group(self, group: str) -> None:
        """Forget *group*: nothing is kept for it any more. Its consumers, if there are any, end with GroupNotFoundError."""
        key = self.keys.group(check_name("group", group))
        found = await self._native_groups()
        drops = [
            ("XGROUP", "DESTROY", stream, group)
            for stream, groups in zip(self._partitions, found, strict=True)
            if group in groups
        ]
        await self.store.commands(("DEL", key), *drops)

    async def groups(self) -> list[str]:
        """The groups that there are."""
        return sorted({group for groups in await self._native_groups() for group in groups})

    async def lag(self, group: str) -> GroupLag:
        """How far *group* is behind.

        Raises:
            GroupNotFoundError: there is no such group.
        """
        partitions: list[PartitionLag] = []
        for number, groups in enumerate(await self._native_groups()):
            if (facts := groups.get(group)) is None:
                raise GroupNotFoundError(self.name, group)
            behind = facts["lag"]  # None: Redis does not know
            most = behind if behind is not None else await self.store.command("XLEN", self._partitions[number])
            partitions.append(
                PartitionLag(
                    partition=number, waiting=int(most), pending=int(facts["pending"]), exact=behind is not None
                )
            )
        return GroupLag(group, tuple(partitions))

    async def sizes(self) -> tuple[int, int]:
        """How many messages there are, and how many dead letters."""
        *lengths, dead = await self.store.commands(
            *(("XLEN", stream) for stream in self._partitions), ("XLEN", self.keys.dead)
        )
        return sum(lengths), int(dead)

    async def _native_groups(self) -> list[dict[str, dict[str, Any]]]:
        """For each partition its groups as Redis knows them."""
        known: list[dict[str, dict[str, Any]]] = []
        lengths = await self.store.commands(*(("EXISTS", stream) for stream in self._partitions))
        for stream, exists in zip(self._partitions, lengths, strict=True):
            rows = await self.store.command("XINFO", "GROUPS", stream) if exists else []
            found = [_by_name(row) for row in rows]
            known.append({each["name"].decode(): each for each in found})
        return known

    # -- reading ----------------------------------------------------------------------------------------------------

    async def read(self, from_: str | datetime = "earliest", count: int = 100) -> list[TopicMessage]:
        """Up to *count* messages from a place on, oldest first, without being a group."""
        after = begin_after(from_)
        start = "-" if after == "0" else f"({after}"
        if after == "$":
            return []
        parts = await self.store.commands(
            *(("XRANGE", stream, start, "+", "COUNT", count) for stream in self._partitions)
        )
        found = [read_entry(number, *row) for number, rows in enumerate(parts) for row in rows]
        found.sort(key=lambda each: (*map(int, each.entry.split("-")), each.partition))
        return found[:count]

    # -- dead letters -----------------------------------------------------------------------------------------------

    async def dead_letters(self, count: int = 100, *, after: str = "") -> list[DeadLetter]:
        """Up to *count* messages that a group could not process, oldest first; *after* the letter of this id."""
        rows = await self.store.command("XRANGE", self.keys.dead, f"({after}" if after else "-", "+", "COUNT", count)
        return [_letter(*row) for row in rows]

    async def redrive(self, ids: Sequence[str] | None = None) -> int:
        """Put dead letters back into their partition, at the end, with no attempts used, for their group alone.

        Args:
            ids: of the letters; None: all that there are now.

        Returns:
            How many there were.

        Raises:
            TopicFullError: the topic is at its bound; those before are redriven.
        """
        if ids is not None:
            return await self._redrive(ids)
        redriven, newest = 0, await self.store.command("XREVRANGE", self.keys.dead, "+", "-", "COUNT", 1)
        while newest:  # not those that die again meanwhile
            rows = await self.store.command("XRANGE", self.keys.dead, "-", newest[0][0], "COUNT", LETTERS_PER_CALL)
            if not rows:
                break
            redriven += await self._redrive([row[0].decode() for row in rows])
        return redriven

    async def _redrive(self, ids: Sequence[str]) -> int:
        envoy = Envoy(first_key=4)
        envoy.index_of(self.route)
        keys = [self.bus_keys.rules, self.bus_keys.topics, self.keys.dead, *envoy.keys]
        match await self.store.call("redrive", keys, [*envoy.said, *ids]):
            case [b"redriven", n]:
                return int(n)
            case answer:
                raise refusal(answer, self.route) or LibraryMismatchError("redrive", answer)

    # -- keeping ----------------------------------------------------------------------------------------------------

    async def trim(self) -> int:
        """Drop messages that are older, or more, than the topic keeps, as far as every group has acknowledged them.

        Returns how many went.
        """
        envoy = Envoy(first_key=3)
        envoy.index_of(self.route)
        keys = [self.bus_keys.rules, self.bus_keys.topics, *envoy.keys]
        return int(await self.store.call("trim_topic", keys, envoy.said))


def _by_name(row: Any) -> dict[str, Any]:
    if isinstance(row, dict):
        return {(name.decode() if isinstance(name, bytes) else name): value for name, value in row.items()}
    return {name.decode(): value for name, value in zip(row[::2], row[1::2], strict=True)}


def _letter(entry: bytes, fields: Fields) -> DeadLetter:
    facts = read_fields(fields)

    def text(name: bytes) -> str:
        return facts.get(name, b"").decode(errors="replace")

    original = read_entry(int(text(b"partition")), text(b"entry").encode(), fields)
    return DeadLetter(
        id=entry.decode(), group=text(b"group"), reason=text(b"reason"), error=text(b"error"),
        attempts=int(text(b"attempts")), message=original,
    )  # fmt: skip
