"""A master, two replicas, three sentinels: what an answered call outlives, at each level of durability (F13, F14)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from group_lab import RECOVERY_S, ROUNDS, SEED, Fate, Load, check, fate_of, report
from lab import until

from swarm_infrastructure.errors import ClaimLostError, StoreUnavailableError
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import SentinelGroup

pytestmark = pytest.mark.timeout(1800)
LOAD_S = 0.7
PARTED_S = 1.5  # for which clients go on with a master that nobody follows any more, after another was chosen


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--redis-kind")).replace("redis-cluster", "redis").replace("cluster", "valkey")


async def loads(group: SentinelGroup, stack: AsyncExitStack) -> dict[str, Load]:
    """Workers on a board at each level of durability, all on the same master."""
    found: dict[str, Load] = {}
    for level in ("local", "replica"):
        store = await stack.enter_async_context(Store(group.url, timeout_s=1.0, durability=level))  # type: ignore[arg-type]
        found[level] = await stack.enter_async_context(Load(store, f"{level}_{secrets.token_hex(3)}"))
        found[level].start()
    return found


async def fates(group: SentinelGroup, loads: dict[str, Load]) -> dict[str, Fate]:
    async with Store(group.url) as store:
        return {level: await fate_of(load, store) for level, load in loads.items()}


@pytest.mark.parametrize("parted", [False, True], ids=["killed", "parted"])
async def test_at_level_replica_nothing_that_was_answered_is_lost_with_the_master(kind: str, parted: bool) -> None:
    told: Counter[str] = Counter()
    silences: list[float] = []
    for _ in range(max(1, ROUNDS // 2)):
        with SentinelGroup(kind) as group:
            async with AsyncExitStack() as stack:
                at = await loads(group, stack)
                await asyncio.sleep(LOAD_S)
                old, gone_at = group.master(), time.monotonic()
                if parted:
                    await asyncio.to_thread(group.isolate, old)
                else:
                    old.kill()
                await asyncio.to_thread(group.wait_for_failover, old)
                if parted:
                    await asyncio.sleep(PARTED_S)
                    await asyncio.to_thread(group.join, old)
                back_at = time.monotonic()
                for load in at.values():
                    await until(lambda load=load, since=back_at: load.answered_since(since), "work on the new master")
                await asyncio.sleep(LOAD_S)
                for load in at.values():
                    await load.stop()
                    silences.append(load.silence_s(gone_at))
                found = await fates(group, at)
        assert found["replica"].lost == 0, f"{found} (seed {SEED})"
        assert found["replica"].completed_twice == found["replica"].claims_twice == 0
        for level, load in at.items():
            told[f"answered_at_{level}"] += len(load.completed) + len(load.submitted) + len(load.settled)
            told[f"lost_at_{level}"] += found[level].lost
            told[f"completed_twice_at_{level}"] += found[level].completed_twice
            told["unanswered_calls"] += load.unanswered
    assert max(silences) <= RECOVERY_S, f"{silences} (seed {SEED})"
    how = "parted" if parted else "killed"
    report(
        f"master {how}, SWARM_DURABILITY=replica", fault="F13", server=kind, n=told["answered_at_replica"],
        lost=told["lost_at_replica"], accepted_twice=told["completed_twice_at_replica"],
        recovery_max_s=round(max(silences), 3), unanswered_calls=told["unanswered_calls"],
    )  # fmt: skip
    report(
        f"master {how}, SWARM_DURABILITY=local", fault="F13", server=kind, n=told["answered_at_local"],
        lost=told["lost_at_local"], accepted_twice=told["completed_twice_at_local"],
    )  # fmt: skip


async def test_a_failover_that_forgets_claims_gives_out_no_token_again(kind: str) -> None:
    refused = after = 0
    for _ in range(max(1, ROUNDS // 2)):
        with SentinelGroup(kind) as group:
            sure = Store(group.url, timeout_s=2.0, durability="replica", replicas=2)
            async with sure, Store(group.url, timeout_s=1.0) as store, Load(store, "f14") as load:
                async with Load(sure, "f14") as heard:
                    await heard.submit(*(f"item_{n}" for n in range(20)))
                    held = await heard.claim("holder", most=4, lease_s=60)
                old = group.master()
                await asyncio.to_thread(group.isolate, old, sentinels=False)  # none of what follows reaches a replica
                forgotten = await load.claim("forgotten", most=8)
                for n in range(20):
                    await load.round(f"unheard_{n}")
                last = max(token for _, token in load.claimed)
                old.kill()
                await asyncio.to_thread(group.wait_for_failover, old)

                again = await load.claim("next", most=20)
                assert {claim.item_id for claim in forgotten} <= {claim.item_id for claim in again}
                assert min(claim.token for claim in again) > last, f"seed {SEED}"
                assert all(await load.board.claims.renew(forgotten))  # a reason for each: its holder is told to stop
                for claim in forgotten:
                    with pytest.raises(ClaimLostError):
                        await load.board.complete(claim)
                for claim in [*held, *again]:  # the replicas had heard of those that are held
                    await load.complete(claim)
                assert load.refused == 0
                await check(store, "f14")
                refused, after = refused + len(forgotten), after + len(again)
    report("failover that forgets claims", fault="F14", server=kind, n=after, tokens_not_above_the_last=0,
           stale_endings_refused=refused)  # fmt: skip


async def test_a_master_that_must_have_replicas_takes_in_nothing_without_them(kind: str) -> None:
    with SentinelGroup(kind, options={"min-replicas-to-write": "1", "min-replicas-max-lag": "2"}) as group:
        master = group.master()
        async with (
            Store(group.url_of(master), timeout_s=0.5, retry_s=0.5) as store,
            Load(store, "m") as load,
        ):
            await load.round("with_replicas")
            await asyncio.to_thread(group.isolate, master)
            with pytest.raises(StoreUnavailableError, match="NOREPLICAS"):
                await load.round("without")
