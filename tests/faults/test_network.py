"""What is done to the network between workers and Redis: replies lost, partitions, silence (F11, F12)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from importlib.resources import files

import pytest
from arena import LEASE_S, LONG, SEED, SLACK_S, Arena, spread
from every_function import do_everything, left_in_redis
from lab import until
from proxy import BEFORE, MIDDLE, Fate, Proxy

from swarm_infrastructure.store import Store

pytestmark = pytest.mark.timeout(1800)
FUNCTIONS = {
    each.name.removesuffix(".lua")
    for each in (files("swarm_infrastructure.store") / "lua").iterdir()
    if each.name.endswith(".lua")
}
STORE_TIMEOUT_S = 1.0
# Asked alone, without a reservation, a pace counts a repeated question twice: that slows down, and lets nothing over a limit.
COUNTED_TWICE = {"admit"}
AT_LEVEL_REPLICA = {"mark"}  # writes the same again, beside calls whose replies are lost here
LOSING = FUNCTIONS - COUNTED_TWICE - AT_LEVEL_REPLICA


async def test_no_function_has_an_effect_twice_when_its_reply_is_lost(arena: Arena) -> None:
    lost: Counter[str] = Counter()
    rounds = 20 if LONG else 2
    with Proxy(arena.server.socket) as proxy:
        async with Store(proxy.url) as store:
            await store.command("PING")
            for n in range(rounds):
                asked: Counter[str] = Counter()

                def fate(name: str, asked: Counter[str] = asked, when: str = (BEFORE, MIDDLE)[n % 2]) -> Fate:
                    asked[name] += 1
                    if name not in LOSING or asked[name] % 2 == 0:  # the repetition gets through
                        return None
                    lost[name] += 1
                    return when

                proxy.fate = fate
                await do_everything(store, f"lossy{n:03}")
                await do_everything(arena.store, f"plain{n:03}")
                found = await left_in_redis(arena.store, f"lossy{n:03}")
                needed = await left_in_redis(arena.store, f"plain{n:03}")
                assert found.keys() == needed.keys()
                for key, value in found.items():
                    assert value == needed[key], f"{key.decode()} (round {n}, seed {SEED})"
    assert set(lost) == LOSING  # each function was tried
    assert sum(lost.values()) >= (1000 if LONG else 80)
    await arena.check()
    arena.report(
        "reply lost after execution, every function", fault="F11", n=sum(lost.values()), functions=len(lost),
        double_effects=0, rounds=rounds,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_worker_that_is_cut_off_loses_its_items_and_no_stale_completion_is_accepted(
    arena: Arena, how: str
) -> None:
    recoveries: list[float] = []
    noticed: list[float] = []
    backs: list[float] = []
    every: list[str] = []
    with Proxy(arena.server.socket) as proxy:
        far = await arena.start(1, REDIS_URL=proxy.url, SWARM_STORE_TIMEOUT_S=str(STORE_TIMEOUT_S))
        for leases in (0.5, 1.0, 3.0):
            ids = await arena.submit(*({"do": "sleep", "s": LEASE_S, "once_crashed_s": 0.05} for _ in range(4)))
            every += ids
            await until(lambda ids=ids: len(arena.started(ids)) == 4, "four starts, far away")
            near = await arena.start(1)
            cut_at = time.time()
            if how == "cut":
                proxy.close()
            else:
                proxy.silent = True
            await asyncio.sleep(LEASE_S * leases)
            if how == "cut":
                proxy.open()
            else:
                proxy.silent = False
            healed_at = time.time()
            await until(lambda ids=ids: arena.done(ids), "all items done")
            starts = [line for line in arena.ledger.lines("start") if line["item"] in ids]
            recoveries += [line["at"] - cut_at for line in starts if line["pid"] == near.pid]
            noticed += [
                line["at"] - cut_at for line in arena.ledger.lines("cancelled") if line["item"] in ids and line["why"]
            ]
            near.terminate()
            await asyncio.to_thread(near.wait)
            more = await arena.submit(*({"do": "sleep", "s": 0.0} for _ in range(4)))
            every += more
            await until(lambda more=more: arena.done(more), "the far one works again")
            first = min(line["at"] for line in arena.ledger.lines("start") if line["item"] in more)
            backs.append(first - healed_at)
        assert far.poll() is None
        refused = len(arena.ledger.lines("refused"))
    await arena.account(every)
    assert all(s <= LEASE_S + SLACK_S for s in recoveries), f"{recoveries} (seed {SEED})"
    assert all(s <= LEASE_S for s in noticed), f"{noticed} (seed {SEED})"  # its handlers stop before others may begin
    assert noticed
    arena.report(
        f"partition of 0.5, 1 and 3 leases, {how}", fault="F12", **arena.tally(every), refused=refused,
        detection_max_s=round(max(noticed), 3), at_work_again_max_s=round(max(backs), 3), **spread(recoveries),
    )  # fmt: skip
