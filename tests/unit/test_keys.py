"""Keys: built in one place, on one cluster slot for each board, from names that can't break out of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.keys import BoardKeys, check_id, check_name, lane_name


def every_key(keys: BoardKeys) -> list[str]:
    lane, debate = keys.lane("jobs/waiting/script"), keys.debate("news_1")
    return [value for name, value in vars(keys).items() if not name.startswith("_") and name != "prefix"] + [
        lane.line,
        lane.timed,
        lane.bell,
        debate.record,
        debate.arguments,
        debate.votes,
    ]


def test_every_key_of_a_board_carries_its_hash_tag_and_no_two_are_alike() -> None:
    keys = every_key(BoardKeys("team", "news"))

    assert len(keys) > 20
    assert len(set(keys)) == len(keys)
    # what Redis Cluster hashes: from the first brace to the first closing one
    assert {re.search(r"\{(.*?)\}", key)[1] for key in keys} == {"team:news"}  # type: ignore[index]
    assert {key.split("{")[0] for key in keys} == {"swarm:"}


def test_boards_and_namespaces_share_no_key() -> None:
    sets = [set(every_key(BoardKeys(*names))) for names in (("a", "b"), ("a", "c"), ("b", "b"), ("a.b", "b"))]

    assert len(set().union(*sets)) == sum(map(len, sets))


def test_the_name_of_a_lane_ends_its_keys_and_names_its_parts() -> None:
    lane = BoardKeys("n", "b").lane(lane_name("jobs", "waiting", "script"))

    assert lane.name == "jobs/waiting/script"
    assert [key.split("}:")[1] for key in (lane.line, lane.timed, lane.bell)] == [
        "lane:jobs/waiting/script",
        "timed:jobs/waiting/script",
        "bell:jobs/waiting/script",
    ]
    assert lane_name("jobs", "waiting") == "jobs/waiting/"
    assert BoardKeys("n", "b").lane("x/y/") == BoardKeys("n", "b").lane("x/y/")


@pytest.mark.parametrize("name", ["a", "raw_feed", "a.b-c_d", "0", "_x", "x" * 64])
def test_a_word_can_name_a_section(name: str) -> None:
    assert check_name("section", name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "ä", "a b", "a/b", "a|b", "a,b", "{a}", "a:b", "a\n", "-a", ".a", "x" * 65, None, 7, b"a", ["a"], "\ud800"],
)  # fmt: skip
def test_what_could_break_out_of_a_key_or_a_record_names_nothing(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="section"):
        check_name("section", name)


@pytest.mark.parametrize("name", ["a", "news_001", "A.b:c@d+e~f-g", "0", "x" * 128, "https:example.org"])
def test_an_id_may_hold_what_urls_and_addresses_hold(name: str) -> None:
    assert check_id("item id", name) == name


@pytest.mark.parametrize(
    "name", ["", "ä", "日本", "a b", "a/b", "a|b", "a,b", "{a}", "a\n", "\na", "-a", "+a", ":a", "a*", "x" * 129, None, 7, b"a"],
)  # fmt: skip
def test_what_could_break_out_of_an_event_or_a_record_is_no_id(name: Any) -> None:
    with pytest.raises(InvalidInputError, match="item id"):
        check_id("item id", name)
