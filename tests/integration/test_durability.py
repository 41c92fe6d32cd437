"""Declared durability: what a server must keep, and what replicas must have before a call is answered."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from given import Tape, given_claim, given_item, in_time

from swarm_infrastructure.blackboard import Blackboard, job_board
from swarm_infrastructure.errors import SectionFullError, ServerUnfitError, StoreUnavailableError
from swarm_infrastructure.keys import mark_beside
from swarm_infrastructure.store import Store, assemble
from swarm_infrastructure.testing import RedisServer, SentinelGroup


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--redis-kind"))


@pytest.fixture(scope="module")
def group(request: pytest.FixtureRequest) -> Iterator[SentinelGroup]:
    """A master with one replica; its failover is for other tests."""
    kind = str(request.config.getoption("--redis-kind"))
    with SentinelGroup(kind, replicas=1, sentinels=1, down_after_ms=60_000) as group:
        yield group


@pytest.fixture
async def sure(group: SentinelGroup) -> AsyncIterator[Blackboard]:
    """A board whose calls are answered when the replica has them."""
    store = Store(
        group.url, durability="replica", timeout_s=1.0
    )  # a replica that stood still may have to catch up first
    async with store:
        await store.command("FLUSHALL")
        async with Blackboard(store, job_board("jobs"), namespace="test") as board:
            store.retry_s = 0
            yield board


@asynccontextmanager
async def away(group: SentinelGroup) -> AsyncIterator[None]:
    """The replica stands still."""
    replica = group.servers[1]
    replica.freeze()
    try:
        yield
    finally:
        replica.thaw()


# --- what a server must keep ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["local", "replica"])
async def test_a_server_without_an_append_only_file_is_refused_where_durability_is_declared(
    kind: str, level: Any
) -> None:
    with RedisServer(kind) as server:
        with pytest.raises(
            ServerUnfitError, match=rf"appendonly yes, for SWARM_DURABILITY={level}; .*CONFIG SET"
        ) as error:
            async with Store(server.url, durability=level):
                pytest.fail("it keeps nothing")
        assert error.value.found.startswith("appendonly no")
        async with Store(server.url) as store:
            assert not store.appends  # taken as it is, and whoever asks is told


@pytest.mark.parametrize("level", ["local", None])
async def test_a_server_with_one_is_taken(kind: str, level: Any) -> None:
    with RedisServer(kind, persist=True) as server:
        async with (
            Store(server.url, durability=level) as store,
            Blackboard(store, job_board("jobs"), namespace="n") as board,
        ):
            await given_item(board)
            assert store.appends
            assert await store.command("EXISTS", mark_beside(board.keys.items)) == 0  # no replica is waited for


# --- what replicas must have ------------------------------------------------------------------------------------------


async def test_a_call_that_writes_is_answered_when_the_replica_has_it(sure: Blackboard, group: SentinelGroup) -> None:
    claimed = await given_claim(sure)
    await sure.complete(claimed.claim)

    async with Store(group.url_of(group.servers[1])) as replica:
        reader = Blackboard(replica, sure.board, namespace="test")
        assert (await reader.get("a")).status == "done"


async def test_without_the_replica_no_call_that_writes_is_answered(sure: Blackboard, group: SentinelGroup) -> None:
    claim = (await given_claim(sure)).claim
    async with away(group):
        for call in (
            given_item(sure, "b"),
            sure.complete(claim),
            sure.claims.renew([claim]),
            sure.store.command("HSET", sure.keys.gates, "agent:x", "paused"),
            sure.store.commands(("HSET", sure.keys.gates, "agent:y", "paused"), ("HGETALL", sure.keys.gates)),
        ):
            with pytest.raises(StoreUnavailableError, match=r"0 of 1 replicas have the call \(SWARM_REPLICAS\)"):
                await call


async def test_a_repeated_call_is_not_confirmed_for_nothing(sure: Blackboard, group: SentinelGroup) -> None:
    tape = Tape(sure.store)
    await given_item(sure)
    call = tape.last("submit")
    async with away(group):
        await group_lags(sure)
        for _ in range(3):  # each on a connection that has written nothing
            await (await sure.store._topology.node(None)).commands.connection_pool.disconnect()
            with pytest.raises(StoreUnavailableError, match="0 of 1"):
                await tape.again(call)
    assert await in_time(tape.again(call)) == call.answer


async def group_lags(board: Blackboard) -> None:
    """Something is written that the replica has not: what a master that is about to be lost looks like."""
    await board.store.command("SET", "swarm:{test:jobs}:elsewhere", "1", once=True)


async def test_what_only_reads_waits_for_nobody(sure: Blackboard, group: SentinelGroup) -> None:
    await given_item(sure)
    async with away(group):
        await group_lags(sure)
        assert (await sure.get("a")).status == "waiting"
        assert await sure.store.command("HLEN", sure.keys.items) == 1
        assert await sure.store.commands(("HLEN", sure.keys.items), ("GET", sure.keys.seq)) == [1, b"1"]
        assert [item.id for item in await sure.queries.by_status("jobs", "waiting")] == ["a"]


async def test_a_replica_that_comes_back_in_time_costs_nothing(group: SentinelGroup, sure: Blackboard) -> None:
    async with Store(group.url, durability="replica", timeout_s=0.4, retry_s=20) as store:
        board = Blackboard(store, sure.board, namespace="test")
        async with away(group):
            submitting = asyncio.create_task(given_item(board))
            while not store.disruptions:
                await asyncio.sleep(0.01)
            assert not submitting.done()
        assert (await in_time(submitting, 10)).id == "a"


async def test_more_replicas_than_there_are_is_said(group: SentinelGroup) -> None:
    async with Store(group.url, durability="replica", replicas=2, timeout_s=1.0, retry_s=0) as store:
        with pytest.raises(StoreUnavailableError, match="1 of 2 replicas have the call"):
            async with Blackboard(store, job_board("jobs"), namespace="many"):
                pytest.fail("there is one replica")


async def test_answers_have_the_same_shape_with_and_without_replicas(sure: Blackboard, group: SentinelGroup) -> None:
    many = (
        ("HSET", "swarm:{test:jobs}:h", "a", "1"), ("HGETALL", "swarm:{test:jobs}:h"), ("EXISTS", "swarm:{test:jobs}:h"),
        ("ZADD", "swarm:{test:jobs}:z", 1.5, "m"), ("ZRANGE", "swarm:{test:jobs}:z", 0, -1, "WITHSCORES"), ("TIME",),
        ("XADD", "swarm:{test:jobs}:x", "1-1", "f", "v"), ("XRANGE", "swarm:{test:jobs}:x", "-", "+"),
        ("DEL", "swarm:{test:jobs}:h", "swarm:{test:jobs}:z", "swarm:{test:jobs}:x"),
    )  # fmt: skip
    async with Store(group.url) as plain:
        without, with_them = await plain.commands(*many), await sure.store.commands(*many)
        singly = [await sure.store.command(*parts) for parts in many]
    without[5] = with_them[5] = singly[5] = None  # the time
    assert with_them == without == singly


async def test_without_memory_what_drains_is_still_confirmed(sure: Blackboard) -> None:
    claim = (await given_claim(sure)).claim
    [used] = [int(facts["used_memory"]) for facts in (await sure.store.info_of_each()).values()]
    try:
        await sure.store.command("CONFIG", "SET", "maxmemory", used // 2)
        with pytest.raises(SectionFullError):
            await given_item(sure, "b")
        await sure.complete(claim)
    finally:
        await sure.store.command("CONFIG", "SET", "maxmemory", 0)
    assert (await sure.get("a")).status == "done"


# --- the doctor -------------------------------------------------------------------------------------------------------


async def examine(url: str, **variables: str) -> tuple[int, dict[str, Any]]:
    """What ``swarm doctor`` says of the durability of the Redis at *url*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SWARM_", "REDIS_"))}
    doctor = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "swarm_infrastructure", "doctor", "-o", "json",
        env=kept | {"REDIS_URL": url} | variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await doctor.communicate()
    [found] = [check for check in json.loads(out) if check["check"] == "durability"]
    return doctor.returncode or 0, found


