"""Items: payloads become JSON or a typed error; records are read whole or not at all; patches are merged."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from swarm_infrastructure.blackboard.items import (
    Item,
    check_priority,
    check_seconds,
    clean_text,
    dump_payload,
    merge,
    read_item,
)
from swarm_infrastructure.errors import InvalidInputError

RECORD = (
    "1795000000123-4|1795000000000|3|12|req|hash|jobs|active|script|7|2|1|1795000000000001|worker_1|waiting|12:failed:6"
)


def read(record: str | bytes = RECORD, payload: bytes | None = b'{"x": []}', result: bytes | None = None) -> Item:
    return read_item("a", record, payload, result)


def test_a_record_is_read_field_by_field() -> None:
    item = read(result=b"[1]")

    assert (item.section, item.status, item.requires, item.priority) == ("jobs", "active", "script", 3)
    assert (item.version, item.seq, item.attempts, item.crashes) == (7, 12, 2, 1)
    assert (item.token, item.holder, item.origin) == (1795000000000001, "worker_1", "waiting")
    assert (item.created_ms, item.changed_ms, item.content_hash) == (1795000000000, 1795000000123, "hash")
    assert (item.payload, item.result) == ({"x": []}, [1])
    assert (item.lane, item.claimed_from) == ("jobs/active/script", "jobs/waiting/script")


def test_an_item_that_nobody_touched_yet_was_created_when_it_changed_last() -> None:
    item = read("1795000000123-0||2|1|req||jobs|waiting||1|0|0||||")

    assert (item.created_ms, item.changed_ms, item.token, item.holder) == (1795000000123, 1795000000123, 0, "")
    assert (item.lane, item.claimed_from) == ("jobs/waiting/", "jobs/waiting/")


@pytest.mark.parametrize(
    ("record", "payload"),
    [
        ("", b"{}"), ("torn", b"{}"), (RECORD + "|more", b"{}"), (RECORD.rsplit("|", 1)[0], b"{}"),
        (RECORD.replace("|3|", "|x|"), b"{}"), (RECORD.replace("|7|", "||"), b"{}"), (RECORD.replace("123-4", "x-y"), b"{}"),
        (b"\xff" * 20, b"{}"), (RECORD, b"{torn"), (RECORD, b""), (RECORD, b"[]"), (RECORD, b"7"), (RECORD, b"\xff"),
    ],
)  # fmt: skip
def test_what_is_torn_or_forged_is_a_typed_error(record: str | bytes, payload: bytes) -> None:
    with pytest.raises(InvalidInputError, match="swarm audit"):
        read(record, payload)


def test_a_row_of_the_product_document_keeps_the_payload_and_adds_where_the_item_stands() -> None:
    row = read(payload=b'{"title": "T", "id": "other"}').as_dict()

    assert row == {
        "title": "T", "id": "a", "status": "active", "_bb_section": "jobs", "_bb_version": 7, "_bb_updated_at": 1795000000.123,
    }  # fmt: skip
    assert {"id", "priority", "attempts", "holder", "payload"} <= set(read().facts())


# --- payloads ---------------------------------------------------------------------------------------------------------


class Model(BaseModel):
    title: str
    tags: list[str] = []


@dataclass
class Plain:
    title: str
    tags: list[str] = field(default_factory=list)


class Old:
    def to_dict(self) -> dict[str, Any]:
        return {"title": "T", "tags": []}


@pytest.mark.parametrize(
    "payload",
    [Model(title="T"), Plain("T"), Old(), {"title": "T", "tags": []}, OrderedDict(title="T", tags=[])],
)
def test_whatever_describes_itself_becomes_a_json_object(payload: Any) -> None:
    assert orjson.loads(dump_payload(payload)) == {"title": "T", "tags": []}


@pytest.mark.parametrize("payload", [None, [], (), "text", 7, 1.5, True, b"{}", Plain, ...])
def test_what_is_no_object_is_no_payload(payload: Any) -> None:
    with pytest.raises(InvalidInputError):
        dump_payload(payload)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "value",
    [
        NAN, INF, -INF, [NAN], {"y": [1, {"z": INF}]}, (1, NAN), {1, 2}, object(), b"x", 2**64, -(2**63) - 1, "\ud800",
        {1: 2}, Plain(NAN), [Plain(INF)], Model(title="\ud800"), print, 1j,
    ],
)  # fmt: skip
def test_what_json_has_no_word_for_is_a_typed_error_and_never_null(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="payload"):
        dump_payload({"x": value})


def test_a_model_with_a_number_that_is_none_is_refused_too() -> None:
    class Scored(BaseModel):
        score: float

    with pytest.raises(InvalidInputError):
        dump_payload(Scored(score=NAN))
    with pytest.raises(InvalidInputError):
        dump_payload(Scored.model_construct(score=INF))


def test_data_may_be_nested_32_deep_and_no_deeper() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: Any = {}
        for _ in range(depth - 1):
            value = {"x": value}
        return value

    assert dump_payload(nested(32)).count(b"{") == 32
    with pytest.raises(InvalidInputError, match="depth 33"):
        dump_payload(nested(33))
    endless: dict[str, Any] = {}
    endless["x"] = [endless]
    with pytest.raises(InvalidInputError):
        dump_payload(endless)


# --- merging ----------------------------------------------------------------------------------------------------------


def test_a_patch_replaces_adds_and_removes_and_leaves_the_original_alone() -> None:
    payload = {"keep": 1, "change": {"a": 1}, "drop": 2}

    assert merge(payload, {"change": {"b": 2}, "drop": None, "missing": None, "add": []}) == {
        "keep": 1,
        "change": {"b": 2},
        "add": [],
    }
    assert merge(payload, None) == merge(payload, {}) == payload == {"keep": 1, "change": {"a": 1}, "drop": 2}


def test_a_function_changes_a_copy_or_returns_another_payload() -> None:
    payload = {"n": 1}

    assert merge(payload, lambda p: p.update(n=2)) == {"n": 2}
    assert merge(payload, lambda p: {"other": p["n"]}) == {"other": 1}
    assert payload == {"n": 1}


@pytest.mark.parametrize("patch", [[1], "text", 7, list, str])
def test_what_is_neither_is_a_typed_error(patch: Any) -> None:
    with pytest.raises(InvalidInputError, match="patch"):
        merge({"n": 1}, patch)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "ms"), [(0, 0), (0.001, 1), (1.5, 1500), (0.29, 290), (366 * 86400, 31622400000)])
def test_seconds_become_whole_milliseconds(seconds: float, ms: int) -> None:
    assert check_seconds("delay", seconds) == ms


@pytest.mark.parametrize("seconds", [-0.001, NAN, INF, -INF, 366 * 86400 + 1, True, "1", None, 1j], ids=repr)
def test_what_is_no_time_is_a_typed_error(seconds: Any) -> None:
    with pytest.raises(InvalidInputError, match="delay"):
        check_seconds("delay", seconds)


def test_a_time_can_have_a_least() -> None:
    assert check_seconds("lease", 0.05, least=0.05) == 50
    with pytest.raises(InvalidInputError, match=r"from 0\.05"):
        check_seconds("lease", 0.049, least=0.05)


@pytest.mark.parametrize("priority", [-1, 10, 1.0, "1", None, True, NAN], ids=repr)
def test_a_priority_is_a_whole_number_from_0_to_9(priority: Any) -> None:
    with pytest.raises(InvalidInputError):
        check_priority("priority", priority)
    assert [check_priority("priority", n) for n in range(10)] == list(range(10))


def test_text_is_cut_and_always_unicode() -> None:
    assert clean_text("a\ud800b" + "x" * 10, 5) == "a?bxx"
    assert clean_text(ValueError("odd"), 99) == "odd"
