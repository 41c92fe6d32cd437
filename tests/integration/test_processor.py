"""Processors: typed messages in, answers out in the same step, in order per key, through crashes and cut connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from given import Connect, in_time, until
from pydantic import BaseModel

from bus import bus_clock, stored
from swarm_infrastructure.errors import ConfigurationError, DeliveryLostError, GroupNotFoundError, InvalidInputError
from swarm_infrastructure.message_bus.processor import Processor
from swarm_infrastructure.message_bus.topics import Delivery, To, Topic, TopicMessage, Topics
from swarm_infrastructure.store import Store
from swarm_infrastructure.telemetry import current_traceparent
from swarm_infrastructure.testing import RedisServer


class Transcription(BaseModel):
    session: str
    text: str


class Analysis(BaseModel):
    words: int


class Quick(Processor):
    """What the tests' processors share: they look often, and don't wait long."""

    source, poll_s = "in", 0.01

    def retry_in_s(self, attempt: int) -> float:
        return 0


class TopicAnalysis(Quick):
    target = "out"

    async def process(self, message: Transcription, delivery: Delivery) -> Analysis | None:
        return Analysis(words=len(message.text.split())) if message.text else None


Start = Callable[[Processor], Any]


@pytest.fixture
async def topics(store: Store) -> Topics:
    topics = Topics(store, "test")
    await topics.open("in", partitions=2)
    return topics


@pytest.fixture
async def source(topics: Topics) -> Topic:
    return await topics.get("in")


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts processors that are stopped with the test."""
    async with AsyncExitStack() as stack:

        async def start(processor: Processor) -> None:
            await processor.start()
            stack.push_async_callback(processor.stop, grace_s=1)

        yield start


async def caught_up(topic: Topic, group: str) -> None:
    """Wait until *group* has acknowledged everything."""

    async def nothing_left() -> bool:
        return (await topic.lag(group)).total == 0

    await until(nothing_left, 20)


async def test_a_processor_gets_typed_messages_and_its_answers_go_to_its_target(
    topics: Topics, source: Topic, start: Start
) -> None:
    await source.publish(Transcription(session="s1", text="one two three"), key="s1")
    await source.publish(Transcription(session="s2", text=""), key="s2")

    await start(TopicAnalysis(topics))
    await caught_up(source, "topic_analysis")

    [out] = await (await topics.get("out")).read()
    assert (await out.decode(Analysis, topics.codec), out.key, out.type) == (Analysis(words=3), "s1", "Analysis")


async def test_a_body_that_does_not_fit_is_a_dead_letter_that_names_the_field(
    topics: Topics, source: Topic, start: Start
) -> None:
    await source.publish({"session": 5}, key="k")
    await source.publish({"session": "s", "text": "fine"}, key="k")

    await start(TopicAnalysis(topics))
    await caught_up(source, "topic_analysis")

    [letter] = await source.dead_letters()
    assert (letter.reason, letter.attempts) == ("invalid", 1)
    assert "Transcription: session: found 5" in letter.error
    assert await stored(await topics.get("out")) == [{"words": 1}]


async def test_a_handler_that_raises_is_tried_again_and_then_a_dead_letter(
    topics: Topics, source: Topic, start: Start
) -> None:
    seen = []

    class Fragile(Quick):
        max_attempts = 3

        async def process(self, message: dict[str, Any], delivery: Delivery) -> None:
            seen.append((message["n"], delivery.attempt))
            if message["n"] == "bad" or delivery.attempt == 1:
                raise RuntimeError("out of luck")

    await source.publish_many([{"n": "bad"}, {"n": "good"}], keys=["k", "k"])
    await start(Fragile(topics))
    await caught_up(source, "fragile")

    assert seen == [("bad", 1), ("bad", 2), ("bad", 3), ("good", 1), ("good", 2)]
    [letter] = await source.dead_letters()
    assert (letter.reason, letter.error) == ("failed", "RuntimeError: out of luck")


