"""Waiting, and the connections that it stands on, when something goes wrong in the worst moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from given import Connect, a_request, given_claim, in_time, until
from redis import exceptions as refused

from swarm_infrastructure.blackboard import Blackboard, Submission
from swarm_infrastructure.store import Store
from swarm_infrastructure.store.nodes import Node

pytestmark = pytest.mark.usefixtures("one_server")


@asynccontextmanager
async def a_silent_server() -> AsyncIterator[str]:
    """One that takes connections and says nothing."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        gone.set()
        server.close()


async def test_a_node_that_is_closed_fails_who_connects_to_it_and_cancels_nobody() -> None:
    async with a_silent_server() as url:
        node = Node(url, timeout_s=5.0)
        asked = asyncio.create_task(node.calls.ask("PING"))
        await asyncio.sleep(0.05)

        await node.close()

        await asyncio.wait({asked}, timeout=2.0)
        assert not asked.cancelled()
        with pytest.raises(refused.ConnectionError):
            asked.result()


async def test_an_agent_that_waits_outlives_the_closing_of_the_node_that_it_connects_to(board: Blackboard) -> None:
    [node] = await board.store._topology.nodes()
    held = asyncio.Event()

    def slow_wire(make):  # type: ignore[no-untyped-def]
        def wire():  # type: ignore[no-untyped-def]
            made = make()
            connect = made._connect

            async def slow():  # type: ignore[no-untyped-def]
                held.set()
                await asyncio.sleep(0.3)
                return await connect()

            made._connect = slow
            return made

        return wire

    node._wire = slow_wire(node._wire)  # type: ignore[method-assign]
    waiting = asyncio.create_task(board.claims.wait(a_request(board)))
    await in_time(held.wait(), 2)
    await node.close()  # as the topology does with a server that was left, while others still connect to it
    await asyncio.sleep(0.1)

    await board.submit(Submission(id="a", section="jobs", payload={}))

    assert [each.item.id for each in await in_time(waiting, 5)] == ["a"]


async def test_a_lent_wire_notices_a_silent_server_in_the_time_of_its_present_call(store: Store) -> None:
    [node] = await store._topology.nodes()
    with node.blocking() as wire:
        await wire.ask_all([("PING",)], within_s=30.0)
        asked = asyncio.create_task(wire.ask_all([("BLPOP", "never", 4)], within_s=0.2))
        done, _ = await asyncio.wait({asked}, timeout=2.0)

        assert done
        [answer] = asked.result()
        assert isinstance(answer, refused.TimeoutError)


async def test_a_lent_wire_whose_user_went_away_as_it_connected_leaves_no_connection(
    store: Store, connect: Connect
) -> None:
    other = await connect(store.url)

    async def clients() -> int:
        return int((await store.info())["connected_clients"])

    await other.command("PING")
    before = await clients()
    for _ in range(5):
        popping = asyncio.create_task(other.pop(["never"], 5.0))
        for _ in range(3):
            await asyncio.sleep(0)
        popping.cancel()
        await asyncio.gather(popping, return_exceptions=True)
    await asyncio.sleep(0.3)

    assert await clients() == before


async def test_a_claim_that_failed_in_a_way_that_nobody_foresaw_does_not_fail_those_who_come_later(
    board: Blackboard,
) -> None:
    room = board.claims._room
    ask = room._ask

    async def broken(requests: object, after: object) -> object:
        if after is None:
            return await ask(requests, after)  # type: ignore[arg-type]
        raise ZeroDivisionError("a bug")

    room._ask = broken  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        await in_time(board.claims.wait(a_request(board)), 2)
    room._ask = ask
    waiting = asyncio.create_task(board.claims.wait(a_request(board)))
    await asyncio.sleep(0.2)
    await board.submit(Submission(id="a", section="jobs", payload={}))

    assert [each.item.id for each in await in_time(waiting, 2)] == ["a"]


async def test_who_waits_for_an_arrival_is_told_when_the_log_can_not_be_read(board: Blackboard) -> None:
    await given_claim(board)
    waiting = asyncio.create_task(board.wait_for("a"))

    async def blocked() -> bool:
        return int((await board.store.info())["blocked_clients"]) >= 1

    await until(blocked)
    await board.store.command("RENAME", board.keys.events, board.keys.events + ":kept")
    await board.store.command("SET", board.keys.events, "no stream")
    done, _ = await asyncio.wait({waiting}, timeout=8)
    await board.store.command("DEL", board.keys.events)
    await board.store.command("RENAME", board.keys.events + ":kept", board.keys.events)

    assert done, "it waits for ever"
    assert waiting.exception() is not None


async def test_an_arrival_is_seen_though_the_log_went_back_behind_what_was_read(board: Blackboard) -> None:
    """As after a failover to a replica that lacks the last entries, and whose clock is behind."""
    claim = (await given_claim(board)).claim
    kept = await board.store.command("DUMP", board.keys.events)
    waiting = asyncio.create_task(board.wait_for("a"))

    async def blocked() -> bool:
        return int((await board.store.info())["blocked_clients"]) >= 1

    await until(blocked)
    last = (await board.store.command("XREVRANGE", board.keys.events, "+", "-", "COUNT", 1))[0]
    seconds = int(last[0].split(b"-")[0]) + 20_000
    words = [each for pair in last[1].items() for each in pair] if isinstance(last[1], dict) else last[1]
    await board.store.command("XADD", board.keys.events, f"{seconds}-0", *words)  # read, and then lost
    await asyncio.sleep(0.2)
    [node] = await board.store._topology.nodes()
    await board.store.command("RESTORE", board.keys.events, 0, kept, "REPLACE")
    node.sever()  # the failover
    await asyncio.sleep(0.5)

    await board.complete(claim)

    assert (await in_time(waiting, 8)).status == "done"


async def test_a_waiter_that_is_cancelled_twice_still_ends_the_claim_that_waits_for_it(board: Blackboard) -> None:
    waiting = asyncio.create_task(board.claims.wait(a_request(board)))

    async def blocked() -> bool:
        return int((await board.store.info())["blocked_clients"]) >= 1

    await until(blocked)
    [queue] = board.claims._room._queues.values()
    [node] = await board.store._topology.nodes()
    await node.commands.connection_pool.disconnect()  # the bell is rung on a connection that has to be made first
    waiting.cancel()
    await asyncio.sleep(0)
    waiting.cancel()  # as a worker does: when it is told to stop, and again when it drains
    await asyncio.gather(waiting, return_exceptions=True)

    await until(lambda: queue.claim is None, 2.0)


@pytest.mark.unaudited
async def test_parts_of_a_submission_stand_in_their_order_at_level_replica(board: Blackboard) -> None:
    """Calls that wait for replicas go down connections of their own; here nobody waits, to need no replica."""
    store = board.store
    store.replicas = 1
    store._proof = lambda copied: [("PING",), ("WAIT", 0, 1)] if copied else []  # type: ignore[method-assign]
    store._judge = lambda answers, copied: None  # type: ignore[method-assign]
    large, small = {"text": "x" * 20_000}, {}
    many = [Submission(id=f"{n:04}", section="jobs", payload=large if n < 500 else small) for n in range(1000)]

    assert all(await board.submit(*many))

    store.replicas = 0
    ids = await store.command("ZRANGE", board.keys.lane("jobs/waiting/").line, 0, -1)
    assert [each.decode() for each in ids] == [each.id for each in many]
