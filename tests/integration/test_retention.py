"""What a board keeps and what goes: the log behind its base, finished items, dedup marks whose time is over."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from given import OpenBoard, Tape, clock_of, given_claim, given_item, given_items, snapshot, until

from swarm_infrastructure.blackboard import Blackboard, Board, Event, Section, Submission, job_board
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.blackboard.events import read_base
from swarm_infrastructure.blackboard.retention import LogBound, Retention
from swarm_infrastructure.blackboard.sweeper import Sweeper
from swarm_infrastructure.errors import BoardError
from swarm_infrastructure.testing import ManualClock
from swarm_infrastructure.watchdog import explain

KEPT_S = 60.0
SHELVES = Board(
    name="shelves",
    sections={
        "desk": Section(ready={"new": "read"}, resting=("seen", "torn"), then={"read": "desk/seen"}, keep_s=KEPT_S),
        "cellar": Section(resting=("seen",)),
    },
    steps={"read": frozenset({"seen", "torn"}), "torn": frozenset({"seen"}), "seen": frozenset({"seen"})},
    final=frozenset({"seen"}),
)


def retention(board: Blackboard, entries: int = 1, at_least_s: float = 0.0) -> Retention:
    return Retention(board.store, board.keys, board.board, LogBound(entries=entries, at_least_s=at_least_s))


async def trim(board: Blackboard, entries: int = 1, at_least_s: float = 0.0) -> int:
    return await retention(board, entries, at_least_s).trim_events()


async def clean(board: Blackboard) -> bool:
    return (await audit(board.store, board.namespace, board.board.name)).clean


async def breaches(board: Blackboard) -> str:
    return "\n".join(map(str, (await audit(board.store, board.namespace, board.board.name)).breaches))


async def whole_log(board: Blackboard) -> list[Event]:
    return [event async for event in board.events.read()]


@pytest.fixture
async def shelves(open_board: OpenBoard) -> Blackboard:
    return await open_board(SHELVES)


async def given_finished(board: Blackboard, *item_ids: str, **facts: Any) -> None:
    await board.submit(*(Submission(id=each, section="desk", payload={"id": each}, **facts) for each in item_ids))
    for claimed in await board.claim("desk", "w1", most=len(item_ids)):
        await board.complete(claimed.claim, result={"by": "w1"})


# -- the log -------------------------------------------------------------------------------------------------------------


async def test_a_trimmed_log_keeps_the_newest_entries_and_says_how_far_it_went(board: Blackboard) -> None:
    await given_item(board, "a")
    for n in range(9):
        await board.update("jobs", "a", {"n": n})
    before = await whole_log(board)

    assert await trim(board, 4) == 6

    *kept, told = await whole_log(board)
    assert kept == before[-4:]
    assert (told.kind, told.item, told.reason) == ("truncated", "", f"events: 6 entries up to {before[5].id}")
    trimmed = await board.events.trimmed()
    assert trimmed is not None
    assert (trimmed.last, trimmed.entries, trimmed.misfits) == (before[5].id, 6, 0)
    assert await clean(board)


async def test_the_base_is_what_the_events_that_went_made_of_each_item(board: Blackboard, clock: ManualClock) -> None:
    await given_items(board, "held", "crashed", "failed", "back", "worn", "done", "gone")
    crashed = await given_claim(board, "crashed", "w0", lease_s=1)
    await clock.advance(s=2)
    await board.claims.reap(["jobs/waiting/"])
    held = await given_claim(board, "held", "w1")
    failed = await given_claim(board, "failed", "w2")
    await board.fail(failed.claim, "x")
    back = await given_claim(board, "back", "w3")
    await board.hand_back(back.claim)
    worn = await given_claim(board, "worn", "w4")
    await board.fail(worn.claim, "x", give_up=True)
    done = await given_claim(board, "done", "w5")
    await board.complete(done.claim)
    await board.delete("jobs", "gone")
    newest = {each: (await board.get(each)).event for each in ("held", "crashed", "failed", "back", "worn", "done")}
    await given_item(board, "later")

    await trim(board, 1)

    rows = await board.store.command("HGETALL", board.keys.base)
    base = {name.decode(): read_base(text) for name, text in rows.items() if name}
    assert {name: (b.lane, b.holder, b.token, b.attempts, b.crashes, b.version) for name, b in base.items()} == {
        "held": ("jobs/active/", "w1", held.claim.token, 1, 0, 2),
        "crashed": ("jobs/waiting/", "", crashed.claim.token, 1, 1, 3),
        "failed": ("jobs/waiting/", "", failed.claim.token, 1, 0, 3),
        "back": ("jobs/waiting/", "", back.claim.token, 0, 0, 3),
        "worn": ("jobs/quarantined/", "", worn.claim.token, 1, 0, 3),
        "done": ("jobs/done/", "", done.claim.token, 0, 0, 3),
    }
    assert {name: b.event for name, b in base.items()} == newest
    assert base["held"].origin == "jobs/waiting/"
    assert await clean(board)
    await board.complete(held.claim)
    await board.release("worn")
    await trim(board, 1)
    assert await clean(board)


async def test_an_item_that_left_and_came_again_under_its_id_begins_anew_in_the_base(board: Blackboard) -> None:
    for _ in range(2):
        await given_item(board, "a")
        await trim(board, 1)
        await board.update("jobs", "a", {"n": 1})
        await trim(board, 1)
        assert await clean(board)
        await board.delete("jobs", "a")
        await trim(board, 1)
        assert await clean(board)
    await given_item(board, "a")
    await given_item(board, "b")
    await trim(board, 1)

    base = await board.events.base_of("a")
    assert base is not None
    assert base.version == 1
    trimmed = await board.events.trimmed()
    assert trimmed is not None
    assert trimmed.misfits == 0


async def test_a_crash_that_wore_an_item_out_is_counted_in_the_base(open_board: OpenBoard) -> None:
    board = await open_board(job_board("frail", max_crashes=1))
    await given_claim(board, "a", lease_s=1)
    await clock_of(board).advance(s=2)
    await board.claims.reap(["jobs/waiting/"])
    await given_item(board, "b")
    await trim(board, 1)

    base = await board.events.base_of("a")
    assert base is not None
    assert (base.lane, base.crashes, base.attempts) == ("jobs/quarantined/", 1, 1)


async def test_agents_that_claimed_in_one_call_are_told_apart_in_the_base(board: Blackboard) -> None:
    from swarm_infrastructure.blackboard import ClaimRequest

    await given_items(board, *"abcd")
    lanes = board.claims.lanes("jobs")
    hands = await board.claims.claim(*(ClaimRequest(agent_id=f"w{n}", role="", lanes=lanes, most=2) for n in range(2)))
    holders = {each.item.id: each.claim.agent_id for hand in hands if not isinstance(hand, str) for each in hand}
    await given_item(board, "z")
    await trim(board, 1)

    for item_id, holder in holders.items():
        base = await board.events.base_of(item_id)
        assert base is not None
        assert base.holder == holder


async def test_the_history_of_an_item_says_that_earlier_events_were_trimmed(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")
    await board.fail(claimed.claim, "x")
    [_, taken, failed] = await board.history("a")
    await trim(board, 1)

    first, last = await board.history("a")
    assert last == failed
    assert (first.kind, first.item, first.version, first.after, first.id) == (
        "truncated",
        "a",
        2,
        taken.after,
        taken.id,
    )
    assert first.reason == "earlier events were trimmed"

    await given_items(board, "b", "c")
    await trim(board, 1)
    [only] = await board.history("a")
    assert (only.kind, only.version, only.after) == ("truncated", 3, "jobs/waiting/")


async def test_a_log_within_its_bound_and_a_little_more_is_left_alone(board: Blackboard) -> None:
    await given_item(board, "a")
    for n in range(39):
        await board.update("jobs", "a", {"n": n})
    before = await snapshot(board.store)

    assert await trim(board, 40) == 0
    assert await trim(board, 39) == 0
    assert await trim(board, 0) == 0  # 0: all
    assert await snapshot(board.store) == before
    assert await trim(board, 38) == 2


async def test_an_idle_boards_log_comes_to_rest(board: Blackboard) -> None:
    for each in "abcdefgh":
        await given_item(board, each)
    await trim(board, 4)
    rests = await snapshot(board.store)

    assert await trim(board, 5) == 0
    assert await snapshot(board.store) == rests


async def test_events_stay_for_as_long_as_a_call_may_be_repeated(board: Blackboard, clock: ManualClock) -> None:
    for each in "abcdefgh":
        await given_item(board, each)

    assert await trim(board, 2, at_least_s=60) == 0
    await clock.advance(s=61)
    assert await trim(board, 2, at_least_s=60) == 6


async def test_a_change_that_is_repeated_after_a_trim_is_recognised(board: Blackboard) -> None:
    await given_item(board, "a")
    tape = Tape(board.store)
    await board.update("jobs", "a", {"n": 1})
    for n in range(2, 6):
        await board.update("jobs", "a", {"n": n})
    call = next(each for each in tape.calls if each.function == "change_item")
    await given_items(board, "b")
    await trim(board, 6)  # the first event goes, that of the change stays

    assert await tape.again(call) == call.answer
    assert (await board.get("a")).version == 6


async def test_a_log_is_trimmed_in_steps_that_fold_a_bounded_number_of_changes(
    board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.ROWS_PER_CALL", 10)
    for first in range(0, 40, 4):
        await given_items(board, *(f"i{first + n}" for n in range(4)))  # ten entries of four rows
    tape = Tape(board.store)

    await trim(board, 4)

    steps = [call.answer for call in tape.calls if call.function == "trim_events"]
    assert steps[:3] == [[3, b"1"], [3, b"1"], [2, b"0"]]  # each step adds what it tells
    assert await clean(board)


async def test_what_a_reader_of_the_log_has_not_read_stays_until_twice_the_bound_is_reached(board: Blackboard) -> None:
    for each in "abcdef":
        await given_item(board, each)
    events = board.keys.events
    await board.store.command("XGROUP", "CREATE", events, "export", "0")
    await board.store.command("XREADGROUP", "GROUP", "export", "me", "COUNT", 2, "STREAMS", events, ">")
    first, second, third, *_ = await whole_log(board)
    await board.store.command("XACK", events, "export", first.id)

    assert await trim(board, 3) == 1  # the second is read and not acknowledged
    await board.store.command("XACK", events, "export", second.id)
    assert await trim(board, 3) == 1
    assert (await whole_log(board))[0] == third
    assert await trim(board, 2) == 2  # six are left: it is waited for up to four
    assert await clean(board)


async def test_whoever_follows_the_log_goes_on_after_a_trim(board: Blackboard) -> None:
    await given_items(board, "a")
    following = board.follow("0-0")
    seen = [await anext(following)]
    await given_items(board, "b")
    await given_items(board, "c")
    await trim(board, 1)

    async with asyncio.timeout(5):
        seen += [await anext(following), await anext(following)]
    assert [(event.kind, event.item) for event in seen] == [("submitted", "a"), ("submitted", "c"), ("truncated", "")]


@pytest.mark.unaudited
async def test_a_trim_by_hand_and_a_torn_base_are_breaches(board: Blackboard) -> None:
    claimed = await given_claim(board, "a")
    await board.fail(claimed.claim, "x")
    [_, _, failed] = await board.history("a")
    await board.store.command("XTRIM", board.keys.events, "MINID", failed.id)

    assert await board.history("a") == [failed]
    assert "is the first that the log has of it" in await breaches(board)
    await given_item(board, "b")
    await trim(board, 1)  # what does not follow on anything is noticed when it goes, too
    assert "1 trimmed events did not follow" in await breaches(board)

    await board.store.command("HSET", board.keys.base, "b", "torn")
    assert "I7 b: what its trimmed events made of it is torn" in await breaches(board)


@pytest.mark.unaudited
@pytest.mark.parametrize("forged", [{"n": "9", "from": "jobs/waiting/"}, {"n": "2", "from": "jobs/done/"}])
async def test_an_event_that_does_not_follow_is_not_lost_with_the_trim(
    board: Blackboard, forged: dict[str, str]
) -> None:
    item = await given_item(board, "a")
    await board.store.command(
        "XADD", board.keys.events, "*", "kind", "updated", "from", forged["from"], "to", "jobs/waiting/", "agent", "",
        "token", "", "reason", "", "trace", "", "request", "", "items", f"a {forged['n']} {item.event}",
    )  # fmt: skip
    await given_item(board, "b")

    await trim(board, 1)

    assert "1 trimmed events did not follow on the item's event before" in await breaches(board)


@pytest.mark.unaudited
@pytest.mark.parametrize(
    ("found", "forged", "invariant"),
    [("jobs/done/", "jobs/waiting/", "I7"), ("|0|0|", "|2|0|", "I12"), ("3|jobs", "7|jobs", "I7")],
)
async def test_a_forged_base_is_found(board: Blackboard, found: str, forged: str, invariant: str) -> None:
    claimed = await given_claim(board, "a")
    await board.complete(claimed.claim)
    await given_item(board, "b")
    await trim(board, 1)
    text = (await board.store.command("HGET", board.keys.base, "a")).decode()
    assert found in text

    await board.store.command("HSET", board.keys.base, "a", text.replace(found, forged))

    assert f"{invariant} a: " in await breaches(board)


@pytest.mark.unaudited
async def test_the_base_of_an_item_that_vanished_is_found(board: Blackboard) -> None:
    await given_items(board, "a", "b")
    await given_item(board, "c")
    await trim(board, 1)
    for key in (board.keys.items, board.keys.payloads):
        await board.store.command("HDEL", key, "a")
    await board.store.command("ZREM", board.keys.lane("jobs/waiting/").line, "a")

    assert "I1 a: it is gone, but the log last saw it in jobs/waiting/" in await breaches(board)


async def test_trims_and_purges_work_when_redis_is_out_of_memory(open_board: OpenBoard) -> None:
    board = await open_board(SHELVES)
    await given_finished(board, "a", "b", dedup_s=5, content_hash="")
    await given_item(board, "c", content_hash="h", dedup_s=1)
    await clock_of(board).advance(s=KEPT_S + 1)
    sweeper = Sweeper(board, bound=LogBound(entries=1, at_least_s=0))
    await board.store.command("CONFIG", "SET", "maxmemory", "1mb")
    try:
        await sweeper.run_once()
    finally:
        await board.store.command("CONFIG", "SET", "maxmemory", "0")

    assert await board.find_many(["a", "b"]) == [None, None]
    assert not await board.store.command("EXISTS", board.keys.dedup)
    trimmed = await board.events.trimmed()
    assert trimmed is not None
    assert trimmed.entries > 2


async def test_a_busy_board_is_audited_while_it_is_trimmed(board: Blackboard) -> None:
    random, stop = Random(7), asyncio.Event()

    async def work(agent: str) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            await given_items(board, *(f"{agent}.{n}.{m}" for m in range(3)))
            for claimed in await board.claim("jobs", agent, most=3):
                await (board.complete(claimed.claim) if random.random() < 0.8 else board.fail(claimed.claim, "x"))

    async def trims() -> None:
        while not stop.is_set():
            await trim(board, 30)
            await asyncio.sleep(0)

    at_work = [asyncio.create_task(each) for each in (work("w1"), work("w2"), trims())]
    try:
        for _ in range(3):
            await board.store.command("PING")
            trimmed = await board.events.trimmed()
            entries = trimmed.entries if trimmed else 0

            async def further(before: int = entries) -> bool:
                now = await board.events.trimmed()
                return now is not None and now.entries > before + 50

            await until(further)
            assert (await board.events.trimmed()).misfits == 0  # type: ignore[union-attr]
    finally:
        stop.set()
        await asyncio.gather(*at_work)
    assert await clean(board)


# -- finished items ------------------------------------------------------------------------------------------------------


async def test_finished_items_go_after_their_sections_time_with_all_that_is_theirs(shelves: Blackboard) -> None:
    keys, store, clock = shelves.keys, shelves.store, clock_of(shelves)
    await given_item(shelves, "a", section="desk", content_hash="h")
    claimed = await given_claim(shelves, "a")
    await shelves.fail(claimed.claim, "x")
    claimed = await given_claim(shelves, "a")
    await shelves.complete(claimed.claim, result={"ok": 1})
    for key in keys.own("a"):
        await store.command("HSET", key, "draft", "paid for")
    await clock.advance(s=KEPT_S - 1)
    assert await retention(shelves).purge_items() == 0

    await clock.advance(s=2)
    assert await retention(shelves).purge_items() == 1

    assert await shelves.find("a") is None
    left = {
        key: value
        for key, value in (await snapshot(store)).items()
        if b"a" in (value if isinstance(value, dict) else {})
    }
    assert left == {}
    assert not await store.command("EXISTS", *keys.own("a"), keys.lane("desk/seen/").line)
    last = (await whole_log(shelves))[-1]
    assert (last.kind, last.item, last.before, last.after, last.reason) == (
        "deleted",
        "a",
        "desk/seen/",
        "",
        "retention",
    )
    assert (await shelves.get_section_stats("desk"))["total"] == 0


async def test_content_of_a_purged_item_is_not_new_again(shelves: Blackboard) -> None:
    await given_finished(shelves, "a", content_hash="h")
    await clock_of(shelves).advance(s=KEPT_S + 1)
    assert await retention(shelves).purge_items() == 1

    [again] = await shelves.submit(Submission(id="b", section="desk", payload={}, content_hash="h"))
    assert (again.accepted, again.duplicate_of) == (False, "a")
    [anew] = await shelves.submit(Submission(id="a", section="desk", payload={}, content_hash="other"))
    assert anew.accepted
    assert await clean(shelves)


async def test_only_what_rests_in_a_final_status_of_such_a_section_goes(shelves: Blackboard) -> None:
    await given_items(shelves, "new", "held", "torn", "seen", "stored", section="desk")
    for item_id, to in (("torn", "desk/torn"), ("seen", "desk/seen"), ("stored", "cellar/seen")):
        claimed = await given_claim(shelves, item_id)
        await shelves.complete(claimed.claim, to)
    await given_claim(shelves, "held", lease_s=10 * KEPT_S)
    await clock_of(shelves).advance(s=KEPT_S + 1)

    assert (await retention(shelves).run_once()).items == 1
    found = await shelves.find_many(["new", "held", "torn", "seen", "stored"])
    assert [item is not None for item in found] == [True, True, True, False, True]


async def test_an_item_that_came_back_after_it_was_listed_stays(shelves: Blackboard) -> None:
    await given_finished(shelves, "a", "b")
    await clock_of(shelves).advance(s=KEPT_S + 1)
    original = shelves.store.call

    async def call(function: str, *args: Any, **options: Any) -> Any:
        if function == "purge_items":
            await shelves.store.command("HSET", shelves.keys.rules, "clock_offset_ms", 0)
            await shelves.move("a", "desk", "cellar", status="seen")  # to another lane
            await shelves.update("desk", "b", {"read": "again"})  # touched
        return await original(function, *args, **options)

    shelves.store.call = call  # type: ignore[method-assign]
    assert await retention(shelves).purge_items() == 0
    shelves.store.call = original  # type: ignore[method-assign]
    assert (await shelves.get("a")).section == "cellar"
    assert (await shelves.get("b")).payload["read"] == "again"


@pytest.mark.parametrize("place", ["elsewhere", "held"])
async def test_purging_names_the_lane_of_what_goes(open_board: OpenBoard, place: str) -> None:
    # a board on which items are also worked on where they come to rest
    board = await open_board(
        Board(
            name="odd",
            sections={"desk": Section(ready={"new": "seen"}, resting=("seen",), keep_s=0.001)},
            steps={"seen": frozenset({"seen"})},
            final=frozenset({"seen"}),
        )
    )
    claimed = await given_claim(board, "a", section="desk", requires="ink" if place == "elsewhere" else "", lease_s=60)
    if place == "elsewhere":
        await board.complete(claimed.claim, "desk/seen", requires="ink")
    await clock_of(board).advance(s=5)
    keys = board.keys
    names = [keys.rules, keys.items, keys.payloads, keys.events, keys.counts, keys.results, keys.errors]

    gone = await board.store.call("purge_items", [*names, keys.lane("desk/seen/").line, *keys.own("a")], ["", "a"])

    assert gone == 0
    assert await board.find("a") is not None


@pytest.mark.unaudited
async def test_old_ones_go_wherever_in_the_line_they_stand(
    shelves: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.PAGE", 2)
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.PAGES_PER_ROUND", 1)
    lates = [f"late{n}" for n in range(5)]
    await given_finished(shelves, *lates, priority=0)
    await given_finished(shelves, *(f"old{n}" for n in range(5)), priority=1)
    for each in lates:  # they stand first, and changed last
        event = (await shelves.get(each)).event
        record = (await shelves.store.command("HGET", shelves.keys.items, each)).decode()
        late = record.replace(event, f"{int(event.split('-')[0]) + 1_000_000}-0")
        await shelves.store.command("HSET", shelves.keys.items, each, late)
    await clock_of(shelves).advance(s=KEPT_S + 1)

    keeper, went = retention(shelves), [0]
    for _ in range(8):
        went.append(await keeper.purge_items())
    assert sum(went) == 5
    assert await shelves.queries.by_status("desk", "seen") == await shelves.find_many(lates)


async def test_many_finished_items_go_in_one_round(shelves: Blackboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.PAGE", 4)
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.ITEMS_PER_CALL", 3)
    await given_finished(shelves, *(f"i{n}" for n in range(11)))
    await clock_of(shelves).advance(s=KEPT_S + 1)

    assert await retention(shelves).purge_items() == 11
    assert await clean(shelves)


async def test_purged_items_leave_the_base_when_their_last_events_are_trimmed(shelves: Blackboard) -> None:
    await given_finished(shelves, "a", "b")
    await trim(shelves, 1)
    assert await shelves.store.command("HLEN", shelves.keys.base) == 3
    await clock_of(shelves).advance(s=KEPT_S + 1)
    await retention(shelves, 0).run_once()
    assert await clean(shelves)
    await given_item(shelves, "c", section="desk")
    await trim(shelves, 1)

    assert await shelves.store.command("HKEYS", shelves.keys.base) == [b""]


@pytest.mark.parametrize(
    ("keep_s", "resting", "why"),
    [
        (0, ("done",), "keep_s 0, needed seconds"),
        ("1", ("done",), "keep_s '1', needed seconds"),
        (float("nan"), ("done",), "needed seconds"),
        (5, (), "nothing would ever go"),
    ],
)
def test_a_time_to_keep_that_makes_no_sense_is_refused(keep_s: Any, resting: tuple[str, ...], why: str) -> None:
    with pytest.raises(BoardError, match=why):
        Board(
            name="odd",
            sections={
                "a": Section(ready={"new": "busy"}, resting=resting, keep_s=keep_s),
                "b": Section(resting=("done",)),
            },
            steps={"busy": frozenset({"done"})},
            final=frozenset({"done"}),
        )


def test_how_long_items_are_kept_is_part_of_the_boards_rules() -> None:
    forever, a_day = job_board("jobs"), job_board("jobs", keep_s=86400.0)
    assert forever.digest() != a_day.digest()
    assert a_day.rules()["keep|jobs|done"] == "86400000"
    assert not [name for name in forever.rules() if name.startswith("keep|")]
    assert Board.from_definition(a_day.definition()) == a_day
    assert Board.from_definition(forever.definition()).digest() == forever.digest()


# -- dedup marks ---------------------------------------------------------------------------------------------------------


async def test_marks_whose_time_is_over_go_and_the_others_stay(board: Blackboard) -> None:
    for name, life_s in (("short", 10), ("long", 1000), ("forever", 0)):
        await given_item(board, name, content_hash=f"h-{name}", dedup_s=life_s)
    await clock_of(board).advance(s=11)

    assert await retention(board).purge_marks() == 1

    assert sorted(await board.store.command("HKEYS", board.keys.dedup)) == [b"h-forever", b"h-long"]
    assert [(await board.get(name)).content_hash for name in ("short", "long")] == ["", "h-long"]
    assert (await board.submit(Submission(id="new", section="jobs", payload={}, content_hash="h-short")))[0].accepted


async def test_marks_are_looked_through_in_pages_over_several_rounds(
    board: Blackboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.PAGE", 50)
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.PAGES_PER_ROUND", 2)
    monkeypatch.setattr("swarm_infrastructure.blackboard.retention.ROUNDS", 6)
    many = [
        Submission(id=f"i{n}", section="jobs", payload={}, content_hash=f"h{n}", dedup_s=10 if n % 2 else 1000)
        for n in range(1500)
    ]
    await board.submit(*many)
    await clock_of(board).advance(s=11)

    keeper, rounds, gone = retention(board), 0, 0
    while gone < 750:
        went = await keeper.purge_marks()
        assert went < 400
        gone, rounds = gone + went, rounds + 1
    assert 3 <= rounds <= 2 * 6  # a sixth of what there is in each
    assert await board.store.command("HLEN", board.keys.dedup) == 750
    assert await clean(board)


# -- the sweeper ---------------------------------------------------------------------------------------------------------


async def test_sweepers_of_one_board_take_turns_at_what_is_kept(shelves: Blackboard) -> None:
    await given_finished(shelves, "a")
    await clock_of(shelves).advance(s=KEPT_S + 1)
    tape, kept, done = Tape(shelves.store), list[int](), list[int]()

    async def keep() -> None:
        kept.append(1)

    async def do() -> None:
        done.append(1)

    for sweeper in [Sweeper(shelves, every_s=3600, upkeep=[keep], chores=[do]) for _ in range(3)]:
        await sweeper.run_once()

    assert (tape.count("purge_items"), len(kept), len(done)) == (1, 1, 3)
    assert await shelves.find("a") is None


async def test_a_sweeper_keeps_the_log_of_the_locks_within_its_bound_too(board: Blackboard) -> None:
    sweeper = Sweeper(board, every_s=0.001, bound=LogBound(entries=4, at_least_s=0))
    for _ in range(10):
        async with board.acquire_lock("door", "w1"):
            pass
    desk = board.lock_desk
    assert desk is not None

    async def short() -> bool:
        await sweeper.run_once()
        return int(await board.store.command("XLEN", desk.keys.events)) <= 5

    await until(short)
    assert await clean(desk)


async def test_a_log_that_was_trimmed_does_not_claim_to_know_everything(board: Blackboard) -> None:
    await given_items(board, "a", "b")
    [whole] = (await explain(board, "gone")).reasons
    assert "and the log knows nothing of it" in whole.found

    await given_item(board, "gone")
    await board.delete("jobs", "gone")
    await given_item(board, "c")
    await trim(board, 1)

    [reason] = (await explain(board, "gone")).reasons
    assert "and the newest 2 entries of the log know nothing of it" in reason.found
