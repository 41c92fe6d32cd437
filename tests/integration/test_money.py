"""Money: reserved before it is spent, settled once, never over a cap, never lost; gates, alerts, windows, limits, rates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from given import Tape, a_request, given_items, snapshot

from swarm_infrastructure import AgentBudget, Budget, CostManager, TokenUsage
from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.cost_manager import MeteredCall, Pace, Recorded, Reservation, Wait, audit_money
from swarm_infrastructure.cost_manager.budgets import Limits, Spender, Windows
from swarm_infrastructure.cost_manager.ledger import Ledger
from swarm_infrastructure.cost_manager.limiter import RateLimiter
from swarm_infrastructure.errors import BudgetExceededError, InvalidInputError, ReplayError, UnknownPriceError
from swarm_infrastructure.failure_recovery import Steps
from swarm_infrastructure.failure_recovery.steps import REPLAYED
from swarm_infrastructure.testing import ManualClock

CENT = 10_000_000  # nano-dollars
ADA = Spender(agent_id="ada", role="writer", task_id="script_1", tier="premium", tags=("ink",))
BOB = Spender(agent_id="bob", role="writer", task_id="script_1")
MODEL = "gpt-4o-mini"


@pytest.fixture
async def costs(board: Blackboard, request: pytest.FixtureRequest) -> AsyncIterator[CostManager]:
    """The money of ``board``; audited at the end."""
    costs = CostManager.of(board)
    yield costs
    if not request.node.get_closest_marker("unaudited"):
        assert await audit_money(costs.ledger) == []


@pytest.fixture
def ledger(costs: CostManager) -> Ledger:
    return costs.ledger


async def cents(ledger: Ledger, scope: str = "swarm", window: str = "t") -> tuple[float, float]:
    """What is settled and what is held of a scope for ever, or in all windows of a kind."""
    rows = [
        row for field, row in (await ledger.counters()).items() if field[0] == window and field.endswith(f"|{scope}")
    ]
    return sum(row[0] for row in rows) / CENT, sum(row[1] for row in rows) / CENT


async def kinds(ledger: Ledger) -> list[tuple[str, float]]:
    return [(entry.kind, entry.usd / CENT) async for entry in ledger.entries()]


async def gate_of(board: Blackboard, agent: str = "ada", role: str = "writer") -> str:
    """What a claim of this agent is told: why it may not, or ""."""
    [answer] = await board.claims.claim(a_request(board, agent, role=role))
    return answer if isinstance(answer, str) else ""


# --- reserving --------------------------------------------------------------------------------------------------------


async def test_a_call_is_held_in_every_scope_it_falls_under(ledger: Ledger) -> None:
    await ledger.reserve(ADA, 3 * CENT, 500)

    day, hour = ledger.windows().day, ledger.windows().hour
    every = {
        f"{window}|{scope}"
        for window in ("t", day, hour)
        for scope in ("swarm", "tier:premium", "role:writer", "tag:ink", "agent:ada")
    }
    every |= {"t|task:script_1", f"{day}|agent:ada/tier:premium", "t|agent:ada/task:script_1"}
    assert await ledger.counters() == dict.fromkeys(every, (0, 3 * CENT, 0, 500, 0, 1, 0))


@pytest.mark.parametrize(
    ("budget", "window", "unit"),
    [
        (Budget(daily_limit=0.10), "day", "usd"),
        (Budget(hourly_limit=0.10), "hour", "usd"),
        (Budget(run_limit=0.10), "total", "usd"),
        (Budget(max_tokens=1000), "day", "tokens"),
        (Budget(max_requests=2), "day", "requests"),
        (Budget(scope="role:writer", daily_limit=0.10), "day", "usd"),
        (Budget(scope="task:script_1", run_limit=0.10), "total", "usd"),
        (Budget(scope="tag:ink", hourly_limit=0.10), "hour", "usd"),
        (Budget(scope="tier:premium", daily_limit=0.10), "day", "usd"),
        (AgentBudget(agent_id="ada", daily_limit=0.10, hourly_limit=None, task_limit=None), "day", "usd"),
        (AgentBudget(agent_id="ada", daily_limit=9, hourly_limit=9, task_limit=0.10), "total", "usd"),
        (AgentBudget(agent_id="ada", daily_limit=1, tier_limits={"premium": 0.1}), "day", "usd"),
    ],
    ids=["day", "hour", "run", "tokens", "requests", "role", "task", "tag", "tier", "agent", "its task", "its tier"],
)
async def test_a_call_that_may_cost_more_than_is_left_is_refused_and_holds_nothing(
    ledger: Ledger, budget: Budget, window: str, unit: str
) -> None:
    await ledger.set_budget(budget)
    await ledger.reserve(ADA, 5 * CENT, 500)
    await ledger.reserve(ADA, 5 * CENT, 500)  # to the last of it
    before = await ledger.counters()

    with pytest.raises(BudgetExceededError) as refused:
        await ledger.reserve(ADA, 1, 1)

    assert (refused.value.window, refused.value.unit, refused.value.left) == (window, unit, 0)
    assert refused.value.needed == {"usd": 1e-9, "tokens": 1, "requests": 1}[unit]
    assert await ledger.counters() == before


@pytest.mark.parametrize("window", ["daily_limit", "hourly_limit", "run_limit"])
async def test_of_fifty_ten_cent_calls_at_once_a_dollar_admits_ten(ledger: Ledger, window: str) -> None:
    await ledger.set_budget(Budget(**{window: 1.00}))  # type: ignore[arg-type]

    calls = await asyncio.gather(*(ledger.reserve(BOB, 10 * CENT, 100) for _ in range(50)), return_exceptions=True)

    assert sum(isinstance(each, Reservation) for each in calls) == 10
    assert sum(isinstance(each, BudgetExceededError) for each in calls) == 40
    assert await cents(ledger) == (0, 100)


async def test_amounts_are_exact_up_to_nine_million_dollars(ledger: Ledger) -> None:
    await ledger.set_budget(Budget(run_limit=9_000_000))
    await ledger.reserve(BOB, 9_000_000 * 10**9 - 1, 2**53 - 1)

    with pytest.raises(BudgetExceededError):
        await ledger.reserve(BOB, 2, 0)
    await ledger.reserve(BOB, 1, 0)

    assert (await ledger.counters())["t|swarm"] == (0, 9_000_000 * 10**9, 0, 2**53 - 1, 0, 2, 0)


async def test_reserving_again_under_one_id_holds_once(ledger: Ledger) -> None:
    tape = Tape(ledger._store)
    await ledger.reserve(BOB, CENT, 10, id="call_1")

    await tape.again(tape.last("reserve"))  # its reply was lost
    await ledger.reserve(BOB, CENT, 10, id="call_1")

    assert await cents(ledger) == (0, 1)


async def test_a_refusal_tells_what_may_come_back_by_itself(ledger: Ledger) -> None:
    await ledger.set_budget(Budget(run_limit=0.10))
    await ledger.reserve(BOB, 8 * CENT, 0)

    with pytest.raises(BudgetExceededError) as soon:
        await ledger.reserve(BOB, 5 * CENT, 0)
    with pytest.raises(BudgetExceededError) as never:
        await ledger.reserve(BOB, 11 * CENT, 0)

    assert (soon.value.held, never.value.held) == (0.08, 0)


async def test_a_call_is_booked_in_the_window_of_redis_though_the_callers_clock_is_off(
    ledger: Ledger, clock: ManualClock
) -> None:
    await ledger.reserve(BOB, CENT, 10, hold_s=4 * 86400)
    await clock.advance(s=3 * 86400)

    await ledger.reserve(BOB, 2 * CENT, 10)

    held = {
        field.partition("|")[0]: row[1] / CENT for field, row in (await ledger.counters()).items() if "|swarm" in field
    }
    day = datetime.now(UTC) + timedelta(days=3)
    assert held[f"{day:d%Y-%m-%d}"] == 2
    assert held[f"{day:h%Y-%m-%dT%H}+0000"] == 2
    assert sorted(held.values()) == [1, 1, 2, 2, 3]


async def test_an_unknown_price_reserves_and_books_nothing(costs: CostManager) -> None:
    before = await snapshot(costs._store)

    with pytest.raises(UnknownPriceError):
        await costs.reserve(BOB, "no-such-model-9", input_tokens=10, max_output_tokens=10)
    with pytest.raises(UnknownPriceError):
        await costs.record_usage("bob", "script_1", "draft", "no-such-model-9", TokenUsage(prompt_tokens=1))

    assert await snapshot(costs._store) == before


@pytest.mark.parametrize(
    "spender",
    [
        Spender(agent_id="ada", tags=("two words",)), Spender(agent_id="ada|bob"), Spender(agent_id="a", role="a b"),
        Spender(agent_id="ada", task_id="script/1"), Spender(tier="premium\n"),
    ],
)  # fmt: skip
async def test_a_name_that_no_budget_can_have_is_refused_before_it_is_booked(ledger: Ledger, spender: Spender) -> None:
    with pytest.raises(InvalidInputError):
        await ledger.reserve(spender, CENT, 10)
    with pytest.raises(InvalidInputError):
        await ledger.record(spender, CENT, 10)

    assert await ledger.counters() == {}


# --- sending, settling, releasing -------------------------------------------------------------------------------------


async def test_settling_frees_the_hold_and_books_what_it_cost(ledger: Ledger) -> None:
    call = await ledger.reserve(ADA, 5 * CENT, 900)
    await ledger.mark_sent(call)
    await ledger.settle(call, 3 * CENT, 700)

    rows = set((await ledger.counters()).values())
    assert rows == {(3 * CENT, 0, 700, 0, 1, 0, 0)}
    assert await kinds(ledger) == [("settled", 3)]


async def test_settling_twice_books_once_and_the_first_amount_stays(ledger: Ledger) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900, sent=True)

    await ledger.settle(call, 3 * CENT, 700)
    await ledger.settle(call, 4 * CENT, 800)

    assert await cents(ledger) == (3, 0)
    assert await kinds(ledger) == [("settled", 3)]


async def test_what_was_spent_is_booked_over_a_cap_and_without_a_reservation(ledger: Ledger) -> None:
    await ledger.set_budget(Budget(run_limit=0.10))
    call = await ledger.reserve(BOB, 8 * CENT, 0, sent=True)

    await ledger.settle(call, 12 * CENT, 0)
    await ledger.record(BOB, 3 * CENT, 0, id="elsewhere")
    await ledger.record(BOB, 3 * CENT, 0, id="elsewhere")

    assert await cents(ledger) == (15, 0)


async def test_it_is_booked_in_the_windows_in_which_it_was_reserved(ledger: Ledger, clock: ManualClock) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 0, sent=True, hold_s=30 * 3600)
    before = set(await ledger.counters())
    await clock.advance(s=25 * 3600)

    await ledger.settle(call, 4 * CENT, 0)

    assert set(await ledger.counters()) == before
    assert await cents(ledger, window="d") == await cents(ledger, window="h") == (4, 0)


async def test_the_answer_is_kept_with_the_settlement_and_the_first_one_stays(
    ledger: Ledger, board: Blackboard
) -> None:
    calls = [await ledger.reserve(BOB, CENT, 0, sent=True) for _ in range(3)]

    await ledger.settle(calls[0], CENT, 0, item_id="script_1", step="write", answer=b"first")
    await ledger.settle(calls[1], CENT, 0, item_id="script_1", step="write", answer=b"second")
    await ledger.settle(calls[2], CENT, 0, item_id="script_2", step="write", answer=b"other")

    steps = Steps(board.store, board.keys)
    assert await steps.find("script_1", "write") == b"first"
    assert await steps.find("script_2", "write") == b"other"
    assert await steps.find("script_1", "check") is None
    assert 0 < await board.store.command("TTL", board.keys.answers("script_1")) <= 7 * 86400
    assert await cents(ledger) == (3, 0)


async def test_what_was_never_sent_is_released(ledger: Ledger) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900)

    assert await ledger.release(call) is True
    assert await ledger.release(call) is True  # its first reply may have been lost

    assert await cents(ledger) == (0, 0)
    assert await kinds(ledger) == []


async def test_what_was_sent_is_not_released(ledger: Ledger) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900)
    await ledger.mark_sent(call)

    assert await ledger.release(call) is False
    assert await cents(ledger) == (0, 5)


async def test_a_call_may_be_said_to_be_sent_twice_but_not_once_it_was_settled(ledger: Ledger) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900)
    assert await ledger.mark_sent(call) is True
    assert await ledger.mark_sent(call) is True
    await ledger.settle(call, CENT, 100)

    assert await ledger.mark_sent(call) is False
    assert await ledger.expire() == (0, 0)


# --- what else comes before a call: its record, its turn, a question -------------------------------------------------


async def test_a_recorded_answer_is_given_instead_of_money_also_if_there_is_none_left(ledger: Ledger) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900)
    await ledger.settle(call, 5 * CENT, 900, item_id="a", step="s", answer=b"forty-two")
    await ledger.set_budget(Budget(run_limit=0))

    assert await ledger.begin(BOB, CENT, 1, item_id="a", step="s") == Recorded(b"forty-two")
    with pytest.raises(BudgetExceededError):
        await ledger.begin(BOB, CENT, 1, item_id="a", step="another")
    with pytest.raises(BudgetExceededError):
        await ledger.begin(BOB, CENT, 1, item_id="b", step="s")

    assert await cents(ledger) == (5, 0)


async def test_a_replay_is_given_what_is_on_record_and_nothing_that_would_cost_again(
    board: Blackboard, ledger: Ledger
) -> None:
    await ledger.settle(await ledger.reserve(BOB, CENT, 1), CENT, 1, item_id="copy", step="s", answer=b"forty-two")
    await board.store.command("HSET", board.keys.answers("copy"), REPLAYED, "original")

    assert await ledger.begin(BOB, CENT, 1, item_id="copy", step="s") == Recorded(b"forty-two")
    with pytest.raises(ReplayError, match="copy"):
        await ledger.begin(BOB, CENT, 1, item_id="copy", step="another")

    assert await cents(ledger) == (1, 0)


async def test_a_call_whose_turn_has_not_come_holds_nothing_and_pauses_nobody(
    board: Blackboard, ledger: Ledger, clock: ManualClock
) -> None:
    pace = Pace("model:x", calls=1)
    assert isinstance(await ledger.begin(ADA, CENT, 1, pace=pace), Reservation)

    waits = await ledger.begin(ADA, CENT, 1, pace=pace)

    assert isinstance(waits, Wait) and 59 < waits.seconds <= 60
    assert await cents(ledger) == (0, 1)
    assert await gate_of(board) == ""
    await clock.advance(s=61)
    assert isinstance(await ledger.begin(ADA, CENT, 1, pace=pace), Reservation)


async def test_a_call_that_a_budget_refuses_takes_nobodys_turn(ledger: Ledger) -> None:
    await ledger.set_budget(Budget(run_limit="0.01"))
    pace = Pace("model:x", calls=1)
    with pytest.raises(BudgetExceededError):
        await ledger.begin(BOB, 2 * CENT, 1, pace=pace)

    assert isinstance(await ledger.begin(BOB, CENT, 1, pace=pace), Reservation)


async def test_a_question_holds_nothing_leaves_nothing_and_pauses_nobody(board: Blackboard, ledger: Ledger) -> None:
    await ledger.set_budget(Budget(run_limit="0.05"))

    assert await ledger.would_exceed(ADA, 5 * CENT) is None
    refusal = await ledger.would_exceed(ADA, 6 * CENT)
    assert refusal is not None and refusal.scope == "swarm"

    assert await ledger.counters() == {}
    assert await ledger.reservations() == {}
    assert await gate_of(board) == ""


# --- holders that are gone --------------------------------------------------------------------------------------------


async def test_a_hold_that_was_not_sent_is_freed_when_it_ends_and_not_sent_afterwards(
    ledger: Ledger, clock: ManualClock
) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900, hold_s=10)
    await clock.advance(s=11)

    assert await ledger.expire() == (1, 0)
    assert await ledger.mark_sent(call) is False

    assert await cents(ledger) == (0, 0)
    assert await ledger.expire() == (0, 0)


async def test_a_hold_that_was_sent_is_settled_at_the_estimate_when_it_ends(ledger: Ledger, clock: ManualClock) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900, hold_s=10)
    await ledger.mark_sent(call, hold_s=10)
    await clock.advance(s=11)

    assert await ledger.expire() == (0, 1)

    assert await cents(ledger) == (5, 0)
    assert await kinds(ledger) == [("unknown", 5)]
    assert {entry.reserved async for entry in ledger.entries()} == {5 * CENT}


@pytest.mark.parametrize("cost", [2, 5, 8], ids=["less", "the same", "more"])
async def test_usage_that_turns_up_late_corrects_the_estimate_once(
    ledger: Ledger, clock: ManualClock, cost: int
) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900, sent=True, hold_s=10)
    await clock.advance(s=11)
    await ledger.expire()
    await clock.advance(s=20 * 3600)

    await ledger.settle(call, cost * CENT, 400)
    await ledger.settle(call, cost * CENT, 400)

    assert set((await ledger.counters()).values()) == {(cost * CENT, 0, 400, 0, 1, 0, 0)}
    assert await kinds(ledger) == [("unknown", 5), ("corrected", cost - 5)]


async def test_a_hold_that_was_freed_and_sent_all_the_same_is_booked(ledger: Ledger, clock: ManualClock) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900, hold_s=10)
    await clock.advance(s=11)
    await ledger.expire()

    await ledger.settle(call, 4 * CENT, 800)

    assert await cents(ledger) == (4, 0)


async def test_the_next_call_frees_what_dead_callers_held(ledger: Ledger, clock: ManualClock) -> None:
    await ledger.set_budget(Budget(run_limit=0.10))
    await ledger.reserve(BOB, 10 * CENT, 0, hold_s=10)
    await clock.advance(s=11)

    await ledger.reserve(ADA, 10 * CENT, 0)

    assert await cents(ledger) == (0, 10)


async def test_marking_a_call_as_sent_lets_its_holder_live_longer(ledger: Ledger, clock: ManualClock) -> None:
    call = await ledger.reserve(BOB, 5 * CENT, 900, hold_s=10)
    await ledger.mark_sent(call, hold_s=60)
    await clock.advance(s=59)

    assert await ledger.expire() == (0, 0)
    await clock.advance(s=2)
    assert await ledger.expire() == (0, 1)


async def test_what_has_ended_is_forgotten_after_a_while(ledger: Ledger, clock: ManualClock) -> None:
    settled, released, unknown = [await ledger.reserve(BOB, CENT, 0, hold_s=10) for _ in range(3)]
    await ledger.settle(settled, CENT, 0)
    await ledger.release(released)
    await ledger.mark_sent(unknown, hold_s=10)
    await clock.advance(s=11)
    await ledger.expire()
    assert {row[0] for row in (await ledger.reservations()).values()} == {"settled", "released", "unknown"}

    await clock.advance(s=86400)
    await ledger.expire()

    assert await ledger.reservations() == {}
    assert await cents(ledger) == (2, 0)


# --- a call of the cost manager ---------------------------------------------------------------------------------------


async def test_an_alert_handler_that_raises_does_not_undo_what_was_booked(costs: CostManager) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("pager is down")

    costs.register_alert_handler(broken)
    await costs.set_budget(Budget(daily_limit="0.0001"))

    cost = await costs.record_usage("bob", "t", "summary", MODEL, TokenUsage(completion_tokens=1000))

    assert (await costs.get_budget_status("swarm")).daily_spent == cost


async def test_a_call_left_before_it_was_sent_costs_nothing(costs: CostManager) -> None:
    with pytest.raises(RuntimeError):
        async with costs.call(BOB, MODEL, input_tokens=100, max_output_tokens=100):
            assert (await cents(costs.ledger))[1] > 0
            raise RuntimeError

    assert await cents(costs.ledger) == (0, 0)


async def test_a_call_that_was_to_leave_at_once_and_did_not_costs_nothing(costs: CostManager) -> None:
    call = await costs.begin(BOB, MODEL, input_tokens=100, max_output_tokens=100, hold_s=60)
    assert isinstance(call, MeteredCall)
    with pytest.raises(RuntimeError):
        async with call:
            raise RuntimeError

    assert await cents(costs.ledger) == (0, 0)


async def test_a_call_left_after_it_was_sent_costs_its_estimate(costs: CostManager) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with costs.call(BOB, MODEL, input_tokens=100, max_output_tokens=100) as call:
            await call.send()
            raise asyncio.CancelledError

    assert (await costs.ledger.counters())["t|swarm"][:2] == (call.reservation.usd, 0)
    [entry] = [entry async for entry in costs.ledger.entries()]
    assert entry.facts["unknown"] is True


async def test_a_call_waits_for_what_others_hold_and_pauses_nobody_if_it_comes_back(
    board: Blackboard, costs: CostManager
) -> None:
    estimate = costs.prices.estimate(MODEL, 100, 100)
    await costs.ledger.set_budget(Budget())
    await costs.ledger.change_limit("swarm", "total", "usd", estimate * 3 // 2)
    first = await costs.reserve(BOB, MODEL, input_tokens=100, max_output_tokens=100)
    waiting = asyncio.create_task(costs.reserve(ADA, MODEL, input_tokens=100, max_output_tokens=100, wait_s=60))
    tape = Tape(costs._store)
    async with asyncio.timeout(5):
        while tape.count("reserve") < 2:
            await asyncio.sleep(0.005)

    await costs.ledger.release(first.reservation)

    second = await asyncio.wait_for(waiting, 5)
    assert second.reservation.usd == estimate
    assert await gate_of(board) == ""


# --- gates ------------------------------------------------------------------------------------------------------------


async def a_breach(ledger: Ledger, spender: Spender = ADA, usd: int = 5 * CENT, **how: Any) -> BudgetExceededError:
    with pytest.raises(BudgetExceededError) as refused:
        await ledger.reserve(spender, usd, 0, **how)
    return refused.value


async def test_a_breach_that_pauses_stops_the_agents_claims_in_the_same_call(board: Blackboard, ledger: Ledger) -> None:
    await given_items(board, "a", "b")
    await ledger.set_budget(Budget(daily_limit=0.04))
    tape = Tape(ledger._store)

    await a_breach(ledger)

    assert tape.count("reserve") == len(tape.calls)
    assert (await gate_of(board)).startswith("budget")
    assert await board.claims.claim_item("a", "ada", role="writer") is None
    [paused] = await ledger.paused()
    assert (paused.who, paused.scope, paused.window, paused.needed, paused.left) == (
        "agent:ada", "swarm", "day", 5 * CENT, 4 * CENT,
    )  # fmt: skip
    assert paused.resumes_at_ms == ledger.windows().bounds[3]
    assert await gate_of(board, "bob") == ""  # who asked for nothing goes on


async def test_a_roles_budget_stops_all_agents_of_the_role(board: Blackboard, ledger: Ledger) -> None:
    await ledger.set_budget(Budget(scope="role:writer", run_limit=0.04))

    await a_breach(ledger)

    assert (await gate_of(board, "ada")) and (await gate_of(board, "bob"))
    assert await gate_of(board, "cyd", "editor") == ""


@pytest.mark.parametrize("on_exceeded", ["downgrade", "fail"])
async def test_a_breach_that_does_not_pause_stops_nobody(board: Blackboard, ledger: Ledger, on_exceeded: Any) -> None:
    await ledger.set_budget(Budget(daily_limit=0.04, on_exceeded=on_exceeded))

    refused = await a_breach(ledger)

    assert refused.on_breach == on_exceeded
    assert await gate_of(board) == ""


async def test_asking_without_pause_stops_nobody(board: Blackboard, ledger: Ledger) -> None:
    await ledger.set_budget(Budget(daily_limit=0.04))

    await a_breach(ledger, pause=False)

    assert await gate_of(board) == ""


async def test_a_cap_that_is_raised_far_enough_lets_the_agent_go_on(board: Blackboard, ledger: Ledger) -> None:
    await ledger.set_budget(Budget(daily_limit=0.02))
    await a_breach(ledger)

    await ledger.change_limit("swarm", "day", "usd", 4 * CENT)
    assert await gate_of(board)
    await ledger.change_limit("swarm", "day", "usd", 5 * CENT)
    assert await gate_of(board) == ""


async def test_a_cap_that_is_taken_away_lets_the_agent_go_on(board: Blackboard, ledger: Ledger) -> None:
    await ledger.set_budget(AgentBudget(agent_id="ada", task_limit=0.02))
    await a_breach(ledger)

    await ledger.set_budget(AgentBudget(agent_id="ada", task_limit=None))

    assert "agent:ada/task" not in await ledger.limits()
    assert await gate_of(board) == ""


@pytest.mark.parametrize("way", ["released", "settled for less", "expired"])
async def test_held_money_that_comes_back_lets_the_agent_go_on(
    board: Blackboard, ledger: Ledger, clock: ManualClock, way: str
) -> None:
    await ledger.set_budget(Budget(run_limit=0.08))
    call = await ledger.reserve(BOB, 8 * CENT, 0, hold_s=10)
    await a_breach(ledger)
    assert await gate_of(board)

    if way == "released":
        await ledger.release(call)
    elif way == "expired":
        await clock.advance(s=11)
        await ledger.expire()
    else:
        await ledger.settle(call, 3 * CENT, 0)

    assert await gate_of(board) == ""


@pytest.mark.parametrize("unit", ["usd", "tokens", "requests"])
async def test_an_agent_stands_still_until_as_much_is_left_as_it_needs(
    board: Blackboard, ledger: Ledger, unit: str
) -> None:
    amounts = {"usd": (8 * CENT, 0, 0), "tokens": (0, 80, 0), "requests": (0, 0, 8)}[unit]
    part, rest = ([amount * share // 8 for amount in amounts] for share in (2, 6))
    await ledger.change_limit("swarm", "total", unit, max(amounts))
    two = await ledger.reserve(BOB, part[0], part[1], requests=part[2])
    six = await ledger.reserve(BOB, rest[0], rest[1], requests=rest[2])
    with pytest.raises(BudgetExceededError):
        await ledger.reserve(ADA, amounts[0] // 2, amounts[1] // 2, requests=amounts[2] // 2)

    await ledger.release(two)
    assert await gate_of(board)
    await ledger.release(six)
    assert await gate_of(board) == ""


@pytest.mark.parametrize(("window", "hours"), [("daily_limit", 24), ("hourly_limit", 1)])
async def test_a_new_window_lets_the_agent_go_on(
    board: Blackboard, ledger: Ledger, clock: ManualClock, window: str, hours: int
) -> None:
    await ledger.set_budget(Budget(**{window: 0.04}))  # type: ignore[arg-type]
    await a_breach(ledger)
    assert await gate_of(board)

    await clock.advance(s=hours * 3600)

    assert await gate_of(board) == ""


async def test_a_run_that_has_no_money_stands_still_over_midnight(
    board: Blackboard, ledger: Ledger, clock: ManualClock
) -> None:
    await ledger.set_budget(Budget(run_limit=0.04))
    await a_breach(ledger)

    await clock.advance(s=86400)

    assert await gate_of(board)


async def test_an_agent_whose_window_began_anew_is_stopped_by_its_next_breach(
    board: Blackboard, ledger: Ledger, clock: ManualClock
) -> None:
    await ledger.set_budget(Budget(hourly_limit=0.04))
    await a_breach(ledger)
    await clock.advance(s=3600)
    await ledger.set_budget(Budget(scope="tag:ink", run_limit=0.02))
    assert await gate_of(board) == ""

    refused = await a_breach(ledger, usd=3 * CENT)

    assert refused.scope == "tag:ink"
    assert await gate_of(board)


async def test_an_old_gate_whose_hour_is_over_does_not_keep_a_new_one_away(
    board: Blackboard, ledger: Ledger, clock: ManualClock
) -> None:
    await ledger.set_budget(Budget(hourly_limit=0.04))
    await a_breach(ledger)
    await clock.advance(s=3600)
    assert await gate_of(board) == ""

    await a_breach(ledger)

    assert await gate_of(board)


async def test_money_does_not_open_what_a_person_shut(board: Blackboard, ledger: Ledger, clock: ManualClock) -> None:
    await board.agents.pause("agent:ada", reason="lunch")
    await ledger.set_budget(Budget(daily_limit=0.04))

    await a_breach(ledger)
    assert await gate_of(board) == "lunch"
    await ledger.change_limit("swarm", "day", "usd", 90 * CENT)
    await clock.advance(s=86400)

    assert await gate_of(board) == "lunch"


async def test_a_person_may_give_any_reason(board: Blackboard, ledger: Ledger) -> None:
    await board.agents.pause("agent:bob", reason="budget|ask Cyd")

    call = await ledger.reserve(ADA, CENT, 0)
    await ledger.settle(call, CENT, 0)

    assert await gate_of(board, "bob") != ""
    assert await ledger.paused() == []


# --- alerts -----------------------------------------------------------------------------------------------------------


async def test_each_threshold_is_told_to_one_of_twenty_that_settle_at_once(ledger: Ledger) -> None:
    await ledger.set_budget(Budget(run_limit=1.00))
    calls = [await ledger.reserve(BOB, 5 * CENT, 0, sent=True) for _ in range(20)]

    told = await asyncio.gather(*(ledger.settle(call, 5 * CENT, 0) for call in calls))

    alerts = [alert for each in told for alert in each]
    assert sorted(alert.threshold for alert in alerts) == [0.5, 0.8, 0.95, 1.0]
    assert {(alert.scope, alert.window, alert.limit) for alert in alerts} == {("swarm", "total", 100 * CENT)}
    assert [alert.spent for alert in sorted(alerts, key=lambda each: each.threshold)] == [
        50 * CENT, 80 * CENT, 95 * CENT, 100 * CENT,
    ]  # fmt: skip
    assert sum([len(entry.alerts) async for entry in ledger.entries()]) == 4


async def test_a_new_window_is_told_of_again(ledger: Ledger, clock: ManualClock) -> None:
    await ledger.set_budget(Budget(hourly_limit=0.10, alert_threshold=0.8))

    async def told() -> list[float]:
        call = await ledger.reserve(BOB, 8 * CENT, 0, sent=True)
        return [alert.threshold for alert in await ledger.settle(call, 8 * CENT, 0)]

    assert await told() == [0.8]
    await clock.advance(s=3600)
    assert await told() == [0.8]


async def test_a_threshold_that_was_passed_in_the_name_of_a_dead_caller_is_told_to_the_next(
    ledger: Ledger, clock: ManualClock
) -> None:
    await ledger.set_budget(Budget(run_limit=1.00))
    await ledger.reserve(BOB, 60 * CENT, 0, sent=True, hold_s=10)
    await clock.advance(s=11)
    assert await ledger.expire() == (0, 1)

    told = await ledger.record(BOB, CENT, 0)

    assert [(alert.threshold, alert.spent) for alert in told] == [(0.5, 61 * CENT)]


async def test_handlers_hear_of_a_threshold_once(costs: CostManager) -> None:
    heard: list[float] = []
    costs.register_alert_handler(lambda alert: heard.append(alert.threshold))
    await costs.ledger.change_limit("agent:bob", "total", "usd", 1000)

    for _ in range(3):
        await costs.record_usage("bob", "script_1", "draft", MODEL, TokenUsage(prompt_tokens=100))

    assert heard == [1.0]


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_limits_that_are_changed_at_once_are_all_kept(ledger: Ledger) -> None:
    await asyncio.gather(
        *(
            ledger.change_limit("swarm", window, unit, 100 + at)
            for at, (window, unit) in enumerate((w, u) for w in ("total", "day", "hour") for u in ("usd", "tokens"))
        )
    )

    assert sorted((await ledger.limits())["swarm"].most.values()) == [100, 101, 102, 103, 104, 105]


async def test_what_was_raised_since_stays_when_the_same_budget_is_declared_again(ledger: Ledger) -> None:
    await ledger.declare(Budget(daily_limit=1))
    await ledger.change_limit("swarm", "day", "usd", 300 * CENT)

    await ledger.declare(Budget(daily_limit=1))
    assert (await ledger.limits())["swarm"].most["day", "usd"] == 300 * CENT
    await ledger.declare(Budget(daily_limit=2))
    assert (await ledger.limits())["swarm"].most["day", "usd"] == 200 * CENT


def test_limits_come_back_as_they_were_packed() -> None:
    limits = Limits({("day", "usd"): 5, ("hour", "tokens"): 2**53 - 1}, "downgrade", (0.25, 1.0))
    assert Limits.unpack(limits.pack()) == limits


@pytest.mark.parametrize("field", ["daily_limit", "hourly_limit", "run_limit"])
@pytest.mark.parametrize(
    "amount", [-1, -0.01, float("nan"), float("inf"), 9_000_001, 1e300, "much", True, [1]], ids=repr
)
def test_an_amount_that_is_no_budget_is_refused_by_name(field: str, amount: Any) -> None:
    with pytest.raises(InvalidInputError, match=field):
        Budget(**{field: amount})


@pytest.mark.parametrize("field", ["max_tokens", "max_requests"])
@pytest.mark.parametrize("number", [-1, 0.5, 2**53, True, "9"], ids=repr)
def test_a_number_that_is_no_limit_is_refused_by_name(field: str, number: Any) -> None:
    with pytest.raises(InvalidInputError, match=field):
        Budget(**{field: number})


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"task_limit": -1}, "task_limit"), ({"tier_limits": {"premium": -0.1}}, "premium"),
        ({"tier_limits": {"premium": 1.1}}, "premium"), ({"tier_limits": {"premium": float("nan")}}, "premium"),
        ({"tier_limits": {"premium": 0.2}, "daily_limit": None}, "tier_limits"), ({"agent_id": "a b"}, "agent"),
        ({"alert_threshold": 0}, "alert_threshold"), ({"alert_threshold": 80}, "alert_threshold"),
    ],
)  # fmt: skip
def test_a_budget_of_an_agent_that_makes_no_sense_is_refused_by_name(facts: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError, match=field):
        AgentBudget(**{"agent_id": "ada", **facts})


@pytest.mark.parametrize("scope", ["", "agent:", "agent", "team:x", "agent:a b", "role:A", "swarm ", "tag:a|b"])
def test_a_scope_that_is_none_is_refused(scope: str) -> None:
    with pytest.raises(InvalidInputError, match=r"scope|id|role|tag"):
        Budget(scope=scope)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("swarm", "day", "usd", -1), "usd"), (("swarm", "day", "tokens", 2**53), "tokens"),
        (("swarm", "day", "usd", 0.5), "usd"), (("swarm", "week", "usd", 1), "window"),
        (("swarm", "day", "euro", 1), "unit"),
    ],
)  # fmt: skip
async def test_a_change_of_a_limit_that_makes_no_sense_is_refused_by_name(
    ledger: Ledger, change: Any, field: str
) -> None:
    with pytest.raises(InvalidInputError, match=field):
        await ledger.change_limit(*change)

    assert await ledger.limits() == {}


# --- the audit --------------------------------------------------------------------------------------------------------


@pytest.mark.unaudited
@pytest.mark.parametrize(
    ("place", "invariant"), [(0, "I10"), (1, "I11"), (2, "I10"), (3, "I11"), (4, "I10"), (5, "I11")]
)
async def test_the_audit_names_a_forged_counter(ledger: Ledger, board: Blackboard, place: int, invariant: str) -> None:
    await ledger.record(BOB, 4 * CENT, 40)
    await ledger.reserve(BOB, 3 * CENT, 30)
    assert await audit_money(ledger) == []
    row = list((await ledger.counters())["t|agent:bob"])
    row[place] += 1
    await board.store.command("HSET", board.keys.spend, "t|agent:bob", ",".join(map(str, row)))

    [breach] = await audit_money(ledger)

    assert (breach.invariant, breach.item) == (invariant, "t|agent:bob")


@pytest.mark.unaudited
async def test_the_audit_names_a_counter_that_is_gone_and_one_that_is_negative(
    ledger: Ledger, board: Blackboard
) -> None:
    await ledger.record(BOB, 4 * CENT, 40)
    await board.store.command("HDEL", board.keys.spend, "t|agent:bob")
    await board.store.command("HSET", board.keys.spend, "t|agent:cyd", "0,-5,0,0,0,0,0")

    breaches = await audit_money(ledger)

    assert {breach.item for breach in breaches} == {"t|agent:bob", "t|agent:cyd"}
    assert any("negative" in breach.what for breach in breaches)


@pytest.mark.unaudited
async def test_the_audit_names_a_hold_that_would_never_end(ledger: Ledger, board: Blackboard) -> None:
    call = await ledger.reserve(BOB, 3 * CENT, 30)
    await board.store.command("ZREM", board.keys.reservations_due, call.id)

    [breach] = await audit_money(ledger)

    assert (breach.invariant, breach.item) == ("I11", call.id)


async def test_the_audit_is_clean_while_calls_are_settled(ledger: Ledger) -> None:
    async def spend() -> None:
        for _ in range(10):
            call = await ledger.reserve(BOB, 5 * CENT, 10)
            await ledger.settle(call, 3 * CENT, 5)

    spending = asyncio.gather(*(spend() for _ in range(8)))
    while not spending.done():
        assert await audit_money(ledger) == []
    await spending


async def test_counters_of_hours_long_gone_are_dropped_and_the_ledger_keeps_them(
    ledger: Ledger, clock: ManualClock
) -> None:
    await ledger.record(BOB, 4 * CENT, 40)
    await clock.advance(s=9 * 86400)
    await ledger.reserve(BOB, CENT, 10)

    assert await ledger.prune() == 3  # the old hour of the swarm, the role and the agent

    assert [field[0] for field in sorted(await ledger.counters()) if field.endswith("|swarm")] == ["d", "d", "h", "t"]
    assert await kinds(ledger) == [("settled", 4)]


# --- windows ----------------------------------------------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")


def _windows(moment: datetime) -> Windows:
    return Windows.at(round(moment.timestamp() * 1000), BERLIN)


def test_the_hour_that_comes_twice_is_two_windows_and_its_day_has_25_hours() -> None:
    first = _windows(datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    second = _windows(datetime(2026, 10, 25, 1, 30, tzinfo=UTC))

    assert (first.hour, second.hour) == ("h2026-10-25T02+0200", "h2026-10-25T02+0100")
    assert first.day == second.day == "d2026-10-25"
    assert first.bounds[1] == second.bounds[0]
    assert first.bounds[2:] == second.bounds[2:]
    assert second.bounds[3] - second.bounds[2] == 25 * 3_600_000


def test_the_hour_that_is_left_out_is_no_window_and_its_day_has_23_hours() -> None:
    before = _windows(datetime(2027, 3, 28, 0, 59, 59, tzinfo=UTC))
    after = _windows(datetime(2027, 3, 28, 1, 0, tzinfo=UTC))

    assert (before.hour, after.hour) == ("h2027-03-28T01+0100", "h2027-03-28T03+0200")
    assert before.bounds[1] == after.bounds[0]
    assert after.bounds[3] - after.bounds[2] == 23 * 3_600_000


@pytest.mark.parametrize("day", [datetime(2026, 10, 24, tzinfo=UTC), datetime(2027, 3, 27, tzinfo=UTC)], ids=str)
@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "Asia/Kolkata", "America/St_Johns", "America/Havana"])
def test_hours_and_days_follow_each_other_without_a_gap(zone: str, day: datetime) -> None:
    start_ms = round(day.timestamp() * 1000)
    every = [Windows.at(start_ms + minute * 60_000, ZoneInfo(zone)) for minute in range(4 * 24 * 60)]
    for minute, (one, other) in enumerate(pairwise(every)):
        at_ms = start_ms + minute * 60_000
        assert one.bounds[0] <= at_ms < one.bounds[1]
        assert one.bounds[2] <= at_ms < one.bounds[3]
        assert (one.hour == other.hour) == (one.bounds[:2] == other.bounds[:2])
        assert (one.day == other.day) == (one.bounds[2:] == other.bounds[2:])
        assert one.hour == other.hour or one.bounds[1] == other.bounds[0]
        assert one.day == other.day or one.bounds[3] == other.bounds[2]


async def test_a_day_is_that_of_the_budgets_time_zone(board: Blackboard) -> None:
    ledger = Ledger(board.store, board.keys, ZoneInfo("Pacific/Kiritimati"))  # 14 hours ahead

    await ledger.reserve(BOB, CENT, 0)

    there = datetime.now(ZoneInfo("Pacific/Kiritimati"))
    assert f"{there:d%Y-%m-%d}|swarm" in await ledger.counters()
    assert f"{there:h%Y-%m-%dT%H}+1400|swarm" in await ledger.counters()
    assert (
        orjson.loads((await board.store.command("HGETALL", board.keys.reservations)).popitem()[1].split(b"\n")[1])[
            "agent_id"
        ]
        == "bob"
    )


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limiter(board: Blackboard) -> RateLimiter:
    return RateLimiter(board.store, board.keys)


async def test_of_fifty_calls_at_once_as_many_are_admitted_as_a_minute_allows(
    limiter: RateLimiter, clock: ManualClock
) -> None:
    async def admitted() -> int:
        return (await asyncio.gather(*(limiter.admit("model:x", calls=10) for _ in range(50)))).count(0.0)

    assert await admitted() == 10
    wait_s = await limiter.admit("model:x", calls=10)
    assert 0 < wait_s <= 60
    assert await limiter.admit("model:y", calls=10) == 0
    await clock.advance(s=wait_s)
    assert await admitted() == 10


async def test_tokens_of_a_minute_are_counted_and_a_call_greater_than_the_limit_goes_alone(
    limiter: RateLimiter, clock: ManualClock
) -> None:
    async def ask(tokens: int) -> bool:
        return await limiter.admit("model:x", tokens_limit=100, tokens=tokens) == 0

    assert [await ask(60), await ask(41), await ask(40), await ask(1)] == [True, False, True, False]
    await clock.advance(s=60)
    assert [await ask(150), await ask(1)] == [True, False]


async def test_a_provider_that_asks_to_wait_slows_everybody_down(limiter: RateLimiter, clock: ManualClock) -> None:
    await limiter.slow_down("model:x", 30)
    await limiter.slow_down("model:x", 5)  # a shorter wait does not end a longer one

    assert 29 < await limiter.admit("model:x") <= 30
    assert await limiter.admit("model:y") == 0
    await clock.advance(s=30)
    assert await limiter.admit("model:x") == 0


async def test_a_wait_in_the_middle_of_a_minute_keeps_its_count(limiter: RateLimiter, clock: ManualClock) -> None:
    await limiter.admit("model:x", calls=2)
    await limiter.slow_down("model:x", 5)
    await clock.advance(s=6)

    assert await limiter.admit("model:x", calls=2) == 0
    assert await limiter.admit("model:x", calls=2) > 0
