"""Messages: the envelope, its limits, and readers that are older or newer than the writer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.message_bus import Channels, Message, MessageType, TaskMessage
from swarm_infrastructure.telemetry import traceparent_of_work

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("msg_type", MessageType)
def test_a_message_of_every_type_comes_back_from_json_as_it_was(msg_type: MessageType) -> None:
    message = Message.create(
        msg_type, sender="a", recipient="b", payload={"n": 1, "empty": []}, priority=1, ttl=9.5, correlation_id="c",
        reply_to="r", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )  # fmt: skip

    assert Message.from_json(message.to_json()) == message


@given(payload=JSON, when=st.datetimes(timezones=st.just(UTC)), ttl=st.floats(0.001, 1e9))
@settings(max_examples=200)
def test_any_json_comes_back_as_it_was(payload: object, when: datetime, ttl: float) -> None:
    message = Message.create("note", "a", payload=payload, timestamp=when, ttl=ttl)
    if payload is not None:
        assert message.payload == payload
    assert Message.from_json(message.to_json()) == message


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"priority": 10}, "priority"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": float("inf")}, "ttl"),
        ({"sender": ""}, "sender"),
        ({"msg_type": ""}, "type"),
        ({"msg_type": "two words"}, "type"),
        ({"timestamp": datetime(2026, 1, 1)}, "timestamp"),
    ],
)
def test_a_wrong_fact_is_refused_by_name(facts: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInputError, match=f"Message: {named}"):
        Message.create(**({"msg_type": "note", "sender": "a"} | facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no JSON"),
        (b"[]", "Message: the whole"),
        (b'{"type": "note"}', "Message: sender"),
        (b'{"type": "note", "sender": "a", "priority": "high"}', "Message: priority"),
        (b'{"type": "note", "sender": "a", "timestamp": "2026-01-01T00:00:00"}', "Message: timestamp"),
    ],
)
def test_what_is_no_message_is_refused_with_the_field(text: bytes, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Message.from_json(text)


def test_a_reader_of_today_reads_what_a_later_one_writes() -> None:
    later = json.loads(Message.create("note", "a").to_json()) | {"version": 2, "urgency": "new field"}

    assert Message.from_json(json.dumps(later)).version == 2


def test_a_message_expires_when_its_time_to_live_is_over() -> None:
    sent = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    message = Message.create("note", "a", timestamp=sent, ttl=60)

    assert message.timestamp == sent and message.timestamp.tzinfo is UTC
    assert not message.is_expired(sent + timedelta(seconds=59.9))
    assert message.is_expired(sent + timedelta(seconds=60))


def test_what_lives_for_ever_has_a_deadline_too() -> None:
    assert not Message.create("note", "a", ttl=1e300).is_expired()


def test_a_reply_goes_to_the_sender_and_belongs_to_what_it_answers() -> None:
    asked = Message.create("question", "asker", "answerer")

    answer = asked.reply("answer", "answerer", 42)

    assert (answer.recipient, answer.correlation_id, answer.payload) == ("asker", asked.id, 42)
    assert answer.reply("thanks", "asker").correlation_id == asked.id


def test_a_message_carries_the_trace_of_the_work_that_sends_it() -> None:
    token = traceparent_of_work.set("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    try:
        assert Message.create("note", "a").traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        assert Message.create("note", "a", traceparent=None).traceparent is None
    finally:
        traceparent_of_work.reset(token)


def test_a_task_comes_back_from_json_as_it_was() -> None:
    task = TaskMessage(
        task_id="t", task_type="script", parameters={"news_id": "n"}, deadline=datetime.now(UTC), estimated_tokens=5
    )

    assert TaskMessage.from_json(task.to_json()) == task


def test_a_role_stands_in_a_tier_of_its_own_and_makers_in_the_producers_too() -> None:
    assert Channels.tiers_of("scout") == ("scout",)
    assert Channels.tiers_of("video_editor") == ("video_editor", "producer")
    assert Channels.tier_channel("analyst") == Channels.TIER_ANALYST
    assert Channels.queue("production") == Channels.QUEUE_PRODUCTION
