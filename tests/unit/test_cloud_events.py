"""Messages as CloudEvents 1.0 and back: nothing is lost either way, and what is no event is refused by name."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, FormatChecker

from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.message_bus import Message
from swarm_infrastructure.message_bus.cloud_events import from_cloud_event, to_cloud_event

OFFICIAL = json.loads((Path(__file__).parent.parent / "data" / "cloudevents.schema.json").read_text())
VALIDATOR = Draft7Validator(OFFICIAL, format_checker=FormatChecker())
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
leaves = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | words
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8
)
in_base64 = st.binary(max_size=12).map(lambda data: base64.b64encode(data).decode())
#: of an event, a String has no control characters and no noncharacters
strings = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=300)
references = st.sampled_from([
    "https://github.com/cloudevents", "mailto:a@b.org", "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
    "cloudevents/spec/pull/123",
    "/sensors/tn-1234567/alerts", "1-555-123-4567", "swarm:scout_1", "swarm:a%20b", "swarm:%FF", "swarm:",
    "//[::1]:80/a?b#c", "?a",
    "x" * 1500,
])  # fmt: skip
zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(timezones=zones).map(datetime.isoformat) | st.sampled_from([
    "2016-12-31T23:59:60Z", "1985-04-12t23:20:50.52z", "0000-02-29T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
    "2020-01-01T00:00:00.123456789Z", "2020-01-01T00:00:00-00:00",
])  # fmt: skip
extensions = st.dictionaries(
    st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(
        lambda name: name not in ("specversion", "id", "source", "type", "time", "data", "subject", "dataschema",
        "datacontenttype")
    )
    | st.sampled_from(
        ["swarmpriority", "swarmttl", "swarmversion", "swarmrecipient", "swarmfields", "swarmreplyto", "cloudevent",
         "traceparent", "correlationid"]
    ),
    st.booleans() | st.integers(-(2**31), 2**31 - 1) | strings
    | st.sampled_from(["5.0", "5",
    "nan", '{"attributes":{"cloudevent":{"set":{"id":"x"}}}}', '{"id":""}', '{"attributes":{"a":1}}', "[]"]),
    max_size=4,
)  # fmt: skip


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    event = draw(extensions) | {
        "specversion": "1.0", "id": draw(strings.filter(bool)), "source": draw(references),
        "type": draw(strings.filter(bool) | st.just("com.github.pull_request.opened")),
    }  # fmt: skip
    optional = {
        "time": times, "subject": strings.filter(bool), "dataschema": st.sampled_from(["urn:a:b", "https://x.y/z"]),
        "datacontenttype": st.sampled_from(["application/json", "text/xml"]),
    }  # fmt: skip
    for name, strategy in optional.items():
        if draw(st.booleans()):
            event[name] = draw(st.none() | strategy)
    which = draw(st.sampled_from(["data", "data_base64", ""]))
    if which:
        event[which] = draw(values if which == "data" else st.none() | in_base64)
    return event


messages = st.builds(
    Message,
    id=words.filter(bool) | st.just("x"),
    type=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,20}", fullmatch=True),
    sender=words.filter(bool) | references.filter(lambda each: len(each) < 1000),
    recipient=words,
    payload=values | st.builds(lambda data: {"data_base64": data}, in_base64 | words),
    priority=st.integers(0, 9),
    timestamp=st.datetimes(datetime(1, 1, 3), datetime(9989, 1, 1), timezones=st.just(UTC)),
    correlation_id=st.none() | words,
    reply_to=st.none() | words,
    ttl=st.floats(0, 1e300, exclude_min=True),
    traceparent=st.none() | st.just(TRACE) | words,
    attributes=st.dictionaries(
        words
        | st.sampled_from(["subject", "dataschema", "datacontenttype", "foo", "id", "swarmttl", "cloudevent", "data"]),
        values | st.sampled_from(["application/json", "urn:a:b", {"set": {"id": "other"}, "without": ["time"]}]),
        max_size=3,
    ),
    version=st.integers(1, 2**40),
)


def same(one: Any, other: Any) -> bool:
    """As JSON: 1 is neither true nor 1.0."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@settings(max_examples=400, deadline=None)
@given(messages)
def test_a_message_comes_back_from_its_event_as_it_was(message: Message) -> None:
    event = to_cloud_event(message)

    VALIDATOR.validate(event)
    again = from_cloud_event(json.dumps(event))
    if "time" not in event:  # of a foreign event without one: it is dated when it is read
        again = again.model_copy(update={"timestamp": message.timestamp})
    assert again == message
    assert same(again.model_dump(mode="json"), message.model_dump(mode="json"))


@settings(max_examples=600, deadline=None)
@given(events())
def test_any_valid_event_comes_back_from_its_message_as_it_was(event: dict[str, Any]) -> None:
    message = from_cloud_event(event)

    assert same(to_cloud_event(message), event)
    assert same(to_cloud_event(from_cloud_event(json.dumps(event).encode())), event)
    kept = Message.model_validate_json(message.model_dump_json())  # it went through a topic
    assert same(to_cloud_event(kept), event)


