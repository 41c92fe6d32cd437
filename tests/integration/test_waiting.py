"""Waiting for work: woken at once, by few bells, never for nothing; and a waiter that goes away loses nothing.

An idle agent looks by itself after half a lease, 15 s. A test that is done in less has seen a bell, not a look.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from given import Connect, OpenBoard, Tape, a_request, given_claim, given_item, given_items, held_call, in_time, until

from swarm_infrastructure.blackboard import Blackboard, Claimed, ClaimRequest, job_board
from swarm_infrastructure.blackboard.claims import waiting as claims_waiting
from swarm_infrastructure.errors import LibraryMismatchError, StoreUnavailableError
from swarm_infrastructure.store import Store
from swarm_infrastructure.store.nodes import ask_once
from swarm_infrastructure.testing import RedisServer

WAITING = "jobs/waiting/"
SOON_S = 2.0  # far below the poll of an idle agent (11 to 15 s), far above what a bell takes


def wait(board: Blackboard, agent: str = "worker_1", **facts: Any) -> asyncio.Task[list[Claimed]]:
    return asyncio.create_task(board.claims.wait(a_request(board, agent, **facts)))


async def listening(board: Blackboard, *, clients: int = 1) -> None:
    """Wait until so many connections block on a doorbell."""

    async def blocked() -> bool:
        return int((await board.store.info())["blocked_clients"]) >= clients

    await until(blocked)


async def another(open_board: OpenBoard, connect: Connect, board: Blackboard) -> Blackboard:
    """The same board as another process sees it."""
    return await open_board(board.board, on=await connect(board.store.url))


def ids(claimed: list[Claimed]) -> list[str]:
    return [each.item.id for each in claimed]


# --- being woken ------------------------------------------------------------------------------------------------------


async def test_a_waiting_agent_gets_what_is_there_already(board: Blackboard) -> None:
    await given_items(board, "a", "b")

    assert ids(await in_time(wait(board, most=5), SOON_S)) == ["a", "b"]


async def test_who_got_all_there_was_waits_for_the_bell_and_does_not_ask_in_vain(
    board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_waiting, "EMPTY_S", 60.0)
    await given_items(board, "a", "b")
    tape = Tape(board.store)
    assert ids(await in_time(wait(board, most=5), SOON_S)) == ["a", "b"]
    waiting = wait(board, most=5)
    await listening(board)

    await given_item(board, "c")

    assert ids(await in_time(waiting, SOON_S)) == ["c"]
    assert tape.count("claim") == 2


async def test_who_got_less_than_asked_for_a_while_ago_asks_again(
    board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_waiting, "EMPTY_S", 0.0)  # all of it has passed
    await given_item(board, "a")
    await in_time(wait(board, most=5), SOON_S)
    await given_item(board, "b")
    await board.store.command("DEL", board.keys.lane(WAITING).bell)  # a ring that was lost

    assert ids(await in_time(wait(board, most=5), SOON_S)) == ["b"]


async def test_who_may_claim_again_is_not_kept_from_it_by_others_who_found_the_lanes_empty(
    board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_waiting, "EMPTY_S", 60.0)
    monkeypatch.setattr(claims_waiting, "STOPPED_S", 60.0)
    await given_item(board, "a")
    [held] = await in_time(wait(board, "full", most_held=1), SOON_S)
    stopped = wait(board, "full", most_held=1)
    await given_item(board, "b")
    assert ids(await in_time(wait(board, "other", most=5), SOON_S)) == ["b"]  # and no more: the lanes are empty
    await given_item(board, "c")

    await board.complete(held.claim)

    assert ids(await in_time(stopped, SOON_S)) == ["c"]


async def test_others_who_come_and_go_do_not_put_off_when_who_was_stopped_asks_again(board: Blackboard) -> None:
    for agent in ("stopped", "other"):
        await board.agents.pause(f"agent:{agent}")
    await given_item(board, "a")
    tape = Tape(board.store)
    stopped = wait(board, "stopped")

    async def asked() -> bool:
        return tape.count("claim") > 0

    await until(asked)
    await board.agents.resume("agent:stopped")
    while not stopped.done() and tape.count("claim") < 100:  # each comes some 20 ms after the last
        other = wait(board, "other")
        await asyncio.wait({stopped}, timeout=0.02)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)

    assert ids(await in_time(stopped, 0.1)) == ["a"]


async def test_a_waiting_agent_is_woken_by_a_submission(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    elsewhere = await another(open_board, connect, board)
    waiting = wait(elsewhere)
    await listening(board)

    await given_item(board, "a")

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


@pytest.mark.parametrize("how", ["complete", "fail", "hand_back", "release", "retry", "move", "revoke"])
async def test_a_waiting_agent_is_woken_by_whatever_makes_an_item_ready(open_board: OpenBoard, how: str) -> None:
    board = await open_board(
        job_board("jobs", "jobs", max_attempts=2).with_sections("jobs", steps={"done": {"waiting"}})
    )
    claim = (await given_claim(board, "a", "before")).claim
    if how in ("release", "move"):
        await (board.fail(claim, "x", give_up=True) if how == "release" else board.complete(claim))
    elif how == "retry":
        await board.fail(claim, "x", retry_in_s=3600)
    waiting = wait(board)
    await listening(board)

    match how:
        case "complete":
            await board.complete(claim, "jobs/waiting")
        case "fail":
            await board.fail(claim, "x")
        case "hand_back":
            await board.hand_back(claim)
        case "release" | "retry":
            await board.retry("a")
        case "move":
            await board.move("a", "jobs", "jobs", status="waiting")
        case "revoke":
            await board.agents.revoke("before")

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


async def test_a_waiting_agent_is_woken_when_a_delay_is_over(board: Blackboard) -> None:
    await given_item(board, "a", delay_s=0.3)

    waiting = wait(board)

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


async def test_a_waiting_agent_is_woken_when_the_lease_of_a_dead_one_ends(board: Blackboard) -> None:
    dead = await given_claim(board, "a", "dead", lease_s=0.3)

    [claimed] = await in_time(wait(board), SOON_S)

    assert claimed.item.crashes == 1
    assert claimed.claim.token > dead.claim.token


async def test_who_is_woken_holds_the_item_before_it_has_heard_of_it(board: Blackboard) -> None:
    tape = Tape(board.store)
    await board.complete((await given_claim(board, "example")).claim)
    submit = tape.last("submit")
    waiting = wait(board)
    await listening(board)

    # another process; the loop of this one does not run meanwhile
    words = (
        "FCALL",
        "swarm_v1_submit",
        len(submit.keys),
        *submit.keys,
        "request",
        "",
        "",
        "a",
        *submit.args[4:-1],
        "{}",
    )
    server = (await board.store._topology.node(board.keys.items)).url
    assert ask_once(server, *words) == ["submitted"]
    record = ask_once(server, "HGET", board.keys.items, "a")

    assert "|worker_1|" in record
    assert ids(await in_time(waiting, SOON_S)) == ["a"]


async def test_the_lease_of_a_claim_that_waited_is_reckoned_from_when_it_was_made(board: Blackboard) -> None:
    loop = asyncio.get_running_loop()
    waiting = wait(board, lease_s=30)
    await listening(board)
    await asyncio.sleep(0.3)  # time that has passed before there was work
    submitted_at = loop.time()

    await given_item(board, "a")
    [claimed] = await in_time(waiting, SOON_S)

    assert submitted_at - 0.05 <= claimed.claim.taken_at <= loop.time()


async def test_an_agent_that_went_to_sleep_before_a_delay_was_set_wakes_when_it_is_over(board: Blackboard) -> None:
    waiting = wait(board)
    await listening(board)

    await given_item(board, "a", delay_s=0.1)

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


async def test_an_agent_that_sleeps_hears_of_a_failed_attempt_and_wakes_for_the_next_one(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    elsewhere = await another(open_board, connect, board)
    claim = (await given_claim(board, "a", "before")).claim
    waiting = wait(elsewhere)
    await listening(board)

    await board.fail(claim, "not yet", retry_in_s=0.1)

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


@pytest.mark.unaudited  # it hangs a bell where nothing is claimed from
async def test_a_lost_bell_costs_a_look_and_no_item(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", lease_s=0.4))  # who idles looks twice per lease
    tape = Tape(board.store)
    await board.complete((await given_claim(board, "example")).claim)
    submit = tape.last("submit")
    waiting = wait(board)
    await listening(board)

    silent = [*submit.keys[:-1], board.keys.lane("jobs/nobody/").bell]
    assert await board.store.call("submit", silent, ["request", "", "", "a", *submit.args[4:]]) == [b"submitted"]

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


async def test_an_agent_with_two_capabilities_hears_the_bells_of_both(board: Blackboard) -> None:
    for item_id, tag in (("a", "script"), ("b", "edit"), ("c", "")):
        waiting = wait(board, capabilities=["script", "edit"])
        await listening(board)
        await given_item(board, item_id, requires=tag)
        assert ids(await in_time(waiting, SOON_S)) == [item_id]


# --- many of them -----------------------------------------------------------------------------------------------------


async def test_fifty_waiting_agents_get_one_item_each_with_few_calls(board: Blackboard) -> None:
    waiting = [wait(board, f"w{n}") for n in range(50)]
    await listening(board)
    tape = Tape(board.store)

    await given_items(board, *(f"i{n}" for n in range(50)))
    hands = await in_time(asyncio.gather(*waiting), SOON_S)

    assert sorted(each for hand in hands for each in ids(hand)) == sorted(f"i{n}" for n in range(50))
    assert {len(hand) for hand in hands} == {1}
    assert tape.count("claim") <= 3


async def test_one_item_wakes_about_one_of_many_processes(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    processes = [await another(open_board, connect, board) for _ in range(8)]
    waiting = [wait(each, f"w{n}") for n, each in enumerate(processes)]
    await listening(board, clients=8)
    tapes = [Tape(each.store) for each in processes]

    for n in range(4):
        await given_item(board, f"i{n}")
        await in_time(asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED), SOON_S)
        waiting = [each for each in waiting if not each.done()]

    assert len(waiting) == 4
    assert sum(tape.count("claim") for tape in tapes) <= 8, "two looks per item: one for it, one for the next bell"
    for each in waiting:
        each.cancel()


async def test_nobody_is_woken_for_work_that_is_gone(board: Blackboard) -> None:
    await given_item(board, "a")  # rings
    await board.claim("jobs", "quick")
    tape = Tape(board.store)

    waiting = wait(board)
    await listening(board)

    assert tape.count("claim") == 1
    waiting.cancel()


async def test_bells_do_not_pile_up_while_nobody_listens(board: Blackboard) -> None:
    for n in range(5):
        await given_item(board, f"i{n}")

    assert await board.store.command("LLEN", board.keys.lane(WAITING).bell) == 1


async def test_every_process_gets_its_share_when_many_items_come_at_once(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    processes = [await another(open_board, connect, board) for _ in range(6)]
    waiting = [wait(each, f"w{n}") for n, each in enumerate(processes)]
    await listening(board, clients=6)

    await given_items(board, *"abcdef")

    hands = await in_time(asyncio.gather(*waiting), SOON_S)
    assert sorted(each for hand in hands for each in ids(hand)) == list("abcdef")


async def test_more_agents_than_one_call_can_serve_all_get_work(board: Blackboard) -> None:
    names = [f"i{n}" for n in range(1100)]
    for start in range(0, 1100, 500):
        await given_items(board, *names[start : start + 500])

    hands = await in_time(asyncio.gather(*(wait(board, f"w{n}") for n in range(1100))), 10)

    assert sorted(each for hand in hands for each in ids(hand)) == sorted(names)


async def test_gated_agents_do_not_keep_work_from_those_behind_them(board: Blackboard) -> None:
    await board.agents.pause("role:paused")
    gated = [wait(board, f"p{n}", role="paused") for n in range(600)]
    free = wait(board, "free")

    await given_item(board, "a")

    assert ids(await in_time(free, SOON_S)) == ["a"]
    for each in gated:
        each.cancel()


# --- gates and caps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["*", "role:worker", "agent:worker_1"])
async def test_a_gated_agent_goes_on_within_about_a_second_when_the_gate_opens(board: Blackboard, who: str) -> None:
    await given_item(board, "a")
    await board.agents.pause(who)
    tape = Tape(board.store)
    waiting = wait(board)
    await until(lambda: _looked(tape))

    await board.agents.resume(who)

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


async def test_a_gated_agent_that_waits_beside_a_free_one_gets_its_share_once_the_gate_is_open(
    board: Blackboard,
) -> None:
    await board.agents.pause("agent:gated")
    gated, free = wait(board, "gated"), wait(board, "free")
    await listening(board)
    await given_item(board, "a")
    assert ids(await in_time(free, SOON_S)) == ["a"]
    await given_item(board, "b")

    await board.agents.resume("agent:gated")

    assert ids(await in_time(gated, SOON_S)) == ["b"]


@pytest.mark.parametrize("stopped", ["paused", "at its cap"])
async def test_an_agent_that_may_not_claim_does_not_spin_on_work_that_is_there(board: Blackboard, stopped: str) -> None:
    await given_items(board, *"abc")
    cap = 0
    if stopped == "paused":
        await board.agents.pause("agent:worker_1")
    else:
        await given_claim(board, "held", "worker_1")
        cap = 1
    tape = Tape(board.store)
    waiting = wait(board, most_held=cap)

    await asyncio.sleep(0.5)  # a rate can't be seen but over a time

    assert 1 <= tape.count("claim") <= 3
    waiting.cancel()


async def test_an_agent_at_its_cap_claims_as_soon_as_it_has_ended_something(board: Blackboard) -> None:
    held = await given_claim(board, "held", "worker_1")
    tape = Tape(board.store)
    waiting = wait(board, most_held=1)
    await given_item(board, "next_one")
    await until(lambda: _looked(tape))

    await board.complete(held.claim)

    assert ids(await in_time(waiting, 0.6)) == ["next_one"]


async def _looked(tape: Tape) -> bool:
    return tape.count("claim") > 0


# --- going away -------------------------------------------------------------------------------------------------------


async def test_a_waiter_that_goes_away_takes_nothing_with_it(board: Blackboard) -> None:
    waiting = wait(board, "w1")
    await listening(board)
    waiting.cancel()
    await in_time(asyncio.wait({waiting}), SOON_S)

    await given_item(board, "a")

    [claimed] = await in_time(wait(board, "w2"), SOON_S)
    assert (claimed.item.attempts, claimed.item.version) == (1, 2)


async def test_what_a_waiter_is_dealt_while_it_goes_away_is_handed_back(board: Blackboard) -> None:
    await given_item(board, "a")

    async with held_call(board.store, "claim") as (executed, let):
        waiting = wait(board, "w1")
        await in_time(executed.wait())
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        let.set()
        [claimed] = await in_time(wait(board, "w2"), SOON_S)

    assert (claimed.item.holder, claimed.item.attempts, claimed.item.crashes) == ("w2", 1, 0)


async def test_a_waiter_cancelled_in_the_moment_of_its_answer_hands_everything_back(board: Blackboard) -> None:
    await given_items(board, "a", "b", "c")
    waiting = wait(board, "w1", most=3)
    [queue] = await _queues(board)
    await until(lambda: _dealt(queue))  # its answer is there, but it has not run yet

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert waiting.cancelled()
    items = await board.find_many(["a", "b", "c"])
    assert [(item.holder, item.attempts) for item in items if item] == [("", 0)] * 3


async def _queues(board: Blackboard) -> list[Any]:
    await asyncio.sleep(0)
    return list(board.claims._room._queues.values())


async def _dealt(queue: Any) -> bool:
    # the answer is set in the turn before the waiter runs: poll in every turn of the loop, not every 5 ms
    for _ in range(100_000):
        if not queue.waiting:
            return True
        await asyncio.sleep(0)
    return False


async def test_a_hand_back_that_fails_neither_hides_the_cancellation_nor_harms_other_waiters(board: Blackboard) -> None:
    await given_item(board, "a")
    original = board.store.call

    async def call(function: str, *args: Any, **options: Any) -> Any:
        if function == "end_claims":
            raise StoreUnavailableError("here", "it is gone")
        return await original(function, *args, **options)

    board.store.call = call  # type: ignore[method-assign]
    async with held_call(board.store, "claim") as (executed, let):
        going, staying = wait(board, "w1"), wait(board, "w2")
        await in_time(executed.wait())
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        let.set()
    assert going.cancelled()

    await given_item(board, "b")
    assert ids(await in_time(staying, SOON_S)) == ["b"]
    board.store.call = original  # type: ignore[method-assign]
    assert (await board.get("a")).holder == "w1", "until its lease ends"


async def test_a_bell_that_rang_for_nobody_is_passed_on(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    first, second = [await another(open_board, connect, board) for _ in range(2)]
    gone = wait(first, "gone")
    await listening(board, clients=1)
    waiting = wait(second, "here")
    await listening(board, clients=2)
    gone.cancel()  # its process still listens, and stands first in the queue at the bell

    await given_item(board, "a")

    assert ids(await in_time(waiting, SOON_S)) == ["a"]


async def test_a_bell_is_passed_on_to_the_lane_that_it_rang_for(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    first, second = [await another(open_board, connect, board) for _ in range(2)]
    gone = wait(first, "gone", capabilities=["script"])
    await listening(board, clients=1)
    request = ClaimRequest(agent_id="here", role="", lanes=("jobs/waiting/script",))
    only_script = asyncio.create_task(second.claims.wait(request))
    await listening(board, clients=2)
    gone.cancel()

    await given_item(board, "a", requires="script")

    assert ids(await in_time(only_script, SOON_S)) == ["a"]


async def test_closing_a_board_cancels_who_waits_and_hands_back_what_is_under_way(
    board: Blackboard, connect: Connect
) -> None:
    await given_item(board, "a")
    store = await connect(board.store.url)

    async with held_call(store, "claim") as (executed, let):
        async with Blackboard(store, board.board, namespace="test") as closing:
            waiting = wait(closing, "w1")
            await in_time(executed.wait())
            asyncio.get_running_loop().call_later(0.05, let.set)
    await asyncio.gather(waiting, return_exceptions=True)

    assert waiting.cancelled()
    item = await board.get("a")
    assert (item.holder, item.attempts, item.crashes) == ("", 0, 0)


async def test_endings_that_were_asked_for_are_sent_before_a_board_closes(board: Blackboard, connect: Connect) -> None:
    store = await connect(board.store.url)
    async with Blackboard(store, board.board, namespace="test") as closing:
        claimed = await given_claim(closing, "a")
        ending = asyncio.create_task(closing.complete(claimed.claim))
        await asyncio.sleep(0)

    assert await ending == 3
    assert (await board.get("a")).status == "done"


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_an_error_that_no_waiting_helps_reaches_everybody_who_waits(board: Blackboard) -> None:
    original, asked = board.store.call, 0

    async def call(function: str, *args: Any, **options: Any) -> Any:
        nonlocal asked
        if function == "claim":
            asked += 1
            if asked == 1:
                late.append(wait(board, "late"))  # arrives while the call is under way
                await asyncio.sleep(0)
                raise LibraryMismatchError("claim", "odd")
        return await original(function, *args, **options)

    late: list[asyncio.Task[list[Claimed]]] = []
    board.store.call = call  # type: ignore[method-assign]

    answers = await in_time(asyncio.gather(wait(board, "w1"), wait(board, "w2"), return_exceptions=True), SOON_S)
    await given_item(board, "a")

    assert [type(answer) for answer in answers] == [LibraryMismatchError] * 2
    assert ids(await in_time(late[0], SOON_S)) == ["a"]


async def test_an_error_that_nobody_foresaw_leaves_nobody_waiting_for_ever(board: Blackboard) -> None:
    original = board.store.call

    async def call(function: str, *args: Any, **options: Any) -> Any:
        if function == "claim":
            raise ZeroDivisionError
        return await original(function, *args, **options)

    board.store.call = call  # type: ignore[method-assign]
    answers = await in_time(asyncio.gather(wait(board, "w1"), wait(board, "w2"), return_exceptions=True), SOON_S)
    assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2

    board.store.call = original  # type: ignore[method-assign]
    await given_item(board, "a")
    assert ids(await in_time(wait(board, "w3"), SOON_S)) == ["a"]


async def test_waiting_agents_outlive_a_restart_of_redis(connect: Connect, request: pytest.FixtureRequest) -> None:
    with RedisServer(
        request.config.getoption("--redis-kind"), persist=True, options={"appendfsync": "always"}
    ) as server:
        store: Store = await connect(server.url)
        async with Blackboard(store, job_board("jobs")) as board:
            waiting = [wait(board, f"w{n}") for n in range(3)]
            await listening(board)

            server.kill()
            server.restart()
            await given_items(board, "a", "b", "c")

            hands = await in_time(asyncio.gather(*waiting), 10)
            assert sorted(each for hand in hands for each in ids(hand)) == ["a", "b", "c"]


async def test_waiting_agents_outlive_a_redis_that_is_out_of_memory(board: Blackboard) -> None:
    await given_item(board, "a")
    used = int((await board.store.info())["used_memory"])
    tape = Tape(board.store)
    await board.store.command("CONFIG", "SET", "maxmemory", used // 2)
    try:
        waiting = wait(board)
        await asyncio.wait({waiting}, timeout=0.05)
        assert not waiting.done()  # the claim is refused, and the agent waits on
    finally:
        await board.store.command("CONFIG", "SET", "maxmemory", 0)

    assert ids(await in_time(waiting)) == ["a"]
    assert tape.count("claim") == 1  # one that was answered: the others were refused
