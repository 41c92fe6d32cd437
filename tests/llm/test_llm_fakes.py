"""Fakes, and the model server as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from clients import PROVIDERS, Verdict, client_of, request, streamed

from swarm_infrastructure.errors import ModelUnavailableError
from swarm_infrastructure.llm import LLMRequest, LLMResult
from swarm_infrastructure.testing import FakeLLM, FunctionLLM
from swarm_infrastructure.usage import TokenUsage

SERVER = Path(__file__).with_name("model_server.py")


async def test_a_script_may_hold_texts_objects_results_errors_and_functions() -> None:
    whole = LLMResult(text="whole", usage=TokenUsage(prompt_tokens=1), model="other")
    verdict = Verdict(score=1, why="x")

    async def later(asked: LLMRequest) -> str:
        return f"async {asked.prompt}"

    fake = FakeLLM(["text", verdict, {"score": 2, "why": "y"}, whole, lambda asked: asked.model, later])

    assert (await fake.generate(request())).text == "text"
    assert (await fake.generate(request(schema=Verdict))).parsed == verdict
    assert (await fake.generate(request(schema=Verdict))).parsed_as(Verdict).score == 2
    assert await fake.generate(request()) is whole
    assert (await fake.generate(request())).text == "model-1"
    assert (await fake.generate(request(prompt="p"))).text == "async p"
    assert (fake.left, len(fake.requests), fake.requests[-1].prompt) == (0, 6, "p")


async def test_an_error_of_the_script_is_raised_and_the_next_answer_follows() -> None:
    fake = FakeLLM([ModelUnavailableError("m", "down"), "up"])

    with pytest.raises(ModelUnavailableError):
        await fake.generate(request())
    assert (await streamed(fake, request()))[1].text == "up"


async def test_a_script_that_is_used_up_says_so() -> None:
    fake = FakeLLM("only one")
    await fake.generate(request())

    with pytest.raises(AssertionError, match=r"the script had 1 answers, found call 2 \(model 'model-1'\)"):
        await fake.generate(request())


async def test_usage_is_the_same_for_the_same_lengths_or_as_given() -> None:
    given = TokenUsage(prompt_tokens=7, completion_tokens=8)

    once, again = [(await FakeLLM(["abcdef"]).generate(request())).usage for _ in range(2)]

    assert once == again == TokenUsage(prompt_tokens=request().estimated_input_tokens(), completion_tokens=2)
    assert (await FakeLLM(["abcdef"], usage=given).generate(request())).usage == given


async def test_a_function_answers_any_number_of_requests() -> None:
    model = FunctionLLM(lambda asked: Verdict(score=len(asked.prompt or ""), why=""))

    scores = [
        (await model.generate(request(prompt="x" * n, schema=Verdict))).parsed_as(Verdict).score for n in (1, 2, 3)
    ]

    assert scores == [1, 2, 3]
    assert len(model.requests) == 3


def test_the_pytest_plugin_forbids_real_requests() -> None:
    assert os.environ["SWARM_ALLOW_LLM_REQUESTS"] == "0"


async def test_the_model_server_runs_as_a_process_and_hands_out_its_bill() -> None:
    process = subprocess.Popen([sys.executable, SERVER, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        plans = json.dumps([{"text": "planned", "usage": {"prompt": 3, "completion": 2}}]).encode()
        with urlopen(Request(f"{url}/plan", data=plans, method="POST"), timeout=10) as answer:
            assert json.load(answer) == {"planned": 1}

        texts = []
        for provider in PROVIDERS:
            client = client_of(provider, url)
            texts.append((await client.generate(request(prompt="hello"))).text)
            await client.aclose()

        with urlopen(f"{url}/bill", timeout=10) as answer:
            bill = json.load(answer)
        assert texts == ["planned", "echo: hello", "echo: hello"]
        assert bill["requests"] == bill["models"]["model-1"]["calls"] == 3
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout:
            process.stdout.close()
