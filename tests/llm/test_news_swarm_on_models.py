"""The news swarm with a language model behind it: the same agents, the provider's bill is what was settled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
from model_server import ModelServer, Plan

from swarm_infrastructure import Prices, TokenUsage

ROOT = Path(__file__).resolve().parents[2]


def answer(body: dict[str, Any]) -> Plan:
    """What a model would say: the first sentences of everything make its script."""
    wanted = body["response_format"]["json_schema"]["schema"]["properties"]
    facts = orjson.loads(body["messages"][-1]["content"])
    told: dict[str, Any] = {
        "confidence": 0.8, "reasons": ["it is news"], "angle": facts["title"], "topics": ["town"], "sentiment": 0.0,
        "sentences": [0, 1, 2, 3, 999], "faults": [], "choice": "tell", "argument": "it is news",
    }  # fmt: skip
    return Plan(text=json.dumps({name: told[name] for name in wanted}))


def test_the_news_swarm_publishes_with_a_model_and_books_what_the_model_server_bills(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    with ModelServer(respond=answer) as server:
        done = subprocess.run(
            [
                sys.executable, "examples/news_swarm/main.py", "examples/news_swarm/sample",
                "--out", str(tmp_path / "out"), "--summary", str(summary), "--processes", "2",
            ],
            cwd=ROOT, capture_output=True, text=True, timeout=110,
            env={name: value for name, value in os.environ.items() if not name.startswith(("SWARM", "REDIS"))}
            | {"OPENAI_BASE_URL": f"{server.url}/v1", "SWARM_DATA_DIR": str(tmp_path / "data")},
        )  # fmt: skip
        bill = server.bill["models"]
    assert done.returncode == 0, done.stderr
    assert "No language model" not in done.stdout
    told = json.loads(summary.read_text())
    assert told["published"] > 20

    nano = 0
    assert {request["body"]["model"] for request in server.seen} == {"gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol"}
    for model, row in bill.items():
        usage = TokenUsage(prompt_tokens=row["prompt_tokens"], completion_tokens=row["completion_tokens"])
        nano += Prices().cost(
            model, usage
        )  # linear below the long-prompt step, so the sum of all calls has the price of the sum
    assert told["cost_usd"]["total"] == nano / 1e9
    script = next((tmp_path / "out").glob("*/script.md")).read_text()
    assert "chosen by gpt-6.1-terra" in script
