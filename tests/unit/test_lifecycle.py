"""Boards as data: every contradiction is named when a board is built, and what Redis holds describes it wholly."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Any

import orjson
import pytest

from swarm_infrastructure.blackboard import NEWS, Board, Place, Section, job_board
from swarm_infrastructure.errors import BoardError, InvalidInputError, UnknownSectionError

DESK = Section(ready={"new": "reading"}, resting=("kept",), then={"reading": "desk/kept"})
STEPS = {"reading": frozenset({"kept"})}


def a_board(**changed: Any) -> Board:
    facts: dict[str, Any] = {"name": "b", "sections": {"desk": DESK}, "steps": STEPS, "final": frozenset({"kept"})}
    return Board(**(facts | changed))


def desk(**changed: Any) -> Board:
    """A board whose only section is changed."""
    facts: dict[str, Any] = {"ready": {"new": "reading"}, "resting": ("kept",)}
    return a_board(sections={"desk": Section(**(facts | changed))})


def test_a_board_without_contradictions_is_built() -> None:
    assert a_board().section("desk").entry == "new"
    back = {"reading": frozenset({"kept"}), "kept": frozenset({"new"})}
    resting_first = Section(ready={"new": "reading"}, resting=("kept",), entry="kept")
    assert a_board(sections={"desk": resting_first}, steps=back).section("desk").entry == "kept"


FAULTS: dict[str, tuple[Any, str]] = {
    "no section": (lambda: a_board(sections={}), "it has no section"),
    "empty section": (lambda: a_board(sections={"desk": DESK, "bin": Section()}), "section 'bin' has no status"),
    "name of board": (lambda: a_board(name="My Board"), "board: found 'My Board'"),
    "name of section": (lambda: a_board(sections={"a/b": DESK}), "section: found 'a/b'"),
    "name of status": (lambda: desk(resting=("kept", "a|b")), r"status: found 'a\|b'"),
    "name of quarantine": (lambda: a_board(quarantine="Out!"), "status: found 'Out!'"),
    "entry": (lambda: desk(entry="other"), "entry 'other', needed a ready or resting status: new, kept"),
    "entry that nobody could claim": (lambda: desk(entry="reading"), "entry 'reading', needed a ready or resting"),
    "retry": (lambda: desk(retry="kept"), "retries in 'kept', which is not ready there"),
    "quarantine in use": (lambda: a_board(quarantine="kept"), "uses 'kept', which is the quarantine"),
    "then from nowhere": (lambda: desk(then={"new": "desk/kept"}), "'then' for 'new', which no claim leads to"),
    "then to nowhere": (
        lambda: desk(then={"reading": "desk/gone"}),
        "leads to 'desk/gone', a place the board does not have",
    ),
    "then to no section": (
        lambda: desk(then={"reading": "bin/kept"}),
        "leads to 'bin/kept', a place the board does not have",
    ),
    "then that is no place": (lambda: desk(then={"reading": "kept"}), "needed 'section/status'"),
    "then that no step allows": (lambda: desk(then={"reading": "desk/new"}), "steps allow 'reading' no such step"),
    "archive": (lambda: a_board(archive="attic/old"), "archive leads to 'attic/old'"),
    "step from nowhere": (
        lambda: a_board(steps=STEPS | {"lost": frozenset({"kept"})}),
        "status 'lost' is in no section",
    ),
    "step to nowhere": (
        lambda: a_board(steps={"reading": frozenset({"kept", "lost"})}),
        "status 'lost' is in no section",
    ),
    "final that is nowhere": (lambda: a_board(final=frozenset({"kept", "lost"})), "status 'lost' is in no section"),
    "unreachable": (lambda: desk(resting=("kept", "hidden")), "status 'hidden' can't be reached"),
    "dead end": (lambda: a_board(final=frozenset()), "dead end: from 'new' no final status can be reached"),
    "no way out": (
        lambda: a_board(sections={"desk": Section(ready={"new": "reading"}, resting=("kept",))}, steps={}),
        "ready status 'new' in section 'desk' has no way out",
    ),
    **{
        f"{limit} {value!r}": (
            lambda limit=limit, value=value: desk(**{limit: value}),
            f"has {limit} {value!r}, needed",
        )
        for limit, values in {
            "lease_s": (0, -1, 0.01, float("nan"), float("inf"), 10**9, "30", None),
            "max_attempts": (-1, 2.5, 3.0, "3", None, True, float("nan")),
            "max_crashes": (-1, 1e6, None),
            "cap": (-1, 1e6, "10", None),
            "max_payload_bytes": (0, -1, 1e6, None),
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_contradiction_is_named(fault: str) -> None:
    build, words = FAULTS[fault]

    with pytest.raises(BoardError, match=words.replace("(", r"\(")) as error:
        build()

    assert error.value.faults


def test_every_contradiction_is_named_at_once() -> None:
    with pytest.raises(BoardError) as error:
        Board(
            name="b",
            sections={"one": Section(ready={"a": "b"}, retry="x", cap=-1), "two": Section()},
            steps={},
            final=frozenset(),
        )

    assert error.value.board == "b"
    assert len(error.value.faults) >= 3
    assert all(fault in str(error.value) for fault in error.value.faults)


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_place_is_written_as_section_and_status() -> None:
    assert Place.parse("desk/new") == Place("desk", "new") == Place.parse(Place("desk", "new"))
    assert str(Place("desk", "new")) == "desk/new"
    for text in ("desk", "/new", "desk/", "", "/"):
        with pytest.raises(InvalidInputError):
            Place.parse(text)


def test_a_section_without_a_status_means_its_entry() -> None:
    board = a_board()

    assert board.place("desk") == Place("desk", "new")
    assert board.place("desk", "reading") == Place("desk", "reading")
    assert board.place("desk", "quarantined") == Place("desk", "quarantined")
    with pytest.raises(InvalidInputError, match="one of new, reading, kept"):
        board.place("desk", "other")
    with pytest.raises(UnknownSectionError, match="it has: desk"):
        board.place("other")


def test_nothing_is_quarantined_where_nothing_can_be_claimed() -> None:
    with pytest.raises(InvalidInputError):
        NEWS.place("published", "quarantined")


def test_a_board_answers_what_it_allows() -> None:
    board = a_board()

    assert board.is_ready("desk", "new")
    assert not board.is_ready("desk", "reading")
    assert board.allows("reading", "kept")
    assert not board.allows("kept", "reading")
    assert not board.allows("nothing", "kept")
    assert board.section("desk").retry_status("new") == "new"
    assert NEWS.section("raw_feed").retry_status("pending") == "failed"


# --- what Redis holds -------------------------------------------------------------------------------------------------

BOARDS = [
    NEWS,
    a_board(),
    job_board("jobs", "one", "two", lease_s=5, cap=7, max_attempts=0),
    a_board(archive="desk/kept"),
]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_definition_goes_through_json_and_back(board: Board) -> None:
    again = Board.from_definition(orjson.loads(orjson.dumps(board.definition())))

    assert again == board
    assert (again.digest(), again.rules()) == (board.digest(), board.rules())


def test_the_digest_tells_boards_with_other_rules_apart() -> None:
    boards = [
        a_board(),
        a_board(name="c"),
        a_board(steps={"reading": frozenset({"kept", "new"})}),
        a_board(quarantine="out"),
        a_board(archive="desk/kept"),
        desk(then={}),
        desk(then={"reading": "desk/kept"}, cap=1),
        desk(then={"reading": "desk/kept"}, max_attempts=1),
        desk(then={"reading": "desk/kept"}, max_crashes=1),
        desk(then={"reading": "desk/kept"}, max_payload_bytes=1),
        desk(then={"reading": "desk/kept"}, retry="new"),
        a_board(steps={"reading": frozenset({"kept"}), "kept": frozenset({"new"})}),
        a_board(
            sections={
                "desk": Section(
                    ready={"new": "reading"}, resting=("kept",), then={"reading": "desk/kept"}, entry="kept"
                )
            },
            steps={"reading": frozenset({"kept"}), "kept": frozenset({"new"})},
        ),
        a_board(sections={"desk": DESK, "bin": Section(resting=("kept",))}),
    ]

    assert len({board.digest() for board in boards}) == len(boards)


def test_the_digest_does_not_depend_on_the_order_of_sections_and_steps_nor_on_leases() -> None:
    one = job_board("jobs", "a", "b")
    other = job_board("jobs", "b", "a", lease_s=5)

    assert one.digest() == other.digest()
    assert one.with_lease(7).digest() == one.digest()
    assert one.with_lease(7).section("a").lease_s == 7


def test_the_rules_name_every_place_step_and_limit() -> None:
    rules = job_board("jobs", max_attempts=5, max_crashes=3, cap=9, max_payload_bytes=100).rules()
    news = NEWS.rules()

    assert {name: value for name, value in rules.items() if name != "definition"} == {
        "quarantine": "quarantined",
        "limits|jobs": "5|3|9|100",
        "retry|jobs": "",
        "at|jobs|waiting": "active",
        "at|jobs|active": "-",
        "at|jobs|done": "-",
        "at|jobs|quarantined": "-",
        "step|active|done": "1",
        "step|active|waiting": "1",
    }
    assert (news["retry|raw_feed"], news["at|review_queue|failed"]) == ("failed", "reviewing")
    assert "at|published|quarantined" not in news
    assert Board.from_definition(orjson.loads(news["definition"])) == NEWS


# --- making boards ----------------------------------------------------------------------------------------------------


def test_members_of_an_enum_name_sections_and_statuses_as_plain_words_do() -> None:
    class S(StrEnum):
        NEW = "new"
        READING = "reading"
        KEPT = "kept"

    board = Board(
        name="b",
        sections={
            S("new"): Section(ready={S.NEW: S.READING}, resting=(S.KEPT,), entry=S.NEW, then={S.READING: "new/kept"})
        },
        steps={S.READING: frozenset({S.KEPT})},
        final=frozenset({S.KEPT}),
    )
    plain = Board(
        name="b",
        sections={"new": Section(ready={"new": "reading"}, resting=("kept",), then={"reading": "new/kept"})},
        steps={"reading": frozenset({"kept"})},
        final=frozenset({"kept"}),
    )

    assert board == plain
    assert board.digest() == plain.digest()
    assert all(type(name) is str for section in board.sections.values() for name in section.statuses)


def test_a_board_can_be_widened_under_a_name_of_its_own() -> None:
    wider = NEWS.with_sections(
        "my_news", steps={"published": {"translated"}}, final=["translated"], abroad=Section(resting=("translated",))
    )

    assert (wider.name, NEWS.name) == ("my_news", "news")
    assert wider.allows("published", "translated")
    assert wider.allows("published", "archived"), "what was allowed still is"
    assert not NEWS.allows("published", "translated")
    assert set(wider.sections) == {*NEWS.sections, "abroad"}
    with pytest.raises(BoardError, match="'lost' is in no section"):
        NEWS.with_sections(steps={"published": {"lost"}})


def test_a_section_can_not_be_changed_from_under_a_board() -> None:
    ready = {"new": "reading"}
    board = a_board(sections={"desk": Section(ready=ready, resting=("kept",))})
    ready["other"] = "reading"

    assert dict(board.section("desk").ready) == {"new": "reading"}
    with pytest.raises(TypeError):
        board.sections["more"] = DESK  # type: ignore[index]
    with pytest.raises(TypeError):
        board.section("desk").ready["more"] = "x"  # type: ignore[index]


def test_the_news_board_keeps_to_the_product_document() -> None:
    assert list(NEWS.sections) == [
        "raw_feed", "debate_queue", "consensus", "production_floor", "review_queue", "published", "archive", "agent_state",
    ]  # fmt: skip
    assert NEWS.archive == "archive/archived"
    path = ["pending", "processing", "debating", "consensus_reached", "producing", "reviewing", "approved", "published"]
    assert all(NEWS.allows(before, after) for before, after in pairwise(path))


def test_a_board_without_names_is_one_queue_called_jobs() -> None:
    assert list(job_board("work").sections) == ["jobs"]
    assert list(job_board("work", "a", "b").sections) == ["a", "b"]