async def test_answers_may_go_to_several_topics_and_keys(topics: Topics, source: Topic, start: Start) -> None:
    class Splitter(Quick):
        target = "out"

        async def process(self, message: TopicMessage, delivery: Delivery) -> list[Any]:
            return [{"plain": message.id}, To("other", [1, 2], key="mine")]

    await source.publish("x", id="an-id", key="k")
    await start(Splitter(topics))
    await caught_up(source, "splitter")

    [plain] = await (await topics.get("out")).read()
    [other] = await (await topics.get("other")).read()
    assert (plain.body, plain.key, other.body, other.key) == (b'{"plain":"an-id"}', "k", b"[1,2]", "mine")


async def test_an_answer_that_has_nowhere_to_go_or_is_too_large_is_a_dead_letter(
    topics: Topics, source: Topic, start: Start
) -> None:
    class Lost(Quick):
        async def process(self, message: str, delivery: Delivery) -> Any:
            return {"n": 1} if message == "no target" else To("out", "x" * 300_000)

    await source.publish_many(["no target", "too large"], keys=["k", "k"])
    await start(Lost(topics))
    await caught_up(source, "lost")

    first, second = await source.dead_letters()
    assert "needed None, as it has no target" in first.error
    assert "at most 262,144" in second.error
    assert await stored(await topics.get("out")) == []


async def test_the_trace_of_a_message_goes_on_in_its_handler_and_in_its_answer(
    topics: Topics, source: Topic, start: Start
) -> None:
    seen = []

    class Traced(Quick):
        target = "out"

        async def process(self, message: Any, delivery: Delivery) -> dict[str, Any]:
            seen.append(current_traceparent())
            return {}

    from swarm_infrastructure.telemetry import traceparent_of_work

    given = traceparent_of_work.set("00-aa-bb-01")
    await source.publish(1)
    traceparent_of_work.reset(given)
    await start(Traced(topics))
    await caught_up(source, "traced")

    assert seen == ["00-aa-bb-01"]
    assert [each.traceparent for each in await (await topics.get("out")).read()] == ["00-aa-bb-01"]


async def test_a_class_that_can_not_work_says_what_it_lacks(topics: Topics) -> None:
    class NoSource(Processor):
        pass

    class Unresolved(Quick):
        async def process(self, message: Nowhere, delivery: Delivery) -> None:  # type: ignore[name-defined]  # noqa: F821
            pass

    with pytest.raises(ConfigurationError, match="NoSource: found no source"):
        NoSource(topics)
    with pytest.raises(InvalidInputError, match=r"Unresolved\.process.*Nowhere"):
        Unresolved(topics)


async def test_a_full_target_makes_a_processor_wait_and_nothing_is_lost(
    topics: Topics, source: Topic, start: Start
) -> None:
    out = await topics.open("out", most=1)
    async with out.consume("reader", poll_s=0.01) as deliveries:
        await source.publish_many([{"session": "s", "text": "a"}] * 3, keys=["k"] * 3)
        processor = TopicAnalysis(topics)
        await start(processor)
        for _ in range(3):
            await (await in_time(anext(deliveries))).done()
        await caught_up(source, "topic_analysis")
    assert processor.finished == 3


async def test_a_processor_whose_group_is_dropped_ends_with_an_error(topics: Topics, source: Topic) -> None:
    processor = TopicAnalysis(topics)
    await processor.start()
    await source.drop_group("topic_analysis")

    with pytest.raises(GroupNotFoundError):
        await in_time(processor.wait())
    await processor.stop(grace_s=1)


# --- stopping ---------------------------------------------------------------------------------------------------------


class Slow(Quick):
    """Tells when a message is in work, and waits until it may go on."""

    group, lease_s = "slow", 3600.0
    begun: list[tuple[Any, int]]
    go: asyncio.Event
    cut_off: list[Any]

    def __init__(self, topics: Topics) -> None:
        super().__init__(topics)
        self.begun, self.go, self.cut_off = [], asyncio.Event(), []

    async def process(self, message: int, delivery: Delivery) -> None:
        self.begun.append((message, delivery.attempt))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cut_off.append(message)
            raise

    async def works_on(self, n: int) -> None:
        async def so_many() -> bool:
            return len(self.begun) >= n

        await until(so_many)


