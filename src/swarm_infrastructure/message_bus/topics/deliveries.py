"""Deliveries: what a consumer of a group has in hand, and how it ends.

The right to work on a partition is a lease of its own (a *seat*), whatever Redis' native groups say: as long as it lasts,
nobody else is handed a message of that partition, and every ending carries the seat's token, so that who lost it changes
nothing any more. A consumer holds several partitions at once and has one message of each in work: the next one comes when
that one has ended. So messages of one partition, and with it of one key, are handled in order and one at a time.

When a consumer dies, its leases end, and what it had not acknowledged comes first to whoever takes the partition next.
The attempt is counted for the message that was in work, not for those behind it.
"""

from __future__ import annotations

import asyncio
import random as chance
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import structlog

from ...errors import (
    DeliveryLostError,
    GroupNotFoundError,
    LibraryMismatchError,
    SwarmError,
    UnavailableError,
)
from ...store.batches import Batches
from .publishing import Envoy, Outgoing, refusal
from .values import To, TopicMessage

if TYPE_CHECKING:
    from .topics import Topic

__all__ = ["Deliveries", "Delivery", "Fields", "read_entry", "read_fields"]

log = structlog.get_logger(__name__)

Fields = Sequence[bytes] | Mapping[bytes, bytes]

RENEW_AT = 1 / 3  # of the lease: two more tries before it is given up, as with the board's claims
LOST_AT = 2 / 3
LONGEST_ERROR = 4000  # characters of an error that a dead letter keeps
LEAVING_S = 2.0  # for giving seats up, when a consumer closes


@dataclass(slots=True, eq=False)
class _Hand:
    """A partition that is ours for a while, and what we took of it."""

    partition: int
    token: bytes
    confirmed_at: float  #: monotonic; when the last confirmed renewal had been sent
    waiting: deque[TopicMessage]
    current: Delivery | None = None
    ending: bool = False  #: the ending of `current` is under way
    lost: str = ""


class Delivery:
    """A message in the hands of a consumer, until it is ended by `done`, `fail` or `bury`."""

    def __init__(self, message: TopicMessage, attempt: int, deliveries: Deliveries, hand: _Hand) -> None:
        self.message = message
        self.attempt = attempt  #: 1 for the first
        self.ended = False
        self.on_lost: Callable[[], object] | None = None  #: called when the lease can't be held
        self._deliveries, self._hand = deliveries, hand

    @property
    def lost(self) -> str:
        """Why it is not ours any more; "" while it is."""
        return self._hand.lost

    async def decode(self, as_: Any = Any) -> Any:
        """The body, as a type.

        Raises:
            InvalidInputError: it does not fit; the message names the field.
        """
        return await self.message.decode(as_, self._deliveries.topic.codec)

    async def done(self, *outputs: To) -> None:
        """Acknowledge it, and publish *outputs* in the same step: both happen or neither.

        Raises:
            DeliveryLostError: it is not ours any more; nothing was written.
            TopicFullError: a topic of the outputs takes no more now; the message is still in hand: try again later.
            StoreUnavailableError: Redis does not answer; try again, the first answer is given again.
        """
        messages = [await self._deliveries.topic.output(each, self.message) for each in outputs]
        await self._deliveries.end(_Ending(self, "done", messages=messages))

    async def fail(self, error: BaseException | str, *, retry_in_s: float = 1.0) -> bool:
        """Let it be tried again after *retry_in_s*; nothing of its partition comes before it.

        Returns:
            Whether it is tried again; False: it had used up its attempts and is a dead letter now.

        Raises:
            DeliveryLostError, StoreUnavailableError: as for `done`.
        """
        return await self._deliveries.end(_Ending(self, "fail", "failed", _text(error), delay_s=retry_in_s)) == "again"

    async def bury(self, error: BaseException | str, *, reason: str = "invalid") -> None:
        """Make it a dead letter now.

        Raises:
            DeliveryLostError, StoreUnavailableError: as for `done`.
        """
        await self._deliveries.end(_Ending(self, "bury", reason, _text(error)))


