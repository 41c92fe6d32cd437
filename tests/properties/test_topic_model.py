"""Steps in any order: topics in Redis and topics in plain Python give the same answers and hold the same.

Consumers call the functions that `Deliveries` calls, without its loops, so that each step is one call. Time is set before
each step to a whole second of the model's clock; leases and delays end at half seconds, so that the few milliseconds that
really pass decide nothing. ``SWARM_MODEL_EXAMPLES=2000`` looks for longer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, note, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from swarm_infrastructure.errors import TopicFullError
from swarm_infrastructure.message_bus.topics import Topic, Topics
from swarm_infrastructure.message_bus.topics.deliveries import read_entry
from swarm_infrastructure.message_bus.topics.publishing import Envoy, partition_of
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

LONGER = int(os.environ.get("SWARM_MODEL_EXAMPLES", "0"))
PARTITIONS, GROUPS, HOLDERS = 2, ("a", "b"), ("c1", "c2", "c3")
LEASE_S, MAX_ATTEMPTS, KEEP_S, MOST = 6.5, 2, 20, 25
STALL_S = 0.3  # leases and delays end half a second after a step
PENDING = "return redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000)"  # redis-py reads the short form alone
DELAYS = (0.5, 3.5, 9.5)


@dataclass
class Entry:
    """A message in a partition."""

    body: int
    at: int
    only: str = ""  #: the one group that it is for


@dataclass
class Seat:
    """What a group knows of a partition."""

    cursor: int = 0  #: place of the next message that was never delivered
    pending: list[Entry] = field(default_factory=list)
    holder: str = ""
    hand: Hand | None = None
    until: float = 0
    not_before: float = 0
    head: Entry | None = None
    used: int = 0


@dataclass(eq=False)
class Hand:
    """What a consumer took: it may be stale."""

    group: str
    holder: str
    partition: int
    token: bytes
    places: list[str]
    entries: list[Entry]
    attempt: int


class TopicMachine(RuleBasedStateMachine):
    """Both of them."""

    loop: asyncio.AbstractEventLoop
    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.numbers = iter(range(10_000))
        self.log: list[list[Entry]] = [[] for _ in range(PARTITIONS)]
        self.gone = [0] * PARTITIONS  # entries trimmed, so that cursors stay places
        self.seats = {(group, p): Seat() for group in GROUPS for p in range(PARTITIONS)}
        self.ids: dict[str, int] = {}
        self.dead: list[tuple[str, int, Entry]] = []
        self.out = 0
        self.hands: list[Hand] = []

    def do(self, work: Any) -> Any:
        """The answer of *work*, at the model's time."""
        return self.loop.run_until_complete(self._at_time(work))

    async def _at_time(self, work: Any) -> Any:
        begun = time.time()
        offset = self.began_ms + self.now * 1000 - round(begun * 1000)
        await self.store.command("HSET", self.topics.keys.rules, "clock_offset_ms", offset)
        try:
            return await work
        finally:
            if not 0 <= time.time() - begun < STALL_S:
                reject()  # the computer stood still: a deadline may have passed that the model has not

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.random = Random(seed)

        async def begin() -> None:
            await self.store.command("FLUSHALL")
            self.topics = Topics(self.store, "model", random=self.random)
            self.began_ms = round(time.time() * 1000) + 3_600_000
            self.topic: Topic = await self.topics.open("t", partitions=PARTITIONS, keep_s=KEEP_S - 0.5, most=MOST)
            self.target: Topic = await self.topics.open("out", partitions=1)
            for group in GROUPS:
                keys = [self.topics.keys.rules, self.topic.keys.group(group), *self.topic._partitions]
                await self.store.call("open_group", keys, [group, "0"])

        self.loop.run_until_complete(begin())

    # -- steps ------------------------------------------------------------------------------------------------------

    @rule(again=st.booleans())
    def publish(self, again: bool) -> None:
        key = self.random.choice("klmn")
        number = next(self.numbers)
        id = self.random.choice(list(self.ids)) if again and self.ids else f"id{number}"
        standing = sum(map(len, self.log))
        try:
            published = self.do(self.topic.publish(number, key=key, id=id))
        except TopicFullError:
            assert id not in self.ids
            self.make_room()
            assert sum(map(len, self.log)) >= MOST
            return
        assert published.duplicate == (id in self.ids)
        if not published.duplicate:
            if standing >= MOST:
                self.make_room()
            assert sum(map(len, self.log)) < MOST
            self.ids[id] = number
            self.log[partition_of(key, PARTITIONS)].append(Entry(number, self.now))

    def make_room(self) -> None:
        for p in range(PARTITIONS):
            self.cut(p, len(self.log[p]))

    def cut(self, p: int, many: int) -> int:
        """Drop up to *many* of the oldest that every group has acknowledged."""
        needed = len(self.log[p])
        for group in GROUPS:
            seat = self.seats[group, p]
            needed = min(needed, seat.cursor - self.gone[p])
            for entry in seat.pending:
                needed = min(needed, next(i for i, each in enumerate(self.log[p]) if each is entry))
        many = min(many, needed)
        del self.log[p][:many]
        self.gone[p] += many
        return many

    @rule(
        group=st.sampled_from(GROUPS), holder=st.sampled_from(HOLDERS), room=st.integers(1, 2), each=st.integers(1, 3)
    )
    def take(self, group: str, holder: str, room: int, each: int) -> None:
        start = self.random.randrange(PARTITIONS)
        request = f"r{next(self.numbers)}"
        keys = [self.topics.keys.rules, self.topic.keys.group(group), self.topic.keys.dead, *self.topic._partitions]
        args = [group, holder, request, round(LEASE_S * 1000), room, each * room, MAX_ATTEMPTS, start]
        answer = self.do(self.store.call("take", keys, args))
        if self.random.random() < 0.3:
            assert self.do(self.store.call("take", keys, args))[2:] == answer[2:], "the same request, the same answer"
        note(f"t={self.now} {holder} of {group} takes from {start}: {answer[2:]}; seats {self.seats}; log {self.log}")
        found = []
        for partition, token, _until, attempt, rows in answer[2:]:
            messages = [read_entry(partition, *row) for row in rows]
            places = [message.entry for message in messages]
            bodies = [int(message.body) for message in messages]
            found.append((partition, bodies, attempt))
            self.hands.append(Hand(group, holder, partition, token, places, [], attempt))
        expected = self.expect_taken(group, holder, room, each, start)
        assert found == [(p, [entry.body for entry in entries], attempt) for p, entries, attempt in expected]
        for hand, (p, entries, _) in zip(self.hands[len(self.hands) - len(found) :], expected, strict=True):
            hand.entries = entries
            self.seats[group, p].hand = hand

    def expect_taken(
        self, group: str, holder: str, room: int, each: int, start: int
    ) -> list[tuple[int, list[Entry], int]]:
        taken: list[tuple[int, list[Entry], int]] = []
        for i in range(PARTITIONS):
            p = (start + i) % PARTITIONS
            seat = self.seats[group, p]
            if (seat.holder and seat.until > self.now) or seat.not_before > self.now or len(taken) == room:
                continue
            entries: list[Entry] = []
            for n, entry in enumerate(list(seat.pending)):
                if len(entries) == each:
                    break
                used = 0 if n else seat.used if seat.head is entry else int(bool(seat.holder))
                if used >= MAX_ATTEMPTS:
                    seat.pending.remove(entry)
                    self.dead.append((group, p, entry))
                    continue
                entries.append(entry)
                if len(entries) == 1:
                    seat_head, seat_used = entry, used + 1
            while len(entries) < each and seat.cursor - self.gone[p] < len(self.log[p]):
                entry = self.log[p][seat.cursor - self.gone[p]]
                seat.cursor += 1
                if entry.only in ("", group):
                    seat.pending.append(entry)
                    entries.append(entry)
                    if len(entries) == 1:
                        seat_head, seat_used = entry, 1
            if entries:
                seat.head, seat.used = seat_head, seat_used
                seat.holder, seat.until = holder, self.now + LEASE_S
                taken.append((p, entries, seat_used))
        return taken

    @rule(kind=st.sampled_from(["done", "done", "done", "fail", "bury", "free"]), stale=st.booleans())
    def finish(self, kind: str, stale: bool) -> None:
        hands = [hand for hand in self.hands if hand.entries]
        if not stale:
            hands = [hand for hand in hands if self.seats[hand.group, hand.partition].hand is hand] or hands
        if not hands:
            return
        hand = self.random.choice(hands)
        seat, entry = self.seats[hand.group, hand.partition], hand.entries[0]
        delay_s = self.random.choice(DELAYS)
        leave = "1" if len(hand.entries) == 1 else "0"
        attempts = MAX_ATTEMPTS if kind == "fail" else hand.attempt - 1
        outputs = [self.do(self.target.message(entry.body))] if kind == "done" else []
        envoy = Envoy(first_key=5 + PARTITIONS)
        words = [
            hand.partition, hand.token, kind, hand.places[0], "why", "error", round(delay_s * 1000), attempts, leave,
            len(outputs), *(word for each in outputs for word in envoy.words(each)),
        ]  # fmt: skip
        keys = [
            self.topics.keys.rules, self.topics.keys.topics, self.topic.keys.group(hand.group), self.topic.keys.dead,
            *self.topic._partitions, *envoy.keys,
        ]  # fmt: skip
        args = [hand.group, hand.holder, *envoy.said, *words]
        [answer] = self.do(self.store.call("finish", keys, args))
        if self.random.random() < 0.3:
            assert self.do(self.store.call("finish", keys, args))[0][0] == answer[0], "asked again, the same answer"

        if seat.hand is not hand or seat.until <= self.now:
            assert answer[0] == b"lost"
            self.hands.remove(hand)
            return
        used = seat.used if seat.head is entry else 1
        if kind == "free":
            assert answer[0] == b"freed"
            seat.head, seat.used = entry, hand.attempt - 1
            self.leave(seat)
            hand.entries = []
        elif kind == "fail" and used < MAX_ATTEMPTS:
            assert answer[0] == b"again"
            seat.head, seat.used, seat.not_before = entry, used, self.now + delay_s
            self.leave(seat)
            hand.entries = []
        else:
            assert answer[0] == (b"done" if kind == "done" else b"dead")
            seat.pending.remove(entry)
            if kind == "done":
                self.out += 1
            else:
                self.dead.append((hand.group, hand.partition, entry))
            del hand.entries[0], hand.places[0]
            hand.attempt = 1
            if not hand.entries:
                seat.head, seat.used, seat.not_before = None, 0, 0
                self.leave(seat)

    @staticmethod
    def leave(seat: Seat) -> None:
        seat.holder, seat.hand, seat.until = "", None, 0

    @rule(seconds=st.integers(1, 8))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(group=st.sampled_from(GROUPS), where=st.sampled_from(["earliest", "latest", "entry"]))
    def replay(self, group: str, where: str) -> None:
        if self.random.random() < 0.6:
            return  # it undoes what others build up
        messages = self.do(self.topic.read(count=1000))
        place, begin = where, 0
        if where == "entry":
            if not messages:
                return
            place = self.random.choice(messages).entry
        self.do(self.topic.replay(group, place))
        for p in range(PARTITIONS):
            if where == "latest":
                begin = len(self.log[p])
            elif where == "entry":
                at = tuple(map(int, place.split("-")))
                earlier = [m for m in messages if m.partition == p and tuple(map(int, m.entry.split("-"))) < at]
                begin = len(earlier)
            self.seats[group, p] = Seat(cursor=self.gone[p] + begin)

    @rule()
    def redrive(self) -> None:
        letters = self.do(self.topic.dead_letters(count=1000))
        assert [(each.group, each.message.partition, int(each.message.body)) for each in letters] == [
            (group, p, entry.body) for group, p, entry in self.dead
        ]
        try:
            n = self.do(self.topic.redrive([letters[0].id])) if letters else 0
        except TopicFullError:
            self.make_room()
            assert sum(map(len, self.log)) >= MOST
            return
        assert n == len(letters[:1])
        if letters:
            if sum(map(len, self.log)) >= MOST:
                self.make_room()
            group, p, entry = self.dead.pop(0)
            self.log[p].append(Entry(entry.body, self.now, group))

    @rule()
    def trim(self) -> None:
        trimmed = self.do(self.topic.trim())
        expected = 0
        for p in range(PARTITIONS):
            old = [entry for entry in self.log[p] if entry.at < self.now - KEEP_S + 0.5]
            expected += self.cut(p, len(old))
        assert trimmed == expected

    # -- what holds after each ----------------------------------------------------------------------------------------

    @invariant()
    def both_hold_the_same(self) -> None:
        if not hasattr(self, "topic"):
            return

        async def look() -> None:
            for p, stream in enumerate(self.topic._partitions):
                rows = await self.store.command("XRANGE", stream, "-", "+")
                bodies = {row[0]: int(read_entry(p, *row).body) for row in rows}
                assert list(bodies.values()) == [entry.body for entry in self.log[p]]
                for group in GROUPS:
                    pending = await self.store.command("EVAL", PENDING, 1, stream, group)
                    found = [bodies[row[0]] for row in pending]
                    assert found == [entry.body for entry in self.seats[group, p].pending]
            assert await self.store.command("XLEN", self.topic.keys.dead) == len(self.dead)
            assert await self.store.command("XLEN", self.target.keys.partition(0)) == self.out

        self.loop.run_until_complete(look())


@pytest.fixture
def connected(redis_server: RedisServer) -> Iterator[None]:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        store = Store(redis_server.url)
        loop.run_until_complete(store.__aenter__())
        TopicMachine.loop, TopicMachine.store = loop, store
        yield
        loop.run_until_complete(store.close())


def test_topics_do_what_the_model_does(connected: None) -> None:
    run_state_machine_as_test(
        TopicMachine,
        settings=settings(
            max_examples=LONGER or 25,
            stateful_step_count=60,
            deadline=None,
            database=None,
            derandomize=not LONGER,
            phases=[Phase.generate] if LONGER else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