def test_an_event_says_what_the_message_says_where_others_look_for_it() -> None:
    message = Message.create(
        "task.assign", "scout_1", "writer_2", {"title": "x"}, id="m1", traceparent=TRACE, correlation_id="c1",
        attributes={"subject": "news/1", "sampledrate": 3},
    )  # fmt: skip

    event = to_cloud_event(message)

    time = message.timestamp.isoformat().replace("+00:00", "Z")
    assert event == {
        "specversion": "1.0", "id": "m1", "source": "scout_1", "type": "task.assign", "time": time, "subject": "news/1",
        "datacontenttype": "application/json", "data": {"title": "x"}, "traceparent": TRACE, "correlationid": "c1",
        "swarmrecipient": "writer_2", "sampledrate": 3,
    }  # fmt: skip


def test_a_foreign_event_can_be_worked_with_as_a_message() -> None:
    message = from_cloud_event({
        "specversion": "1.0", "id": "1", "source": "https://example.com/shop", "type": "com.example.sold", "subject": "shoe",
        "time": "2020-03-01T12:00:00+02:00", "traceparent": TRACE, "data": [1, None], "region": "eu",
    })  # fmt: skip

    assert (message.sender, message.type, message.payload) == (
        "https://example.com/shop",
        "com.example.sold",
        [1, None],
    )
    assert message.timestamp == datetime(2020, 3, 1, 10, tzinfo=UTC)
    assert (message.traceparent, message.attributes["subject"], message.attributes["region"]) == (TRACE, "shoe", "eu")


def test_what_was_changed_in_a_foreign_message_is_told_as_changed() -> None:
    foreign = {
        "specversion": "1.0",
        "id": "1",
        "source": "s",
        "type": "t",
        "time": "2020-03-01T12:00:00+02:00",
        "data": 1,
    }
    message = from_cloud_event(foreign)

    later = message.model_copy(update={"timestamp": datetime(2021, 1, 1, tzinfo=UTC)})

    assert to_cloud_event(later)["time"] == "2021-01-01T00:00:00Z"
    assert from_cloud_event(to_cloud_event(later)) == later


VALID = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        ({"id": ""}, "id"), ({"id": None}, "id"), ({"id": 3}, "id"), ({"type": ""}, "type"), ({"source": "a b"}, "source"),
        ({"source": "1a:b"}, "source"), ({"source": "%zz"}, "source"), ({"specversion": "0.3"}, "specversion"),
        ({"time": "yesterday"}, "time"), ({"time": "2021-02-30T00:00:00Z"}, "time"), ({"time": "2021-02-03T00:00:00"}, "time"),
        ({"time": "2021-13-03T00:00:00Z"}, "time"), ({"subject": ""}, "subject"), ({"dataschema": "relative"}, "dataschema"),
        ({"datacontenttype": 5}, "datacontenttype"), ({"myExt": "x"}, "myExt"), ({"my_ext": None}, "my_ext"),
        ({"ext": {}}, "ext"),
        ({"ext": 2**31}, "ext"), ({"ext": 1.5}, "ext"), ({"ext": "a\nb"}, "ext"), ({"ext": "\ud800"}, "ext"),
        ({"data_base64": "%%%"}, "data_base64"), ({"data_base64": "Zm9v", "data": 1}, "data_base64"),
        ({"data": float("nan")}, "data"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_and_the_attribute_named(change: dict[str, Any], attribute: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^event: {attribute}: found .*, needed "):
        from_cloud_event(VALID | change)


@pytest.mark.parametrize("text", [b"", b"{", "[]", "3", b"\xff", "[" * 100_000, b" " * 600_000])
def test_what_is_no_json_object_is_refused(text: bytes | str) -> None:
    with pytest.raises(InvalidInputError, match=r"^event: found "):
        from_cloud_event(text)


def test_each_required_attribute_that_is_missing_is_named() -> None:
    for name in VALID:
        with pytest.raises(InvalidInputError, match=f"^event: {name}: "):
            from_cloud_event({each: VALID[each] for each in VALID if each != name})


def test_the_official_schema_and_ours_agree_on_what_is_missing_or_of_a_wrong_type() -> None:
    wrong = [
        {"id": ""},
        {"source": "a b"},
        {"time": "yesterday"},
        {"subject": ""},
        {"dataschema": "relative"},
        {"type": 5},
    ]
    assert VALIDATOR.is_valid(VALID)
    for change in wrong:
        assert not VALIDATOR.is_valid(VALID | change), change


def test_the_official_sdk_reads_our_events() -> None:
    message = Message.create(
        "task.assign", "scout 1", "b", {"a": [1]}, traceparent=TRACE, ttl=1.5, attributes={"odd": [1]}
    )

    event = JSONFormat().read(None, json.dumps(to_cloud_event(message)))

    assert (event.get_id(), event.get_type(), event.get_time()) == (message.id, "task.assign", message.timestamp)
    assert (event.get_data(), event.get_extension("traceparent")) == ({"a": [1]}, TRACE)
    assert from_cloud_event(JSONFormat().write(event)) == message


@pytest.mark.parametrize("data", [{"a": 1}, "text", b"\x00\xff", None])
def test_we_read_the_official_sdks_events(data: Any) -> None:
    written = JSONFormat().write(
        CloudEvent({"source": "https://x.y", "type": "com.example", "subject": "s", "ext": "e"}, data)
    )

    message = from_cloud_event(written)

    assert same(to_cloud_event(message), json.loads(written))
    expected = {"data_base64": "AP8="} if isinstance(data, bytes) else data
    assert (message.payload, message.attributes["ext"]) == (expected, "e")
