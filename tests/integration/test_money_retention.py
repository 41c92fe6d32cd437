"""The ledger is trimmed behind a base, and counters that nothing refers to any more go: the sums stay what they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from given import Tape, given_item, snapshot
from structlog.testing import capture_logs

from swarm_infrastructure import CostManager
from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.blackboard.retention import LogBound, Retention
from swarm_infrastructure.blackboard.sweeper import Sweeper
from swarm_infrastructure.cli import main
from swarm_infrastructure.cost_manager import LedgerBound, Spender, audit_money
from swarm_infrastructure.cost_manager.ledger import Ledger
from swarm_infrastructure.errors import BudgetExceededError
from swarm_infrastructure.testing import ManualClock, RedisServer

CENT = 10_000_000  # nano-dollars
DAY_S = 86400
ADA = Spender(agent_id="ada", role="writer", task_id="script_1", tier="premium", tags=("ink",))
TASKS = {"t|task:script_1", "t|agent:ada/task:script_1"}


@pytest.fixture
async def costs(board: Blackboard, request: pytest.FixtureRequest) -> AsyncIterator[CostManager]:
    """The money of ``board``; audited at the end."""
    costs = CostManager.of(board, bound=LedgerBound(lines=2))
    yield costs
    if not request.node.get_closest_marker("unaudited"):
        assert await audit_money(costs.ledger) == []


@pytest.fixture
def ledger(costs: CostManager) -> Ledger:
    return costs.ledger


async def lines(ledger: Ledger) -> list[tuple[str, float]]:
    return [(entry.kind, entry.usd / CENT) async for entry in ledger.entries()]


async def spent(ledger: Ledger, scope: str = "swarm") -> float:
    return (await ledger.accounts(scope))["total"].settled / CENT


async def test_the_oldest_lines_go_and_every_counter_stays_what_it_was(board: Blackboard, ledger: Ledger) -> None:
    for cents in range(1, 6):
        await ledger.record(ADA, cents * CENT, cents)
    counters = await ledger.counters()

    assert await ledger.trim() == 3

    assert await lines(ledger) == [("settled", 4), ("settled", 5)]
    assert await ledger.counters() == counters
    books = await ledger.standing()
    assert books.base["t|swarm"] == (6 * CENT, 6, 3)
    assert books.base.keys() == counters.keys()
    [*_, told] = [event async for event in board.events.read()]
    trimmed = await ledger.trimmed()
    assert trimmed is not None
    assert (told.kind, told.reason) == ("truncated", f"ledger: 3 entries up to {trimmed.last}")
    assert trimmed.entries == 3
    assert await audit_money(ledger) == []
    await ledger.record(ADA, 6 * CENT, 6)
    assert await ledger.trim() == 1
    assert (await ledger.standing()).base["t|swarm"] == (10 * CENT, 10, 4)


async def test_lines_that_are_young_stay_as_long_as_there_is_room(board: Blackboard, clock: ManualClock) -> None:
    ledger = CostManager.of(board, bound=LedgerBound(days=30, lines=0)).ledger
    await ledger.record(ADA, CENT, 1)
    await clock.advance(s=29 * DAY_S)
    assert await ledger.trim() == 0
    await clock.advance(s=2 * DAY_S)
    before = await spent(ledger)

    assert await ledger.trim() == 1
    assert await lines(ledger) == []
    assert await spent(ledger) == before == 1
    assert await audit_money(ledger) == []


async def test_a_ledger_within_its_bound_is_left_alone(board: Blackboard, ledger: Ledger) -> None:
    await ledger.record(ADA, CENT, 1)
    await ledger.record(ADA, CENT, 1)
    before = await snapshot(board.store)

    assert await ledger.trim() == 0
    assert await snapshot(board.store) == before


async def test_a_long_ledger_is_trimmed_in_steps(
    board: Blackboard, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_infrastructure.cost_manager.ledger.LINES_PER_TRIM", 4)
    for _ in range(12):
        await ledger.record(ADA, CENT, 1)
    tape = Tape(board.store)

    assert await ledger.trim() == 10
    assert [call.answer[:2] for call in tape.calls] == [[4, b"1"], [4, b"1"], [2, b"0"]]
    assert await spent(ledger) == 12


async def test_a_correction_of_a_line_that_went_is_booked_all_the_same(ledger: Ledger, clock: ManualClock) -> None:
    call = await ledger.reserve(ADA, 5 * CENT, 10, sent=True, hold_s=1)
    await clock.advance(s=2)
    await ledger.expire()
    await ledger.record(ADA, CENT, 1)
    await ledger.record(ADA, CENT, 1)
    assert await ledger.trim() == 1  # the line of the call that nobody settled

    await ledger.settle(call, 3 * CENT, 6)

    assert await spent(ledger) == 5
    assert await lines(ledger) == [("settled", 1), ("settled", 1), ("corrected", -2)]
    assert await audit_money(ledger) == []


async def test_a_budget_counts_what_went_from_the_ledger(ledger: Ledger) -> None:
    await ledger.change_limit("swarm", "total", "usd", 5 * CENT)
    for _ in range(4):
        await ledger.record(ADA, CENT, 1)
    await ledger.trim()
    await ledger.sweep()

    with pytest.raises(BudgetExceededError):
        await ledger.reserve(ADA, 2 * CENT, 1)
    await ledger.release(await ledger.reserve(ADA, CENT, 1))


async def test_a_ledger_cut_short_says_so_once_and_the_report_says_since_when_it_is_complete(
    costs: CostManager, ledger: Ledger
) -> None:
    assert (await costs.get_global_report())["complete_since_ms"] == 0
    with capture_logs() as logs:
        for _ in range(2):
            for _ in range(3):
                await ledger.record(ADA, CENT, 1)
            await ledger.trim()

    [told] = [each for each in logs if each["log_level"] == "warning"]
    assert "SWARM_LEDGER_KEEP" in told["event"]
    trimmed = await ledger.trimmed()
    assert trimmed is not None
    report = await costs.get_agent_report("ada")
    assert (report["calls"], report["complete_since_ms"]) == (2, int(trimmed.last.split("-")[0]))


async def test_counters_of_a_task_go_once_it_has_left_the_board_and_the_ledger(
    board: Blackboard, ledger: Ledger, clock: ManualClock
) -> None:
    await given_item(board, "script_1")
    await ledger.record(ADA, CENT, 1)
    for _ in range(2):
        await ledger.record(Spender(agent_id="bob"), CENT, 1)
    total = await spent(ledger)

    async def left() -> set[str]:
        await ledger.prune()
        return {field for field in await ledger.counters() if "/task:" in field or "|task:" in field}

    assert await left() == TASKS  # a line refers to them
    await ledger.trim()
    assert await left() == TASKS  # its item is on the board
    held = await ledger.reserve(ADA, CENT, 1)
    await board.delete("jobs", "script_1")
    assert await left() == TASKS  # a reservation holds
    await ledger.release(held)
    assert await left() == set()
    assert await spent(ledger) == total
    assert not TASKS & (await ledger.standing()).base.keys()
    assert await audit_money(ledger) == []
    await ledger.record(ADA, CENT, 1)  # it was not over after all
    assert await left() == TASKS
    assert await audit_money(ledger) == []


async def test_counters_of_a_task_stay_while_a_call_of_it_may_be_corrected(ledger: Ledger, clock: ManualClock) -> None:
    call = await ledger.reserve(ADA, 5 * CENT, 10, sent=True, hold_s=1)
    await clock.advance(s=2)
    await ledger.expire()
    await ledger.trim()
    await ledger.record(ADA, CENT, 1)
    for _ in range(2):  # which push out first the line that may be corrected, then the other
        await ledger.record(Spender(agent_id="bob"), CENT, 1)
        await ledger.trim()
    assert [entry.facts["agent_id"] async for entry in ledger.entries()] == ["bob", "bob"]
    await ledger.prune()
    assert (await ledger.counters()).keys() >= TASKS
    await ledger.settle(call, 3 * CENT, 6)
    assert await audit_money(ledger) == []

    for _ in range(2):
        await ledger.record(Spender(agent_id="bob"), CENT, 1)
    await ledger.trim()
    await clock.advance(s=DAY_S + 1)
    await ledger.expire()
    await ledger.prune()
    assert not (await ledger.counters()).keys() & TASKS


async def test_counters_of_a_task_with_a_limit_of_its_own_stay(ledger: Ledger) -> None:
    await ledger.change_limit("task:script_1", "total", "usd", 2 * CENT)
    for spender in (ADA, Spender(agent_id="bob"), Spender(agent_id="bob")):
        await ledger.record(spender, CENT, 1)
    await ledger.trim()
    await ledger.prune()

    assert "t|task:script_1" in await ledger.counters()
    with pytest.raises(BudgetExceededError):
        await ledger.reserve(ADA, 2 * CENT, 1)


async def test_what_lines_booked_in_counters_that_are_gone_is_not_kept(ledger: Ledger, clock: ManualClock) -> None:
    for _ in range(3):
        await ledger.record(ADA, CENT, 1)
    await clock.advance(s=9 * DAY_S)
    await ledger.release(await ledger.reserve(Spender(), CENT, 1))  # it learns of the time
    await ledger.prune()  # hours
    await ledger.trim()
    assert {field[0] for field in (await ledger.standing()).base} == {"t", "d"}

    await clock.advance(s=40 * DAY_S)
    await ledger.release(await ledger.reserve(Spender(), CENT, 1))
    await ledger.prune()  # days
    assert {field[0] for field in (await ledger.standing()).base} == {"t"}


async def test_sweeps_of_many_processes_take_turns_and_go_through_the_counters_page_by_page(
    board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_infrastructure.cost_manager.ledger.COUNTERS_PER_PAGE", 10)
    monkeypatch.setattr("swarm_infrastructure.cost_manager.ledger.PAGES_PER_ROUND", 2)
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.ROUNDS", 1000)
    ledgers = [CostManager.of(board, bound=LedgerBound(lines=1)).ledger for _ in range(3)]
    await asyncio.gather(*(ledgers[0].record(Spender(task_id=f"task_{n}"), CENT, 1) for n in range(700)))
    tape = Tape(board.store)

    sweepers = [Sweeper(board, every_s=7200, upkeep=[each.sweep]) for each in ledgers]
    await asyncio.gather(*(each.run_once() for each in sweepers))
    assert (tape.count("trim_ledger"), tape.count("prune_counters")) == (7, 2)  # by one of them

    for _ in range(100):
        await ledgers[0].sweep()
    assert len(await ledgers[0].counters()) == 1 + 3  # the task of the line that is left; the swarm's
    assert await audit_money(ledgers[0]) == []


async def test_the_ledger_is_trimmed_also_when_redis_is_out_of_memory(board: Blackboard, ledger: Ledger) -> None:
    for _ in range(5):
        await ledger.record(ADA, CENT, 1)
    await board.store.command("CONFIG", "SET", "maxmemory", "1mb")
    try:
        assert await ledger.trim() == 3
        assert await ledger.prune() == 0
    finally:
        await board.store.command("CONFIG", "SET", "maxmemory", "0")


async def test_the_audit_never_cries_wolf_while_money_is_spent_and_lines_go(ledger: Ledger) -> None:
    done = asyncio.Event()

    async def spend(agent: str) -> None:
        for n in range(40):
            call = await ledger.reserve(Spender(agent_id=agent, task_id=f"{agent}.{n}"), 5 * CENT, 10)
            await ledger.settle(call, 3 * CENT, 5)

    async def tend() -> None:
        while not done.is_set():
            await ledger.trim()
            await ledger.prune()

    tending = asyncio.create_task(tend())
    spending = asyncio.gather(*(spend(f"a{n}") for n in range(4)))
    with suppress(asyncio.CancelledError):
        await spending
    done.set()
    await tending
    await ledger.trim()
    await ledger.prune()
    assert await audit_money(ledger) == []
    assert len(await lines(ledger)) == 2


@pytest.mark.unaudited
@pytest.mark.parametrize("forged", ["50000000,6,3,0", None])
async def test_a_forged_base_is_a_breach(board: Blackboard, ledger: Ledger, forged: str | None) -> None:
    for _ in range(5):
        await ledger.record(ADA, CENT, 2)
    await ledger.trim()
    key: Any = board.keys.ledger_base
    if forged:
        await board.store.command("HSET", key, "t|swarm", forged)
    else:
        await board.store.command("HDEL", key, "t|swarm")

    [breach] = [each for each in await audit_money(ledger) if "usd" in each.what]
    assert (breach.invariant, breach.item) == ("I10", "t|swarm")


async def test_people_are_told_what_a_report_and_a_history_do_not_hold(
    board: Blackboard,
    ledger: Ledger,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("REDIS_URL", redis_server.url), ("SWARM_ID", "test")):
        monkeypatch.setenv(name, value)
    await given_item(board, "a")
    for _ in range(3):
        await board.update("jobs", "a", {})
        await ledger.record(ADA, CENT, 1)

    assert await asyncio.to_thread(main, ["budget", "report"]) == 0
    assert "no lines from before" not in capsys.readouterr().err
    await ledger.trim()
    await Retention(board.store, board.keys, board.board, LogBound(entries=1, at_least_s=0)).trim_events()

    assert await asyncio.to_thread(main, ["budget", "report"]) == 0
    assert "the ledger holds no lines from before " in capsys.readouterr().err
    assert await asyncio.to_thread(main, ["items", "show", "a"]) == 0
    assert "truncated" in capsys.readouterr().out
    assert await asyncio.to_thread(main, ["audit"]) == 0
    assert "every invariant holds" in capsys.readouterr().out


async def test_counters_of_a_task_stay_as_long_as_a_line_of_the_ledger_booked_in_them(ledger: Ledger) -> None:
    await ledger.record(ADA, CENT, 1)  # its task is no item
    await ledger.prune()
    assert (await ledger.counters()).keys() >= TASKS
    assert await audit_money(ledger) == []
