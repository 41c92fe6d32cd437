"""Changing items without a claim: update, move, one step, release, retry, archive, delete."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from given import Connect, OpenBoard, Tape, clock_of, given_claim, given_item, given_items, in_time, snapshot

from swarm_infrastructure.blackboard import Blackboard, Board, Section, Submission, job_board
from swarm_infrastructure.errors import (
    ClaimLostError,
    InvalidInputError,
    ItemHeldError,
    ItemNotFoundError,
    LibraryMismatchError,
    UnknownSectionError,
    VersionConflictError,
    WrongStatusError,
)
from swarm_infrastructure.testing import ManualClock

DESKS = Board(
    name="desks",
    sections={
        "inbox": Section(
            ready={"new": "reading", "again": "reading"}, resting=("parked",), retry="again", entry="parked"
        ),
        "outbox": Section(ready={"ready": "sending"}, resting=("sent",), max_payload_bytes=200),
        "shelf": Section(resting=("kept",)),
    },
    steps={
        "parked": frozenset({"new", "ready"}),
        "new": frozenset({"parked", "ready"}),
        "reading": frozenset({"ready"}),
        "ready": frozenset({"parked", "kept"}),
        "sending": frozenset({"sent"}),
        "sent": frozenset({"kept"}),
        "again": frozenset({"kept"}),
    },
    final=frozenset({"sent", "kept"}),
    archive="shelf/kept",
)


@pytest.fixture
async def desks(open_board: OpenBoard) -> Blackboard:
    return await open_board(DESKS)


# --- update -----------------------------------------------------------------------------------------------------------


async def test_an_update_is_merged_into_the_payload_and_raises_the_version_by_one(board: Blackboard) -> None:
    await given_item(board, "a", payload={"keep": [], "change": 1, "drop": 2})

    assert (
        await board.update("jobs", "a", {"change": {"x": []}, "drop": None, "add": 2**53}, agent="ann", reason="r")
        is True
    )

    item = await board.get("a")
    assert (item.version, item.status) == (2, "waiting")
    assert item.payload == {"keep": [], "change": {"x": []}, "add": 2**53}
    event = (await board.history("a"))[-1]
    assert (event.kind, event.before, event.after) == ("updated", "jobs/waiting/", "jobs/waiting/")
    assert (event.agent, event.reason) == ("ann", "r")


async def test_an_update_can_compute_the_new_payload(board: Blackboard) -> None:
    await given_item(board, "a", payload={"n": 1})

    await board.update("jobs", "a", lambda payload: {"n": payload["n"] + 1})
    await board.update("jobs", "a", lambda payload: payload.update(m=1))

    assert (await board.get("a")).payload == {"n": 2, "m": 1}


async def test_fifty_simultaneous_updates_all_land(board: Blackboard, open_board: OpenBoard, connect: Connect) -> None:
    boards = [board, *[await open_board(board.board, on=await connect(board.store.url)) for _ in range(2)]]
    await given_item(board, "a", payload={"n": 0})

    def count(payload: dict[str, Any]) -> dict[str, Any]:
        return {"n": payload["n"] + 1}

    async def keep_trying(n: int) -> None:
        while True:
            try:
                await boards[n % 3].update("jobs", "a", count)
                return
            except VersionConflictError:  # twenty tries were not enough against so many others
                await asyncio.sleep(0)

    await in_time(asyncio.gather(*(keep_trying(n) for n in range(50))), 20)

    item = await board.get("a")
    assert (item.payload, item.version) == ({"n": 50}, 51)


async def test_updates_whose_replies_get_lost_are_applied_once_though_others_write_in_between(
    board: Blackboard,
) -> None:
    await given_item(board, "a", payload={"n": 0})
    tape = Tape(board.store)
    await board.update("jobs", "a", lambda payload: {"n": payload["n"] + 1})
    lost = tape.last("change_item")

    assert await tape.again(lost) == lost.answer == [b"changed", b"2"]
    for _ in range(30):
        await board.update("jobs", "a", lambda payload: {"n": payload["n"] + 1})
    await given_claim(board, "a")
    before = await snapshot(board.store)

    assert await tape.again(lost) == [b"changed", b"2"], "its change is thirty changes back"
    assert await snapshot(board.store) == before
    assert (await board.get("a")).payload == {"n": 31}


async def test_a_change_that_was_refused_for_its_version_is_not_taken_for_its_own_later(board: Blackboard) -> None:
    await given_item(board, "a")
    tape = Tape(board.store)
    await board.update("jobs", "a", {"x": 1})
    stale = replace(tape.last("change_item"), args=[*tape.last("change_item").args])
    stale.args[2] = "another_request"  # type: ignore[index]

    assert await tape.again(stale) == [b"version", b"2"]
    assert (await board.get("a")).version == 2


async def test_an_update_keeps_a_delayed_item_delayed(board: Blackboard, clock: ManualClock) -> None:
    await given_item(board, "a", delay_s=60)

    await board.update("jobs", "a", {"x": 1}, priority=0)

    assert await board.claim("jobs", "w") == []
    await clock.advance(s=60)
    assert (await board.claim("jobs", "w"))[0].item.payload["x"] == 1


async def test_a_new_priority_changes_an_items_place_in_the_line(board: Blackboard) -> None:
    await given_items(board, *"abc")

    await board.update("jobs", "c", {}, priority=0)
    await board.update("jobs", "a", {}, priority=9)

    assert [each.item.id for each in await board.claim("jobs", "w", most=3)] == ["c", "b", "a"]


@pytest.mark.parametrize("priority", [-1, 10, 1.0, "1", "1|2", True])
async def test_a_priority_that_is_none_is_refused(board: Blackboard, priority: Any) -> None:
    await given_item(board, "a")
    before = await snapshot(board.store)

    with pytest.raises(InvalidInputError):
        await board.update("jobs", "a", {"x": 1}, priority=priority)

    assert await snapshot(board.store) == before


@pytest.mark.parametrize("patch", [{"x": float("nan")}, {"x": {1}}, {"x": "\ud800"}, {1: 2}, [1], len])
async def test_an_update_that_leaves_no_json_object_is_refused(board: Blackboard, patch: Any) -> None:
    await given_item(board, "a")
    before = await snapshot(board.store)

    with pytest.raises(InvalidInputError):
        await board.update("jobs", "a", patch)

    assert await snapshot(board.store) == before


async def test_an_update_must_fit_the_section(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_payload_bytes=20))
    await given_item(board, "a", payload={})

    await board.update("jobs", "a", {"t": "x" * 12})
    with pytest.raises(InvalidInputError, match="21 bytes"):
        await board.update("jobs", "a", {"t": "x" * 13})

    assert (await board.get("a")).payload == {"t": "x" * 12}


async def test_an_update_of_what_is_not_there_says_so(board: Blackboard) -> None:
    await given_item(board, "a")

    with pytest.raises(ItemNotFoundError):
        await board.update("jobs", "b", {"x": 1})
    with pytest.raises(UnknownSectionError):
        await board.update("nowhere", "a", {"x": 1})
    with pytest.raises(InvalidInputError):
        await board.update("jobs", "a b", {"x": 1})


async def test_an_item_in_another_section_is_not_updated(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox")

    with pytest.raises(ItemNotFoundError):
        await desks.update("outbox", "a", {"x": 1})

    assert (await desks.get("a")).version == 1


async def test_a_holder_can_update_what_it_holds_and_keeps_its_claim(board: Blackboard) -> None:
    claimed = await given_claim(board, "a", "worker_1")
    board.leases.keep(claimed.claim)

    await board.update("jobs", "a", {"x": 1}, priority=0)

    item = await board.get("a")
    assert (item.holder, item.payload["x"], item.priority, item.version) == ("worker_1", 1, 0, 3)
    assert await board.complete(claimed.claim, patch={"y": 2}) == 4
    assert (await board.get("a")).payload == {"title": "story a", "x": 1, "y": 2}


async def test_an_item_that_another_holds_is_not_updated(
    board: Blackboard, open_board: OpenBoard, connect: Connect
) -> None:
    elsewhere = await open_board(board.board, on=await connect(board.store.url))
    claimed = await given_claim(board, "a", "worker_1")
    board.leases.keep(claimed.claim)
    before = await snapshot(board.store)

    with pytest.raises(ItemHeldError, match="worker_1"):
        await elsewhere.update("jobs", "a", {"x": 1})

    assert await snapshot(board.store) == before


async def test_a_holder_whose_item_was_claimed_by_another_since_cannot_update_it(
    board: Blackboard, clock: ManualClock
) -> None:
    old = await given_claim(board, "a", "w1")
    board.leases.keep(old.claim)
    await clock.advance(s=31)
    await given_claim(board, "a", "w2")

    with pytest.raises(ItemHeldError, match="w2"):
        await board.update("jobs", "a", {"x": 1})


async def test_a_holder_whose_lease_ran_out_cannot_update_even_if_nobody_took_the_item(
    board: Blackboard, clock: ManualClock
) -> None:
    claimed = await given_claim(board, "a", "w1")
    board.leases.keep(claimed.claim)
    await clock.advance(s=31)
    before = await snapshot(board.store)

    with pytest.raises(ClaimLostError):
        await board.update("jobs", "a", {"x": 1})

    assert await snapshot(board.store) == before


async def test_a_quarantined_item_can_be_mended_before_it_is_released(board: Blackboard) -> None:
    await board.fail((await given_claim(board, "a")).claim, "bad input", give_up=True)

    await board.update("jobs", "a", {"mended": True})
    assert (await board.get("a")).status == "quarantined"
    await board.release("a")

    assert (await board.claim("jobs", "w"))[0].item.payload["mended"] is True


# --- move and one step ------------------------------------------------------------------------------------------------


async def test_a_moved_item_takes_the_entry_status_or_the_one_that_is_named(desks: Blackboard) -> None:
    await given_items(desks, "a", "b", section="inbox")

    assert await desks.move("a", "inbox", "outbox", {"x": 1}, requires="stamps", agent="ann", reason="off") is True
    await desks.move("b", "inbox", "inbox", status="new")

    a, b = await desks.get("a"), await desks.get("b")
    assert (a.lane, a.payload["x"], a.version) == ("outbox/ready/stamps", 1, 2)
    assert (b.lane, b.version) == ("inbox/new/", 2)
    event = (await desks.history("a"))[-1]
    assert (event.kind, event.before, event.after) == ("moved", "inbox/parked/", "outbox/ready/stamps")
    assert [each.item.id for each in await desks.claim("outbox", "w", capabilities=["stamps"])] == ["a"]


async def test_a_moved_item_begins_anew(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox", status="new")
    await desks.fail((await given_claim(desks, "a")).claim, "once")

    await desks.move("a", "inbox", "shelf")

    item = await desks.get("a")
    assert (item.status, item.attempts, item.crashes) == ("kept", 0, 0)


async def test_a_delayed_item_can_be_moved_and_its_delay_is_forgotten(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox", status="new", delay_s=3600)

    await desks.move("a", "inbox", "outbox")

    assert [each.item.id for each in await desks.claim("outbox", "w")] == ["a"]
    await clock_of(desks).advance(s=3601)
    assert await desks.claim("inbox", "w") == []


async def test_a_move_that_the_board_does_not_allow_changes_nothing(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox")
    before = await snapshot(desks.store)

    for section, status in (
        ("shelf", None),
        ("outbox", "sent"),
        ("outbox", "sending"),
        ("inbox", "again"),
        ("inbox", "parked"),
    ):
        with pytest.raises(WrongStatusError):
            await desks.move("a", "inbox", section, status=status)
    with pytest.raises(ItemNotFoundError):
        await desks.move("a", "outbox", "shelf")
    with pytest.raises(UnknownSectionError):
        await desks.move("a", "inbox", "nowhere")
    with pytest.raises(InvalidInputError):
        await desks.move("a", "inbox", "outbox", status="nothing")
    with pytest.raises(InvalidInputError):
        await desks.move("a", "inbox", "outbox", requires="a/b")
    with pytest.raises(InvalidInputError, match="bytes"):
        await desks.move("a", "inbox", "outbox", {"t": "x" * 200})

    assert await snapshot(desks.store) == before


async def test_a_held_item_is_not_moved_even_by_its_holder(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox", status="new")
    claimed = await given_claim(desks, "a", "w1")
    desks.leases.keep(claimed.claim)
    before = await snapshot(desks.store)

    with pytest.raises(ItemHeldError):
        await desks.move("a", "inbox", "outbox")
    assert await snapshot(desks.store) == before

    assert await desks.transition_status("inbox", "a", "ready", "w1"), "one step by its holder ends the claim"
    assert (await desks.get("a")).lane == "outbox/ready/"
    assert desks.leases.kept == 0


async def test_a_step_goes_to_the_section_where_the_status_is_at_home(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox", requires="law")

    assert await desks.transition_status("inbox", "a", "new", "ann", "looks good") is True
    assert (await desks.get("a")).lane == "inbox/new/law"
    await desks.transition_status("inbox", "a", "ready")

    assert (await desks.get("a")).lane == "outbox/ready/law"
    with pytest.raises(ItemNotFoundError):
        await desks.transition_status("inbox", "a", "kept")
    with pytest.raises(InvalidInputError):
        await desks.transition_status("outbox", "a", "nothing")
    with pytest.raises(WrongStatusError):
        await desks.transition_status("outbox", "a", "new")


async def test_one_of_two_simultaneous_moves_wins_and_the_other_is_told(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox", status="new")

    answers = await asyncio.gather(
        desks.move("a", "inbox", "outbox"), desks.move("a", "inbox", "outbox"), return_exceptions=True
    )

    assert answers[0] is True
    assert isinstance(answers[1], ItemNotFoundError)
    assert (await desks.get("a")).version == 2


async def test_a_move_whose_reply_was_lost_is_made_once(desks: Blackboard) -> None:
    tape = Tape(desks.store)
    await given_item(desks, "a", "inbox")
    await desks.move("a", "inbox", "outbox")
    before = await snapshot(desks.store)

    assert await tape.again(tape.last("change_item")) == [b"changed", b"2"]

    assert await snapshot(desks.store) == before


# --- release and retry ------------------------------------------------------------------------------------------------


async def test_a_released_item_is_offered_again_with_its_past_forgotten_but_its_errors_kept(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox", status="new")
    await desks.fail((await given_claim(desks, "a")).claim, "hopeless", give_up=True)

    assert await desks.release("a", agent="ann", reason="fixed the feed") == 4

    item = await desks.get("a")
    assert (item.lane, item.attempts, item.crashes) == ("inbox/new/", 0, 0), "its entry is no place to be claimed from"
    assert len(await desks.errors("a")) == 1
    event = (await desks.history("a"))[-1]
    assert (event.kind, event.agent, event.reason) == ("released", "ann", "fixed the feed")
    assert len(await desks.claim("inbox", "w")) == 1


async def test_only_quarantined_items_are_released(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox")
    before = await snapshot(desks.store)

    with pytest.raises(WrongStatusError, match="quarantine"):
        await desks.release("a")
    with pytest.raises(ItemNotFoundError):
        await desks.release("b")

    assert await snapshot(desks.store) == before


async def test_a_retried_item_is_offered_now_instead_of_when_its_delay_ends(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox", status="new")
    await desks.fail((await given_claim(desks, "a")).claim, "no luck", retry_in_s=3600)

    await desks.retry("a", agent="ann")

    [claimed] = await desks.claim("inbox", "w")
    assert (claimed.item.attempts, claimed.item.origin) == (2, "again")
    await clock_of(desks).advance(s=20)
    assert await desks.claims.reap(["inbox/again/"]) == 0


async def test_retry_releases_what_is_in_quarantine_and_refuses_what_rests(desks: Blackboard) -> None:
    await given_items(desks, "a", "b", section="inbox", status="new")
    await given_item(desks, "c", "inbox")
    await desks.fail((await given_claim(desks, "a")).claim, "hopeless", give_up=True)
    await given_claim(desks, "b")

    await desks.retry("a")
    assert (await desks.get("a")).status == "new"
    for item_id in "bc":
        with pytest.raises(WrongStatusError):
            await desks.retry(item_id)
    assert [(await desks.get(item_id)).version for item_id in "bc"] == [2, 1]


# --- archive and delete -----------------------------------------------------------------------------------------------


async def test_an_archived_item_rests_and_its_content_stays_known(desks: Blackboard) -> None:
    await desks.submit(Submission(id="a", section="outbox", payload={}, content_hash="story"))

    await desks.archive("a", agent="ann")

    assert (await desks.get("a")).lane == "shelf/kept/"
    [again] = await desks.submit(Submission(id="b", section="outbox", payload={}, content_hash="story"))
    assert again.duplicate_of == "a"


async def test_what_cannot_be_archived_stays(desks: Blackboard, board: Blackboard) -> None:
    await given_item(desks, "a", "inbox")
    await given_item(board, "a")
    held = await given_claim(desks, "b", section="outbox")

    with pytest.raises(WrongStatusError):
        await desks.archive("a")
    with pytest.raises(WrongStatusError, match="without an archive"):
        await board.archive("a")
    with pytest.raises(ItemHeldError):
        await desks.archive("b")
    with pytest.raises(ItemNotFoundError):
        await desks.archive("c")

    assert (await desks.get("a")).version == 1
    await desks.complete(held.claim, "outbox/sent")


async def test_a_deleted_item_is_gone_with_everything_and_its_content_may_come_again(board: Blackboard) -> None:
    await board.submit(Submission(id="a", section="jobs", payload={"x": 1}, content_hash="story"))
    await board.fail((await given_claim(board, "a")).claim, "no luck")
    await board.complete((await given_claim(board, "a")).claim, result={"y": 2})

    assert await board.delete("jobs", "a", agent="ann", reason="asked to") is True

    assert await board.find("a") is None
    assert await board.errors("a") == []
    for key in (board.keys.payloads, board.keys.results, board.keys.items, board.keys.counts, board.keys.dedup):
        assert await board.store.command("HLEN", key) == 0
    [event] = [event async for event in board.events.read() if event.kind == "deleted"]
    assert (event.item, event.before, event.after, event.version, event.agent) == ("a", "jobs/done/", "", 6, "ann")
    [again] = await board.submit(Submission(id="b", section="jobs", payload={}, content_hash="story"))
    assert again.accepted


async def test_an_id_that_was_deleted_can_be_used_again(board: Blackboard) -> None:
    await given_item(board, "a")
    await board.delete("jobs", "a")

    item = await given_item(board, "a", payload={"n": 2})

    assert (item.version, item.payload) == (1, {"n": 2})
    assert [event.kind for event in await board.history("a")] == ["submitted"]


async def test_deleting_a_copy_does_not_forget_whose_content_it_was(board: Blackboard, clock: ManualClock) -> None:
    first = Submission(id="a", section="jobs", payload={}, content_hash="story", dedup_s=10)
    await board.submit(first)
    await clock.advance(s=11)
    await board.submit(replace(first, id="b"))

    await board.delete("jobs", "a")

    [answer] = await board.submit(replace(first, id="c"))
    assert answer.duplicate_of == "b"


async def test_a_delayed_item_can_be_deleted(board: Blackboard, clock: ManualClock) -> None:
    await given_item(board, "a", delay_s=10)

    assert await board.delete("jobs", "a")

    await clock.advance(s=11)
    assert await board.claim("jobs", "w") == []
    assert await board.store.command("EXISTS", board.keys.lane("jobs/waiting/").timed) == 0


async def test_what_is_not_there_or_held_is_not_deleted(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox")
    await given_claim(desks, "held", section="outbox")
    before = await snapshot(desks.store)

    assert await desks.delete("outbox", "a") is False
    assert await desks.delete("inbox", "missing") is False
    with pytest.raises(ItemHeldError):
        await desks.delete("outbox", "held")
    with pytest.raises(UnknownSectionError):
        await desks.delete("nowhere", "a")

    assert await snapshot(desks.store) == before


async def test_deleting_goes_by_what_was_read_and_from_where_the_item_stands(desks: Blackboard) -> None:
    await given_item(desks, "a", "inbox")
    tape = Tape(desks.store)
    await given_item(desks, "other", "inbox")
    await desks.delete("inbox", "other")
    call = tape.last("delete_item")
    lane = desks.keys.lane("outbox/ready/")

    async def delete(version: int, *, elsewhere: bool = False) -> Any:
        keys = [*call.keys[:8], lane.line, lane.timed] if elsewhere else call.keys
        return await desks.store.call("delete_item", keys, ["a", version, "", "", ""])

    assert await delete(7) == [b"version", b"1"]
    assert await delete(1, elsewhere=True) == [b"lane", b"inbox/parked/"]
    assert await delete(1) == [b"deleted"]
    assert await delete(1) == [b"missing"]
    assert (await tape.again(call)) == [b"missing"], "a repeat finds nothing, and that is what was asked for"


# --- what Redis does not let through ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "to", "answer"),
    [
        ({3: "promoted"}, "outbox/ready/", [b"kind", b"promoted"]),
        ({3: "updated"}, "outbox/ready/", [b"lane", b"inbox/new/"]),
        ({3: "retried"}, "outbox/ready/", [b"lane", b"inbox/new/"]),
        ({3: "moved"}, "nowhere/ready/", [b"place", b"nowhere/ready/"]),
        ({3: "moved"}, "outbox/nothing/", [b"place", b"outbox/nothing/"]),
        ({3: "moved"}, "shelf/kept/", [b"step", b"new", b"kept"]),
        ({3: "released"}, "inbox/new/", [b"step", b"new", b"new"]),
        ({1: 7}, "outbox/ready/", [b"version", b"1"]),
        ({7: "10"}, "outbox/ready/", [b"priority", b"10"]),
        ({7: "x"}, "outbox/ready/", [b"priority", b"x"]),
        ({9: b"x" * 201}, "outbox/ready/", [b"large", 201, 200]),
    ],
)
async def test_redis_refuses_what_a_careless_client_would_change(
    desks: Blackboard, changed: dict[int, Any], to: str, answer: list[Any]
) -> None:
    await given_item(desks, "a", "inbox", status="new")
    keys, before, after = desks.keys, desks.keys.lane("inbox/new/"), desks.keys.lane(to)
    args: list[Any] = ["a", 1, "request", "moved", "", "", "", "", "", b"", ""]
    for at, value in changed.items():
        args[at] = value
    state = await snapshot(desks.store)
    called = [
        keys.rules, keys.items, keys.payloads, keys.events, keys.counts,
        before.line, before.timed, before.bell, after.line, after.timed, after.bell,
    ]  # fmt: skip

    assert await desks.store.call("change_item", called, args) == answer
    assert await snapshot(desks.store) == state


@pytest.mark.parametrize("to", ["inbox/parked/", "inbox/reading/", "outbox/ready/"])
async def test_redis_releases_only_to_where_the_item_can_be_claimed_in_its_own_section(
    desks: Blackboard, to: str
) -> None:
    await given_item(desks, "a", "inbox", status="new")
    await desks.fail((await given_claim(desks, "a")).claim, "hopeless", give_up=True)
    tape = Tape(desks.store)
    await given_item(desks, "b", "inbox", status="new")
    await desks.fail((await given_claim(desks, "b")).claim, "hopeless", give_up=True)
    await desks.release("b")
    call, lane, before = tape.last("change_item"), desks.keys.lane(to), await snapshot(desks.store)

    answer = await desks.store.call(
        "change_item", [*call.keys[:8], lane.line, lane.timed, lane.bell], ["a", 3, "request", *call.args[3:]]
    )

    assert answer[0] in (b"step", b"place")
    assert await snapshot(desks.store) == before


async def test_redis_refuses_to_change_an_item_that_is_elsewhere_or_held(desks: Blackboard) -> None:
    await given_items(desks, "a", "held", section="inbox", status="new")
    claimed = await given_claim(desks, "held", "w1")
    tape = Tape(desks.store)
    await desks.update("inbox", "a", {"x": 1})
    call = tape.last("change_item")
    elsewhere = desks.keys.lane("inbox/again/")
    keys = [*call.keys[:5], *(elsewhere.line, elsewhere.timed, elsewhere.bell) * 2]
    before = await snapshot(desks.store)

    async def change(item_id: str, version: int, *, kind: str = "updated", token: Any = "", at: Any = None) -> Any:
        args = [item_id, version, "request", kind, *call.args[4:10], token]
        return await desks.store.call("change_item", at or call.keys, args)

    assert await change("a", 2, at=keys) == [b"lane", b"inbox/new/"]
    assert await change("held", 2) == [b"held", b"w1"]
    assert await change("held", 2, token=claimed.claim.token - 1) == [b"held", b"w1"]
    assert await change("held", 2, kind="moved", token=claimed.claim.token) == [b"held", b"w1"]
    assert await change("held", 2, kind="retried", token=claimed.claim.token) == [b"held", b"w1"]
    assert await change("missing", 1) == [b"missing"]
    assert await snapshot(desks.store) == before


async def test_an_answer_that_this_version_does_not_know_is_a_mismatch(board: Blackboard) -> None:
    await given_item(board, "a")
    original = board.store.call

    async def call(function: str, *args: Any, **options: Any) -> Any:
        return (
            [b"perhaps"] if function in ("change_item", "delete_item") else await original(function, *args, **options)
        )

    board.store.call = call  # type: ignore[method-assign]
    with pytest.raises(LibraryMismatchError):
        await board.update("jobs", "a", {"x": 1})
    with pytest.raises(LibraryMismatchError):
        await board.delete("jobs", "a")
    board.store.call = original  # type: ignore[method-assign]