async def test_a_processor_that_stops_finishes_what_is_in_work_and_leaves_the_rest_to_others_at_once(
    topics: Topics, source: Topic, start: Start
) -> None:
    await source.publish_many([1, 2, 3], keys=["k"] * 3)
    first, second = Slow(topics), Slow(topics)
    await first.start()
    await first.works_on(1)
    assert first.in_hand == 1

    stopping = asyncio.create_task(first.stop(grace_s=30))
    await asyncio.sleep(0)
    first.go.set()
    await in_time(stopping)

    second.go.set()
    await start(second)
    await second.works_on(2)
    assert (first.begun, second.begun) == ([(1, 1)], [(2, 1), (3, 1)])


async def test_a_handler_that_does_not_finish_in_its_grace_is_cut_off_and_its_message_counts_as_not_tried(
    topics: Topics, source: Topic, start: Start
) -> None:
    await source.publish(1)
    first, second = Slow(topics), Slow(topics)
    await first.start()
    await first.works_on(1)

    await in_time(first.stop(grace_s=0.05))
    await start(second)
    await second.works_on(1)

    assert first.cut_off == [1]
    assert second.begun == [(1, 1)]


async def test_a_handler_is_cut_off_when_its_lease_is_lost(topics: Topics, source: Topic, start: Start) -> None:
    await source.publish(1)
    first = Slow(topics)
    await start(first)
    await first.works_on(1)
    await bus_clock(topics).advance(s=3601)
    second = Slow(topics)
    second.go.set()
    await start(second)
    await second.works_on(1)
    assert second.begun == [(1, 2)]

    assert first._deliveries is not None
    await first._deliveries.renew()

    async def cut() -> bool:
        return first.cut_off == [1]

    await until(cut)


# --- what may break ---------------------------------------------------------------------------------------------------


async def test_a_processor_goes_on_when_redis_was_away(
    connect: Connect, request: pytest.FixtureRequest, start: Start
) -> None:
    with RedisServer(
        request.config.getoption("--redis-kind"), persist=True, options={"appendfsync": "always"}
    ) as server:
        topics = Topics(await connect(server.url, retry_s=0), "test")
        source = await topics.open("in", partitions=2)
        processor = TopicAnalysis(topics)
        await processor.start()
        await source.publish(Transcription(session="s", text="before"))
        await caught_up(source, "topic_analysis")
        server.kill()
        await asyncio.sleep(0.05)  # so that it finds Redis gone; whether it did changes nothing below
        server.restart()
        await source.publish(Transcription(session="s", text="it is back"))
        await caught_up(source, "topic_analysis")
        assert await stored(await topics.get("out")) == [{"words": 1}, {"words": 3}]
        await processor.stop(grace_s=1)


CONSUMER = """
import asyncio, sys
from swarm_infrastructure.errors import DeliveryLostError
from swarm_infrastructure.message_bus.topics import Topics
from swarm_infrastructure.store import Store

async def main():
    async with Store(sys.argv[1]) as store:
        topic = await Topics(store, "test").get("in")
        async with topic.consume("g", lease_s=float(sys.argv[2]), poll_s=0.05) as deliveries:
            async for delivery in deliveries:
                print((await delivery.decode()), flush=True)
                if (await delivery.decode()) == 2:
                    await asyncio.sleep(float(sys.argv[3]))
                try:
                    await delivery.done()
                except DeliveryLostError:
                    print("lost", flush=True)

asyncio.run(main())
"""


