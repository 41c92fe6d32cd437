"""Checkpoints: whole or old, never of a stale claim, kept for their time, in the order in which they were written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from given import Tape, clock_of, given_claim, given_item

from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.blackboard.claims import work_under
from swarm_infrastructure.errors import ClaimLostError, InvalidInputError, ItemHeldError, WrongStatusError
from swarm_infrastructure.failure_recovery import Checkpoints
from swarm_infrastructure.failure_recovery import checkpoints as module


@pytest.fixture
def checkpoints(board: Blackboard) -> Checkpoints:
    return Checkpoints(board)


async def test_a_task_goes_on_from_its_newest_checkpoint_and_knows_what_is_done(checkpoints: Checkpoints) -> None:
    await checkpoints.create("video_001", "script_written", {"script": "Once"}, {"writer": {"mood": 3}})
    await checkpoints.create("video_001", "voice_recorded", {"file": "a.wav"})

    newest = await checkpoints.find("video_001")
    assert newest is not None
    assert (newest.stage, newest.data, newest.done) == (
        "voice_recorded", {"file": "a.wav"}, ("script_written", "voice_recorded"),
    )  # fmt: skip
    earlier = await checkpoints.find("video_001", "script_written")
    assert earlier is not None
    assert (earlier.data, earlier.agent_states, earlier.done) == (
        {"script": "Once"}, {"writer": {"mood": 3}}, ("script_written",),
    )  # fmt: skip
    assert await checkpoints.find("video_001", "rendered") is None
    assert await checkpoints.find("video_002") is None


async def test_a_stage_written_again_is_replaced_and_is_the_newest(checkpoints: Checkpoints) -> None:
    for stage, n in (("a", 1), ("b", 2), ("a", 3)):
        await checkpoints.create("t", stage, {"n": n})
    assert [(each.stage, each.data["n"]) for each in await checkpoints.list("t")] == [("b", 2), ("a", 3)]


async def test_another_process_finds_it_and_after_its_time_nobody_does(
    checkpoints: Checkpoints, open_board: Any, board: Blackboard
) -> None:
    await checkpoints.create("t", "long", {}, ttl_hours=48)
    await checkpoints.create("t", "short", {}, ttl_hours=1)
    elsewhere = Checkpoints(board)
    assert (await elsewhere.find("t")).stage == "short"
    await clock_of(board).advance(s=3601)
    assert (await elsewhere.find("t")).stage == "long"
    assert await elsewhere.find("t", "short") is None
    await elsewhere.sweep()
    assert await elsewhere.tasks() == ["t"]
    await clock_of(board).advance(s=47 * 3600)
    assert await elsewhere.find("t") is None
    await elsewhere.sweep()
    assert await elsewhere.tasks() == []


async def test_redis_forgets_the_whole_task_after_its_longest_checkpoint(
    checkpoints: Checkpoints, board: Blackboard
) -> None:
    await checkpoints.create("t", "long", {}, ttl_hours=48)
    await checkpoints.create("t", "short", {}, ttl_hours=1)
    assert 47 * 3600 < await board.store.command("TTL", board.keys.checkpoints_of("t")) <= 48 * 3600


async def test_the_holder_of_an_item_writes_and_its_token_stands_in_it(
    checkpoints: Checkpoints, board: Blackboard
) -> None:
    claimed = await given_claim(board)
    await checkpoints.create("a", "half", {"n": 1}, claim=claimed.claim)
    assert (await checkpoints.find("a")).token == claimed.claim.token


async def test_who_has_lost_the_item_turns_nothing_back(checkpoints: Checkpoints, board: Blackboard) -> None:
    stale = (await given_claim(board, lease_s=1)).claim
    await checkpoints.create("a", "half", {"by": "first"}, claim=stale)
    await clock_of(board).advance(s=2)
    with pytest.raises(ClaimLostError, match="the lease ran out"):
        await checkpoints.create("a", "half", {"by": "stale"}, claim=stale)
    fresh = (await given_claim(board, agent="worker_2")).claim
    await checkpoints.create("a", "half", {"by": "second"}, claim=fresh)
    with pytest.raises(ClaimLostError, match="taken back"):
        await checkpoints.create("a", "half", {"by": "stale"}, claim=stale)
    work_under(stale)  # as inside of its handler, without naming the claim
    with pytest.raises(ClaimLostError):
        await checkpoints.create("a", "more", {"by": "stale"})
    assert [each.data for each in await checkpoints.list("a")] == [{"by": "second"}]


async def test_a_claim_that_this_process_keeps_is_used(checkpoints: Checkpoints, board: Blackboard) -> None:
    claimed = await given_claim(board)
    board.leases.keep(claimed.claim)
    await checkpoints.create("a", "half", {})
    assert (await checkpoints.find("a")).token == claimed.claim.token
    board.leases.drop(claimed.claim)


async def test_who_holds_nothing_can_write_for_an_item_only_while_nobody_else_does(
    checkpoints: Checkpoints, board: Blackboard
) -> None:
    await given_item(board)
    await checkpoints.create("a", "half", {})
    await given_claim(board, agent="worker_2")
    with pytest.raises(ItemHeldError, match="'worker_2'"):
        await checkpoints.create("a", "more", {})


async def test_a_reader_sees_the_old_one_or_the_new_one_while_many_write(checkpoints: Checkpoints) -> None:
    texts = {n: f"{n}" * 200_000 for n in range(8)}

    async def write(n: int) -> None:
        for _ in range(5):
            await checkpoints.create("t", "half", {"n": n, "text": texts[n]})

    await checkpoints.create("t", "half", {"n": 0, "text": texts[0]})
    writing = asyncio.gather(*(write(n) for n in texts))
    seen = 0
    while not writing.done():
        found = await checkpoints.find("t")
        assert found is not None
        assert found.data["text"] == texts[found.data["n"]]
        seen += 1
    await writing
    assert seen > 5


@pytest.mark.unaudited
async def test_what_somebody_else_wrote_there_is_not_taken_for_a_checkpoint(
    checkpoints: Checkpoints, board: Blackboard
) -> None:
    await checkpoints.create("t", "half", {"n": 1})
    key = board.keys.checkpoints_of("t")
    whole = await board.store.command("HGET", key, "half")
    await board.store.command("HSET", key, "half", whole.replace(b'"n":1', b'"n":2'))
    with pytest.raises(InvalidInputError, match="don't fit their checksum"):
        await checkpoints.find("t")


async def test_a_repeated_call_leaves_one_checkpoint(checkpoints: Checkpoints, board: Blackboard) -> None:
    tape = Tape(board.store)
    await checkpoints.create("t", "half", {"n": 1})
    await tape.again(tape.last("keep_checkpoint"))
    assert [each.data for each in await checkpoints.list("t")] == [{"n": 1}]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"task_id": "two words"}, "task id"),
        ({"stage": ""}, "stage"),
        ({"stage": "x" * 101}, "stage"),
        ({"ttl_hours": 0}, "ttl_hours"),
        ({"data": {"a": object()}}, "JSON"),
        ({"data": ["no dict"]}, "dicts"),
        ({"data": {"a": "x" * module.MAX_CHECKPOINT_BYTES}}, "at most 8,388,608"),
    ],
)
async def test_what_cannot_be_kept_is_refused(checkpoints: Checkpoints, wrong: dict[str, Any], what: str) -> None:
    facts: dict[str, Any] = {"task_id": "t", "stage": "half", "data": {}} | wrong
    with pytest.raises(InvalidInputError, match=what):
        await checkpoints.create(**facts)
    assert await checkpoints.list("t") == []


async def test_a_task_has_a_bounded_number_of_stages(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STAGES", 2)
    await checkpoints.create("t", "a", {})
    await checkpoints.create("t", "b", {})
    with pytest.raises(InvalidInputError, match="at most 2"):
        await checkpoints.create("t", "c", {})
    await checkpoints.create("t", "a", {"again": True})


async def test_checkpoints_go_with_their_item_or_by_hand(checkpoints: Checkpoints, board: Blackboard) -> None:
    await given_item(board)
    await checkpoints.create("a", "half", {})
    await board.delete("jobs", "a")
    assert await checkpoints.list("a") == []
    await checkpoints.create("t", "half", {})
    assert (await checkpoints.delete("t"), await checkpoints.delete("t")) == (True, False)
    assert "t" not in await checkpoints.tasks()


async def test_who_has_lost_an_item_writes_nothing_also_without_showing_a_claim(
    checkpoints: Checkpoints, board: Blackboard
) -> None:
    stale = await given_claim(board, lease_s=1)
    lease = board.leases.keep(stale.claim)
    await clock_of(board).advance(s=2)
    fresh = await given_claim(board, agent="worker_2")
    await checkpoints.create("a", "two", {"by": "worker_2"}, claim=fresh.claim)
    await board.leases.run_once()
    while not lease.lost:  # as its keeper finds out
        await asyncio.sleep(0.01)
        await board.leases.run_once()
    with pytest.raises(ItemHeldError):
        await checkpoints.create("a", "two", {"by": "worker_1"})
    await board.fail(fresh.claim, "no")
    with pytest.raises(WrongStatusError, match="nobody holds now"):
        await checkpoints.create("a", "two", {"by": "worker_1"})
    again = await given_claim(board, agent="worker_3")
    board.leases.keep(again.claim)
    with pytest.raises(ItemHeldError):  # not even with the claim of another agent of this process
        await checkpoints.create("a", "two", {"by": "worker_1"})
    board.leases.drop(again.claim)
    assert [each.data for each in await checkpoints.list("a")] == [{"by": "worker_2"}]


async def test_a_handler_writes_under_its_own_claim_and_no_other(checkpoints: Checkpoints, board: Blackboard) -> None:
    mine, other = await given_claim(board), await given_claim(board, "b", agent="worker_2")
    board.leases.keep(other.claim)
    work_under(mine.claim)
    with pytest.raises(ItemHeldError):
        await checkpoints.create("b", "half", {})
    board.leases.drop(other.claim)


@pytest.mark.unaudited
async def test_what_is_torn_can_be_deleted_as_its_error_says(checkpoints: Checkpoints, board: Blackboard) -> None:
    await board.store.command("HSET", board.keys.checkpoints_of("t"), "half", "no head at all")
    with pytest.raises(InvalidInputError, match="don't fit their checksum"):
        await checkpoints.find("t")
    assert await checkpoints.delete("t")
    await checkpoints.create("t", "half", {"n": 1})


async def test_stages_whose_time_is_over_leave_room(
    checkpoints: Checkpoints, board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STAGES", 2)
    await checkpoints.create("t", "long", {}, ttl_hours=48)
    await checkpoints.create("t", "short", {}, ttl_hours=1)
    await clock_of(board).advance(s=3601)
    await checkpoints.create("t", "next", {})
    assert [each.stage for each in await checkpoints.list("t")] == ["long", "next"]


async def test_the_later_checkpoint_is_the_newest_also_when_redis_clock_goes_back(
    checkpoints: Checkpoints, board: Blackboard
) -> None:
    await checkpoints.create("t", "first", {})
    await board.store.command("HINCRBY", board.keys.rules, "clock_offset_ms", -60_000)  # as after a failover
    await checkpoints.create("t", "second", {})
    assert [each.stage for each in await checkpoints.list("t")] == ["first", "second"]
