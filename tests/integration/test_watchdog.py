"""The watchdog says why an item does not move and what stands still, each time with what was found and the next step."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import orjson
import pytest
from given import OpenBoard, given_claim, given_item, given_items, in_time, until

from swarm_infrastructure import BaseAgent, Claims, Item, Outcome, Settings, SwarmInfrastructure, Work
from swarm_infrastructure.agents import Worker
from swarm_infrastructure.blackboard import Blackboard, Board, Section, job_board
from swarm_infrastructure.consensus import Debates
from swarm_infrastructure.cost_manager import Budget, Ledger, Spender
from swarm_infrastructure.cost_manager.budgets import zone
from swarm_infrastructure.errors import BudgetExceededError, InvalidInputError, LockNotAcquiredError
from swarm_infrastructure.failure_recovery.circuit_breaker import Breakers
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import ManualClock, RedisServer
from swarm_infrastructure.watchdog import (
    Reason,
    ReasonKind,
    StandstillKind,
    Watchdog,
    explain,
    find_standstills,
)

WAITING = "jobs/waiting/"


async def given_agent(
    board: Blackboard, agent_id: str = "ann", *lanes: str, role: str = "worker", **facts: Any
) -> None:
    await board.register_agent(
        agent_id, role, facts.pop("capabilities", ()), lanes=lanes or [WAITING], slots=1, **facts
    )


async def the_reason(board: Blackboard, kind: ReasonKind, item: str = "a") -> Reason:
    told = await explain(board, item)
    found = [reason for reason in told.reasons if reason.kind is kind]
    assert found, told
    return found[0]


async def kinds(board: Blackboard, item: str = "a") -> list[str]:
    return [str(reason.kind) for reason in (await explain(board, item)).reasons]


# -- one item ----------------------------------------------------------------------------------------------------------


async def test_an_item_that_is_worked_on_tells_by_whom_since_when_and_when_its_lease_ends(
    board: Blackboard, clock: ManualClock
) -> None:
    await given_agent(board)
    claimed = await given_claim(board, "a", "ann")
    await clock.advance(s=20)
    await board.claims.renew([claimed.claim])
    await clock.advance(s=5)

    told = await explain(board, "a")

    [reason] = told.reasons
    assert (reason.kind, told.stuck, told.place) == (ReasonKind.WORKED_ON, False, "jobs/active")
    assert reason.found.startswith("ann works on it for 25 s; its lease ends in 25 s, renewed 5")
    assert reason.step.endswith("swarm agents revoke ann")
    assert reason.facts["agent"] == "ann"
    assert 24 < reason.facts["lease_left_s"] <= 25


async def test_a_holder_that_nobody_has_heard_of_is_named_and_when_the_item_comes_back(
    board: Blackboard, clock: ManualClock
) -> None:
    await given_agent(board)
    await given_claim(board, "a", "ann", lease_s=600)
    await clock.advance(s=100)

    reason = await the_reason(board, ReasonKind.WORKED_ON)

    assert "not heard of for 100 s" in reason.found
    assert "offered again then" in reason.found


async def test_a_lease_that_ended_and_was_not_taken_back_stands_still(board: Blackboard, clock: ManualClock) -> None:
    await given_agent(board)
    await given_claim(board, "a", "ann")
    await clock.advance(s=90)

    told = await explain(board, "a")

    assert told.stuck
    assert told.reasons[0].kind is ReasonKind.LEASE_OVER
    assert "nobody has taken it back" in told.reasons[0].found
    assert told.reasons[0].step.endswith("swarm run TARGET")
    [standing] = await find_standstills(board)
    assert (standing.kind, standing.facts["items"]) == (StandstillKind.LEASES_OVER, ["a"])


async def test_a_delayed_item_says_for_how_long_and_what_went_wrong_before(
    board: Blackboard, clock: ManualClock
) -> None:
    claimed = await given_claim(board)
    await board.fail(claimed.claim, "ValueError: no source", retry_in_s=60)
    await clock.advance(s=10)

    reason = await the_reason(board, ReasonKind.DELAYED)

    assert reason.found == "it waits after attempt 1 failed (ValueError: no source): not to be claimed for another 50 s"
    assert reason.step == "sooner: swarm items retry a"


async def test_an_item_on_a_board_without_agents_is_claimed_by_nobody(board: Blackboard) -> None:
    await given_item(board)

    told = await explain(board, "a")

    assert told.stuck
    assert told.reasons[0].kind is ReasonKind.NOBODY_CLAIMS
    assert told.reasons[0].found == "no agent is registered on this board"
    assert told.reasons[0].step == "run an agent with claims = Claims('jobs'): swarm run TARGET"


async def test_a_section_that_no_agent_claims_is_named_beside_those_that_are(open_board: OpenBoard) -> None:
    board = await open_board(job_board("two", "jobs", "mail"))
    await given_item(board, section="mail")
    await given_agent(board)

    reason = await the_reason(board, ReasonKind.NOBODY_CLAIMS)

    assert reason.found == "no agent claims mail/waiting; those here claim jobs/waiting"


async def test_a_capability_that_nobody_has_is_named_and_what_is_there_instead(board: Blackboard) -> None:
    await given_item(board, requires="edit")
    await given_agent(board, "ann", WAITING, WAITING + "script", capabilities=["script"])

    told = await explain(board, "a")

    assert told.stuck
    assert told.reasons[0].kind is ReasonKind.NO_CAPABILITY
    assert "requires 'edit'" in told.reasons[0].found
    assert "(ann) can do script" in told.reasons[0].found
    assert told.reasons[0].step == "run an agent with capabilities = ['edit']"


async def test_able_agents_that_are_offline_paused_revoked_or_leaving_are_told_apart(
    board: Blackboard, clock: ManualClock
) -> None:
    await given_item(board)
    await given_agent(board, "dead")
    await clock.advance(s=100)
    assert (await kinds(board))[0] == "all_offline"

    await given_agent(board, "slow", role="slow")
    await board.agents.pause("role:slow", reason="too fast")
    await given_agent(board, "bad")
    await board.agents.revoke("bad")
    await given_agent(board, "gone")
    await board.agents.order("drain", "agent:gone")
    told = await explain(board, "a")

    assert {"revoked", "paused", "leaving", "all_offline"} <= {str(each.kind) for each in told.reasons}
    by_kind = {str(each.kind): each for each in told.reasons}
    assert by_kind["paused"].found == "who could take it (slow) is paused: too fast"
    assert by_kind["paused"].step == "let go on: swarm agents resume role:slow"
    assert by_kind["revoked"].step == "let go on: swarm agents resume bad"
    assert "gone) was told to drain" in by_kind["leaving"].found
    assert told.stuck
    [standing] = [each for each in await find_standstills(board) if each.kind is StandstillKind.STOPPED]
    assert standing.where == "jobs/waiting"
    assert standing.facts["hindered"] == {"offline": 1, "paused": 1, "revoked": 1, "leaving": 1}


async def test_one_free_agent_is_enough_for_an_item_not_to_stand_still(board: Blackboard) -> None:
    await given_item(board)
    await given_agent(board, "slow", role="slow")
    await board.agents.pause("role:slow")
    await given_agent(board, "free")

    told = await explain(board, "a")

    assert not told.stuck
    assert [each.kind for each in told.reasons] == [ReasonKind.IN_LINE]
    assert await find_standstills(board) == []


async def test_agents_whose_slots_are_taken_are_named(board: Blackboard) -> None:
    await given_agent(board)
    await given_claim(board, "first", "ann")
    await given_item(board)

    told = await explain(board, "a")

    assert [each.kind for each in told.reasons] == [ReasonKind.IN_LINE, ReasonKind.BUSY]
    assert not told.stuck
    assert "ann" in told.reasons[1].found


async def test_a_shut_budget_says_who_needs_how_much_and_how_to_raise_it(board: Blackboard, store: Store) -> None:
    await given_item(board)
    await given_agent(board)
    ledger = Ledger(store, board.keys, zone("UTC"))
    await ledger.set_budget(Budget(scope="swarm", daily_limit=0.01))
    with pytest.raises(BudgetExceededError):
        await ledger.reserve(Spender(agent_id="ann"), 20_000_000, 100)

    told = await explain(board, "a")

    assert told.stuck
    assert told.reasons[0].kind is ReasonKind.BUDGET
    assert told.reasons[0].found == "agent:ann needs $0.02, the budget of swarm has $0.01 of $0.01 per day left"
    assert told.reasons[0].step == "swarm budget raise swarm --day AMOUNT"
    assert told.reasons[0].facts["scope"] == "swarm"


async def test_open_breakers_and_services_that_asked_for_rest_are_told(board: Blackboard, store: Store) -> None:
    await given_claim(board, agent="ann")
    await store.call("slow_down", [board.keys.rules, board.keys.rates], ["model:gpt", 12_000])
    breakers = Breakers(store, board.keys)
    await breakers.open("model:claude", 400)
    await breakers.open("model:old", 400)
    await breakers.close("model:old")

    told = await explain(board, "a")

    assert [each.kind for each in told.reasons][1:] == [ReasonKind.BREAKER_OPEN, ReasonKind.RATE_LIMIT]
    assert "model:claude is open: it is not called for another 7 min" in told.reasons[1].found
    assert told.reasons[1].step.endswith("swarm breakers close model:claude")
    assert told.reasons[2].found.startswith("gpt has asked not to be called for another 12 s")
    [standing] = await find_standstills(board)
    assert (standing.kind, standing.where) == (StandstillKind.BREAKER_OPEN, "model:claude")


async def test_votes_that_are_missing_are_named_with_the_deadline(board: Blackboard, store: Store) -> None:
    await given_claim(board, agent="mod")
    debates = Debates(store, board.keys)
    await debates.open("d", "tell it?", voters=["x", "y", "z"], item_id="a", deadline_s=30)
    await debates.open("other", "and this?", voters=["x"], deadline_s=30)
    await debates.vote("d", "y", "publish", 0.9)

    reason = await the_reason(board, ReasonKind.VOTES)

    assert "the debate 'd' has 1 of 3 votes; x, z have not voted; it ends in 30 s" in reason.found
    assert reason.facts["missing"] == ["x", "z"]


async def test_quarantine_says_how_often_it_was_tried_the_last_error_and_how_to_release_it(
    open_board: OpenBoard,
) -> None:
    board = await open_board(job_board("jobs", max_attempts=2))
    for _ in range(2):
        claimed = await given_claim(board)
        await board.fail(claimed.claim, "ValueError: no source", retry_in_s=0)

    told = await explain(board, "a")

    [reason] = told.reasons
    assert told.stuck
    assert (reason.kind, reason.facts["attempts"]) == (ReasonKind.QUARANTINED, 2)
    assert reason.found == "it is in quarantine after 2 attempts and 0 crashes; the last error: ValueError: no source"
    assert reason.step.endswith("swarm items release a")


async def test_what_is_finished_and_what_rests_are_meant_to_stand_where_they_stand(open_board: OpenBoard) -> None:
    board = await open_board(
        Board(
            name="desk",
            sections={"in": Section(ready={"new": "read"}, resting=("parked", "done"), then={"read": "in/done"})},
            steps={"read": frozenset({"done", "parked"}), "parked": frozenset({"new"})},
            final=frozenset({"done"}),
        )
    )
    for item, to in (("a", None), ("b", "in/parked")):
        claimed = await given_claim(board, item)
        await board.complete(claimed.claim, to)

    finished, resting = await explain(board, "a"), await explain(board, "b")

    assert [each.kind for each in finished.reasons] == [ReasonKind.FINISHED]
    assert [each.kind for each in resting.reasons] == [ReasonKind.RESTING]
    assert resting.reasons[0].found.endswith("it may go to new")
    assert not (finished.stuck or resting.stuck)


async def test_a_place_in_line_counts_those_before_it_and_how_fast_the_lane_moves(board: Blackboard) -> None:
    await given_agent(board)
    await given_items(board, "x", "y", "z", "b", "c", "a")
    for each in await board.claim("jobs", "ann", most=3):
        await board.complete(each.claim)

    reason = await the_reason(board, ReasonKind.IN_LINE)

    assert reason.facts["before"] == 2
    assert reason.found.startswith(
        "2 items of its lane are before it (its priority is 2); the last claim of this lane was"
    )
    assert reason.facts["claims_per_s"] > 0
    assert "its turn in about" in reason.found


async def test_a_deleted_item_says_when_by_whom_and_why(board: Blackboard, clock: ManualClock) -> None:
    await given_item(board)
    await board.delete("jobs", "a", agent="user:eve", reason="a test")

    told = await explain(board, "a")

    [reason] = told.reasons
    assert (reason.kind, told.exists, told.stuck) == (ReasonKind.MISSING, False, True)
    assert (
        reason.found.startswith("it was deleted 0 s ago by user:eve from jobs/waiting: a test") or "0.0" in reason.found
    )
    assert reason.facts["by"] == "user:eve"


async def test_an_item_that_never_came_may_have_been_refused_by_a_full_section(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", cap=1))
    await given_item(board)
    await given_agent(board)

    told = await explain(board, "b")

    assert [each.kind for each in told.reasons] == [ReasonKind.MISSING, ReasonKind.SECTION_FULL]
    assert told.reasons[1].found == "section 'jobs' is full (1 of 1): submits are refused"
    [standing] = await find_standstills(board)
    assert (standing.kind, standing.where) == (StandstillKind.SECTION_FULL, "jobs")


async def test_an_agent_that_does_not_say_what_it_claims_may_be_the_one_that_comes(board: Blackboard) -> None:
    await given_item(board)
    await board.register_agent("hand", "worker")

    told = await explain(board, "a")

    assert [each.kind for each in told.reasons] == [ReasonKind.IN_LINE]
    assert "(hand work here and don't say what they claim)" in told.reasons[0].found
    assert await find_standstills(board) == []


async def test_the_workers_of_a_queue_need_not_register(open_board: OpenBoard) -> None:
    board = await open_board(job_board("mail.queue", "tasks"))
    await given_item(board)

    assert not (await explain(board, "a")).stuck
    assert await find_standstills(board) == []


async def test_an_explanation_is_json_data(board: Blackboard) -> None:
    await given_item(board)

    told = orjson.loads(orjson.dumps((await explain(board, "a")).as_dict()))

    assert (told["item"], told["board"], told["place"], told["stuck"]) == ("a", "jobs", "jobs/waiting", True)
    assert {"kind", "found", "step", "facts"} == set(told["reasons"][0])


async def test_no_id_is_refused(board: Blackboard) -> None:
    with pytest.raises(InvalidInputError, match="item id"):
        await explain(board, "no id")


async def test_what_an_agent_claims_is_known_from_its_first_word_and_after_each_heartbeat(
    redis_server: RedisServer,
) -> None:
    class Reader(BaseAgent):
        claims = Claims("jobs", batch=3)
        capabilities = ("script",)

        async def process(self, item: Item, work: Work) -> Outcome:
            await finish.wait()
            return work.done()

    finish = asyncio.Event()
    settings = Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6), heartbeat_s=0.05)
    async with SwarmInfrastructure(job_board("jobs"), settings) as swarm:
        board, worker = swarm.blackboard, Worker(swarm, [Reader("r", swarm=swarm)])
        await given_item(board, requires="edit")
        await given_item(board, "b")
        task = asyncio.create_task(worker.run(signals=False))

        async def heard() -> bool:
            found = await board.agents.find("r")
            return found is not None and "pid" in found.facts and found.facts.get("status", "working") == "working"

        await until(heard)
        found = await board.agents.find("r")
        starving, working = await explain(board, "a"), await explain(board, "b")
        finish.set()
        worker.tell_to_stop()
        await in_time(task, 20)

    assert found is not None
    assert found.facts["lanes"] == [WAITING, WAITING + "script"]
    assert found.facts["slots"] == 3
    assert starving.reasons[0].kind is ReasonKind.NO_CAPABILITY
    assert working.reasons[0].kind is ReasonKind.WORKED_ON


# -- a board -----------------------------------------------------------------------------------------------------------


async def test_ready_items_that_no_living_agent_claims_starve(board: Blackboard, clock: ManualClock) -> None:
    assert await find_standstills(board) == []
    await given_items(board, "a", "b")
    await clock.advance(s=30)

    [standing] = await find_standstills(board)

    assert (standing.kind, standing.where) == (StandstillKind.STARVED, "jobs/waiting")
    assert standing.found == "2 ready items, the oldest (a) for 30 s; no living agent claims from there"
    assert standing.step == "more: swarm why a"


async def test_items_whose_agents_are_all_offline_starve(board: Blackboard, clock: ManualClock) -> None:
    await given_agent(board)
    await given_item(board)
    await clock.advance(s=100)

    [standing] = await find_standstills(board)

    assert standing.kind is StandstillKind.STARVED
    assert "ann: not heard of for 100 s" in standing.found


async def test_a_low_priority_that_is_passed_by_all_the_time_is_named(board: Blackboard, clock: ManualClock) -> None:
    await given_agent(board)
    await given_item(board, "low", priority=9)
    await until_the_log_is_a_millisecond_on(board)
    for n in range(5):
        await given_item(board, f"high-{n}", priority=1)
        [claimed] = await board.claim("jobs", "ann")
        await board.complete(claimed.claim)
    await clock.advance(s=61)
    await board.heartbeat("ann")

    [standing] = await find_standstills(board)

    assert (standing.kind, standing.where) == (StandstillKind.OVERTAKEN, "jobs/waiting")
    assert (standing.facts["item"], standing.facts["passed_by"]) == ("low", 5)
    assert "priority 9" in standing.found


async def test_an_item_that_waits_far_longer_than_the_rest_is_named_and_not_before_patience_ends(
    board: Blackboard, clock: ManualClock
) -> None:
    await given_agent(board)
    await given_item(board)
    await clock.advance(s=59)
    await board.heartbeat("ann")
    assert await find_standstills(board) == []

    await clock.advance(s=2)
    [standing] = await find_standstills(board)

    assert standing.kind is StandstillKind.WAITS_LONG
    assert standing.found == "a (priority 2) has been ready for 61 s, and meanwhile nothing of its lane was claimed"


async def until_the_log_is_a_millisecond_on(board: Blackboard) -> None:
    began = int((await board.events.last_id()).partition("-")[0])

    async def later() -> bool:
        clock = await board.store.command("TIME")
        return int(clock[0]) * 1000 + int(clock[1]) // 1000 > began

    await until(later)


# -- waits -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(board: Blackboard) -> Blackboard:
    """The board, with waits written down at once."""
    board.waits.after_s = 0.0
    return board


async def waits_of(board: Blackboard) -> list[tuple[str, str]]:
    return [(wait.agent_id, wait.name) for wait in await board.waits.list()]


async def ring_of_two(board: Blackboard, stack: asyncio.TaskGroup) -> tuple[asyncio.Task[None], asyncio.Task[None]]:
    """ann holds "left" and wants "right", bob the other way round."""
    ready = asyncio.Barrier(2)

    async def want(agent: str, first: str, second: str) -> None:
        async with board.acquire_lock(first, agent):
            await ready.wait()
            try:
                async with board.acquire_lock(second, agent, timeout=60):
                    pass
            except LockNotAcquiredError:
                pass

    tasks = stack.create_task(want("ann", "left", "right")), stack.create_task(want("bob", "right", "left"))

    async def both_wait() -> bool:
        return len(await board.waits.list()) == 2

    await until(both_wait)
    return tasks


async def test_a_short_wait_leaves_no_trace_and_a_long_one_only_while_it_lasts(hasty: Blackboard) -> None:
    async def wait() -> None:
        async with hasty.acquire_lock("a", "bob", timeout=30):
            pass

    async with hasty.acquire_lock("a", "ann"):
        waiting = asyncio.create_task(wait())

        async def written() -> bool:
            return await waits_of(hasty) == [("bob", "a")]

        await until(written)
    await in_time(waiting)
    await hasty.waits.close()
    assert await waits_of(hasty) == []
    assert await hasty.store.command("EXISTS", hasty.keys.waits) == 0

    hasty.waits.after_s = 60.0
    async with hasty.acquire_lock("a", "ann"):
        with pytest.raises(LockNotAcquiredError):
            async with hasty.acquire_lock("a", "bob", timeout=0.05):
                pass
    assert await hasty.store.command("EXISTS", hasty.keys.waits) == 0


async def test_a_holder_that_waits_for_a_lock_is_told_and_who_has_it(hasty: Blackboard) -> None:
    await given_claim(hasty, "a", "bob")

    async def wait() -> None:
        async with hasty.acquire_lock("press", "bob", timeout=30):
            pass

    async with hasty.acquire_lock("press", "ann"):
        waiting = asyncio.create_task(wait())

        async def told() -> bool:
            return "lock" in await kinds(hasty)

        await until(told)
        reason = await the_reason(hasty, ReasonKind.LOCK)
    await in_time(waiting)

    assert (reason.facts["lock"], reason.facts["held_by"]) == ("press", "ann")
    assert "bob has waited for the lock 'press'" in reason.found
    assert reason.found.endswith(", which ann holds")


async def test_two_agents_that_wait_for_each_others_locks_are_a_ring_and_are_told_once(
    hasty: Blackboard, caplog: pytest.LogCaptureFixture
) -> None:
    watchdog = Watchdog(hasty)
    async with asyncio.TaskGroup() as stack:
        tasks = await ring_of_two(hasty, stack)

        [standing] = await find_standstills(hasty)
        first, again = await watchdog.run_once(), await watchdog.run_once()
        for task in tasks:
            task.cancel()

    assert standing.kind is StandstillKind.WAIT_CYCLE
    assert standing.where in ("ann → bob → ann", "bob → ann → bob")
    assert "ann waits for the lock 'right'" in standing.found
    assert "which bob holds" in standing.found
    assert standing.step.startswith("let one of them go: swarm agents shutdown ")
    assert [each.kind for each in first] == [StandstillKind.WAIT_CYCLE]
    assert again == []
    await hasty.waits.close()
    assert await find_standstills(hasty) == []


async def test_a_queue_of_agents_before_one_lock_is_no_ring(hasty: Blackboard) -> None:
    async def want(agent: str) -> None:
        async with hasty.acquire_lock("a", agent, timeout=30):
            pass

    async with asyncio.TaskGroup() as stack:
        async with hasty.acquire_lock("a", "ann"):
            for agent in ("bob", "cid", "dan"):
                stack.create_task(want(agent))

            async def all_wait() -> bool:
                return len(await hasty.waits.list()) == 3

            await until(all_wait)
            assert await find_standstills(hasty) == []


async def test_an_agent_with_two_hands_may_wait_with_one_for_what_the_other_holds(hasty: Blackboard) -> None:
    async def want() -> None:
        async with hasty.acquire_lock("a", "ann", timeout=30):
            pass

    taken, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with hasty.acquire_lock("a", "ann"):
            taken.set()
            await done.wait()

    async with asyncio.TaskGroup() as stack:
        stack.create_task(hold())
        await taken.wait()
        stack.create_task(want())

        async def waits() -> bool:
            return await waits_of(hasty) == [("ann", "a")]

        await until(waits)
        assert await find_standstills(hasty) == []
        done.set()


async def test_a_task_that_waits_for_a_lock_that_it_holds_itself_is_a_ring_of_one(hasty: Blackboard) -> None:
    async def wait_for_itself() -> None:
        async with hasty.acquire_lock("a", "ann"):
            async with hasty.acquire_lock("a", "ann", timeout=30):
                pass

    task = asyncio.create_task(wait_for_itself())

    async def told() -> bool:
        return bool(await find_standstills(hasty))

    await until(told)
    [standing] = await find_standstills(hasty)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert standing.where == "ann → ann"


async def test_a_debate_whose_missing_voter_waits_for_the_moderators_lock_is_a_ring(
    hasty: Blackboard, store: Store
) -> None:
    debates = Debates(store, hasty.keys, waits=hasty.waits)
    held = asyncio.Event()

    async def moderate() -> None:
        async with hasty.acquire_lock("desk", "mod"):
            await debates.open("d", "tell it?", voters=["x", "y"], deadline_s=60)
            held.set()
            await debates.wait("d", "mod")

    async def vote() -> None:
        await held.wait()
        async with hasty.acquire_lock("desk", "x", timeout=60):
            await debates.vote("d", "x", "publish", 0.9)

    tasks = [asyncio.create_task(moderate()), asyncio.create_task(vote())]

    async def found() -> bool:
        return bool(await find_standstills(hasty))

    await until(found)
    [standing] = await find_standstills(hasty)
    await debates.vote("d", "y", "publish", 0.9)
    [still] = await find_standstills(hasty)
    await debates.cancel("d")
    await in_time(asyncio.gather(*tasks, return_exceptions=True))

    assert {standing.where, still.where} <= {"mod → x → mod", "x → mod → x"}
    assert "mod waits for the debate 'd'" in standing.found
    assert "which x has not voted in" in standing.found


async def test_the_waits_of_an_agent_that_is_offline_or_of_a_process_that_is_gone_do_not_count(
    hasty: Blackboard, clock: ManualClock
) -> None:
    async with asyncio.TaskGroup() as stack:
        tasks = await ring_of_two(hasty, stack)
        await clock.advance(s=16)  # as if neither had been renewed
        forgotten = await find_standstills(hasty)
        lasting = await hasty.waits.sweep()
        left = await hasty.store.command("HLEN", hasty.keys.waits)
        for task in tasks:
            task.cancel()

    assert forgotten == []
    assert (lasting, left) == ([], 0)


async def test_a_note_of_a_lock_that_somebody_else_holds_by_now_makes_no_ring(hasty: Blackboard) -> None:
    async with asyncio.TaskGroup() as stack:
        tasks = await ring_of_two(hasty, stack)
        for name, text in (await hasty.store.command("HGETALL", hasty.keys.waits)).items():
            row = orjson.loads(text)
            row["holding"] = [[lock, token - 1] for lock, token in row["holding"]]
            await hasty.store.command("HSET", hasty.keys.waits, name, orjson.dumps(row))

        found = await find_standstills(hasty)
        for task in tasks:
            task.cancel()

    assert found == []
