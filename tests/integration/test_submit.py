"""Putting items on the board: each id and each content is accepted once, limits hold, bad input changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from given import OpenBoard, Tape, given_claim, given_item, given_items, snapshot
from pydantic import BaseModel

from swarm_infrastructure.blackboard import Blackboard, BlackboardSection, NewsItem, Section, Submission, job_board
from swarm_infrastructure.errors import InvalidInputError, RefusedError, SectionFullError, UnknownSectionError
from swarm_infrastructure.store import Store
from swarm_infrastructure.telemetry import trace_of_work
from swarm_infrastructure.testing import ManualClock


def new(item_id: str = "a", section: str = "jobs", **facts: Any) -> Submission:
    return Submission(id=item_id, section=section, payload=facts.pop("payload", {"n": 1}), **facts)


# --- what is put there is found there ---------------------------------------------------------------------------------


async def test_an_item_stands_where_it_was_put_and_is_as_it_was_given(board: Blackboard) -> None:
    [answer] = await board.submit(new("a", requires="script", priority=1, payload={"title": "T"}))

    item = await board.get("a")

    assert answer
    assert (item.id, item.section, item.status, item.requires, item.priority) == ("a", "jobs", "waiting", "script", 1)
    assert (item.version, item.attempts, item.crashes, item.token, item.holder) == (1, 0, 0, 0, "")
    assert item.payload == {"title": "T"}
    assert item.created_ms == item.changed_ms > 0


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"list": [], "object": {}, "null": None, "nested": [[], [{}]]},
        {"big": 2**53 + 1, "bigger": 2**63 - 1, "negative": -(2**63), "unsigned": 2**64 - 1},
        {"float": 0.1, "tiny": 5e-324, "huge": 1.7976931348623157e308, "negative_zero": -0.0, "whole": 1.0},
        {"unicode": "Ω≈ç√∫ 日本語 🧨 \u202e \u0000 \x7f", "key ü": "é", "": "empty key"},
        {"bars": "a|b|c", "lines": "a\nb\r\nc", "json": '{"x": [1, 2]}', "quotes": "\"'\\", "bytes": "ÿþ"},
        {"true": True, "false": False, "deep": [[[[[[[[[[1]]]]]]]]]]},
    ],
)
async def test_a_payload_is_kept_byte_for_byte(board: Blackboard, payload: dict[str, Any]) -> None:
    text = orjson.dumps(payload)

    await board.submit(new("a", payload=payload))
    [claimed] = await board.claim("jobs", "worker_1")

    assert await board.store.command("HGET", board.keys.payloads, "a") == text
    assert orjson.dumps(claimed.item.payload) == text


async def test_models_dataclasses_and_objects_with_to_dict_can_be_submitted(board: Blackboard) -> None:
    class Model(BaseModel):
        title: str

    @dataclass
    class Plain:
        title: str

    await board.submit(new("model", payload=Model(title="m")), new("plain", payload=Plain("p")))
    await board.submit(new("news", payload=NewsItem(id="news", title="n", content="c", source="s")))

    titles = [item.payload["title"] for item in await board.find_many(["model", "plain", "news"]) if item]
    assert titles == ["m", "p", "n"]


async def test_a_thousand_items_are_submitted_at_once_and_keep_their_order(board: Blackboard) -> None:
    names = [f"item_{n}" for n in range(1001)]

    answers = await board.submit(*(new(name) for name in names))

    assert [answer.id for answer in answers] == names
    assert all(answers)
    claimed = [each.item.id for _ in range(3) for each in await board.claim("jobs", "worker_1", most=500)]
    assert claimed == names


async def test_an_item_with_a_delay_cannot_be_claimed_before_it_is_due(board: Blackboard, clock: ManualClock) -> None:
    await board.submit(new("later", delay_s=60), new("now", delay_s=0))

    [now] = await board.claim("jobs", "worker_1", most=5)
    assert now.item.id == "now"
    await board.complete(now.claim)
    await clock.advance(s=59)
    assert await board.claim("jobs", "worker_1") == []
    await clock.advance(s=1)
    assert [each.item.id for each in await board.claim("jobs", "worker_1")] == ["later"]


async def test_a_delay_means_nothing_where_nobody_could_claim_the_item_anyway(board: Blackboard) -> None:
    await board.submit(new("a", status="done", delay_s=60))

    assert [item["id"] for item in await board.query_by_status("jobs", "done")] == ["a"]
    assert await board.store.command("ZSCORE", board.keys.lane("jobs/done/").line, "a") is not None


async def test_the_event_tells_who_submitted_an_item_and_for_which_trace(board: Blackboard) -> None:
    token = trace_of_work.set("trace-7")
    try:
        await board.submit(new("a"), agent="scout_1")
    finally:
        trace_of_work.reset(token)

    [event] = await board.history("a")
    assert (event.kind, event.before, event.after, event.agent) == ("submitted", "", "jobs/waiting/", "scout_1")
    assert (event.version, event.trace, event.previous) == (1, "trace-7", "")


# --- once -------------------------------------------------------------------------------------------------------------


async def test_an_id_is_accepted_once_and_the_first_payload_stays(board: Blackboard) -> None:
    await board.submit(new("a", payload={"n": 1}))

    [answer] = await board.submit(new("a", payload={"n": 2}))

    assert not answer
    assert answer.duplicate_of == "a"
    assert (await board.get("a")).payload == {"n": 1}


async def test_an_id_that_comes_twice_in_one_call_is_accepted_once(board: Blackboard) -> None:
    answers = await board.submit(new("a", payload={"n": 1}), new("a", payload={"n": 2}))

    assert [answer.accepted for answer in answers] == [True, False]
    assert (await board.get("a")).payload == {"n": 1}
    assert await board.queries.counts() == {"jobs/waiting/": 1}


async def test_content_is_accepted_once_and_later_writers_learn_whose_it_was(board: Blackboard) -> None:
    first = await board.submit(new("a", content_hash="story"))
    second = await board.submit(new("b", content_hash="story"), new("c", content_hash="other"))

    assert [answer.accepted for answer in [*first, *second]] == [True, False, True]
    assert second[0].duplicate_of == "a"
    assert await board.find("b") is None


async def test_content_that_comes_twice_in_one_call_is_accepted_once(board: Blackboard) -> None:
    answers = await board.submit(new("a", content_hash="story"), new("b", content_hash="story"))

    assert [(answer.accepted, answer.duplicate_of) for answer in answers] == [(True, ""), (False, "a")]
    assert await board.find("b") is None


async def test_content_is_remembered_for_as_long_as_it_was_asked_to_be(board: Blackboard, clock: ManualClock) -> None:
    await board.submit(new("a", content_hash="story", dedup_s=60), new("for_ever", content_hash="other"))

    await clock.advance(s=59)
    [before] = await board.submit(new("b", content_hash="story"))
    await clock.advance(s=2)
    [after] = await board.submit(new("c", content_hash="story"))
    await clock.advance(s=10 * 365 * 86400)
    [never] = await board.submit(new("d", content_hash="other"))

    assert (before.accepted, after.accepted, never.accepted) == (False, True, False)


async def test_fifty_simultaneous_writers_of_one_story_get_one_acceptance(
    blackboard: Blackboard, open_board: OpenBoard, connect: Any
) -> None:
    boards = [
        blackboard,
        *[await open_board(blackboard.board, on=await connect(blackboard.store.url)) for _ in range(3)],
    ]
    story = {"title": "Moon landing", "content": "They have landed.", "source": "wire", "content_hash": "moon"}

    answers = await asyncio.gather(
        *(
            boards[n % 4].submit(Submission(id=f"copy_{n}", section="raw_feed", payload=story, content_hash="moon"))
            for n in range(50)
        )
    )

    accepted = [answer.id for [answer] in answers if answer.accepted]
    assert len(accepted) == 1
    assert {answer.duplicate_of for [answer] in answers if not answer.accepted} == set(accepted)
    assert (await blackboard.get_all_stats())["raw_feed"]["total"] == 1


async def test_a_submit_whose_reply_was_lost_is_accepted_once_and_answered_alike(board: Blackboard) -> None:
    tape = Tape(board.store)
    await board.submit(new("a", content_hash="story"), new("b"), new("b"))
    before = await snapshot(board.store)

    again = await tape.again(tape.last("submit"))

    assert again[:2] == tape.last("submit").answer[:2] == [b"submitted", b"submitted"]
    assert await snapshot(board.store) == before


async def test_a_late_repeat_of_a_submit_is_told_of_its_acceptance_though_the_item_has_moved_on(
    board: Blackboard,
) -> None:
    tape = Tape(board.store)
    await board.submit(new("a"))
    call = tape.last("submit")
    await board.update("jobs", "a", {"n": 2})
    await board.complete((await given_claim(board, "a")).claim)

    assert await tape.again(call) == [b"submitted"]
    assert (await board.get("a")).status == "done"


@pytest.mark.unaudited
async def test_an_item_is_never_put_over_a_torn_record(board: Blackboard) -> None:
    await given_item(board, "a")
    await board.store.command("HSET", board.keys.items, "a", "torn")

    [answer] = await board.submit(new("a", payload={"n": 2}))

    assert not answer
    assert await board.store.command("HGET", board.keys.items, "a") == b"torn"


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_section_takes_as_many_items_as_its_cap_and_no_more(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", "jobs", "free", cap=3))
    await given_items(board, "a", "b")

    with pytest.raises(SectionFullError) as refused:
        await board.submit(new("c"), new("d"))

    assert (refused.value.section, refused.value.found, refused.value.needed) == ("jobs", "3 items", "fewer than 3")
    assert await board.find("c") is not None
    assert await board.find("d") is None
    assert await board.submit(new("elsewhere", section="free"))


async def test_what_is_claimed_counts_into_the_cap_and_what_leaves_makes_room(open_board: OpenBoard) -> None:
    board = await open_board(
        job_board("jobs", "jobs", cap=1).with_sections(
            "jobs", steps={"active": {"kept"}}, final=["kept"], archive=Section(resting=("kept",))
        )
    )
    claimed = await given_claim(board, "a")

    with pytest.raises(SectionFullError):
        await board.submit(new("b"))
    await board.complete(claimed.claim, "archive/kept")

    [answer] = await board.submit(new("b"))
    assert answer.accepted


async def test_a_payload_may_have_the_limit_in_bytes_and_not_one_more(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_payload_bytes=100))
    fits = {"t": "é" * 46}  # {"t":"…"}: 8 bytes around 92
    assert len(orjson.dumps(fits)) == 100

    [answer] = await board.submit(new("a", payload=fits))
    with pytest.raises(InvalidInputError, match="101 bytes"):
        await board.submit(new("b", payload={"t": fits["t"] + "x"}))

    assert answer.accepted
    assert await board.find("b") is None


async def test_redis_refuses_what_a_careless_client_would_submit(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs", max_payload_bytes=100))
    tape = Tape(board.store)
    await board.submit(new("a"))
    good, before = tape.last("submit"), await snapshot(board.store)

    def item(item_id: str, *, lane: int = 1, priority: str = "2", payload: bytes = b"{}") -> list[Any]:
        return [item_id, lane, priority, 0, "", 0, payload]

    nowhere = board.keys.lane("jobs/nowhere/")
    keys = [*good.keys, nowhere.line, nowhere.timed, nowhere.bell]
    answer = await board.store.call(
        "submit",
        keys,
        [
            "request",
            "",
            "",
            *item("b", payload=b"x" * 101),
            *item("c", lane=2),
            *item("d", priority="10"),
            *item("e", priority="x"),
            *item("f", priority=""),
        ],
    )

    assert answer == [
        [b"large", 101, 100],
        [b"place", b"jobs/nowhere/"],
        [b"priority", b"10"],
        [b"priority", b"x"],
        [b"priority", b""],
    ]
    assert await snapshot(board.store) == before


# --- bad input --------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value]
    return {"x": value}


BAD: list[Any] = [
    *[pytest.param(new(name), id=f"id {name!r:.20}") for name in ("", " ", "a b", "a|b", "a,b", "a\nb", "a/b", "{a}", "ü", "-a")],
    pytest.param(new("x" * 129), id="id of 129"),
    pytest.param(new(7), id="id 7"),  # type: ignore[arg-type]
    pytest.param(new("a\ud800"), id="id with a lone surrogate"),
    pytest.param(new(section="nowhere"), id="section"),
    pytest.param(new(status="nothing"), id="status"),
    pytest.param(new(requires="Script"), id="capability"),
    pytest.param(new(requires="a/b"), id="capability with a slash"),
    *[
        pytest.param(new(priority=value), id=f"priority {value!r}")
        for value in (-1, 10, 2.0, "2", True, None, NAN)
    ],
    *[
        pytest.param(new(delay_s=value), id=f"delay {value!r}")
        for value in (-1, -0.001, NAN, INF, 10**9, "5", None, True)
    ],
    *[pytest.param(new(dedup_s=value), id=f"dedup {value!r}") for value in (-1, NAN, INF, "5")],
    *[pytest.param(new(content_hash=value), id=f"hash {value!r}") for value in ("a b", "a|b", "é", "x" * 129)],
    *[
        pytest.param(new(payload=value), id=f"payload {str(value)[:30]}")
        for value in (
            None, [], "text", 7, {"x": NAN}, {"x": [1, {"y": INF}]}, {"x": -INF}, {"x": {1, 2}}, {"x": Ellipsis},
            {"x": b"bytes"}, {"x": 2**64}, {"x": "\ud800"}, {1: "number as a key"}, {"\ud800": 1}, nested(33),
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
async def test_bad_input_is_refused_with_a_typed_error_and_changes_nothing(board: Blackboard, bad: Submission) -> None:
    before = await snapshot(board.store)

    with pytest.raises((InvalidInputError, UnknownSectionError)):
        await board.submit(new("good"), bad)

    assert await snapshot(board.store) == before


@pytest.mark.parametrize(
    "good",
    [
        pytest.param(new("x" * 128), id="id of 128"),
        pytest.param(new("A.b:c@d+e~f-g_1"), id="id"),
        pytest.param(new(requires="x" * 64), id="capability of 64"),
        pytest.param(new(priority=0), id="priority 0"),
        pytest.param(new(priority=9), id="priority 9"),
        pytest.param(new(delay_s=366 * 86400), id="delay of a year"),
        pytest.param(new(payload=nested(32)), id="depth of 32"),
    ],
)
async def test_what_just_fits_is_accepted(board: Blackboard, good: Submission) -> None:
    [answer] = await board.submit(good)

    assert answer.accepted


# --- write, as the product document has it ----------------------------------------------------------------------------

STORY = {"title": "Breaking News", "content": "Content here...", "source": "NewsSource"}


async def test_write_recognises_the_same_story_by_title_content_and_source(blackboard: Blackboard) -> None:
    section = BlackboardSection.RAW_FEED

    assert await blackboard.write(section, "one", STORY | {"read_at": 1}) is True
    assert await blackboard.write(section, "two", STORY | {"read_at": 2}) is False
    assert await blackboard.write(section, "three", STORY | {"title": "Other News"}) is True
    assert await blackboard.write(section, "four", {"title": STORY["title"] + STORY["content"]}) is True


async def test_write_accepts_a_known_story_when_told_not_to_check(blackboard: Blackboard) -> None:
    assert await blackboard.write("raw_feed", "one", STORY)
    assert await blackboard.write("raw_feed", "two", STORY, check_duplicate=False)
    assert not await blackboard.write("raw_feed", "two", STORY, check_duplicate=False)  # the id is taken


async def test_write_goes_by_the_whole_payload_where_there_is_no_text(blackboard: Blackboard) -> None:
    assert await blackboard.write("agent_state", "one", {"mood": "good", "id": "one"})
    assert not await blackboard.write("agent_state", "two", {"id": "two", "mood": "good"})
    assert await blackboard.write("agent_state", "three", {"mood": "bad"})


async def test_write_puts_an_item_at_the_status_that_its_payload_names(blackboard: Blackboard) -> None:
    await blackboard.write("raw_feed", "failed", STORY | {"status": "failed"})
    await blackboard.write("raw_feed", "odd", {"title": "odd", "status": "on fire"})
    await blackboard.write("raw_feed", "named", {"title": "named", "status": "failed"}, status="pending")

    found = {item.id: item.status for item in await blackboard.find_many(["failed", "odd", "named"]) if item}
    assert found == {"failed": "failed", "odd": "pending", "named": "pending"}


async def test_write_refuses_what_submit_refuses(blackboard: Blackboard) -> None:
    for item_id, data in (("a b", {}), ("a", {"x": NAN}), ("a", {"content_hash": "no hash"})):
        with pytest.raises(RefusedError):
            await blackboard.write("raw_feed", item_id, data)
    with pytest.raises(UnknownSectionError):
        await blackboard.write("nowhere", "a", {})

    assert await blackboard.queries.counts() == {}


async def test_boards_and_namespaces_do_not_see_each_other(open_board: OpenBoard, store: Store) -> None:
    boards = [
        await open_board(job_board("jobs"), namespace="one"),
        await open_board(job_board("jobs"), namespace="two"),
        await open_board(job_board("more"), namespace="one"),
    ]

    for n, board in enumerate(boards):
        [answer] = await board.submit(new("a", payload={"board": n}, content_hash="same"))
        assert answer.accepted

    assert [(await board.get("a")).payload["board"] for board in boards] == [0, 1, 2]
    await boards[0].delete("jobs", "a")
    assert await boards[1].find("a") is not None