@dataclass(frozen=True, slots=True, eq=False)
class _Ending:
    delivery: Delivery
    kind: str
    reason: str = ""
    error: str = ""
    delay_s: float = 0.0
    messages: Sequence[Outgoing] = field(default_factory=tuple)

    @property
    def leaves(self) -> bool:
        """Nothing is left in hand of its partition."""
        return not self.delivery._hand.waiting

    def words(self, max_attempts: int, envoy: Envoy) -> list[Any]:
        delivery, message = self.delivery, self.delivery.message
        attempts = max_attempts if self.kind == "fail" else delivery.attempt - 1
        words: list[Any] = [
            message.partition, delivery._hand.token, self.kind, message.entry, self.reason, self.error,
            round(self.delay_s * 1000), attempts, "1" if self.leaves else "0", len(self.messages),
        ]  # fmt: skip
        for each in self.messages:
            words += envoy.words(each)
        return words


class Deliveries:
    """The messages that a consumer of a group gets, as ``async with`` and ``async for``; made by `Topic.consume`.

    Each must be ended: the next one of its partition comes only then.
    """

    def __init__(
        self, topic: Topic, group: str, *, begin: str, batch: int, slots: int, lease_s: float, max_attempts: int,
        poll_s: float, name: str, random: chance.Random,
    ) -> None:  # fmt: skip
        self.topic, self.group, self.name = topic, group, name
        self._begin, self._lease_s, self._max_attempts, self._poll_s = begin, lease_s, max_attempts, poll_s
        self._slots = min(slots or topic.settings.partitions, topic.settings.partitions)
        self._share = max(1, batch // self._slots)  # entries of a partition in one take
        self._random = random
        self._store, self._bus = topic.store, topic.bus_keys
        self._group_key = topic.keys.group(group)
        self._partitions = [topic.keys.partition(number) for number in range(topic.settings.partitions)]
        self._hands: dict[int, _Hand] = {}
        self._ready: asyncio.Queue[Delivery | None] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._stopping = False
        self._error: SwarmError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way: set[asyncio.Task[Any]] = set()  # endings
        self._renewal: asyncio.Task[None] | None = None
        self._unlisten: Callable[[], None] | None = None
        self._batches: Batches[_Ending, Any] = Batches(f"finish {group}", self._finish, most=64)

    async def __aenter__(self) -> Self:
        keys = [self._bus.rules, self._group_key, *self._partitions]
        match await self._store.call("open_group", keys, [self.group, self._begin]):
            case b"opened" | b"exists":
                pass
            case answer:
                raise LibraryMismatchError("open_group", answer)
        if self.topic.listen is not None:
            self._unlisten = self.topic.listen(self.topic.route.channel, lambda _hint: self._wake.set())
        self._tasks = [
            asyncio.create_task(self._take_forever(), name=f"take {self.topic.name} {self.group}"),
            asyncio.create_task(self._keep_forever(), name=f"keep {self.topic.name} {self.group}"),
        ]
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        while True:
            if self._stopping:
                raise StopAsyncIteration
            delivery = await self._ready.get()
            if delivery is None:
                self._ready.put_nowait(None)  # for whoever else waits
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            if not delivery.lost:
                return delivery

    @property
    def in_hand(self) -> int:
        """Messages that are in work or wait here for their turn."""
        return sum(len(hand.waiting) + (hand.current is not None) for hand in self._hands.values())

    def stop_taking(self) -> None:
        """Give out no more messages; those in work can still be ended."""
        self._stopping = True
        self._wake.set()
        self._ready.put_nowait(None)

    async def close(self) -> None:
        """Take no more and give every partition up, so that others go on at once. What was not ended counts as not tried."""
        self.stop_taking()
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        if not self._tasks:
            return
        taking, keeping = self._tasks
        self._tasks = []
        # a take that is under way may already have seated us: wait for it, to give that up too
        await asyncio.wait({taking, *self._under_way}, timeout=self._store.timeout_s)
        leftovers = [task for task in (taking, keeping, self._renewal, *self._under_way) if task is not None]
        for task in leftovers:
            task.cancel()
        await asyncio.gather(*leftovers, return_exceptions=True)
        endings = [_Ending(hand.current, "free") for hand in self._hands.values() if hand.current is not None]
        self._hands.clear()
        if endings:
            with suppress(TimeoutError, SwarmError):  # then the leases run out by themselves
                async with asyncio.timeout(LEAVING_S):
                    await self._finish(endings)

    # -- ending -----------------------------------------------------------------------------------------------------

    async def end(self, ending: _Ending) -> str:
        """End a delivery; for `Delivery`. Returns what became of it: done, again or dead."""
        delivery = ending.delivery
        if delivery.ended:
            return ending.kind  # a second call changes nothing
        if delivery.lost:
            raise self._lost_error(delivery)
        # in a task, so that who is cancelled meanwhile does not leave us in doubt of what is in hand
        task = asyncio.create_task(self._end(ending))
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()

    async def _end(self, ending: _Ending) -> str:
        delivery, leaves = ending.delivery, ending.leaves
        hand = delivery._hand
        hand.ending = True
        try:
            answer = await self._batches.send(ending)
        finally:
            hand.ending = False
        match answer:
            case [b"done" | b"dead" as word, _]:
                delivery.ended = True
                if hand.lost:
                    pass
                elif leaves:
                    self._drop(hand)
                else:
                    self._hand_out(hand, attempt=1)
                return str(word.decode())
            case [b"again", _]:
                delivery.ended = True
                self._drop(hand)
                return "again"
            case [b"lost", why]:
                self._lose(hand, why.decode())
                raise self._lost_error(delivery)
            case _:
                for message in ending.messages:
                    if error := refusal(answer, message.route):
                        raise error
                raise LibraryMismatchError("finish", answer)

    def _lost_error(self, delivery: Delivery) -> DeliveryLostError:
        message = delivery.message
        return DeliveryLostError(self.topic.name, self.group, message.partition, message.entry, delivery.lost)

    async def _finish(self, endings: Sequence[_Ending]) -> Sequence[Any]:
        envoy = Envoy(first_key=5 + len(self._partitions))
        words = [word for ending in endings for word in ending.words(self._max_attempts, envoy)]
        keys = [
            self._bus.rules,
            self._bus.topics,
            self._group_key,
            self.topic.keys.dead,
            *self._partitions,
            *envoy.keys,
        ]
        answers: Sequence[Any] = await self._store.call("finish", keys, [self.group, self.name, *envoy.said, *words])
        return answers

    def _hand_out(self, hand: _Hand, attempt: int) -> None:
        hand.current = Delivery(hand.waiting.popleft(), attempt, self, hand)
        if not self._stopping:
            self._ready.put_nowait(hand.current)

    def _drop(self, hand: _Hand) -> None:
        if self._hands.get(hand.partition) is hand:
            del self._hands[hand.partition]
        self._wake.set()

    def _lose(self, hand: _Hand, why: str) -> None:
        self._drop(hand)
        if hand.lost:
            return
        hand.lost = why
        log.warning("partition lost", topic=self.topic.name, group=self.group, partition=hand.partition, why=why)
        if hand.current is not None and hand.current.on_lost is not None:
            hand.current.on_lost()

    # -- taking -----------------------------------------------------------------------------------------------------

    async def _take_forever(self) -> None:
        try:
            while not self._stopping:
                room = self._slots - len(self._hands)
                self._wake.clear()
                patience_s: float | None = None  # room comes with an ending, and that wakes us
                if room > 0:
                    got, due_s = await self._or_away(self._take(room))
                    if got == room:
                        continue
                    patience_s = min(due_s, self._poll_s * (0.75 + self._random.random() / 2))
                if self._stopping:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        await self._wake.wait()
        except SwarmError as error:
            self._error = error
            self._ready.put_nowait(None)

    async def _or_away(self, taking: Awaitable[tuple[int, float]]) -> tuple[int, float]:
        try:
            return await taking
        except UnavailableError as error:
            log.warning("can't take messages, waiting", topic=self.topic.name, group=self.group, why=str(error))
            return 0, 0.2 + self._random.random()

    async def _take(self, room: int) -> tuple[int, float]:
        """Sit down at up to *room* partitions. Returns how many it became, and in how many seconds to look again."""
        asked_at = asyncio.get_running_loop().time()
        keys = [self._bus.rules, self._group_key, self.topic.keys.dead, *self._partitions]
        args = [
            self.group, self.name, uuid4().hex, round(self._lease_s * 1000), room, self._share * room, self._max_attempts,
            self._random.randrange(len(self._partitions)),
        ]  # fmt: skip
        match await self._store.call("take", keys, args):
            case [b"taken", due_ms, *hands]:
                for partition, token, _until, attempt, entries in hands:
                    old = self._hands.get(partition)
                    if old is not None and not old.ending:  # else its last ending is answered a moment later than this
                        self._lose(old, "the lease ran out")
                    waiting = deque(read_entry(int(partition), entry, fields) for entry, fields in entries)
                    hand = self._hands[partition] = _Hand(int(partition), token, asked_at, waiting)
                    self._hand_out(hand, attempt=int(attempt))
                # a little later than it is due, and not all consumers at once
                due_s = int(due_ms) / 1000 + 0.002 + self._random.random() * 0.05 if due_ms != b"" else self._poll_s
                return len(hands), due_s
            case [b"group"]:
                raise GroupNotFoundError(self.topic.name, self.group)
            case answer:
                raise LibraryMismatchError("take", answer)

    # -- keeping ----------------------------------------------------------------------------------------------------

    async def _keep_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._lease_s / 12)  # a tick may be late: so there is room for several tries
            now = loop.time()
            for hand in list(self._hands.values()):
                if now - hand.confirmed_at >= self._lease_s * LOST_AT:
                    self._lose(hand, "its lease could not be renewed for two thirds of it")
            if self._hands and (self._renewal is None or self._renewal.done()):
                self._renewal = asyncio.create_task(self._renew_quietly(), name=f"renew {self.topic.name} {self.group}")

    async def _renew_quietly(self) -> None:
        try:
            await self.renew(least_s=self._lease_s * RENEW_AT * 0.9)
        except SwarmError as error:  # the leases run out, and whoever works on them is told
            log.warning("partitions not renewed", topic=self.topic.name, group=self.group, why=str(error))

    async def renew(self, *, least_s: float = 0.0) -> int:
        """Renew the leases that were not renewed for *least_s*. Returns how many; a running consumer does so by itself."""
        now = asyncio.get_running_loop().time()
        due = [hand for hand in self._hands.values() if now - hand.confirmed_at >= least_s]
        if not due:
            return 0
        args: list[Any] = [self.name, round(self._lease_s * 1000)]
        for hand in due:
            args += (hand.partition, hand.token)
        answers = await self._store.call("renew_partitions", [self._bus.rules, self._group_key], args, leases=True)
        renewed = 0
        for hand, answer in zip(due, answers, strict=True):
            match answer:
                case b"renewed":
                    hand.confirmed_at = now
                    renewed += 1
                case [b"lost", why]:
                    if self._hands.get(hand.partition) is hand:  # else it ended while we asked
                        self._lose(hand, why.decode())
                case _:
                    raise LibraryMismatchError("renew_partitions", answer)
        return renewed


def read_fields(fields: Fields) -> Mapping[bytes, bytes]:
    """The fields of an entry: functions give them in a row, redis-py makes a dict of what plain commands give."""
    return fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))


def read_entry(partition: int, entry: bytes, fields: Fields) -> TopicMessage:
    """An entry of a partition, or of the dead letters, as a message."""
    facts = read_fields(fields)

    def text(name: bytes) -> str:
        return facts.get(name, b"").decode(errors="replace")

    return TopicMessage(
        id=text(b"id"), key=text(b"key"), type=text(b"type"), content_type=text(b"content_type"),
        body=facts.get(b"body", b""), traceparent=text(b"traceparent") or None, partition=partition, entry=entry.decode(),
    )  # fmt: skip


def _text(error: BaseException | str) -> str:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return text[:LONGEST_ERROR]
