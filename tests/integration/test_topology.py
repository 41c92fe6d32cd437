"""Where a key is: one server, the master that sentinels name, the primary of a slot; and what is said when that can't be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from given import given_claim, given_item, in_time, until

from swarm_infrastructure.blackboard import Blackboard, job_board
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.blackboard.queries import list_boards
from swarm_infrastructure.errors import ServerUnfitError, StoreUnavailableError
from swarm_infrastructure.message_bus import Hub, Message
from swarm_infrastructure.store import Store, assemble
from swarm_infrastructure.store.nodes import ask_once
from swarm_infrastructure.testing import RedisCluster, RedisServer, SentinelGroup
from swarm_infrastructure.testing.redis_groups import free_ports


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    kind = str(request.config.getoption("--redis-kind"))
    return {"cluster": "valkey", "redis-cluster": "redis"}.get(kind, kind)


@pytest.fixture(scope="module")
def cluster(kind: str) -> Iterator[RedisCluster]:
    with RedisCluster(kind) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def group(kind: str) -> Iterator[SentinelGroup]:
    with SentinelGroup(kind, replicas=1, sentinels=1, down_after_ms=500) as group:
        yield group


# --- a cluster --------------------------------------------------------------------------------------------------------


async def test_boards_spread_over_a_cluster_and_are_found_and_audited(cluster: RedisCluster) -> None:
    async with Store(cluster.url) as store:
        names = [f"jobs_{n}" for n in range(12)]
        for name in names:
            async with Blackboard(store, job_board(name), namespace="spread") as board:
                claimed = await given_claim(board)
                await board.complete(claimed.claim)
            assert (await audit(store, "spread", name)).clean

        owners = {cluster.owner(f"swarm:{{spread:{name}}}:items").port for name in names}
        assert len(owners) == 3
        assert await list_boards(store, "spread") == sorted(names)
        assert len({key async for key in store.scan("swarm:{spread:*}:board")}) == len(names)
        assert {key async for key in store.scan("swarm:{spread:jobs_3}:boar?")} == {b"swarm:{spread:jobs_3}:board"}


async def test_a_command_without_a_key_goes_to_every_primary(cluster: RedisCluster) -> None:
    async with Store(cluster.url) as store:
        await store.command("FLUSHALL")
        for name in "abcdef":
            await store.command("SET", f"swarm:{{x:{name}}}:y", "1")

        assert await store.command("DBSIZE") == 6
        assert len(await store.command("KEYS", "*")) == 6
        assert len(await store.info_of_each()) == 3


async def test_every_primary_has_the_library_and_a_foreign_build_on_one_is_seen(cluster: RedisCluster) -> None:
    foreign = assemble(lambda name, text: text + "\n")
    async with Store(cluster.url) as store:
        assert await store.library_digest() == assemble().digest
        ask_once(cluster.primaries[2].url, "FUNCTION", "LOAD", "REPLACE", foreign.source)
        assert await store.library_digest() == foreign.digest
        await store.load_library(replace=True)
        assert await store.library_digest() == assemble().digest


async def test_a_slot_that_has_moved_is_followed_without_a_pause(cluster: RedisCluster) -> None:
    async with Store(cluster.url) as store, Blackboard(store, job_board("jobs"), namespace="moves") as board:
        await given_item(board)
        source = cluster.owner(board.keys.items)
        target = next(each for each in cluster.primaries if each is not source)
        cluster.move(cluster.slot(board.keys.items), source, target)

        await given_item(board, "b")

        assert store.disruptions == 0
        assert cluster.owner(board.keys.items) is target
        assert (await board.get("a")).id == "a"


async def test_one_node_of_a_cluster_is_no_server_for_a_board(cluster: RedisCluster) -> None:
    elsewhere = next(each for each in cluster.primaries if each is not cluster.owner("swarm:{n:jobs}:board"))

    with pytest.raises(
        ServerUnfitError, match=r"found a cluster, needed a URL that says so; set REDIS_URL=redis\+cluster"
    ):
        async with (
            Store(f"redis://127.0.0.1:{elsewhere.port}") as store,
            Blackboard(store, job_board("jobs"), namespace="n"),
        ):
            pytest.fail("its slot is elsewhere")


async def test_a_server_alone_is_no_cluster(kind: str) -> None:
    [port] = free_ports(1)
    with RedisServer(kind, port=port):
        with pytest.raises(ServerUnfitError, match="without a cluster"):
            await in_time(Store(f"redis+cluster://127.0.0.1:{port}", retry_s=0).__aenter__())


# --- sentinels --------------------------------------------------------------------------------------------------------


async def test_a_master_that_no_sentinel_knows_is_named(group: SentinelGroup) -> None:
    with pytest.raises(StoreUnavailableError, match="No master found for 'other'"):
        await Store(group.url.replace("/main", "/other"), retry_s=0).__aenter__()


async def test_sentinels_that_are_not_there_are_given_up_in_time() -> None:
    with pytest.raises(StoreUnavailableError, match="No master found"):
        await in_time(Store("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main", retry_s=0.2).__aenter__())


async def test_work_messages_and_doorbells_follow_the_master(group: SentinelGroup) -> None:
    async with (
        Store(group.url, timeout_s=1.0) as store,
        Blackboard(store, job_board("jobs"), namespace="follow") as board,
    ):
        hub, heard = Hub(store, "follow"), list[int]()
        await hub.listen(["news"], lambda told: heard.append(told.message.payload["n"]))
        await given_item(board)
        await until(lambda: group.replicas_of(group.servers[0]) == 1)
        old = group.master()
        old.kill()
        group.wait_for_failover(old)

        await given_item(board, "b")
        assert (await board.get("a")).id == "a"  # the replica had heard of it
        bell = board.keys.lane("jobs/waiting/").bell
        await store.command("LPUSH", bell, "1")
        assert await store.pop([bell], 2.0) == (bell, b"1")
        # it may not be listening again yet: what is published meanwhile is a hint that was lost
        for n in range(1000):
            await hub.publish("news", Message(type="note", sender="test", payload={"n": n}))
            if heard:
                break
        await until(lambda: heard)
        await hub.close()
