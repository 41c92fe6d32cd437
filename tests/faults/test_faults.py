"""Real worker processes on a real Redis, and what is done to them: killed, frozen, told to stop, poisoned (F1 to F4, F19)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter

import pytest
from arena import GRACE_S, LEASE_S, PATIENCE_S, ROUNDS, SEED, SLACK_S, Arena, late_offers, spread
from lab import until

pytestmark = pytest.mark.timeout(1800)


async def test_a_killed_worker_loses_nothing_and_its_items_come_back_within_lease_and_a_second(arena: Arena) -> None:
    swarm = await arena.start(3)
    recoveries: list[float] = []
    every: list[str] = []
    for _ in range(ROUNDS):
        ids = await arena.submit(*({"do": "sleep", "s": arena.random.uniform(0.02, 0.2)} for _ in range(60)))
        every += ids
        started = set(ids)
        await until(lambda ids=started: any(line["item"] in ids for line in arena.ledger.lines("start")), "a start")
        await asyncio.sleep(arena.random.uniform(0.0, 0.6))
        victim = arena.random.choice(arena.workers(swarm))
        os.kill(victim, signal.SIGKILL)
        killed_at = time.time()
        await until(lambda ids=ids: arena.done(ids), "all items done")
        histories = {each: await arena.board.history(each) for each in ids}
        recoveries += late_offers(histories, killed_at)
        await until(lambda: len(arena.workers(swarm)) == 3, "a new worker in the place of the killed one")
    await arena.account(every)
    assert all(s <= LEASE_S + SLACK_S for s in recoveries), f"{recoveries} (seed {SEED})"
    arena.report("kill -9 a worker", items=len(every), reoffered=len(recoveries), lost=0, **spread(recoveries))


async def test_items_of_the_last_worker_are_taken_by_one_that_comes_later(arena: Arena) -> None:
    only = await arena.start(1)
    [item] = await arena.submit({"do": "sleep", "s": 60, "once_crashed_s": 0})
    await until(lambda: arena.ledger.lines("start"), "the start")
    os.kill(only.pid, signal.SIGKILL)
    killed_at = time.time()
    only.wait()
    await arena.start(1)
    came_s = time.time() - killed_at
    await until(lambda: arena.done([item]), "the item done")
    histories = await arena.account([item])
    [late] = late_offers(histories, killed_at)
    assert late <= max(LEASE_S, came_s) + SLACK_S
    assert [event.kind for event in histories[item]] == ["submitted", "claimed", "lease_ended", "claimed", "completed"]
    arena.report("kill -9 the last worker", items=1, **spread([late]))


async def test_a_frozen_workers_completion_is_refused_when_it_wakes(arena: Arena) -> None:
    frozen = await arena.start(1)
    ids = await arena.submit(*({"do": "sleep", "s": 0.3} for _ in range(4)))
    await until(lambda: len(arena.ledger.lines("start")) == 4, "four starts")
    tokens = {line["token"] for line in arena.ledger.lines("start")}
    os.kill(frozen.pid, signal.SIGSTOP)
    await arena.start(1)
    await until(lambda: arena.done(ids), "the other one's completions")
    await asyncio.sleep(LEASE_S * 3)
    os.kill(frozen.pid, signal.SIGCONT)
    more = await arena.submit(*({"do": "sleep", "s": 0.05} for _ in range(40)))
    await until(lambda: arena.done(more), "further work")
    awake = [line for line in arena.ledger.lines("start") if line["pid"] == frozen.pid and line["item"] in more]
    assert awake  # it goes on with other items
    histories = await arena.account([*ids, *more])
    for each in ids:
        assert histories[each][-1].token not in tokens
    accepted = {line["token"] for line in arena.ledger.lines("accepted")}
    assert not accepted & tokens
    arena.report("SIGSTOP for 3 leases", items=len(ids), refused=len(ids), accepted_twice=0)


async def test_a_worker_told_to_stop_finishes_short_work_and_hands_back_long_work_at_once(arena: Arena) -> None:
    swarm = await arena.start(1)
    short = await arena.submit({"do": "sleep", "s": 0.4}, {"do": "sleep", "s": 0.4})
    long = await arena.submit({"do": "sleep", "s": 60}, {"do": "sleep", "s": 60})
    await until(lambda: len(arena.ledger.lines("start")) == 4, "four starts")
    await arena.submit({"do": "sleep", "s": 0})  # nobody may take this one any more
    swarm.send_signal(signal.SIGTERM)
    told_at = time.time()
    code = await asyncio.to_thread(swarm.wait, PATIENCE_S)
    gone_s = time.time() - told_at

    assert code == 0
    assert gone_s <= GRACE_S
    assert len(arena.ledger.lines("start")) == 4
    assert await arena.done(short)
    for each in long:
        item = await arena.board.get(each)
        assert (item.status, item.holder, item.attempts, item.crashes) == ("waiting", "", 0, 0)
        handed_back = (await arena.board.history(each))[-1]
        assert handed_back.kind == "handed_back"
        assert handed_back.at_ms / 1000 - told_at <= GRACE_S + 0.5
    await arena.check()
    arena.report("SIGTERM", exit_s=round(gone_s, 3), run_again=0, handed_back=len(long))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_does_not_wait_for_handlers(arena: Arena, number: signal.Signals) -> None:
    swarm = await arena.start(1)
    [item] = await arena.submit({"do": "sleep", "s": 60})
    await until(lambda: arena.ledger.lines("start"), "the start")
    swarm.send_signal(number)
    await asyncio.sleep(0.2)
    assert swarm.poll() is None  # it drains
    swarm.send_signal(number)
    told_at = time.time()
    await asyncio.to_thread(swarm.wait, PATIENCE_S)
    assert time.time() - told_at < GRACE_S
    assert (await arena.board.get(item)).status == "waiting"
    await arena.check()


async def test_poison_is_started_exactly_as_often_as_its_section_allows(arena: Arena) -> None:
    swarm = await arena.start(2)
    [deadly, failing] = await arena.submit({"do": "exit"}, {"do": "raise"}, section="frail")
    healthy = await arena.submit(*({"do": "sleep", "s": 0.02} for _ in range(20)))
    await until(lambda: arena.done([deadly, failing, *healthy]), "quarantine")
    starts = Counter(line["item"] for line in arena.ledger.lines("start"))
    # what stood beside the deadly item in a dying worker's hands crashed too, so the failing one may have crashed away
    assert starts[deadly] == 3
    assert starts[failing] <= 5
    for each in (deadly, failing):
        assert (await arena.board.get(each)).status == "quarantined"
    assert (await arena.board.get(deadly)).crashes == 3
    await until(lambda: len(arena.workers(swarm)) == 2, "both workers")
    await arena.account(healthy)
    arena.report("poison", starts=starts[deadly])
