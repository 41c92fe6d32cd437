"""``swarm models``, in this process: it needs no Redis and calls nobody."""

from __future__ import annotations

import json
import socket
from decimal import Decimal
from typing import Any

import pytest

from swarm_infrastructure.cli import main
from swarm_infrastructure.config import Settings

pytestmark = pytest.mark.any_server


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["models", "--output", "json"]) == 0
    return {row["model"]: row for row in json.loads(capsys.readouterr().out)}


def test_models_are_listed_with_tier_and_prices(capsys):
    rows = listed(capsys)

    assert [(row["tier"], row["model"]) for row in rows.values()] == [
        ("fast", "gpt-6-luna"),
        ("fast", "claude-haiku-5-5"),
        ("balanced", "gpt-6.1-terra"),
        ("balanced", "claude-sonnet-5-5"),
        ("premium", "gpt-6.1-sol"),
        ("premium", "claude-opus-5-5"),
    ]
    luna, haiku = rows["gpt-6-luna"], rows["claude-haiku-5-5"]
    prices = [luna[f"{name}_usd_per_mtok"] for name in ("input", "cached", "cache_write", "output")]
    assert list(map(Decimal, prices)) == list(map(Decimal, ["0.1", "0.01", "0.125", "0.5"]))
    assert haiku["long_prompts"] == [
        {"above_tokens": 100_000, "input": "0.5", "cached": "0.05", "cache_write": "0.625", "output": "2.5"}
    ]
    assert (luna["price_from"], luna["billed_by"], luna["max_input_tokens"]) == ("genai-prices", "openai", 90_000)
    assert rows["claude-opus-5-5"]["long_prompts"] == []


def test_the_table_shows_prices_and_what_to_set(capsys):
    assert main(["models"]) == 0

    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:2] == ["TIER", "MODEL"]
    assert "above 100,000: 0.5 in, 2.5 out" in out[2]
    assert "no: set ANTHROPIC_API_KEY" in out[2]


@pytest.mark.parametrize(
    ("variables", "reachable"),
    [
        ({}, set()),
        ({"OPENAI_API_KEY": "sesame"}, {"openai"}),
        ({"OPENAI_BASE_URL": "http://localhost:11434/v1"}, {"openai"}),
        ({"ANTHROPIC_API_KEY": "sesame"}, {"anthropic"}),
        ({"OPENAI_API_KEY": "sesame", "ANTHROPIC_API_KEY": "sesame"}, {"openai", "anthropic"}),
    ],
)
def test_reachable_is_what_has_a_key_or_an_address(monkeypatch, capsys, variables, reachable):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    rows = listed(capsys)

    assert {row["client"] for row in rows.values() if row["reachable"]} == reachable
    assert "sesame" not in json.dumps(rows)


def test_a_model_without_a_price_is_named_and_the_exit_code_is_that_of_wrong_settings(monkeypatch, capsys):
    monkeypatch.setenv("SWARM_TIER_BALANCED", "gpt-6-lunar,gpt-6.1-terra")

    code = main(["models", "--output", "json"])

    answer = capsys.readouterr()
    rows = {row["model"]: row for row in json.loads(answer.out)}
    assert code == 3
    assert rows["gpt-6-lunar"]["input_usd_per_mtok"] is rows["gpt-6-lunar"]["price_from"] is None
    assert "gpt-6-lunar (balanced)" in answer.err
    assert answer.err.count("\n") == 1


def test_a_model_without_a_price_is_no_error_where_the_settings_name_one_for_all_such(monkeypatch, capsys):
    monkeypatch.setenv("SWARM_TIER_FAST", "gpt-6-lunar")
    monkeypatch.setenv("SWARM_UNKNOWN_PRICE", "75")

    assert main(["models"]) == 0
    assert "gpt-6-lunar" in capsys.readouterr().out


def test_a_price_of_ones_own_makes_a_model_known(monkeypatch, capsys, tmp_path):
    (tmp_path / "prices.toml").write_text("[house-7b]\ninput = 0.00000012\noutput = 0\n")
    monkeypatch.setenv("SWARM_TIER_FAST", "house-7b")
    monkeypatch.setenv("SWARM_PRICES", "prices.toml")

    row = listed(capsys)["house-7b"]
    assert main(["models"]) == 0

    assert (row["price_from"], row["billed_by"], row["client"]) == ("file", None, "openai")
    assert "0.00000012" in capsys.readouterr().out  # and not 1.2E-7


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SWARM_PRICES", "nowhere.toml", "SWARM_PRICES: nowhere.toml: found No such file"),
        ("SWARM_TIER_FAST", "a,,b", "SWARM_TIER_FAST: found 'a,,b'"),
    ],
)
def test_a_wrong_setting_is_3(monkeypatch, capsys, name, value, said):
    monkeypatch.setenv(name, value)

    assert main(["models"]) == 3
    assert said in capsys.readouterr().err
