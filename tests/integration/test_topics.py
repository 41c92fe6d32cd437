"""Topics: stored once, delivered in order to one consumer at a time, ended once, kept as long as somebody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from given import Connect, Tape, in_time, snapshot, until
from pydantic import BaseModel
from redis.asyncio.client import PubSub

from bus import bus_clock, stored
from swarm_infrastructure.errors import (
    DeliveryLostError,
    GroupNotFoundError,
    InvalidInputError,
    TopicFullError,
    TopicMismatchError,
    TopicNotFoundError,
)
from swarm_infrastructure.message_bus import Message
from swarm_infrastructure.message_bus.topics import Deliveries, Delivery, To, Topic, Topics
from swarm_infrastructure.message_bus.topics.publishing import partition_of
from swarm_infrastructure.store import Store
from swarm_infrastructure.telemetry import traceparent_of_work
from swarm_infrastructure.testing import ManualClock, RedisServer

Consume = Callable[..., Any]


@pytest.fixture
def topics(store: Store) -> Topics:
    return Topics(store, "test")


@pytest.fixture
def clock(topics: Topics) -> ManualClock:
    return bus_clock(topics)


@pytest.fixture
async def topic(topics: Topics) -> Topic:
    """One partition, so that everything is in one line, and a consumer with a message in hand takes no other."""
    return await topics.open("line", partitions=1)


@pytest.fixture
async def consume() -> AsyncIterator[Consume]:
    """Opens consumers that are closed with the test: ``deliveries = await consume(topic, "group")``."""
    async with AsyncExitStack() as stack:

        async def consume(topic: Topic, group: str = "g", **options: Any) -> Deliveries:
            return await stack.enter_async_context(topic.consume(group, **{"poll_s": 0.01, **options}))

        yield consume


async def next_of(deliveries: Deliveries) -> Delivery:
    return await in_time(anext(deliveries))


async def bodies(deliveries: Deliveries, n: int) -> list[Any]:
    """The next *n* bodies, each acknowledged."""
    found = []
    for _ in range(n):
        delivery = await next_of(deliveries)
        found.append(await delivery.decode())
        await delivery.done()
    return found


async def next_said(pubsub: PubSub) -> tuple[str, str]:
    """What Redis says next on a connection that listens, and of which channel: ``("subscribe", "news")``."""
    while (said := await pubsub.get_message(timeout=1)) is None:
        pass
    return said["type"], said["channel"].decode()


async def looked(tape: Tape, times: int = 3) -> None:
    """Wait until consumers have asked for more so many times: what they may have, they have then."""
    before = tape.count("take")
    await until(lambda: _true(tape.count("take") >= before + times))


async def _true(value: bool) -> bool:
    return value


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_a_topic_keeps_its_partitions_and_says_so_to_who_brings_another_number(topics: Topics) -> None:
    assert (await topics.open("plain")).settings.partitions == 8
    await topics.open("narrow", partitions=3, keep_s=60, keep_entries=10, most=20)

    with pytest.raises(TopicMismatchError, match=r"'narrow' has 3 partitions.*with 4.*partitions=3"):
        await topics.open("narrow", partitions=4)

    again = await topics.open("narrow", most=30)
    assert (again.settings.partitions, again.settings.keep_s, again.settings.keep_entries, again.settings.most) == (
        3, 60, 10, 30,
    )  # fmt: skip
    assert (await topics.open("narrow")).settings == again.settings
    assert await topics.names() == ["narrow", "plain"]


@pytest.mark.parametrize("wrong", [{"partitions": 0}, {"partitions": 257}, {"keep_s": -1}, {"most": -1}])
async def test_a_topic_with_a_wrong_setting_is_refused(topics: Topics, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="topic 'x': " + next(iter(wrong))):
        await topics.open("x", **wrong)


async def test_a_topic_that_was_made_anew_with_other_partitions_refuses_who_knows_the_old_one(
    topics: Topics, topic: Topic
) -> None:
    await topics.store.command("FLUSHALL")
    with pytest.raises(TopicNotFoundError, match=r"'line'.*topics\.open"):
        await topic.publish(1)

    await Topics(topics.store, "test").open("line", partitions=2)
    with pytest.raises(TopicNotFoundError, match="'line'"):
        await topic.publish(1)


# --- publishing -------------------------------------------------------------------------------------------------------


class Story(BaseModel):
    title: str
    words: int = 0


async def test_a_message_carries_its_body_id_key_type_and_trace(topic: Topic) -> None:
    traceparent_of_work.set("00-1-2-01")
    await topic.publish(Story(title="flood"), key="k", id="one")
    await topic.publish(Message.create("news.found", "scout", payload={"n": 1}, id="two"))
    await topic.publish([1, {"b": None}], type="list")

    first, second, third = await topic.read()

    assert (first.id, first.key, first.type, first.content_type, first.traceparent) == (
        "one", "k", "Story", "json", "00-1-2-01",
    )  # fmt: skip
    assert await first.decode(Story, topic.codec) == Story(title="flood")
    assert (second.id, second.type) == ("two", "news.found")
    assert (await second.decode(Message, topic.codec)).payload == {"n": 1}
    assert (third.type, await third.decode(Any, topic.codec)) == ("list", [1, {"b": None}])


async def test_the_same_id_published_twice_is_stored_once(topic: Topic, clock: ManualClock) -> None:
    first = await topic.publish({"n": 1}, id="a")
    await clock.advance(s=599)
    again = await topic.publish({"n": 2}, id="a")
    both = await topic.publish_many([3, 4], ids=["b", "b"])

    assert (first.duplicate, again.duplicate, again.entry) == (False, True, first.entry)
    assert [each.duplicate for each in both] == [False, True]
    assert await stored(topic) == [{"n": 1}, 3]


async def test_an_id_may_be_used_again_when_its_time_is_over(topic: Topic, clock: ManualClock) -> None:
    await topic.publish(1, id="a")
    await clock.advance(s=601)
    await topic.publish(2, id="b")
    assert (await topic.publish(1, id="a")).duplicate, "at least ten minutes, not at most"
    await clock.advance(s=601)
    await topic.publish(3, id="c")

    assert not (await topic.publish(4, id="a")).duplicate
    await clock.advance(s=1201)
    assert not (await topic.publish(5, id="c")).duplicate, "both generations are out of date"


async def test_a_call_that_is_repeated_because_its_reply_was_lost_stores_nothing_twice(topic: Topic) -> None:
    tape = Tape(topic.store)
    published = await topic.publish_many(list(range(5)))

    answers = await tape.again(tape.last("publish"))

    assert [(answer[0], answer[2].decode()) for answer in answers] == [(b"duplicate", each.entry) for each in published]
    assert await stored(topic) == list(range(5))


async def test_messages_of_one_moment_travel_in_one_call_and_one_hint_is_given_for_their_topic(
    topics: Topics, topic: Topic
) -> None:
    tape, other = Tape(topic.store), await topics.open("other")
    listener = (await topic.store._topology.node(topic.route.channel)).commands
    async with listener.pubsub() as pubsub, asyncio.timeout(10):
        await pubsub.subscribe(topic.route.channel, other.route.channel)
        confirmed = [await next_said(pubsub) for _ in range(2)]  # before it, Redis may publish first
        await asyncio.gather(*(each.publish(n) for n in range(20) for each in (topic, other)))
        heard = [await next_said(pubsub) for _ in range(2)]
        assert await pubsub.get_message(timeout=0.05) is None

    assert tape.count("publish") == 1
    channels = sorted([topic.route.channel, other.route.channel])
    assert sorted(confirmed) == [("subscribe", name) for name in channels]
    assert sorted(heard) == [("message", name) for name in channels]


async def test_a_key_has_one_partition_for_ever_and_messages_without_one_are_spread(topics: Topics) -> None:
    topic = await topics.open("wide")
    keyed = await topic.publish_many(list(range(20)), keys=["session-1"] * 20)
    spread = await topic.publish_many(list(range(200)))

    assert {each.partition for each in keyed} == {partition_of("session-1", 8)} == {4}
    assert {each.partition for each in spread} == set(range(8))


async def test_what_is_too_large_or_no_data_is_refused_before_it_is_sent(topic: Topic) -> None:
    with pytest.raises(InvalidInputError, match=r"topic 'line'.*300,0\d\d bytes.*at most 262,144"):
        await topic.publish("x" * 300_000)
    with pytest.raises(InvalidInputError, match="JSON data"):
        await topic.publish(object())
    with pytest.raises(InvalidInputError, match="id and key"):
        await topic.publish(1, key="k" * 2000)
    assert await stored(topic) == []


async def test_many_large_messages_travel_in_calls_of_a_bounded_size(topic: Topic) -> None:
    tape = Tape(topic.store)

    await topic.publish_many(["x" * 250_000 for _ in range(40)])

    assert tape.count("publish") == 3
    assert len(await topic.read(count=100)) == 40


async def test_a_clock_that_went_back_keeps_messages_in_order(topic: Topic, clock: ManualClock) -> None:
    await clock.advance(s=3600)
    await topic.publish(1)
    await clock.advance(s=-3600)
    await topic.publish(2)

    assert await stored(topic) == [1, 2]


# --- delivery ---------------------------------------------------------------------------------------------------------


async def test_each_group_gets_every_message_in_order(topic: Topic, consume: Consume) -> None:
    await topic.publish_many(list(range(30)))

    assert await bodies(await consume(topic, "a", batch=7), 30) == list(range(30))
    assert await bodies(await consume(topic, "b"), 30) == list(range(30))
    assert await topic.groups() == ["a", "b"]
    assert (await topic.lag("a")).total == 0


async def test_the_next_message_of_a_partition_comes_when_the_one_before_has_ended(
    topics: Topics, consume: Consume
) -> None:
    topic = await topics.open("two", partitions=2)
    keys = {partition_of(key, 2): key for key in "abcdefghijkl"}
    await topic.publish_many([1, 2, 3], keys=[keys[0]] * 3)
    deliveries = await consume(topic)
    first = await next_of(deliveries)
    tape = Tape(topic.store)

    other = await consume(topic)
    await looked(tape, 6)
    assert other.in_hand == 0, "a partition is in one consumer's hands"
    await other.close()
    await topic.publish("beside", key=keys[1])
    beside = await next_of(deliveries)
    assert (await first.decode(), (await beside.decode())) == (1, "beside"), "other partitions go on meanwhile"
    await first.done()
    assert await bodies(deliveries, 2) == [2, 3]


async def test_a_new_group_begins_where_it_is_told_to_and_an_old_one_stays(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    published = []
    for n in range(4):
        published.append(await topic.publish(n))
        await clock.advance(s=60)
    when = datetime.fromtimestamp(int(published[2].entry.split("-")[0]) / 1000, UTC)

    first = await consume(topic, "from_id", begin=published[1].entry)
    assert await bodies(first, 3) == [1, 2, 3]
    await first.close()
    assert await bodies(await consume(topic, "from_time", begin=when), 2) == [2, 3]
    assert await bodies(await consume(topic, "just_after", begin=when + timedelta(milliseconds=1)), 1) == [3]
    latest = await consume(topic, "latest", begin="latest")
    await topic.publish("new")
    assert await bodies(latest, 1) == ["new"]
    assert await bodies(await consume(topic, "from_id", begin="earliest"), 1) == ["new"], "it has read the others"


async def test_a_group_that_begins_or_is_set_beyond_the_end_misses_nothing_that_comes(
    topics: Topics, consume: Consume
) -> None:
    empty, used = await topics.open("empty", partitions=1), await topics.open("used", partitions=1)
    await used.publish("old")
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    consumers = [await consume(topic, begin=tomorrow) for topic in (empty, used)]

    for topic, deliveries in zip((empty, used), consumers, strict=True):
        await topic.publish("new")
        assert await bodies(deliveries, 1) == ["new"]
    await used.replay("g", tomorrow)
    await used.publish("newer")
    assert await bodies(consumers[1], 1) == ["newer"]


@pytest.mark.parametrize("place", ["yesterday", "1-2-3", "-1", datetime(2026, 1, 1)])
async def test_a_place_that_is_none_is_refused(topic: Topic, place: Any) -> None:
    with pytest.raises(InvalidInputError, match="to begin at"):
        topic.consume("g", begin=place)


async def test_an_idle_consumer_is_woken_by_a_hint(store: Store, consume: Consume) -> None:
    heard: dict[str, Callable[[bytes], None]] = {}

    def listen(channel: str, callback: Callable[[bytes], None]) -> Callable[[], None]:
        heard[channel] = callback
        return lambda: heard.clear()

    topic = await Topics(store, "test", listen=listen).open("line", partitions=1)
    tape = Tape(store)
    deliveries = await consume(topic, poll_s=60)
    await until(lambda: _true(tape.count("take") == 1))
    await topic.publish("hello")

    heard[topic.route.channel](b"1")
    assert await (await next_of(deliveries)).decode() == "hello"

    await deliveries.close()
    assert not heard, "it listens no more"


async def test_a_take_whose_reply_was_lost_gives_the_same_again_and_counts_no_attempt(
    topic: Topic, consume: Consume
) -> None:
    await topic.publish_many([1, 2, 3])
    tape = Tape(topic.store)
    deliveries = await consume(topic, batch=2)
    first = await next_of(deliveries)
    before = await snapshot(topic.store)

    call = next(call for call in tape.calls if call.function == "take" and len(call.answer) > 2)
    assert (await tape.again(call))[2:] == call.answer[2:]

    after = await snapshot(topic.store)
    assert after == before
    await first.done()
    assert await bodies(deliveries, 2) == [2, 3]


async def test_a_consumer_is_not_handed_again_what_it_has_in_hand(topics: Topics, consume: Consume) -> None:
    topic = await topics.open("two", partitions=2)
    await topic.publish(1, key="k")
    deliveries = await consume(topic)
    first = await next_of(deliveries)
    tape = Tape(topic.store)
    await topic.publish(2, key="k")

    await looked(tape)
    assert deliveries.in_hand == 1
    await first.done()
    assert await bodies(deliveries, 1) == [2]


async def test_a_dropped_group_ends_its_consumers_with_an_error_that_says_so(topic: Topic, consume: Consume) -> None:
    deliveries = await consume(topic, "g")
    await topic.drop_group("g")

    with pytest.raises(GroupNotFoundError, match=r"topic 'line' has no group 'g'.*topic\.consume"):
        await next_of(deliveries)
    assert await topic.groups() == []
    with pytest.raises(GroupNotFoundError):
        await topic.replay("g", "earliest")
    with pytest.raises(InvalidInputError, match="batch"):
        topic.consume("g", batch=0)


async def test_who_held_a_partition_of_a_group_that_was_made_anew_changes_nothing(
    topic: Topic, consume: Consume
) -> None:
    await topic.publish("work")
    old = await consume(topic, name="c1")
    stale = await next_of(old)
    old.stop_taking()
    await topic.drop_group("g")
    await next_of(await consume(topic, name="c1"))

    with pytest.raises(DeliveryLostError, match="somebody else's"):
        await stale.done()
    assert (await topic.lag("g")).total == 1


async def test_a_consumer_holds_no_more_partitions_than_it_has_slots(topics: Topics, consume: Consume) -> None:
    topic = await topics.open("wide")
    await topic.publish_many(list(range(100)))
    tape = Tape(topic.store)
    deliveries = await consume(topic, slots=2, batch=2)
    first, second = await next_of(deliveries), await next_of(deliveries)

    assert deliveries.in_hand == 2
    assert first.message.partition != second.message.partition
    assert tape.count("take") == 1, "who has no room does not ask"


async def test_an_idle_consumer_looks_when_a_lease_ends_or_a_delay(topic: Topic, consume: Consume) -> None:
    await topic.publish("work")
    deliveries = await consume(topic, poll_s=60)
    assert await (await next_of(deliveries)).fail("no", retry_in_s=0.2)

    assert (await next_of(deliveries)).attempt == 2


async def test_entries_that_somebody_deleted_are_passed_over(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    entries = [(await topic.publish(n)).entry for n in range(3)]
    await next_of(await consume(topic))
    await topic.store.command("XDEL", topic.keys.partition(0), *entries[:2])
    await clock.advance(s=31)

    assert await bodies(await consume(topic), 1) == [2]
    assert (await topic.lag("g")).total == 0


# --- ending -----------------------------------------------------------------------------------------------------------


async def test_what_came_of_a_message_is_published_with_its_acknowledgement(
    topics: Topics, topic: Topic, consume: Consume
) -> None:
    await topic.publish("in", key="k")
    delivery = await next_of(await consume(topic))

    await delivery.done(To("out", {"n": 1}), To("other", 2, key="mine", id="an-id"))
    await delivery.done(To("out", {"n": 2}))

    [out] = await (await topics.get("out")).read()
    [other] = await (await topics.get("other")).read()
    assert (out.key, out.body, other.key, other.id) == ("k", b'{"n":1}', "mine", "an-id")
    assert (await topic.lag("g")).total == 0


async def test_an_ending_whose_reply_was_lost_is_answered_again_and_publishes_nothing_twice(
    topics: Topics, topic: Topic, consume: Consume
) -> None:
    await topic.publish_many([1, 2, 3])
    tape = Tape(topic.store)
    deliveries = await consume(topic)
    await (await next_of(deliveries)).done(To("out", 1))
    before = await snapshot(topic.store)
    assert await tape.again(tape.last("finish")) == [[b"done", b""]]
    assert await snapshot(topic.store) == before

    assert await (await next_of(deliveries)).fail("no", retry_in_s=60)
    before = await snapshot(topic.store)
    assert await tape.again(tape.last("finish")) == [[b"again", b""]]
    assert await snapshot(topic.store) == before


async def test_a_holder_whose_lease_ran_out_changes_nothing_any_more(
    topics: Topics, topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    await topics.open("out")
    await topic.publish("work")
    holder = await consume(topic, name="c1")
    stale = await next_of(holder)
    holder.stop_taking()
    await clock.advance(s=30)
    before = await snapshot(topic.store)
    with pytest.raises(
        DeliveryLostError, match=r"'line', partition 0.*group 'g'.*the lease ran out.*nothing was written"
    ):
        await stale.done(To("out", "stale"))
    assert await snapshot(topic.store) == before


@pytest.mark.parametrize("name", ["c1", "c2"])
async def test_a_holder_whose_partition_somebody_took_changes_nothing_any_more(
    topics: Topics, topic: Topic, consume: Consume, clock: ManualClock, name: str
) -> None:
    await topics.open("out")
    await topic.publish("work")
    old = await consume(topic, name="c1")
    stale = await next_of(old)
    await clock.advance(s=31)
    fresh = await next_of(await consume(topic, name=name))
    before = await snapshot(topic.store)

    for ending in (stale.done(To("out", "stale")), stale.fail("x"), stale.bury("x")):
        with pytest.raises(DeliveryLostError, match="the partition is somebody else's"):
            await ending
    assert stale.lost
    assert await snapshot(topic.store) == before
    await fresh.done(To("out", "fresh"))
    assert await stored(await topics.get("out")) == ["fresh"]


async def test_a_message_that_is_no_longer_in_hand_is_not_answered(
    topics: Topics, topic: Topic, consume: Consume
) -> None:
    await topics.open("out")
    await topic.publish("work")
    delivery = await next_of(await consume(topic))
    await topic.store.command("XACK", topic.keys.partition(0), "g", delivery.message.entry)

    with pytest.raises(DeliveryLostError, match="the message is not in hand"):
        await delivery.done(To("out", 1))
    assert await stored(await topics.get("out")) == []


async def test_an_ending_after_the_partition_was_given_up_is_refused(topic: Topic, consume: Consume) -> None:
    await topic.publish("work")
    deliveries = await consume(topic)
    delivery = await next_of(deliveries)
    await deliveries.close()

    with pytest.raises(DeliveryLostError, match="the partition was given up"):
        await delivery.done()
    assert (await topic.lag("g")).total == 1


async def test_a_full_target_keeps_the_message_in_hand_until_there_is_room(
    topics: Topics, topic: Topic, consume: Consume
) -> None:
    out = await topics.open("out", partitions=1, most=1)
    await out.publish("first")
    await consume(out, "slow", slots=1)
    await topic.publish("work")
    delivery = await next_of(await consume(topic))

    with pytest.raises(TopicFullError, match=r"'out'.*found 1, needed fewer than 1; group 'slow' lags most"):
        await delivery.done(To("out", "second"))
    assert (await topic.lag("g")).total == 1
    assert await stored(out) == ["first"]

    await topics.open("out", most=2)
    await delivery.done(To("out", "second"))
    assert await stored(out) == ["first", "second"]


async def test_the_outputs_of_a_message_are_published_together_even_if_they_fill_their_topic_up(
    topics: Topics, topic: Topic, consume: Consume
) -> None:
    out = await topics.open("out", partitions=1, most=2)
    await (await consume(out, "reader")).close()
    await topic.publish("work")

    await (await next_of(await consume(topic))).done(*(To("out", n) for n in range(4)))

    assert await stored(out) == [0, 1, 2, 3], "all or none"


async def test_an_output_to_a_topic_that_was_made_anew_is_refused_and_the_message_stays_in_hand(
    topics: Topics, topic: Topic, consume: Consume
) -> None:
    await topics.open("out", partitions=1)
    await topic.publish("work")
    delivery = await next_of(await consume(topic))
    await topic.store.command("HDEL", topics.keys.topics, "out")

    with pytest.raises(TopicNotFoundError, match="'out'"):
        await delivery.done(To("out", 1))
    assert (await topic.lag("g")).total == 1


async def test_a_failed_message_is_tried_again_after_its_delay_and_nothing_overtakes_it(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    await topic.publish_many(["bad", "good"])
    tape = Tape(topic.store)
    deliveries = await consume(topic)
    first = await next_of(deliveries)

    assert await first.fail(ValueError("no"), retry_in_s=60)
    await clock.advance(s=59)
    await looked(tape)
    assert deliveries.in_hand == 0
    await clock.advance(s=1)

    again = await next_of(deliveries)
    assert (await again.decode(), again.attempt) == ("bad", 2)
    await again.done()
    good = await next_of(deliveries)
    assert (await good.decode(), good.attempt) == ("good", 1)


async def test_a_message_that_failed_as_often_as_it_may_is_a_dead_letter_and_the_next_one_comes(
    topic: Topic, consume: Consume
) -> None:
    await topic.publish_many(["good", "bad", "next"])
    deliveries = await consume(topic, max_attempts=3)
    await bodies(deliveries, 1)
    for attempt in (1, 2):
        delivery = await next_of(deliveries)
        assert (await delivery.decode(), delivery.attempt) == ("bad", attempt)
        assert await delivery.fail(ValueError("no"), retry_in_s=0)

    assert not await (await next_of(deliveries)).fail(ValueError("never"), retry_in_s=0)

    assert await bodies(deliveries, 1) == ["next"]
    [letter] = await topic.dead_letters()
    assert (letter.group, letter.reason, letter.error, letter.attempts) == ("g", "failed", "ValueError: never", 3)
    assert (await letter.message.decode(Any, topic.codec), letter.message.partition) == ("bad", 0)
    assert (await topic.lag("g")).total == 0


async def test_a_message_with_any_number_of_attempts_is_never_a_dead_letter(topic: Topic, consume: Consume) -> None:
    await topic.publish("bad")
    deliveries = await consume(topic, max_attempts=0)

    for attempt in range(1, 9):
        delivery = await next_of(deliveries)
        assert delivery.attempt == attempt
        assert await delivery.fail("no", retry_in_s=0)


async def test_a_buried_message_is_a_dead_letter_at_once(topic: Topic, consume: Consume) -> None:
    await topic.publish_many(["bad", "good"])
    deliveries = await consume(topic)

    await (await next_of(deliveries)).bury("no good", reason="invalid")

    assert await bodies(deliveries, 1) == ["good"]
    [letter] = await topic.dead_letters()
    assert (letter.reason, letter.error, letter.attempts) == ("invalid", "no good", 1)


# --- consumers that die -----------------------------------------------------------------------------------------------


async def test_what_a_dead_consumer_had_in_hand_comes_first_and_in_order_to_the_next_one(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    await topic.publish_many(list(range(6)))
    dead = await consume(topic, batch=4)
    await (await next_of(dead)).done()
    tape = Tape(topic.store)
    alive = await consume(topic, batch=4)
    await looked(tape)
    assert alive.in_hand == 0, "the lease still runs"

    await clock.advance(s=30)
    second = await next_of(alive)
    assert (await second.decode(), second.attempt) == (1, 2), "it was in work when its consumer died"
    await second.done()
    assert await bodies(alive, 4) == [2, 3, 4, 5]


async def test_only_the_message_that_was_in_work_has_an_attempt_less(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    await topic.publish_many(["poison", "good"])
    for attempt in (1, 2, 3):
        delivery = await next_of(await consume(topic, max_attempts=3))
        assert (await delivery.decode(), delivery.attempt) == ("poison", attempt)
        await clock.advance(s=30)

    last = await next_of(await consume(topic, max_attempts=3))

    assert (await last.decode(), last.attempt) == ("good", 1)
    [letter] = await topic.dead_letters()
    assert (letter.reason, letter.attempts) == ("crashed", 3)
    assert "3 times" in letter.error
    assert await letter.message.decode(Any, topic.codec) == "poison"


async def test_a_dead_letter_in_front_lets_no_new_message_overtake_those_that_were_delivered_before(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    await topic.publish_many(["poison", "a", "b", "c"])
    await next_of(await consume(topic, batch=3))
    await clock.advance(s=30)

    assert await bodies(await consume(topic, batch=1, max_attempts=1), 3) == ["a", "b", "c"]


async def test_a_consumer_that_closes_gives_its_partition_up_at_once_and_nothing_counts_as_tried(
    topic: Topic, consume: Consume
) -> None:
    await topic.publish_many([1, 2, 3])
    leaving = await consume(topic)
    await bodies(leaving, 1)
    assert (await next_of(leaving)).attempt == 1
    await leaving.close()

    second = await next_of(await consume(topic, lease_s=3600))

    assert (await second.decode(), second.attempt) == (2, 1)


async def test_a_lease_is_renewed_as_long_as_its_holder_works(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    await topic.publish(1)
    deliveries = await consume(topic, lease_s=30)
    delivery = await next_of(deliveries)
    for _ in range(3):
        await clock.advance(s=20)
        assert await deliveries.renew() == 1

    await delivery.done()
    assert await deliveries.renew() == 0


@pytest.mark.parametrize(
    ("after", "why"), [("end", "the lease ran out"), ("taken", "somebody else's"), ("given up", "given up")]
)
async def test_a_lease_that_is_over_is_not_renewed_and_its_holder_is_told(
    topic: Topic, consume: Consume, clock: ManualClock, after: str, why: str
) -> None:
    await topic.publish(1)
    deliveries = await consume(topic, name="c1")
    delivery = await next_of(deliveries)
    told = asyncio.Event()
    delivery.on_lost = told.set
    if after == "given up":
        tape = Tape(topic.store)
        await deliveries.renew()
        await deliveries.close()
        before = await snapshot(topic.store)
        [[word, found]] = await tape.again(tape.last("renew_partitions"))
        assert (word, why in found.decode()) == (b"lost", True)
    else:
        deliveries.stop_taking()
        await clock.advance(s=30)
        if after == "taken":
            await next_of(await consume(topic, name="c1"))
        before = await snapshot(topic.store)
        assert await deliveries.renew() == 0
        assert told.is_set()
        assert why in delivery.lost
    assert await snapshot(topic.store) == before


async def test_a_shorter_renewal_does_not_shorten_a_lease(topic: Topic, consume: Consume) -> None:
    await topic.publish(1)
    deliveries = await consume(topic, lease_s=60)
    await next_of(deliveries)
    tape = Tape(topic.store)
    await deliveries.renew()
    before = await snapshot(topic.store)

    call = tape.last("renew_partitions")
    assert await topic.store.call(call.function, call.keys, [call.args[0], 5, *call.args[2:]]) == [b"renewed"]

    assert await snapshot(topic.store) == before


async def test_a_consumer_that_redis_is_cut_off_from_gives_up_before_its_lease_ends(
    connect: Connect, request: pytest.FixtureRequest, consume: Consume
) -> None:
    with RedisServer(request.config.getoption("--redis-kind")) as server:
        topic = await Topics(await connect(server.url, timeout_s=0.2, retry_s=0), "test").open("line", partitions=1)
        await topic.publish(1)
        deliveries = await consume(topic, lease_s=0.9)
        delivery = await next_of(deliveries)
        told = asyncio.Event()
        delivery.on_lost = told.set
        server.freeze()
        await in_time(told.wait())
        assert "two thirds" in delivery.lost
        with pytest.raises(DeliveryLostError):
            await delivery.done()
        server.thaw()
        again = await next_of(deliveries)
        assert (await again.decode(), again.attempt) == (1, 2)
        await deliveries.close()


# --- replay, lag ------------------------------------------------------------------------------------------------------


async def test_a_group_is_set_back_and_what_is_in_hand_is_lost(
    topic: Topic, consume: Consume, clock: ManualClock
) -> None:
    published = []
    for n in range(4):
        published.append(await topic.publish(n))
        await clock.advance(s=60)
    deliveries = await consume(topic, "g")
    await bodies(deliveries, 2)
    stale = await next_of(deliveries)

    await topic.replay("g", published[1].entry)

    with pytest.raises(DeliveryLostError):
        await stale.done()
    assert await bodies(deliveries, 3) == [1, 2, 3]
    await topic.replay("g", datetime.fromtimestamp(int(published[3].entry.split("-")[0]) / 1000, UTC))
    assert await bodies(deliveries, 1) == [3]
    await topic.replay("g", "earliest")
    assert await bodies(deliveries, 4) == [0, 1, 2, 3]
    await topic.replay("g", "latest")
    await topic.publish("new")
    assert await bodies(deliveries, 1) == ["new"]


async def test_lag_tells_what_waits_and_what_is_in_hand(topics: Topics, consume: Consume) -> None:
    topic = await topics.open("wide", partitions=2)
    keys = {partition_of(key, 2): key for key in "abcdefghijkl"}
    await topic.publish_many(list(range(7)), keys=[keys[0]] * 5 + [keys[1]] * 2)
    with pytest.raises(GroupNotFoundError):
        await topic.lag("g")
    deliveries = await consume(topic, batch=4)
    await next_of(deliveries)
    await next_of(deliveries)

    first, second = (await topic.lag("g")).partitions

    assert (first.waiting, first.pending, second.waiting, second.pending) == (3, 2, 0, 2)
    assert (await topic.lag("g")).total == 7


async def test_lag_is_exact_after_a_replay_of_a_thousand_and_an_upper_bound_beyond(
    topic: Topic, consume: Consume
) -> None:
    published = await topic.publish_many(list(range(1200)))
    deliveries = await consume(topic, "g")
    await deliveries.close()

    await topic.replay("g", published[200].entry)
    [near] = (await topic.lag("g")).partitions
    await topic.replay("g", published[100].entry)
    [far] = (await topic.lag("g")).partitions

    assert (near.waiting, near.exact) == (1000, True)
    assert (far.waiting, far.exact) == (1200, False)


async def test_reading_goes_over_all_partitions_in_order_of_time(topics: Topics, clock: ManualClock) -> None:
    topic = await topics.open("wide")
    places = []
    for n in range(12):
        places.append((await topic.publish(n)).entry)
        await clock.advance(s=1)

    assert await stored(topic) == list(range(12))
    assert [await each.decode(Any, topic.codec) for each in await topic.read(places[4], count=3)] == [4, 5, 6]
    assert await topic.read("latest") == []


# --- dead letters -----------------------------------------------------------------------------------------------------


async def test_a_redriven_letter_goes_to_its_own_group_alone_with_its_attempts_reset(
    topic: Topic, consume: Consume
) -> None:
    await topic.publish({"n": 1}, key="k", id="an-id")
    theirs = await consume(topic, "other")
    assert await bodies(theirs, 1) == [{"n": 1}]
    mine = await consume(topic, "g")
    await (await next_of(mine)).bury("not yet")
    [letter] = await topic.dead_letters()

    assert await topic.redrive([letter.id]) == 1
    assert await topic.redrive([letter.id]) == 0, "once"

    again = await next_of(mine)
    assert (await again.decode(), again.attempt, again.message.id, again.message.key) == ({"n": 1}, 1, "an-id", "k")
    assert await topic.dead_letters() == []
    await topic.publish("later")
    assert await bodies(theirs, 1) == ["later"]
    await again.bury("again")
    assert await topic.redrive() == 1
    assert await (await next_of(mine)).decode() == "later"


async def test_all_letters_are_redriven_and_those_that_find_no_room_stay(
    topics: Topics, topic: Topic, consume: Consume
) -> None:
    await topic.publish_many(list(range(300)))
    deliveries = await consume(topic)
    for _ in range(300):
        await (await next_of(deliveries)).bury("no")

    assert len(await topic.dead_letters(count=1000)) == 300
    half = (await topic.dead_letters(count=150))[-1].id
    assert len(await topic.dead_letters(count=1000, after=half)) == 150
    assert await topic.redrive() == 300
    assert await bodies(deliveries, 1) == [0]
    await (await next_of(deliveries)).bury("no")
    await topics.open("line", most=298)
    with pytest.raises(TopicFullError, match="group 'g'"):
        await topic.redrive()
    assert len(await topic.dead_letters()) == 1


# --- retention --------------------------------------------------------------------------------------------------------


async def test_what_is_old_or_too_much_is_trimmed_once_every_group_has_acknowledged_it(
    topics: Topics, consume: Consume, clock: ManualClock
) -> None:
    topic = await topics.open("kept", partitions=1, keep_s=3600)
    await topic.publish_many(list(range(5)))
    fast, slow = await consume(topic, "fast"), await consume(topic, "slow", lease_s=7200)
    await bodies(fast, 5)
    await bodies(slow, 2)
    in_work = await next_of(slow)
    assert await topics.trim() == 0, "nothing is old"
    await clock.advance(s=3601)
    await topic.publish("new")

    assert await topic.trim() == 2
    assert await stored(topic) == [2, 3, 4, "new"]
    await in_work.done()
    await bodies(slow, 2)
    assert await topic.trim() == 3
    assert await stored(topic) == ["new"]


async def test_a_group_that_has_not_begun_to_read_keeps_what_waits_for_it(
    topics: Topics, consume: Consume, clock: ManualClock
) -> None:
    topic = await topics.open("kept", partitions=1, keep_s=10, keep_entries=2)
    deliveries = await consume(topic)
    await deliveries.close()
    await topic.publish_many(list(range(5)))
    await clock.advance(s=60)

    assert await topic.trim() == 0
    await topic.drop_group("g")
    assert await topic.trim() == 5


async def test_a_topic_keeps_so_many_of_the_acknowledged_ones(topics: Topics, consume: Consume) -> None:
    topic = await topics.open("kept", partitions=1, keep_s=0, keep_entries=250)
    await topic.publish_many(list(range(600)))
    deliveries = await consume(topic)
    await bodies(deliveries, 200)
    await next_of(deliveries)

    assert await topic.trim() == 200
    await deliveries.close()
    await bodies(await consume(topic), 400)
    assert await topic.trim() == 150
    assert await stored(topic) == list(range(350, 600))


async def test_a_full_topic_refuses_by_the_name_of_the_group_that_lags_and_takes_again_when_it_has_caught_up(
    topics: Topics, consume: Consume
) -> None:
    topic = await topics.open("bounded", partitions=2, most=5)
    fast, slow = await consume(topic, "fast"), await consume(topic, "slow", slots=1, batch=1)
    for n in range(5):
        await topic.publish(n)
    await bodies(fast, 5)
    await next_of(slow)

    with pytest.raises(
        TopicFullError, match=r"'bounded'.*found 5, needed fewer than 5; group 'slow' lags most"
    ) as refused:
        await topic.publish("more")
    assert (refused.value.group, refused.value.found) == ("slow", 5)
    assert len(await stored(topic)) == 5, "nothing was dropped"

    await topic.drop_group("slow")
    await topic.publish("more")
    assert await stored(topic) == ["more"]


async def test_the_bound_of_a_topic_holds_within_one_call(topics: Topics, consume: Consume) -> None:
    topic = await topics.open("bounded", partitions=2, most=5)
    deliveries = await consume(topic)
    await deliveries.close()

    with pytest.raises(TopicFullError):
        await topic.publish_many(list(range(10)))

    assert sorted(await stored(topic)) == [0, 1, 2, 3, 4]
