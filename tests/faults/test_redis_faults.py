"""What is done to Redis while real workers work: killed, paused, cut off, out of memory (F5, F7, F8, F10, F25)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import quantiles

import pytest
from arena import LEASE_S, LONG, PATIENCE_S, SEED, SLACK_S, Arena, spread
from lab import until
from proxy import Proxy

from swarm_infrastructure.errors import SectionFullError
from swarm_infrastructure.store import Store

pytestmark = pytest.mark.timeout(1800)
BACK_AT_WORK_S = 2.0  # after Redis takes commands again
POLL_S = LEASE_S / 2  # how long an idle agent trusts the doorbell, at the most


@asynccontextmanager
async def again_and_again(arena: Arena, every_s: float, *commands: tuple[str, ...]) -> AsyncIterator[list[int]]:
    """Send *commands* all the time, over a connection of their own; what they answered."""
    told, ended = list[int](), asyncio.Event()

    async def send() -> None:
        async with Store(arena.server.url) as store:
            while not ended.is_set():
                for command in commands:
                    told.append(int(await store.command(*command)))
                await asyncio.sleep(every_s)

    sending = asyncio.create_task(send())
    try:
        yield told
    finally:
        ended.set()
        await sending


@pytest.mark.parametrize(
    ("fsync", "items", "down_s"),
    [
        ("everysec", 400, 2.0),
        ("always", 400, 2.0),
        *([("everysec", 400, 30.0), ("always", 400, 30.0), ("everysec", 20_000, 2.0), ("always", 20_000, 2.0)] if LONG else []),
    ],
)  # fmt: skip
async def test_workers_outlive_a_killed_redis_and_finish(
    request: pytest.FixtureRequest, tmp_path: Path, fsync: str, items: int, down_s: float
) -> None:
    async with Arena(request.config.getoption("--redis-kind"), tmp_path, options={"appendfsync": fsync}) as arena:
        swarm = await arena.start(2, "--slots", "16")
        workers = arena.workers(swarm)
        work_s = 0.05 if items <= 400 else 0.0
        ids = [
            each
            for _ in range(0, items, 400)
            for each in await arena.submit(*({"do": "sleep", "s": work_s} for _ in range(400)))
        ]
        await until(lambda: len(arena.ledger.lines("start")) > 20, "work")
        arena.server.kill()
        await asyncio.sleep(down_s)
        arena.server.restart()
        back_at = time.time()
        seen = len(arena.ledger.lines("start"))
        await until(lambda: len(arena.ledger.lines("start")) > seen, "the first claim after it came back")
        first_s = arena.ledger.lines("start")[seen]["at"] - back_at
        await until(lambda: _all_accepted(arena, ids), "all items done", within_s=PATIENCE_S * 4)
        assert first_s <= BACK_AT_WORK_S, f"{first_s:.2f} s (seed {SEED})"
        assert arena.workers(swarm) == workers  # nobody left, nobody was started again
        if items <= 400:
            await arena.account(ids)
        arena.check_accepted()
        await arena.check()
        arena.report(
            f"kill -9 Redis, {fsync}, down {down_s:g} s, {items} items", fault="F5", **arena.tally(ids), **spread([first_s])
        )  # fmt: skip


async def _all_accepted(arena: Arena, ids: list[str]) -> bool:
    return (await arena.board.queries.counts()).get("jobs/done/", 0) == len(ids)


async def test_connections_cut_all_the_time_lose_nothing(arena: Arena) -> None:
    await arena.start(2)
    ids: list[str] = []
    cut = (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("CLIENT", "KILL", "TYPE", "pubsub"))
    ends_at = time.monotonic() + (60 if LONG else 5)
    async with again_and_again(arena, 0.5, *cut) as cuts:
        while time.monotonic() < ends_at:
            ids += await arena.submit(*({"do": "sleep", "s": 0.03} for _ in range(20)))
            await asyncio.sleep(0.1)
        await until(lambda: arena.done(ids), "all items done")
    histories = await arena.account(ids)
    crashes = sum(event.kind == "lease_ended" for events in histories.values() for event in events)
    assert crashes == 0  # a broken connection is no crash
    assert sum(cuts) > 10
    arena.report("CLIENT KILL every 0.5 s", fault="F7", **arena.tally(ids), cuts=sum(cuts))


@pytest.mark.parametrize("what", ["WRITE", "ALL"])
async def test_a_paused_redis_steals_no_lease_that_lives(arena: Arena, what: str) -> None:
    await arena.start(2)
    every: list[str] = []
    recoveries: list[float] = []
    for leases in (0.5, 1.0, 2.0) if LONG else (0.5, 2.0):
        ids = await arena.submit(*({"do": "sleep", "s": arena.random.uniform(0.1, 1.0)} for _ in range(16)))
        every += ids
        await until(lambda ids=ids: arena.started(ids), "a start")
        async with Store(arena.server.url) as admin:
            await admin.command("CLIENT", "PAUSE", round(LEASE_S * leases * 1000), what)
        paused_at = time.time()
        await until(lambda ids=ids: arena.done(ids), "all items done")
        over_at = paused_at + LEASE_S * leases
        for each in ids:
            begun = [line["at"] for line in arena.ledger.lines("start") if line["item"] == each]
            recoveries += [at - over_at for at in begun[1:]]
    early = 0
    for events in (await arena.account(every)).values():
        for before, event in pairwise(events):
            early += event.kind == "lease_ended" and event.at_ms - before.at_ms < LEASE_S * 1000
    assert early == 0, f"a lease ended before its time (seed {SEED})"
    # the call that waited through the pause may have renewed a lease that its holder had given up by then
    assert all(s <= LEASE_S + SLACK_S for s in recoveries), f"{recoveries} (seed {SEED})"
    arena.report(f"CLIENT PAUSE {what}", fault="F8", **arena.tally(every), stolen=early, **spread(recoveries))


async def test_work_in_hand_is_completed_when_redis_is_out_of_memory(arena: Arena) -> None:
    held = 200
    swarm = await arena.start(1, "--slots", str(held))
    ids = await arena.submit(*({"do": "sleep", "s": 2.0} for _ in range(held)))
    await until(lambda: len(arena.started(ids)) == held, "200 items in hand")
    used = int((await arena.store.command("INFO", "memory"))["used_memory"])
    over = 64 * 1024
    await arena.store.command("CONFIG", "SET", "maxmemory", used + over)
    payload = {"do": "sleep", "s": 0, "text": "x" * 20_000}
    accepted: list[str] = []
    with pytest.raises(SectionFullError):
        for _ in range(200):
            accepted += await arena.submit(payload)
    peak = int((await arena.store.command("INFO", "memory"))["used_memory"]) - used - over
    await arena.store.command("CONFIG", "SET", "maxmemory", used // 2)  # so that what ends meanwhile makes no room
    refused = 0
    for _ in range(50):
        with pytest.raises(SectionFullError):
            await arena.submit(payload)
        refused += 1
    await until(lambda: arena.done(ids), "all that was in hand, done")
    assert not arena.ledger.lines("refused"), f"a completion was refused (seed {SEED})"
    await asyncio.sleep(LEASE_S)  # it has free hands now, and each claim is refused
    assert swarm.poll() is None
    await arena.store.command("CONFIG", "SET", "maxmemory", 0)
    await until(lambda: arena.done(accepted), "what was accepted before, once there is room")
    assert swarm.poll() is None
    await arena.account([*ids, *accepted])
    arena.report(
        "maxmemory with 200 items in hand", fault="F10", **arena.tally(ids), refused=0, submits_refused=refused,
        submits_over_cap=0, over_maxmemory_bytes=max(0, peak),
    )  # fmt: skip


async def test_with_every_hint_lost_items_are_claimed_within_the_poll(arena: Arena) -> None:
    """Pub/sub is cut all the time, and no doorbell is heard."""
    ids, told = list[str](), dict[str, float]()
    with Proxy(arena.server.socket) as proxy:
        proxy.deaf = True
        for _ in range(2):
            await arena.start(1, REDIS_URL=proxy.url)
        ends_at = time.monotonic() + (60 if LONG else 5)
        async with again_and_again(arena, 0.1, ("CLIENT", "KILL", "TYPE", "pubsub")):
            while time.monotonic() < ends_at:
                [each] = await arena.submit({"do": "sleep", "s": 0})
                ids.append(each)
                told[each] = time.time()
                await asyncio.sleep(arena.random.uniform(0.05, 0.3))
            await until(lambda: arena.done(ids), "all items done")
    begun = {line["item"]: line["at"] for line in reversed(arena.ledger.lines("start"))}
    waits = [begun[each] - told[each] for each in ids]
    await arena.account(ids)
    assert max(waits) <= POLL_S + SLACK_S, f"{max(waits):.2f} s (seed {SEED})"
    arena.report(
        "every doorbell unheard, pub/sub cut", fault="F25", **arena.tally(ids), wait_p95_s=round(quantiles(waits, n=20)[-1], 3),
        poll_s=POLL_S, **spread(waits),
    )  # fmt: skip
