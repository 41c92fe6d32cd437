"""A cluster of three primaries with a replica each: a board on one slot outlives what happens to its servers (F15)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from group_lab import RECOVERY_S, ROUNDS, SEED, Load, fate_of, report
from lab import until

from swarm_infrastructure.message_bus import Hub, Message
from swarm_infrastructure.store import LIBRARY, Store
from swarm_infrastructure.testing import RedisCluster, RedisServer

pytestmark = pytest.mark.timeout(1800)
LOAD_S = 0.5


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    kind = str(request.config.getoption("--redis-kind"))
    kind = {"cluster": "valkey", "redis-cluster": "redis"}.get(kind, kind)
    with RedisCluster(kind, replicas=1, persist=True) as cluster:
        yield cluster


def others(cluster: RedisCluster, not_this: RedisServer) -> list[RedisServer]:
    return [each for each in cluster.primaries if each is not not_this and each.running]


async def test_a_node_without_the_library_is_given_it_by_the_first_call(cluster: RedisCluster) -> None:
    async with Store(cluster.url) as store, Load(store, "bare") as load:
        await load.round("before")
        for server in cluster.primaries:
            cluster.ask(server, "FUNCTION", "DELETE", LIBRARY)
        cluster.ask(others(cluster, cluster.owner(load.board.keys.items))[0], "FUNCTION", "FLUSH")

        await load.round("after")

        for server in cluster.primaries:
            assert cluster.ask(server, "FUNCTION", "LIST", "LIBRARYNAME", LIBRARY)
        assert (await fate_of(load, store)).lost == 0
    report("cluster: library missing on its primaries", fault="F15", n=2, server=cluster.kind, lost=0)


async def test_a_slot_that_moves_under_load_loses_nothing(cluster: RedisCluster) -> None:
    moves, silences, answered = 0, list[float](), 0
    async with Store(cluster.url) as store, Load(store, "moved") as load:
        hub, heard = Hub(store, "moved"), list[str]()
        await hub.listen(["news"], lambda told: heard.append(told.message.payload["n"]))
        bus_slot, slot = cluster.slot(hub.keys.numbers), cluster.slot(load.board.keys.items)
        load.start()
        for number in range(ROUNDS):
            await asyncio.sleep(LOAD_S)
            since = time.monotonic()
            for each in (slot, bus_slot):
                key = load.board.keys.items if each == slot else hub.keys.numbers
                source = cluster.owner(key)
                await asyncio.to_thread(cluster.move, each, source, others(cluster, source)[0])
            moves += 2
            back_at = time.monotonic()
            await until(lambda since=back_at: load.answered_since(since), "work on the other primary")
            silences.append(load.silence_s(since))
            await hub.publish("news", Message(type="note", sender="lab", payload={"n": number}))
        await until(lambda: len(heard) >= ROUNDS, "messages")
        await load.stop()
        await hub.close()
        answered = len(load.completed) + len(load.submitted) + len(load.settled)
        fate = await fate_of(load, store)
    assert (fate.lost, fate.completed_twice, fate.claims_twice) == (0, 0, 0), f"{fate} (seed {SEED})"
    assert heard == list(range(ROUNDS))
    assert max(silences) <= RECOVERY_S
    report("cluster: slots moved under load", fault="F15", server=cluster.kind, n=answered, lost=0, accepted_twice=0, moves=moves,
           unanswered_calls=load.unanswered, recovery_max_s=round(max(silences), 3))  # fmt: skip


async def test_a_killed_primary_is_replaced_and_at_level_replica_nothing_is_lost(cluster: RedisCluster) -> None:
    local, sure = Store(cluster.url, timeout_s=1.0), Store(cluster.url, timeout_s=1.0, durability="replica")
    async with local, sure, Load(sure, "killed") as load, Load(local, "killed_too") as other:
        victim, slot = cluster.owner(load.board.keys.items), cluster.slot(other.board.keys.items)
        if (source := cluster.owner(other.board.keys.items)) is not victim:  # both boards are to lose their primary
            await asyncio.to_thread(cluster.move, slot, source, victim)
        load.start(4)
        other.start(4)
        await asyncio.sleep(LOAD_S)
        gone_at = time.monotonic()
        victim.kill()
        await until(lambda: other.answered_since(gone_at + 0.5), "work on the replica that took its place")
        back_at = time.monotonic()
        victim.restart()  # now it is a replica: without one, level replica answers nothing
        await until(lambda: load.answered_since(back_at), "answers that two servers have")
        await asyncio.sleep(LOAD_S)
        for each in (load, other):
            await each.stop()
        silence_s, fate, fate_of_other = (
            other.silence_s(gone_at),
            await fate_of(load, sure),
            await fate_of(other, local),
        )
    assert (fate.lost, fate.completed_twice, fate.claims_twice) == (0, 0, 0), f"{fate} (seed {SEED})"
    assert silence_s <= RECOVERY_S
    report("cluster: primary killed", fault="F15", server=cluster.kind, lost=0, accepted_twice=0,
           n=len(load.completed) + len(load.submitted) + len(load.settled), lost_at_local=fate_of_other.lost,
           unanswered_calls=load.unanswered + other.unanswered, recovery_max_s=round(silence_s, 3))  # fmt: skip
