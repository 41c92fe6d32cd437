"""Real worker processes on a real Redis, and what is done to them: killed, frozen, told to stop, poisoned (F1 to F4, F19)."""

from __future__ import annotations

import asyncio
import os
import signal
import time

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
    arena.report(
        "kill -9 a worker",
        fault="F1",
        rounds=ROUNDS,
        **arena.tally(every),
        reoffered=len(recoveries),
        **spread(recoveries),
    )


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
    arena.report("kill -9 the last worker", fault="F2", **arena.tally([item]), **spread([late]))


async def test_an_idle_worker_takes_what_a_killed_one_held_though_nothing_else_happens(arena: Arena) -> None:
    recoveries: list[float] = []
    every: list[str] = []
    for _ in range(ROUNDS):
        victim = await arena.start(1)
        ids = await arena.submit(*({"do": "sleep", "s": 60, "once_crashed_s": 0} for _ in range(4)))
        every += ids
        await until(lambda ids=ids: len(arena.started(ids)) == 4, "four starts")
        idle = await arena.start(1)
        await asyncio.sleep(arena.random.uniform(0.0, LEASE_S))  # anywhere between two renewals
        victim.kill()
        killed_at = time.time()
        await until(lambda ids=ids: arena.done(ids), "all items done")
        again = [line["at"] for line in arena.ledger.lines("start") if line["item"] in ids and line["pid"] == idle.pid]
        assert len(again) == 4
        recoveries += [at - killed_at for at in again]
        idle.terminate()
        await asyncio.to_thread(idle.wait, PATIENCE_S)
    await arena.account(every)
    assert max(recoveries) <= LEASE_S + SLACK_S, f"{recoveries} (seed {SEED})"
    arena.report(
        "kill -9 a worker, nothing else happens", fault="F2", rounds=ROUNDS, **arena.tally(every), **spread(recoveries)
    )


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
    arena.report("SIGSTOP for 3 leases", fault="F3", **arena.tally(ids), stale_accepted=0)


async def test_a_frozen_worker_asks_no_model_for_items_that_it_lost(arena: Arena) -> None:
    frozen = await arena.start(1)
    ids = await arena.submit(*({"do": "ask", "s": 0.3} for _ in range(4)))
    await until(lambda: len(arena.started(ids)) == 4, "four starts")
    frozen.send_signal(signal.SIGSTOP)
    await arena.start(1)
    await until(lambda: arena.done(ids), "the other one's completions")
    await asyncio.sleep(LEASE_S)
    frozen.send_signal(signal.SIGCONT)
    woken_at = time.time()
    more = await arena.submit(*({"do": "sleep", "s": 0.05} for _ in range(40)))
    await until(lambda: arena.done(more), "further work")
    late = [line for line in arena.ledger.lines("model") if line["pid"] == frozen.pid and line["at"] >= woken_at]
    assert len(late) <= len(ids), f"more than one call for each that stood still (seed {SEED})"
    await arena.account([*ids, *more])
    arena.report("SIGSTOP before a model call", fault="F3", **arena.tally(ids), model_calls_after_loss=len(late))


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
    arena.report(
        "SIGTERM", fault="F4", **arena.tally([*short, *long]), exit_s=round(gone_s, 3), handed_back=len(long)
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_what_a_stopped_worker_hands_back_is_begun_by_another_within_half_a_second(
    arena: Arena, number: signal.Signals
) -> None:
    leaving = await arena.start(1)
    short = await arena.submit({"do": "sleep", "s": 0.3}, {"do": "sleep", "s": 0.3})
    long = await arena.submit(*({"do": "sleep", "s": GRACE_S * 1.5} for _ in range(2)))
    await until(lambda: len(arena.started([*short, *long])) == 4, "four starts")
    await arena.start(1)
    leaving.send_signal(number)
    told_at = time.time()
    assert await asyncio.to_thread(leaving.wait, PATIENCE_S) == 0
    exit_s = time.time() - told_at
    await until(lambda: arena.done([*short, *long]), "all items done")
    histories = await arena.account([*short, *long])
    offers = []
    for each in long:
        handed_back = next(event.at_ms / 1000 for event in histories[each] if event.kind == "handed_back")
        begun = [line["at"] for line in arena.ledger.lines("start") if line["item"] == each]
        offers.append(begun[1] - handed_back)
    assert arena.started(short) == dict.fromkeys(short, 1)
    assert exit_s <= GRACE_S + 2
    assert max(offers) <= 0.5, f"{offers} (seed {SEED})"
    arena.report(
        f"{number.name}, another worker waits", fault="F4", **arena.tally([*short, *long]), exit_s=round(exit_s, 3),
        **spread(offers),
    )  # fmt: skip


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


@pytest.mark.parametrize(("do", "starts"), [("exit", 3), ("memory", 5), ("recurse", 5), ("raise", 5)])
async def test_poison_is_started_exactly_as_often_as_its_section_allows(arena: Arena, do: str, starts: int) -> None:
    swarm = await arena.start(2)
    [poison] = await arena.submit({"do": do}, section="frail")
    healthy = await arena.submit(*({"do": "sleep", "s": 0.02} for _ in range(20)))
    await until(lambda: arena.done([poison, *healthy]), "quarantine")
    assert arena.started([poison]) == {poison: starts}
    found = await arena.board.get(poison)
    assert found.status == "quarantined"
    assert (found.crashes, found.attempts) == ((3, 3) if do == "exit" else (0, 5))
    await until(lambda: len(arena.workers(swarm)) == 2, "both workers")
    await arena.account(healthy)
    arena.report(f"poison: {do}", fault="F19", **arena.tally(healthy), starts=starts)


async def test_what_stood_beside_poison_crashes_with_it_and_never_more_often(arena: Arena) -> None:
    await arena.start(2)
    [deadly, failing] = await arena.submit({"do": "exit"}, {"do": "raise"}, section="frail")
    await until(lambda: arena.done([deadly, failing]), "quarantine")
    starts = arena.started([deadly, failing])
    assert starts[deadly] == 3
    assert starts[failing] <= 5  # it may have crashed away, as the deadly one's neighbour
    assert (await arena.board.get(failing)).status == "quarantined"
    await arena.check()


async def test_a_handler_that_never_frees_its_process_costs_as_many_workers_as_it_has_crashes(arena: Arena) -> None:
    workers = [await arena.start(1) for _ in range(4)]
    [endless] = await arena.submit({"do": "hang"}, section="frail")
    await until(lambda: arena.started([endless]), "the first start")
    healthy = await arena.submit(*({"do": "sleep", "s": 0.02} for _ in range(20)))
    await until(lambda: arena.done([endless, *healthy]), "quarantine")
    assert arena.started([endless]) == {endless: 3}
    stuck = {line["pid"] for line in arena.ledger.lines("start") if line["item"] == endless}
    assert len(stuck) == 3
    assert all(worker.poll() is None for worker in workers)
    more = await arena.submit(*({"do": "sleep", "s": 0.02} for _ in range(20)))
    await until(lambda: arena.done(more), "the work of those who are left")
    await arena.account([*healthy, *more])
    arena.report(
        "poison: endless loop", fault="F19", **arena.tally([*healthy, *more]), starts=3, workers_stuck=len(stuck)
    )
