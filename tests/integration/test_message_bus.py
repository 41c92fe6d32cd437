"""The bus: who hears what, what overtakes, what is missed and counted, calls and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from given import Connect, in_time, until

from swarm_infrastructure.errors import (
    InvalidInputError,
    RPCError,
    RPCFailedError,
    RPCTimeoutError,
    StoreUnavailableError,
)
from swarm_infrastructure.message_bus import (
    MAX_MESSAGE_BYTES,
    Channels,
    Gap,
    Hub,
    Message,
    MessageBus,
    MessageType,
    TaskQueues,
)
from swarm_infrastructure.store import Store
from swarm_infrastructure.telemetry import current_traceparent
from swarm_infrastructure.testing import RedisServer

OpenBus = Callable[..., Awaitable[MessageBus]]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def new_hub(store: Store) -> AsyncIterator[Callable[..., Hub]]:
    """A hub as another process would have it: with connections of its own."""
    async with AsyncExitStack() as stack:

        def new_hub(on: Store = store, **options: Any) -> Hub:
            hub = Hub(on, "test", **options)
            stack.push_async_callback(hub.close)
            return hub

        yield new_hub


@pytest.fixture
async def open_bus(store: Store, new_hub: Callable[..., Hub]) -> AsyncIterator[OpenBus]:
    """The bus of an agent, on a hub that all share unless one is given: ``bus = await open_bus("writer_1", "writer")``."""
    shared, queues = new_hub(), TaskQueues(store, "test")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(queues.close)

        async def open_bus(agent_id: str, role: str = "", *, on: Hub | None = None, **options: Any) -> MessageBus:
            bus = MessageBus(on or shared, queues, agent_id, role=role, **options)
            return await stack.enter_async_context(bus)

        yield open_bus


def heard_by(bus: MessageBus, msg_type: str = "*") -> list[Message]:
    heard: list[Message] = []
    bus.on(msg_type, heard.append)
    return heard


def note(payload: Any = None, msg_type: str = "note", **facts: Any) -> Message:
    return Message.create(msg_type, sender="tester", payload=payload, **facts)


# --- who hears what ---------------------------------------------------------------------------------------------------


async def test_a_broadcast_reaches_every_agent_in_every_process_once(open_bus: OpenBus, new_hub: Any) -> None:
    here, there = new_hub(), new_hub()
    buses = [await open_bus(f"a{n}", on=here if n < 5 else there) for n in range(10)]
    heard = [heard_by(bus) for bus in buses]

    message = note({"n": 1})
    assert await buses[0].broadcast(message) == 2  # connections, not agents

    await until(lambda: all(len(each) == 1 for each in heard))
    assert all(each == [message] for each in heard)


async def test_a_message_to_a_tier_reaches_its_agents_only(open_bus: OpenBus) -> None:
    analyst, scout = await open_bus("a1", "analyst"), await open_bus("s1", "scout")
    writer = await open_bus("w1", "script_writer")
    heard = {bus.agent_id: heard_by(bus) for bus in (analyst, scout, writer)}

    await scout.send_to_tier("analyst", note("for analysts"))
    await scout.publish(Channels.TIER_PRODUCER, note("for whoever makes the product"))
    await scout.send_to_tier("script_writer", note("for writers"))
    await scout.broadcast(last := note("last"))

    await until(lambda: all(each and each[-1] == last for each in heard.values()))
    assert [each.payload for each in heard["a1"]] == ["for analysts", "last"]
    assert [each.payload for each in heard["s1"]] == ["last"]
    assert [each.payload for each in heard["w1"]] == ["for whoever makes the product", "for writers", "last"]


async def test_a_message_to_an_agent_reaches_it_alone_and_the_sender_learns_whether_anybody_listens(
    open_bus: OpenBus,
) -> None:
    one, other = await open_bus("one"), await open_bus("other")
    heard, overheard = heard_by(one), heard_by(other)

    assert await other.send_to_agent("one", note("hello")) is True
    assert await other.send_to_agent("nobody", note("hello")) is False

    await until(lambda: heard)
    assert (heard[0].payload, heard[0].recipient) == ("hello", "one")
    assert overheard == []


async def test_handlers_are_called_for_their_type_until_they_are_taken_off(open_bus: OpenBus) -> None:
    bus = await open_bus("a")
    assigned, every = heard_by(bus, MessageType.TASK_ASSIGN), heard_by(bus)
    await bus.send_to_agent("a", note(1, MessageType.TASK_ASSIGN))
    await bus.send_to_agent("a", note(2, MessageType.TASK_COMPLETE))
    await until(lambda: len(every) == 2)

    assert bus.off(MessageType.TASK_ASSIGN, assigned.append) is True
    assert bus.off(MessageType.TASK_ASSIGN, assigned.append) is False
    assert bus.off(MessageType.TASK_ASSIGN) is False
    await bus.send_to_agent("a", note(3, MessageType.TASK_ASSIGN))
    await until(lambda: len(every) == 3)

    assert [each.payload for each in assigned] == [1]


async def test_a_handler_that_raises_disturbs_nobody(open_bus: OpenBus) -> None:
    bus = await open_bus("a")
    bus.on("note", lambda message: 1 / 0)
    heard = heard_by(bus)

    await bus.send_to_agent("a", note(1))
    await bus.send_to_agent("a", note(2))

    await until(lambda: len(heard) == 2)


async def test_what_came_too_late_is_not_handed_over(open_bus: OpenBus) -> None:
    bus = await open_bus("a")
    heard = heard_by(bus)

    await bus.send_to_agent("a", note("late", timestamp=datetime.now(UTC) - timedelta(seconds=11), ttl=10))
    await bus.send_to_agent("a", note("in time"))

    await until(lambda: heard)
    assert ([each.payload for each in heard], bus.expired) == (["in time"], 1)


async def test_the_senders_trace_is_the_one_in_which_a_message_is_handled(open_bus: OpenBus) -> None:
    bus, seen = await open_bus("a"), []
    bus.on("note", lambda message: seen.append((message.traceparent, current_traceparent())))

    await bus.send_to_agent("a", note(traceparent=TRACE))
    await bus.send_to_agent("a", note())

    await until(lambda: len(seen) == 2)
    assert seen == [(TRACE, TRACE), (None, None)]


# --- what overtakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "urgent",
    [
        note("stop", MessageType.EMERGENCY),
        note("stop", MessageType.PAUSE),
        note("stop", priority=0),
    ],
    ids=["emergency", "control", "critical"],
)
async def test_what_is_urgent_is_handled_before_what_waits_and_beside_what_is_being_handled(
    open_bus: OpenBus, urgent: Message
) -> None:
    bus, go_on, order = await open_bus("a"), asyncio.Event(), list[Any]()

    async def slow(message: Message) -> None:
        order.append(message.payload)
        await go_on.wait()

    bus.on("slow", slow)
    heard = heard_by(bus, urgent.type)
    for n in range(100):
        await bus.send_to_agent("a", note(n, "slow"))
    await until(lambda: order)

    await bus.broadcast(urgent)
    await until(lambda: heard)

    assert order == [0]
    go_on.set()
    await until(lambda: len(order) == 100)
    assert order == list(range(100))


async def test_a_full_mailbox_drops_the_oldest_counts_it_and_takes_what_is_urgent(open_bus: OpenBus) -> None:
    bus, go_on, order = await open_bus("a", mailbox=10), asyncio.Event(), list[Any]()

    async def slow(message: Message) -> None:
        order.append(message.payload)
        await go_on.wait()

    bus.on("slow", slow)
    heard = heard_by(bus, MessageType.EMERGENCY)
    await bus.send_to_agent("a", note(0, "slow"))
    await until(lambda: order)
    for n in range(1, 21):
        await bus.send_to_agent("a", note(n, "slow"))
    await until(lambda: bus.dropped == 10)
    await bus.broadcast(note("stop", MessageType.EMERGENCY))
    await until(lambda: heard)
    go_on.set()

    await until(lambda: len(order) == 11)
    assert order == [0, *range(11, 21)]


# --- what is missed ---------------------------------------------------------------------------------------------------


async def test_what_was_published_while_the_connection_was_down_is_counted_to_the_message(
    open_bus: OpenBus, new_hub: Any
) -> None:
    hub, speaker = new_hub(), await open_bus("speaker")
    bus = await open_bus("a", on=hub)
    heard, gaps = heard_by(bus), list[Gap]()
    bus.on_gap(gaps.append)
    await speaker.broadcast(note(1))
    await until(lambda: heard)

    line = hub._line(False)
    line._channels, channels = {}, line._channels  # so that it comes back, but does not listen before we have published
    line.sever()
    await until(lambda: line.reconnects and line._connection is not None)
    for n in range(2, 7):
        await speaker.broadcast(note(n))
    line._channels = channels
    line.sever()
    await until(lambda: gaps)
    await speaker.broadcast(note(7))
    await until(lambda: len(heard) == 2)

    assert [each.payload for each in heard] == [1, 7]
    assert gaps == [Gap(Channels.BROADCAST_ALL, 5)]
    assert hub.missed == {Channels.BROADCAST_ALL: 5}


async def test_fifty_listeners_whose_connections_are_killed_again_and_again_hear_or_count_each_of_2000_messages(
    redis_server: RedisServer, store: Store, connect: Connect, new_hub: Any
) -> None:
    listeners, got = [new_hub() for _ in range(50)], [set[int]() for _ in range(50)]
    for hub, numbers in zip(listeners, got, strict=True):
        await hub.listen(["news"], lambda heard, numbers=numbers: numbers.add(heard.message.payload))
    speaker, killer = new_hub(await connect(redis_server.url), history=0), await connect(redis_server.url)
    ended = asyncio.Event()

    async def kill() -> None:
        while not ended.is_set():
            await killer.command("CLIENT", "KILL", "TYPE", "pubsub")
            await asyncio.wait({asyncio.ensure_future(ended.wait())}, timeout=0.5)

    killing = asyncio.create_task(kill())
    for start in range(0, 2000, 20):
        await asyncio.gather(*(speaker.publish("news", note(n)) for n in range(start, start + 20)))
        await asyncio.sleep(0.015)  # the pace of a busy bus, not a wait for anything
    ended.set()
    await killing

    async def all_back() -> bool:  # and so have learned what they have missed
        return (await store.command("PUBSUB", "NUMSUB", speaker.keys.channel("news")))[1] == 50

    await until(all_back)
    await speaker.publish("news", note(2000))

    await until(lambda: all(2000 in numbers for numbers in got))
    assert [len(numbers) + hub.missed.get("news", 0) for hub, numbers in zip(listeners, got, strict=True)] == [
        2001
    ] * 50
    assert sum(hub.reconnects for hub in listeners) >= 50
    assert any(hub.missed for hub in listeners)


async def test_after_redis_has_forgotten_its_numbers_nothing_is_taken_for_missed(
    open_bus: OpenBus, new_hub: Any, store: Store
) -> None:
    hub = new_hub()
    bus = await open_bus("a", on=hub)
    heard = heard_by(bus)
    for n in range(5):
        await bus.broadcast(note(n))
    await until(lambda: len(heard) == 5)
    await store.command("DEL", hub.keys.numbers)

    await bus.broadcast(note(5))
    await bus.broadcast(note(6))

    await until(lambda: len(heard) == 7)
    assert hub.missed == {}


async def test_what_comes_while_nobody_listens_is_not_missed(open_bus: OpenBus, new_hub: Any) -> None:
    hub, speaker = new_hub(), await open_bus("speaker")
    unlisten = await hub.listen(["news"], lambda heard: None)
    await speaker.publish("news", note(1))
    await unlisten()
    for n in range(5):
        await speaker.publish("news", note(n))
    heard: list[Any] = []
    await hub.listen(["news"], heard.append)

    await speaker.publish("news", note(6))

    await until(lambda: heard)
    assert hub.missed == {}


async def test_a_listener_that_raises_does_not_make_the_others_deaf(open_bus: OpenBus, new_hub: Any) -> None:
    hub, speaker = new_hub(), await open_bus("speaker")
    heard: list[Any] = []
    await hub.listen(["news"], lambda heard: 1 / 0)
    await hub.listen(["news"], heard.append)
    hub.on_gap(lambda gap: 1 / 0)
    for n in range(3):
        await speaker.publish("news", note(n))

    await until(lambda: len(heard) == 3)


async def test_a_handler_that_waits_for_what_is_cancelled_hears_the_next_message(open_bus: OpenBus) -> None:
    bus, heard = await open_bus("a"), list[Any]()

    async def unlucky(message: Message) -> None:
        heard.append(message.payload)
        other = asyncio.ensure_future(asyncio.sleep(60))
        other.cancel()
        await other

    bus.on("note", unlucky)
    await bus.send_to_agent("a", note(1))
    await bus.send_to_agent("a", note(2))

    await until(lambda: heard == [1, 2])


async def test_a_server_that_accepts_and_says_nothing_is_left_after_a_while(
    redis_server: RedisServer, store: Store, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    if not redis_server.url.startswith("unix://"):
        pytest.skip("a cluster's addresses lead past whoever stands between")
    monkeypatch.setattr("swarm_infrastructure.store.subscription.CONNECT_S", 0.1)
    silent, accepted, ends = True, 0, list[Any]()
    real = redis_server.url.removeprefix("unix://").partition("?")[0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        ends.append(writer)
        if silent and accepted > 1:  # the first connection is that of the commands
            return
        to_reader, to_writer = await asyncio.open_unix_connection(real)
        ends.append(to_writer)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)

        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(serve, path)
    through = await connect(f"unix://{path}", timeout_s=0.5)
    hub = Hub(through, "test")
    with pytest.raises(StoreUnavailableError):
        await hub.listen(["news"], lambda heard: None)
    silent, heard = False, list[Any]()
    await until(lambda: hub._line(False)._connection is not None)

    await hub.listen(["news"], heard.append)
    await Hub(store, "test").publish("news", note(1))

    await until(lambda: heard)
    await hub.close()
    await through.close()
    server.close()
    for writer in ends:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


# --- history ----------------------------------------------------------------------------------------------------------


async def test_the_history_holds_the_newest_of_each_type_and_no_more_than_its_cap(
    open_bus: OpenBus, new_hub: Any
) -> None:
    bus = await open_bus("a", on=new_hub(history=10))
    for n in range(25):
        await bus.broadcast(note(n, "often"))
    await bus.broadcast(note("x", "seldom"))

    assert [each.payload for each in await bus.get_message_history("often")] == list(range(24, 14, -1))
    assert [each.payload for each in await bus.get_message_history("often", count=3)] == [24, 23, 22]
    assert [each.payload for each in await bus.get_message_history(count=3)] == ["x", 24, 23]
    assert await bus.get_message_history("never") == []


async def test_without_a_message_there_is_no_history(open_bus: OpenBus) -> None:
    assert await (await open_bus("a")).get_message_history() == []


# --- calls ------------------------------------------------------------------------------------------------------------


async def test_a_call_is_answered_by_whoever_serves_it_in_another_process(open_bus: OpenBus, new_hub: Any) -> None:
    caller, server = await open_bus("caller"), await open_bus("server", on=new_hub())

    async def add(params: Any) -> Any:
        return {"sum": params["a"] + params["b"], "trace": current_traceparent()}

    await server.register_rpc_handler(Channels.RPC_MONITOR, "add", add)

    assert await caller.call(Channels.RPC_MONITOR, "add", {"a": 1, "b": 2}) == {"sum": 3, "trace": None}


async def test_of_many_servers_exactly_one_answers_each_call(open_bus: OpenBus, new_hub: Any) -> None:
    caller, done = await open_bus("caller"), list[int]()
    for n in range(5):
        server = await open_bus(f"s{n}", on=new_hub())
        await server.register_rpc_handler("work", "do", done.append)

    await asyncio.gather(*(caller.call("work", "do", n) for n in range(200)))

    assert sorted(done) == list(range(200))


async def test_a_call_that_nobody_answers_ends_at_its_timeout_and_is_not_executed_later(open_bus: OpenBus) -> None:
    caller, server, done = await open_bus("caller"), await open_bus("server"), list[Any]()

    with pytest.raises(RPCTimeoutError, match=r"no answer within 0\.05 s"):
        await in_time(caller.call("work", "do", 1, timeout=0.05))
    await server.register_rpc_handler("work", "do", done.append)
    await caller.call("work", "do", 2)

    assert done == [2]
    assert await caller._hub._store.command("EXISTS", caller._hub.keys.requests("work")) == 0  # nothing piles up


async def test_a_service_that_is_added_later_is_heard_at_once(open_bus: OpenBus) -> None:
    caller, server = await open_bus("caller"), await open_bus("server")
    await server.register_rpc_handler("first", "do", lambda n: n)
    await caller.call("first", "do", 1)
    await server.register_rpc_handler("second", "do", lambda n: n + 1)

    assert await caller.call("second", "do", 1, timeout=2) == 2


async def test_a_server_that_starts_late_still_answers(open_bus: OpenBus) -> None:
    caller, server = await open_bus("caller"), await open_bus("server")
    calling = asyncio.create_task(caller.call("work", "do", 1, timeout=20))
    await until(lambda: caller._rpc._awaited)

    await server.register_rpc_handler("work", "do", lambda n: n + 1)

    assert await in_time(calling) == 2


@pytest.mark.parametrize(
    ("method", "said"),
    [("fail", "ValueError: no"), ("missing", "needed one of fail, odd"), ("odd", "JSON")],
)
async def test_a_call_that_fails_says_why(open_bus: OpenBus, method: str, said: str) -> None:
    bus = await open_bus("a")

    def fail(_: Any) -> None:
        raise ValueError("no")

    await bus.register_rpc_handler("work", "fail", fail)
    await bus.register_rpc_handler("work", "odd", lambda _: object())

    with pytest.raises(RPCFailedError, match=said) as told:
        await bus.call("work", method)
    assert isinstance(told.value, RPCError)


# --- bad input --------------------------------------------------------------------------------------------------------


async def test_what_is_too_large_or_no_json_is_refused_and_sent_to_nobody(open_bus: OpenBus) -> None:
    bus = await open_bus("a")
    heard = heard_by(bus)

    with pytest.raises(InvalidInputError, match=f"needed at most {MAX_MESSAGE_BYTES:,}"):
        await bus.broadcast(note("x" * MAX_MESSAGE_BYTES))
    with pytest.raises(InvalidInputError, match="note"):
        await bus.broadcast(note({"x": object()}))
    with pytest.raises(InvalidInputError, match="channel"):
        await bus.publish("a b", note())
    with pytest.raises(InvalidInputError, match="agent id"):
        await bus.send_to_agent("", note())
    await bus.broadcast(last := note("last"))

    await until(lambda: heard)
    assert heard == [last]


async def test_what_is_no_message_is_passed_over(open_bus: OpenBus, store: Store) -> None:
    bus = await open_bus("a")
    heard = heard_by(bus)
    channel = bus._hub.keys.channel(Channels.BROADCAST_ALL)
    for body in (b"", b"x", b"1", b"1 {", b'2 {"type": "note"}', b"\xff 3"):
        await store.command("PUBLISH", channel, body)

    await bus.broadcast(note("still here"))

    await until(lambda: heard)
