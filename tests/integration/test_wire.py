"""Wires: many calls under way on one connection, each with its own answer, whatever becomes of the others."""

from __future__ import annotations

import asyncio

import pytest
from given import Connect, in_time, until
from redis import exceptions as refused

from swarm_infrastructure.store import Store
from swarm_infrastructure.store.nodes import Node
from swarm_infrastructure.testing import RedisServer

pytestmark = pytest.mark.usefixtures("one_server")


async def node_of(store: Store) -> Node:
    [node] = await store._topology.nodes()
    return node


async def clients(store: Store) -> int:
    return int((await store.info())["connected_clients"])


async def test_calls_at_once_share_one_connection_and_each_gets_its_own_answer(store: Store) -> None:
    wire = (await node_of(store)).calls
    await wire.ask("PING")
    before = await clients(store)

    answers = await asyncio.gather(*(wire.ask("ECHO", n) for n in range(1000)))

    assert answers == [str(n).encode() for n in range(1000)]
    assert await clients(store) == before


async def test_a_caller_that_goes_away_shifts_nobodys_answer(store: Store) -> None:
    wire = (await node_of(store)).calls
    await wire.ask("PING")
    asked = [asyncio.create_task(wire.ask("ECHO", n)) for n in range(20)]
    await asyncio.sleep(0)

    for each in asked[::3]:
        each.cancel()
    await asyncio.gather(*asked, return_exceptions=True)

    assert [each.result() for each in asked if not each.cancelled()] == [b"%d" % n for n in range(20) if n % 3]
    assert await wire.ask("ECHO", "next") == b"next"


async def test_an_error_is_its_callers_alone(store: Store) -> None:
    wire = (await node_of(store)).calls

    good, bad, also_good = await asyncio.gather(
        wire.ask("ECHO", "a"), wire.ask("NO_SUCH_COMMAND"), wire.ask("ECHO", "b"), return_exceptions=True
    )

    assert (good, also_good) == (b"a", b"b")
    assert isinstance(bad, refused.ResponseError) and "unknown command" in str(bad)


async def test_a_connection_that_is_cut_fails_what_is_under_way_and_is_made_again(store: Store) -> None:
    node = await node_of(store)
    await node.calls.ask("PING")
    blocked = asyncio.create_task(node.calls.ask("BLPOP", "never", 0))

    async def written() -> bool:
        return node.calls.busy == 1

    await until(written)
    node.sever()

    with pytest.raises(refused.ConnectionError):
        await in_time(blocked)
    assert await node.calls.ask("ECHO", "again") == b"again"


async def test_a_server_that_goes_silent_fails_every_call_in_time(
    connect: Connect, request: pytest.FixtureRequest
) -> None:
    with RedisServer(request.config.getoption("--redis-kind")) as server:
        store = await connect(server.url, timeout_s=0.2)
        wire = (await node_of(store)).calls
        await wire.ask("PING")
        server.freeze()

        answers = await in_time(asyncio.gather(*(wire.ask("PING") for _ in range(50)), return_exceptions=True), 5)

        server.thaw()
        assert {type(answer) for answer in answers} == {refused.TimeoutError}
        assert await wire.ask("PING") == b"PONG"


async def test_what_was_waited_for_in_vain_is_not_the_next_ones_answer(store: Store) -> None:
    for n in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.pop(["never"], 5.0)
        await store.command("RPUSH", "list", n)
        assert await store.pop(["list"], 5.0) == ("list", b"%d" % n)


async def test_a_wire_that_waited_is_used_again(store: Store) -> None:
    for _ in range(3):
        assert await store.pop(["never"], 0.01) is None
    before = await clients(store)
    for _ in range(5):
        assert await store.pop(["never"], 0.01) is None

    assert await clients(store) == before


async def test_what_speaks_no_redis_is_an_error_and_no_hang() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            told = b"HTTP/1.1 400 Bad Request\r\n\r\n" if b"PING" in data else b"+OK\r\n" * data.count(b"*")
            writer.write(told)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        node = Node(f"redis://127.0.0.1:{port}", timeout_s=2.0)
        with pytest.raises(refused.ConnectionError):
            await in_time(node.calls.ask("PING"))
        await node.close()
