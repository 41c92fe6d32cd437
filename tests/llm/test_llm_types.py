"""Requests, results, and what providers report about usage."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from clients import Verdict, request
from pydantic import BaseModel

from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.llm import ChatMessage, LLMRequest, LLMResult, ToolCall, estimated_tokens, summed
from swarm_infrastructure.llm.openai_client import _read_chat
from swarm_infrastructure.llm.provider import Answer
from swarm_infrastructure.llm.types import usage_of
from swarm_infrastructure.usage import TokenUsage

GOOD = '{"score": 7, "why": "short"}'


class Other(BaseModel):
    score: int


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_output_tokens": 0}, "a whole number above 0"),
        ({"max_output_tokens": True}, "a whole number above 0"),
        ({"max_output_tokens": 1.5}, "a whole number above 0"),
        ({"model": ""}, "the name of a model"),
        ({"prompt": None}, "one of the two"),
        ({"messages": [ChatMessage("user", "x")], "prompt": "y"}, "one of the two"),
        ({"timeout_s": 0}, "seconds above 0"),
        ({"extra": {"n": 3}}, "what was reserved"),
        ({"extra": {"max_completion_tokens": 9999}}, "what was reserved"),
    ],
)
def test_a_request_that_could_not_be_booked_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        request(**change)


def test_the_limit_is_required() -> None:
    with pytest.raises(TypeError, match="max_output_tokens"):
        LLMRequest(model="m", prompt="x")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"}, {"prompt": "other"}, {"system": "other"}, {"schema": Verdict}, {"schema": Other},
        {"max_output_tokens": 9}, {"temperature": 0.0}, {"stop": ["x"]}, {"tools": [{"name": "x"}]},
        {"tool_choice": "auto"}, {"extra": {"seed": 1}},
    ],
)  # fmt: skip
def test_whatever_shapes_the_answer_changes_the_digest(change: dict[str, Any]) -> None:
    assert request().digest() != request(**change).digest()


def test_what_only_decides_how_the_call_is_made_does_not_change_the_digest() -> None:
    same = request(
        timeout_s=3,
        idempotency_key="k",
        service_tier="flex",
        prompt_cache_key="p",
        cache_control={"type": "x"},
        repair=False,
    )

    assert same.digest() == request().digest()
    assert (
        replace(request(), prompt=None, messages=[ChatMessage("user", "Judge this story.")]).digest()
        == request().digest()
    )


def test_the_digest_is_the_same_in_every_process() -> None:
    program = (
        "from swarm_infrastructure.llm import LLMRequest\n"
        "print(LLMRequest(model='m', prompt='好', max_output_tokens=5, extra={'b': 1, 'a': [2]}).digest())"
    )
    here = LLMRequest(model="m", prompt="好", max_output_tokens=5, extra={"a": [2], "b": 1}).digest()

    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert there.stdout.strip() == here
    assert len(here) == 64


def test_what_fits_no_json_is_said_with_the_request() -> None:
    with pytest.raises(InvalidInputError, match="fit JSON"):
        request(extra={"x": object()}).digest()


def test_the_input_is_measured_with_all_that_the_model_reads() -> None:
    plain = LLMRequest(model="m", prompt="好好", max_output_tokens=5)
    assert plain.input_bytes() == 6
    assert plain.estimated_input_tokens() == 2 + 8

    for more in (
        {"system": "x" * 30},
        {"tools": [{"name": "x" * 30}]},
        {"schema": Verdict},
        {"extra": {"x": "y" * 30}},
    ):
        assert replace(plain, **more).estimated_input_tokens() >= plain.estimated_input_tokens() + 10
    assert replace(plain, prompt="\ud800").estimated_input_tokens() > 0
    assert estimated_tokens("abcd") == 2


def test_a_result_survives_json() -> None:
    result = LLMResult(
        text=GOOD, usage=TokenUsage(prompt_tokens=5, completion_tokens=3, cached_tokens=2), model="m-2026",
        parsed=Verdict.model_validate_json(GOOD), request_id="r", attempts=2, duration_ms=12, usage_estimated=True,
    )  # fmt: skip
    called = replace(result, text="", parsed=None, tool_calls=(ToolCall(id="1", name="t", arguments="{}"),))

    for each in (result, called):
        assert LLMResult.from_dict(json.loads(json.dumps(each.as_dict())), Verdict) == each
    assert LLMResult.from_dict(result.as_dict()).parsed is None


def test_a_recorded_result_that_does_not_fit_is_said() -> None:
    record = LLMResult(text="{}", usage=TokenUsage(), model="m").as_dict()

    with pytest.raises(InvalidInputError, match="recorded LLMResult"):
        LLMResult.from_dict(record, Verdict)
    with pytest.raises(InvalidInputError, match="recorded LLMResult"):
        LLMResult.from_dict({"text": "x"})


def test_a_total_above_the_parts_is_read_from_the_wire() -> None:
    answer = Answer()

    _read_chat(answer, {"usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}}, {})

    assert answer.usage == TokenUsage(prompt_tokens=10, completion_tokens=30)


def test_tool_calls_without_an_index_are_kept_apart() -> None:
    answer = Answer()

    for id in ("a", "b"):  # Gemini streams them so, each in one piece
        call = {"id": id, "function": {"name": "t", "arguments": {"x": id}}}
        _read_chat(answer, {"choices": [{"finish_reason": None}]}, {"tool_calls": [call]})

    assert list(answer.calls.values()) == [["a", "t", '{"x": "a"}'], ["b", "t", '{"x": "b"}']]


def test_parsed_as_insists_on_the_type() -> None:
    result = LLMResult(text="x", usage=TokenUsage(), model="m")

    with pytest.raises(InvalidInputError, match="a Verdict"):
        result.parsed_as(Verdict)


def test_numbers_that_contradict_each_other_are_never_booked_too_low() -> None:
    assert usage_of(None, None) == TokenUsage()
    assert usage_of(10, 5, total=40, reasoning=25).completion_tokens == 30  # xAI counts reasoning beside the completion
    assert usage_of(10, 5, reasoning=25).completion_tokens == 25
    assert usage_of(0, 5, cached=30, cache_write=2).prompt_tokens == 32
    assert summed(usage_of(1, 2, cached=1), usage_of(3, 4)) == TokenUsage(
        prompt_tokens=4, completion_tokens=6, cached_tokens=1
    )
    assert summed(usage_of(1, 2), None) == usage_of(1, 2)
