"""Ending claims: complete, fail, hand back; exactly one ending is accepted, and three counters tell them apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from given import OpenBoard, Tape, clock_of, given_claim, given_item, given_items, held_call, in_time, snapshot

from swarm_infrastructure.blackboard import Blackboard, Board, Claim, Section, Submission, job_board
from swarm_infrastructure.blackboard.claims import Ending
from swarm_infrastructure.errors import (
    ClaimLostError,
    InvalidInputError,
    ItemHeldError,
    LibraryMismatchError,
    UnknownSectionError,
    WrongStatusError,
)
from swarm_infrastructure.failure_recovery import FailureType
from swarm_infrastructure.failure_recovery.failures import Failures
from swarm_infrastructure.testing import ManualClock

PIPELINE = Board(  # one line of work with a retry status, a second attempt elsewhere and two ways out
    name="pipeline",
    sections={
        "draft": Section(
            ready={"new": "writing", "again": "writing"},
            resting=("dropped",),
            retry="again",
            then={"writing": "check/ready"},
            max_attempts=3,
            max_crashes=2,
        ),
        "check": Section(ready={"ready": "checking"}, resting=("good",), cap=2, max_payload_bytes=500),
    },
    steps={"writing": frozenset({"ready", "dropped"}), "checking": frozenset({"good", "new"})},
    final=frozenset({"good", "dropped"}),
)
Do = Callable[[Blackboard, Claim], Awaitable[Any]]

ENDINGS: dict[str, Do] = {
    "complete": lambda board, claim: board.complete(claim),
    "fail": lambda board, claim: board.fail(claim, "no luck"),
    "give up": lambda board, claim: board.fail(claim, "no luck", give_up=True),
    "hand back": lambda board, claim: board.hand_back(claim),
}
each_ending = pytest.mark.parametrize("end", list(ENDINGS.values()), ids=list(ENDINGS))


@pytest.fixture
async def pipeline(open_board: OpenBoard) -> Blackboard:
    return await open_board(PIPELINE)


async def counters(board: Blackboard, item_id: str = "a") -> tuple[str, int, int]:
    item = await board.get(item_id)
    return item.status, item.attempts, item.crashes


# --- complete ---------------------------------------------------------------------------------------------------------


async def test_a_completed_item_goes_where_its_section_leads_and_is_ready_for_the_next_role(
    pipeline: Blackboard,
) -> None:
    claimed = await given_claim(pipeline, "a")

    version = await pipeline.complete(claimed.claim, result={"score": [1, []]}, reason="fine")

    item = await pipeline.get("a")
    assert (item.section, item.status, item.holder, item.origin) == ("check", "ready", "", "")
    assert (item.version, item.result, item.token) == (3, {"score": [1, []]}, claimed.claim.token)
    assert version == 3
    [next_one] = await pipeline.claim("check", "checker")
    assert next_one.item.id == "a"
    assert next_one.item.attempts == 1
    event = (await pipeline.history("a"))[2]
    assert (event.kind, event.before, event.after) == ("completed", "draft/writing/", "check/ready/")
    assert (event.agent, event.token, event.reason) == ("worker_1", claimed.claim.token, "fine")


async def test_a_completed_item_goes_where_the_agent_says_and_asks_for_the_capability_it_names(
    pipeline: Blackboard,
) -> None:
    await pipeline.complete((await given_claim(pipeline, "a")).claim, "check/ready", requires="law")
    await pipeline.complete((await given_claim(pipeline, "b")).claim, "draft/dropped")

    assert await pipeline.claim("check", "checker") == []
    assert len(await pipeline.claim("check", "lawyer", capabilities=["law"])) == 1
    assert (await pipeline.get("b")).status == "dropped"


async def test_a_completed_item_can_be_told_to_wait(pipeline: Blackboard) -> None:
    await pipeline.complete((await given_claim(pipeline, "a")).claim, delay_s=60)

    assert await pipeline.claim("check", "checker") == []
    await clock_of(pipeline).advance(s=60)
    assert len(await pipeline.claim("check", "checker")) == 1


async def test_a_patch_is_merged_into_the_payload(board: Blackboard) -> None:
    await given_item(board, "a", payload={"keep": [], "change": 1, "drop": 2})
    claimed = await given_claim(board, "a")

    await board.complete(claimed.claim, patch={"change": 3, "drop": None, "add": {"x": 1}})

    assert (await board.get("a")).payload == {"keep": [], "change": 3, "add": {"x": 1}}


async def test_a_patch_made_from_an_older_reading_is_merged_into_what_the_item_is_now(board: Blackboard) -> None:
    await given_item(board, "a", payload={"x": 1})
    claimed = await given_claim(board, "a")
    board.leases.keep(claimed.claim)
    await board.update("jobs", "a", {"y": 2})

    await board.complete(claimed.claim, patch={"z": 3}, of=claimed.item)

    assert (await board.get("a")).payload == {"x": 1, "y": 2, "z": 3}


async def test_completing_forgets_the_failures_and_crashes_of_the_section(pipeline: Blackboard) -> None:
    await pipeline.fail((await given_claim(pipeline, "a")).claim, "once")
    await given_claim(pipeline, "a", lease_s=1)
    await clock_of(pipeline).advance(s=2)
    claimed = await given_claim(pipeline, "a")
    assert await counters(pipeline) == ("writing", 3, 1)

    await pipeline.complete(claimed.claim)

    assert await counters(pipeline) == ("ready", 0, 0)


async def test_a_full_section_still_takes_what_is_completed_into_it(pipeline: Blackboard) -> None:
    for name in "abc":
        await pipeline.complete((await given_claim(pipeline, name)).claim)

    assert (await pipeline.get_section_stats("check"))["total"] == 3


async def test_a_step_that_the_board_does_not_allow_changes_nothing_and_the_claim_still_holds(
    pipeline: Blackboard,
) -> None:
    claimed = await given_claim(pipeline, "a")
    before = await snapshot(pipeline.store)

    for place in ("check/good", "draft/new", "draft/again", "draft/writing", "check/checking", "draft/quarantined"):
        with pytest.raises(WrongStatusError):
            await pipeline.complete(claimed.claim, place)
    assert await snapshot(pipeline.store) == before

    assert await pipeline.complete(claimed.claim, "draft/dropped") == 3


async def test_a_place_that_the_board_does_not_have_is_refused(pipeline: Blackboard) -> None:
    claimed = await given_claim(pipeline, "a")

    for place, error in (
        ("draft/nothing", InvalidInputError),
        ("nowhere/new", UnknownSectionError),
        ("draft", InvalidInputError),
    ):
        with pytest.raises(error):
            await pipeline.complete(claimed.claim, place)
    with pytest.raises(InvalidInputError):
        await pipeline.complete(claimed.claim, requires="a/b")

    assert (await pipeline.get("a")).holder == "worker_1"


async def test_where_a_section_leads_nowhere_the_agent_has_to_say_where(pipeline: Blackboard) -> None:
    await given_item(pipeline, "a", "check")
    claimed = await given_claim(pipeline, "a")

    with pytest.raises(WrongStatusError, match="names no next place"):
        await pipeline.complete(claimed.claim)

    await pipeline.complete(claimed.claim, "check/good")


@pytest.mark.parametrize(
    "bad", [{"patch": {"x": float("nan")}}, {"result": {1, 2}}, {"result": {"x": float("inf")}}], ids=str
)
async def test_a_result_or_patch_that_is_not_json_changes_nothing(board: Blackboard, bad: dict[str, Any]) -> None:
    claimed = await given_claim(board, "a")
    before = await snapshot(board.store)

    with pytest.raises(InvalidInputError):
        await board.complete(claimed.claim, **bad)

    assert await snapshot(board.store) == before


async def test_the_payload_must_fit_the_section_that_the_item_goes_to(pipeline: Blackboard) -> None:
    claimed = await given_claim(pipeline, "a", payload={})
    before = await snapshot(pipeline.store)
    fits = {"t": "x" * 492}
    assert len(orjson.dumps(fits)) == 500

    with pytest.raises(InvalidInputError, match="501 bytes"):
        await pipeline.complete(claimed.claim, patch={"t": "x" * 493})
    assert await snapshot(pipeline.store) == before

    await pipeline.complete(claimed.claim, patch=fits)
    assert (await pipeline.get("a")).payload == fits


# --- fail -------------------------------------------------------------------------------------------------------------


async def test_a_failed_item_waits_in_the_retry_status_with_what_went_wrong(pipeline: Blackboard) -> None:
    for error in ("first", "second"):
        claimed = await given_claim(pipeline, "a", f"writer_{error}")
        assert await pipeline.fail(claimed.claim, error) == "failed"

    assert await counters(pipeline) == ("again", 2, 0)
    errors = await pipeline.errors("a")
    assert [(error["kind"], error["agent"], error["error"]) for error in errors] == [
        ("failed", "writer_first", "first"),
        ("failed", "writer_second", "second"),
    ]
    assert errors[1]["token"] == str(claimed.claim.token)
    assert (await pipeline.history("a"))[-1].reason == "second"


async def test_without_a_retry_status_a_failed_item_goes_back_to_where_it_was_claimed(board: Blackboard) -> None:
    await board.fail((await given_claim(board, "a", requires="law")).claim, "no luck")

    item = await board.get("a")
    assert (item.status, item.requires, item.attempts) == ("waiting", "law", 1)


async def test_a_failed_item_is_not_offered_before_its_delay_is_over(board: Blackboard, clock: ManualClock) -> None:
    await board.fail((await given_claim(board, "a")).claim, "no luck", retry_in_s=60)

    await clock.advance(s=59)
    assert await board.claim("jobs", "w") == []
    await clock.advance(s=1)
    assert len(await board.claim("jobs", "w")) == 1


async def test_an_item_is_quarantined_by_exactly_its_last_attempt(pipeline: Blackboard) -> None:
    outcomes = [await pipeline.fail((await given_claim(pipeline, "a")).claim, "no luck") for _ in range(3)]

    assert outcomes == ["failed", "failed", "quarantined"]
    assert await counters(pipeline) == ("quarantined", 3, 0)
    assert await pipeline.claim("draft", "w") == []
    assert await pipeline.claims.claim_item("a", "w", lanes=("draft/quarantined/",)) is None
    assert len(await pipeline.errors("a")) == 3


async def test_an_item_is_quarantined_by_exactly_its_last_crash(pipeline: Blackboard) -> None:
    starts = 0
    for _ in range(5):
        starts += len(await pipeline.claim("draft", f"w{starts}") or [])
        if not starts:
            await given_item(pipeline, "a")
            starts += len(await pipeline.claim("draft", "w0"))
        await clock_of(pipeline).advance(s=31)
    await pipeline.claim("draft", "w")

    assert starts == 2
    assert await counters(pipeline) == ("quarantined", 2, 2)
    assert [error["agent"] for error in await pipeline.errors("a")] == ["w0", "w1"]
    assert (await pipeline.history("a"))[-1].kind == "quarantined"


@pytest.mark.parametrize("taken_back_by", ["reap", "claim", "claim_item"])
async def test_each_crash_is_among_the_failures_and_what_wears_out_waits_for_a_person(
    pipeline: Blackboard, taken_back_by: str
) -> None:
    failures, clock = Failures(pipeline.store, pipeline.keys), clock_of(pipeline)
    await given_item(pipeline, "a")
    for agent in ("w0", "w1"):
        assert await failures.escalations() == []
        await pipeline.claim("draft", agent)
        await clock.advance(s=31)
        match taken_back_by:
            case "reap":
                await pipeline.claims.reap(["draft/new/"])
            case "claim" if agent == "w1":
                assert not await pipeline.claim("draft", "w2")
            case "claim_item" if agent == "w1":
                assert await pipeline.claims.claim_item("a", "w2", lanes=("draft/new/",)) is None

    [told] = await failures.escalations()
    assert (told.task_id, told.agent_id, told.type) == ("a", "w1", FailureType.AGENT_CRASH)
    assert told.why.startswith("quarantined (crashes): the lease ran out")
    assert [(each.task_id, each.agent_id, each.type) for each in await failures.history()] == [
        ("a", "w1", FailureType.AGENT_CRASH), ("a", "w0", FailureType.AGENT_CRASH),
    ]  # fmt: skip


async def test_a_task_that_waits_for_a_person_already_keeps_the_time_of_the_first_word(pipeline: Blackboard) -> None:
    failures = Failures(pipeline.store, pipeline.keys)
    first = await failures.escalate("a", 'somebody said "at_ms":1', at_ms=2)
    await given_claim(pipeline, "a")
    await clock_of(pipeline).advance(s=31)
    await given_claim(pipeline, "a")
    await clock_of(pipeline).advance(s=31)
    await pipeline.claims.reap(["draft/new/"])

    [told] = await failures.escalations()
    assert (told.at_ms, told.type) == (first.at_ms, FailureType.AGENT_CRASH)


async def test_a_lease_that_ends_on_the_last_attempt_quarantines_too(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_attempts=2, max_crashes=0))
    await board.fail((await given_claim(board, "a")).claim, "once")
    await given_claim(board, "a")

    await clock_of(board).advance(s=31)
    await board.claims.reap(["jobs/waiting/"])

    assert await counters(board) == ("quarantined", 2, 1)


async def test_without_limits_an_item_never_wears_out(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_attempts=0, max_crashes=0))
    for _ in range(8):
        await board.fail((await given_claim(board, "a")).claim, "no luck")
        await given_claim(board, "a")
        await clock_of(board).advance(s=31)
        await board.claims.reap(["jobs/waiting/"])

    assert await counters(board) == ("waiting", 16, 8)


async def test_an_item_that_requires_a_capability_keeps_it_in_quarantine_and_out_of_it(pipeline: Blackboard) -> None:
    claimed = await given_claim(pipeline, "a", requires="law")

    assert await pipeline.fail(claimed.claim, "hopeless", give_up=True) == "quarantined"
    assert (await pipeline.get("a")).lane == "draft/quarantined/law"
    await pipeline.release("a", agent="ann", reason="fixed")

    assert await pipeline.claim("draft", "w") == []
    [again] = await pipeline.claim("draft", "w", capabilities=["law"])
    assert (again.item.attempts, again.item.crashes) == (1, 0)


async def test_giving_up_quarantines_at_once(pipeline: Blackboard) -> None:
    assert await pipeline.fail((await given_claim(pipeline, "a")).claim, "hopeless", give_up=True) == "quarantined"
    assert await counters(pipeline) == ("quarantined", 1, 0)


async def test_a_long_error_is_cut_and_the_oldest_go_when_there_are_too_many(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_attempts=0))
    for n in range(9):
        await board.fail((await given_claim(board, "a")).claim, f"{n}" + "x" * 100_000)

    errors = await board.errors("a")

    assert {len(error["error"]) for error in errors} == {4096}
    assert [error["error"][0] for error in errors] == ["5", "6", "7", "8"]
    assert await board.store.command("HSTRLEN", board.keys.errors, "a") <= 20480


@pytest.mark.parametrize(
    "text", ["", "lone \ud800 surrogate", "line\nbreak\r\n\0", '"quoted" {json}', "🧨" * 5000, "a|b,c d"]
)
async def test_any_text_can_be_an_error(board: Blackboard, text: str) -> None:
    claimed = await given_claim(board, "a")

    await board.fail(claimed.claim, text)

    [error] = await board.errors("a")
    assert error["error"] == text[:4096].replace("\ud800", "?")
    assert "\n" not in (await board.history("a"))[-1].reason


# --- hand back, and the three counters --------------------------------------------------------------------------------


async def test_a_handed_back_item_is_as_if_it_had_not_been_taken(board: Blackboard) -> None:
    await given_items(board, "a", "b")
    [claimed] = await board.claim("jobs", "w")

    await board.hand_back(claimed.claim, reason="shutting down")

    assert await counters(board) == ("waiting", 0, 0)
    assert await board.errors("a") == []
    assert [each.item.id for each in await board.claim("jobs", "w2", most=2)] == ["a", "b"], "it has its place again"


async def test_a_handed_back_item_can_be_told_to_wait(board: Blackboard, clock: ManualClock) -> None:
    await board.hand_back((await given_claim(board, "a")).claim, delay_s=60)

    assert await board.claim("jobs", "w") == []
    await clock.advance(s=60)
    assert len(await board.claim("jobs", "w")) == 1


async def test_crashes_failures_and_hand_backs_are_counted_apart(pipeline: Blackboard) -> None:
    for _ in range(10):
        await pipeline.hand_back((await given_claim(pipeline, "a")).claim)
    assert await counters(pipeline) == ("new", 0, 0)

    await given_claim(pipeline, "a")
    await clock_of(pipeline).advance(s=31)
    await pipeline.claims.reap(["draft/new/"])
    assert await counters(pipeline) == ("new", 1, 1)

    await pipeline.fail((await given_claim(pipeline, "a")).claim, "no luck")
    assert await counters(pipeline) == ("again", 2, 1)

    for _ in range(10):
        await pipeline.hand_back((await given_claim(pipeline, "a")).claim)
    assert await counters(pipeline) == ("again", 2, 1)

    assert await pipeline.fail((await given_claim(pipeline, "a")).claim, "no luck") == "quarantined"


# --- the fence --------------------------------------------------------------------------------------------------------


@each_ending
async def test_an_ending_after_the_lease_is_refused_and_changes_nothing(
    board: Blackboard, clock: ManualClock, end: Do
) -> None:
    claimed = await given_claim(board, "a")
    await clock.advance(s=30)
    before = await snapshot(board.store)

    with pytest.raises(ClaimLostError, match="lease ran out"):
        await end(board, claimed.claim)

    assert await snapshot(board.store) == before


async def test_of_claims_that_end_together_those_whose_lease_ran_out_are_refused(
    board: Blackboard, clock: ManualClock
) -> None:
    late = await given_claim(board, "late")
    await clock.advance(s=20)
    early = await given_claim(board, "early")
    await clock.advance(s=10)

    answers = await asyncio.gather(board.complete(late.claim), board.complete(early.claim), return_exceptions=True)

    assert isinstance(answers[0], ClaimLostError)
    assert not isinstance(answers[1], BaseException)
    assert [(await board.get(each)).status for each in ("late", "early")] == ["active", "done"]


@pytest.mark.parametrize("another_ran_out", [False, True])
async def test_a_claim_that_fell_out_of_the_leases_is_ended_as_its_record_says_and_the_board_is_whole_again(
    board: Blackboard, clock: ManualClock, another_ran_out: bool
) -> None:
    if another_ran_out:
        await given_claim(board, "another")
        await clock.advance(s=31)
    claimed = await given_claim(board, "a")
    await board.store.command("ZREM", board.keys.lane("jobs/waiting/").timed, "a")

    await board.complete(claimed.claim)

    assert (await board.get("a")).status == "done"


@each_ending
async def test_an_ending_by_one_whose_item_somebody_else_holds_is_refused(
    board: Blackboard, clock: ManualClock, end: Do
) -> None:
    claimed = await given_claim(board, "a", "worker_1")
    await clock.advance(s=31)
    second = await given_claim(board, "a", "worker_2")
    before = await snapshot(board.store)

    with pytest.raises(ClaimLostError, match="worker_2"):
        await end(board, claimed.claim)
    assert await snapshot(board.store) == before

    await board.complete(second.claim)


@each_ending
async def test_an_ending_by_one_whose_item_was_taken_back_is_refused(
    board: Blackboard, clock: ManualClock, end: Do
) -> None:
    claimed = await given_claim(board, "a")
    await clock.advance(s=31)
    await board.claims.reap(["jobs/waiting/"])
    before = await snapshot(board.store)

    with pytest.raises(ClaimLostError, match="taken back"):
        await end(board, claimed.claim)

    assert await snapshot(board.store) == before


@each_ending
async def test_an_ending_whose_reply_was_lost_gets_the_first_answer(pipeline: Blackboard, end: Do) -> None:
    tape = Tape(pipeline.store)
    claimed = await given_claim(pipeline, "a")
    first = await end(pipeline, claimed.claim)
    before = await snapshot(pipeline.store)

    assert await end(pipeline, claimed.claim) == first
    assert await tape.again(tape.last("end_claims")) == tape.last("end_claims").answer
    assert await snapshot(pipeline.store) == before


async def test_the_first_answer_is_still_known_after_the_next_agent_has_claimed_and_ended(pipeline: Blackboard) -> None:
    tape = Tape(pipeline.store)
    first = await given_claim(pipeline, "a", "worker_1")
    await pipeline.fail(first.claim, "no luck")
    failing = tape.last("end_claims")
    second = await given_claim(pipeline, "a", "worker_2")
    assert await tape.again(failing) == failing.answer
    await pipeline.complete(second.claim)
    before = await snapshot(pipeline.store)

    assert await tape.again(failing) == failing.answer == [[b"failed", b"3"]]
    assert await snapshot(pipeline.store) == before


async def test_a_failure_that_quarantined_is_answered_alike_when_repeated(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_attempts=1))
    claimed = await given_claim(board, "a")

    assert await board.fail(claimed.claim, "no luck") == "quarantined"
    assert await board.fail(claimed.claim, "no luck") == "quarantined"
    assert len(await board.errors("a")) == 1


async def test_a_claim_that_ended_one_way_cannot_end_another_way(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")
    await board.complete(claimed.claim)
    before = await snapshot(board.store)

    for end in (ENDINGS["fail"], ENDINGS["give up"], ENDINGS["hand back"]):
        with pytest.raises(ClaimLostError, match="it has ended: completed"):
            await end(board, claimed.claim)

    assert await snapshot(board.store) == before


async def test_a_claim_that_is_ended_twice_at_once_ends_once_and_both_are_told_so(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")

    answers = await asyncio.gather(board.complete(claimed.claim), board.complete(claimed.claim))
    with pytest.raises(ClaimLostError, match="it has ended: completed"):
        await board.hand_back(claimed.claim)

    assert answers == [3, 3]
    assert await board.queries.counts() == {"jobs/done/": 1}


async def test_of_two_different_endings_at_once_one_is_accepted(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")

    first, second = await asyncio.gather(
        board.complete(claimed.claim), board.fail(claimed.claim, "no luck"), return_exceptions=True
    )

    assert first == 3
    assert isinstance(second, ClaimLostError)
    assert await board.errors("a") == []


async def test_a_token_that_nobody_was_given_ends_nothing(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")
    before = await snapshot(board.store)

    for token in (0, claimed.claim.token - 1, claimed.claim.token + 1, 2**53):
        for end in ENDINGS.values():
            with pytest.raises(ClaimLostError):
                await end(board, replace(claimed.claim, token=token))

    assert await snapshot(board.store) == before


async def test_a_claim_on_an_item_that_is_not_there_is_lost(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")

    for end in ENDINGS.values():
        with pytest.raises(ClaimLostError, match="deleted"):
            await end(board, replace(claimed.claim, item_id="other"))


@pytest.mark.parametrize("lane", ["draft/again/", "draft/new/law", "check/ready/"])
async def test_a_claim_is_ended_from_the_lane_it_was_claimed_from_and_from_no_other(
    pipeline: Blackboard, lane: str
) -> None:
    claimed = await given_claim(pipeline, "a")
    await pipeline.claims.renew([claimed.claim])
    await pipeline.store.command("ZADD", pipeline.keys.lane(lane).timed, claimed.claim.ends_at_ms + 10**6, "a")
    before = await snapshot(pipeline.store)

    with pytest.raises(ClaimLostError, match="claimed from draft/new/"):
        await pipeline.claims.end(pipeline.claims.hand_back_of(replace(claimed.claim, lane=lane), reason="?"))

    assert await snapshot(pipeline.store) == before
    await pipeline.store.command("ZREM", pipeline.keys.lane(lane).timed, "a")


# --- what Redis does not let through ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "to", "quarantine"),
    [
        ("complete", "nowhere/ready/", "draft/quarantined/"),
        ("complete", "check/nothing/", "draft/quarantined/"),
        ("fail", "check/good/", "draft/quarantined/"),  # a failure is no way to the end
        ("fail", "check/ready/", "draft/quarantined/"),
        ("fail", "draft/new/", "draft/quarantined/"),  # its section retries elsewhere
        ("fail", "draft/again/law", "draft/quarantined/"),
        ("fail", "draft/again/", "check/good/"),
        ("give_up", "draft/again/", "check/good/"),
        ("give_up", "draft/again/", "draft/quarantined/law"),
        ("give_up", "draft/again/", "check/quarantined/"),
    ],
)
async def test_redis_refuses_an_ending_that_leads_where_the_board_does_not(
    pipeline: Blackboard, kind: Any, to: str, quarantine: str
) -> None:
    claimed = await given_claim(pipeline, "a")
    before = await snapshot(pipeline.store)

    with pytest.raises(WrongStatusError):
        await pipeline.claims.end(Ending(claim=claimed.claim, kind=kind, to=to, quarantine=quarantine))

    assert await snapshot(pipeline.store) == before
    assert await pipeline.complete(claimed.claim) == 3


async def test_redis_refuses_a_kind_of_ending_that_it_does_not_know(pipeline: Blackboard) -> None:
    claimed, other = await given_claim(pipeline, "a"), await given_claim(pipeline, "b")
    ending = pipeline.claims.hand_back_of(claimed.claim, reason="?")
    tape = Tape(pipeline.store)

    odd, good = await asyncio.gather(
        pipeline.claims.end(replace(ending, kind="finish")),  # type: ignore[arg-type]
        pipeline.hand_back(other.claim),
        return_exceptions=True,
    )

    assert isinstance(odd, LibraryMismatchError)
    assert good == 3
    assert [b"kind", b"finish"] in [
        each for call in tape.calls if call.function == "end_claims" for each in call.answer
    ]
    assert (await pipeline.get("a")).holder == "worker_1"


# --- many at once -----------------------------------------------------------------------------------------------------


async def test_endings_of_one_moment_travel_together_and_each_gets_its_own_answer(pipeline: Blackboard) -> None:
    names = [f"i{n}" for n in range(30)]
    await given_items(pipeline, *names)
    claims = [each.claim for each in await pipeline.claim("draft", "w", most=30)]
    tape = Tape(pipeline.store)

    def end(n: int) -> Awaitable[Any]:
        match n % 5:
            case 0:
                return pipeline.complete(claims[n], "draft/dropped", result=n)
            case 1:
                return pipeline.fail(claims[n], f"error {n}")
            case 2:
                return pipeline.hand_back(claims[n])
            case 3:
                return pipeline.complete(claims[n], "check/good")
            case _:
                return pipeline.complete(replace(claims[n], token=7))

    answers = await asyncio.gather(*(end(n) for n in range(30)), return_exceptions=True)

    kinds = [type(answer) for answer in answers]
    assert kinds == [int, str, int, WrongStatusError, ClaimLostError] * 6
    assert tape.count("end_claims") == 1
    items = await pipeline.find_many(names)
    assert [item.status for item in items if item] == ["dropped", "again", "new", "writing", "writing"] * 6
    assert [item.result for item in items if item][0::5] == list(range(0, 30, 5))
    assert [(await pipeline.errors(f"i{n}"))[0]["error"] for n in range(1, 30, 5)] == [
        f"error {n}" for n in range(1, 30, 5)
    ]


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 10**9, "5", None], ids=repr)
async def test_an_impossible_delay_is_refused_and_nobody_else_is_harmed(board: Blackboard, delay: Any) -> None:
    bad, good = await given_claim(board, "a"), await given_claim(board, "b")

    endings = [
        board.complete(bad.claim, delay_s=delay),
        board.fail(bad.claim, "no luck", retry_in_s=delay),
        board.hand_back(bad.claim, delay_s=delay),
        board.complete(good.claim),
    ]
    answers = await in_time(asyncio.gather(*endings, return_exceptions=True))

    assert [type(answer) for answer in answers] == [InvalidInputError, InvalidInputError, InvalidInputError, int]
    assert (await board.get("a")).holder == "worker_1"


async def test_nobody_waits_for_ever_when_a_batch_cannot_be_sent(board: Blackboard) -> None:
    first, second = await given_claim(board, "a"), await given_claim(board, "b")
    odd = replace(board.claims.hand_back_of(first.claim, reason="?"), reason="\ud800")  # can't be encoded

    async def end() -> Any:
        return await board.claims.end(odd)

    answers = await in_time(asyncio.gather(end(), board.complete(second.claim), return_exceptions=True))

    assert all(isinstance(answer, UnicodeEncodeError) for answer in answers)
    assert await board.complete(second.claim) == 3


async def test_an_ending_whose_caller_went_away_still_happens(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")

    async with held_call(board.store, "end_claims") as (executed, let):
        ending = asyncio.create_task(board.complete(claimed.claim))
        await in_time(executed.wait())
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        let.set()

    assert (await board.get("a")).status == "done"
    assert await board.complete(claimed.claim) == 3


async def test_a_thousand_endings_at_once_all_land(board: Blackboard) -> None:
    names = [f"i{n}" for n in range(1000)]
    await board.submit(*(Submission(id=name, section="jobs", payload={}) for name in names))
    claims = [each.claim for _ in range(2) for each in await board.claim("jobs", "w", most=500)]

    versions = await asyncio.gather(*(board.complete(claim, result={"of": claim.item_id}) for claim in claims))

    assert versions == [3] * 1000
    assert await board.queries.counts() == {"jobs/done/": 1000}
    assert (await board.get("i999")).result == {"of": "i999"}


async def test_an_agent_that_was_revoked_cannot_end_its_claims(board: Blackboard) -> None:
    claimed = await given_claim(board, "a", "worker_1")
    await board.store.command("HSET", board.keys.gates, "agent:worker_1", "revoked")
    before = await snapshot(board.store)

    for end in ENDINGS.values():
        with pytest.raises(ClaimLostError, match="revoked"):
            await end(board, claimed.claim)

    assert await snapshot(board.store) == before


async def test_a_paused_agent_may_finish_what_it_holds(board: Blackboard) -> None:
    claimed = await given_claim(board, "a", "worker_1")
    await board.agents.pause("agent:worker_1")

    await board.complete(claimed.claim)

    assert (await board.get("a")).status == "done"


async def test_tallies_count_how_an_agents_claims_ended(pipeline: Blackboard) -> None:
    for end in (ENDINGS["complete"], ENDINGS["fail"], ENDINGS["give up"], ENDINGS["hand back"]):
        await given_items(pipeline, name := f"i{id(end)}")
        await end(pipeline, (await given_claim(pipeline, name)).claim)
    await pipeline.register_agent("worker_1", "writer")

    [state] = await pipeline.agents.list()

    assert (state.tasks_completed, state.tasks_failed, state.tasks_handed_back) == (1, 2, 1)


async def test_an_item_cannot_be_changed_over_the_head_of_its_holder(board: Blackboard) -> None:
    claimed = await given_claim(board, "a", "worker_1")

    for change in (
        board.update("jobs", "a", {"x": 1}),
        board.move("a", "jobs", "jobs", status="done"),
        board.retry("a"),
        board.delete("jobs", "a"),
    ):
        with pytest.raises((ItemHeldError, WrongStatusError)):
            await change

    await board.complete(claimed.claim)