@pytest.mark.parametrize(
    ("level", "replicas", "state", "said"),
    [
        ("", "1", "ok", "none declared"),
        ("local", "1", "ok", "outlive a killed Redis"),
        ("replica", "1", "warn", "with 1 of 1 replicas"),  # nothing makes that master refuse without its replica
        ("replica", "2", "fail", "1 of 2 replicas follow it"),
    ],
)
async def test_the_doctor_shows_the_level_and_whether_the_server_keeps_it(
    group: SentinelGroup, sure: Blackboard, level: str, replicas: str, state: str, said: str
) -> None:
    code, found = await examine(group.url, SWARM_DURABILITY=level, SWARM_REPLICAS=replicas)

    assert (found["state"], said in found["found"]) == (state, True), found
    assert code == (3 if state == "fail" else 0)
    assert ("min-replicas-to-write 1" in found["step"]) == (state == "warn")


async def test_the_doctor_names_a_level_that_a_server_without_a_file_can_not_keep(kind: str) -> None:
    with RedisServer(kind) as server:
        code, found = await examine(server.url, SWARM_DURABILITY="local")

    assert (code, found["state"]) == (3, "fail")
    assert "appendonly yes" in found["step"]


def test_what_writes_nothing_is_known_from_the_lua() -> None:
    readers = assemble().readers
    assert readers >= {"digest", "list_debates", "query", "read_arrived", "read_items"}
    assert not readers & {"submit", "claim", "renew", "end_claims", "reserve", "settle", "mark"}