async def a_consumer(server: RedisServer, *, lease_s: float, works_s: float) -> asyncio.subprocess.Process:
    """A process that consumes; it works on message 2 for so long, on others not at all."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONSUMER, server.url, str(lease_s), str(works_s), stdout=asyncio.subprocess.PIPE
    )


@pytest.fixture
def own_library(request: pytest.FixtureRequest) -> None:
    """For tests whose processes load the library that is shipped, and no mutant of it."""
    if request.config.getoption("--mutant"):
        pytest.skip("its processes would refuse the mutant")


@pytest.mark.usefixtures("own_library")
async def test_a_message_of_a_killed_process_is_delivered_to_another_one_in_order(
    topics: Topics, redis_server: RedisServer
) -> None:
    source = await topics.open("in")
    await source.publish_many([1, 2, 3, 4], keys=["k"] * 4)
    process = await a_consumer(redis_server, lease_s=1.0, works_s=600)
    assert process.stdout is not None
    assert [await in_time(process.stdout.readline(), 20) for _ in range(2)] == [b"1\n", b"2\n"]
    process.send_signal(signal.SIGKILL)
    await process.wait()

    found = []
    async with source.consume("g", lease_s=1.0, poll_s=0.05) as deliveries:
        while len(found) < 3:
            delivery = await in_time(anext(deliveries))
            found.append(((await delivery.decode()), delivery.attempt))
            await delivery.done()

    assert found == [(2, 2), (3, 1), (4, 1)]
    assert (await source.lag("g")).total == 0


@pytest.mark.usefixtures("own_library")
async def test_a_frozen_process_that_wakes_up_changes_nothing(
    topics: Topics, redis_server: RedisServer, store: Store
) -> None:
    source = await topics.open("in")
    await source.publish_many([1, 2], keys=["k"] * 2)
    process = await a_consumer(redis_server, lease_s=0.5, works_s=1)
    assert process.stdout is not None
    try:
        assert [await in_time(process.stdout.readline(), 20) for _ in range(2)] == [b"1\n", b"2\n"]
        process.send_signal(signal.SIGSTOP)
        async with source.consume("g", lease_s=30, poll_s=0.05) as deliveries:
            delivery = await in_time(anext(deliveries))
            process.send_signal(signal.SIGCONT)
            assert ((await delivery.decode()), delivery.attempt) == (2, 2)
            while await in_time(process.stdout.readline(), 20) != b"lost\n":
                pass  # what it logs
            await delivery.done()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    assert (await source.lag("g")).total == 0


async def test_nothing_is_lost_or_out_of_order_while_connections_are_cut(
    connect: Connect, redis_server: RedisServer, topics: Topics, start: Start
) -> None:
    """2,000 messages of 50 keys; every half second each connection to Redis is closed."""
    handled: dict[str, list[int]] = defaultdict(list)

    class Counting(Quick):
        source, group, target, lease_s = "wide", "counting", "out", 5.0

        async def process(self, message: dict[str, Any], delivery: Delivery) -> dict[str, Any]:
            handled[message["key"]].append(message["n"])
            await asyncio.sleep(0.005)
            return message

    source = await topics.open("wide", partitions=8)
    admin = await connect(redis_server.url)
    cuts = 0

    async def cut() -> None:
        nonlocal cuts
        while True:
            await asyncio.sleep(0.5)
            with contextlib.suppress(Exception):
                cuts += await admin.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", once=True)

    stores = [await connect(redis_server.url) for _ in range(4)]
    cutting = asyncio.create_task(cut())
    try:
        for store in stores:
            await start(Counting(Topics(store, "test")))

        async def publish(key: str) -> None:
            for n in range(40):
                await source.publish({"key": key, "n": n}, key=key)
                await asyncio.sleep(0.1)

        await asyncio.gather(*(publish(f"session-{number}") for number in range(50)))
        await caught_up(source, "counting")
    finally:
        cutting.cancel()
        await asyncio.gather(cutting, return_exceptions=True)

    accepted: dict[str, list[int]] = defaultdict(list)
    for body in await stored(await topics.get("out")):
        accepted[body["key"]].append(body["n"])
    assert cuts >= 5 * 5, "each store was cut off several times"
    assert accepted == {f"session-{number}": list(range(40)) for number in range(50)}, "each accepted once, in order"
    assert await source.dead_letters() == []
    assert {key: sorted(set(ns)) for key, ns in handled.items()} == accepted


async def test_a_delivery_that_is_lost_can_not_be_ended(topics: Topics, source: Topic) -> None:
    await source.publish(1)
    async with source.consume("g", poll_s=0.01) as deliveries:
        delivery = await in_time(anext(deliveries))
        await source.replay("g", "latest")
        with pytest.raises(DeliveryLostError):
            await delivery.fail("late")
        with pytest.raises(DeliveryLostError):
            await delivery.done()
