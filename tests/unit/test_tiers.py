"""Tiers: which model for which task, without a list that must be edited for a new model."""

from __future__ import annotations

import pytest

from swarm_infrastructure.config import Settings
from swarm_infrastructure.cost_manager.pricing import Prices
from swarm_infrastructure.cost_manager.tiers import TASK_TIER_MAPPING, LLMModel, LLMTier, TierTable, client_of
from swarm_infrastructure.errors import ConfigurationError, InvalidInputError

FAST, BALANCED, PREMIUM = LLMTier


@pytest.mark.parametrize(
    ("task_type", "tier"),
    [
        ("news_scout", FAST),
        ("content_filter", FAST),
        ("topic_tagging", FAST),
        ("sentiment_analysis", FAST),
        ("content_analysis", BALANCED),
        ("fact_check", BALANCED),
        ("debate_argument", BALANCED),
        ("consensus_vote", BALANCED),
        ("script_draft", BALANCED),
        ("visual_plan", BALANCED),
        ("script_final", PREMIUM),
        ("script_revision", PREMIUM),
        ("video_review", PREMIUM),
        ("quality_assurance", PREMIUM),
    ],
)
def test_each_of_the_fourteen_task_types_has_its_tier(task_type, tier):
    assert TierTable().get_tier(task_type) is tier is TASK_TIER_MAPPING[task_type]
    assert len(TASK_TIER_MAPPING) == 14


def test_a_task_type_that_nobody_mapped_is_balanced():
    assert TierTable().get_tier("script_generation") is BALANCED


def test_task_types_can_be_mapped_otherwise():
    table = TierTable(task_tiers={"news_scout": "premium", "weather": LLMTier.FAST})

    assert (table.get_tier("news_scout"), table.get_tier("weather")) == (PREMIUM, FAST)
    assert TierTable().get_tier("news_scout") is FAST
    assert TASK_TIER_MAPPING["news_scout"] is FAST


def test_tiers_and_models_are_plain_strings():
    assert [str(tier) for tier in LLMTier] == ["fast", "balanced", "premium"]
    assert LLMModel.GPT4 == "gpt-4"
    assert {str(LLMModel.GPT35_TURBO), str(LLMModel.CLAUDE_HAIKU)} == {"gpt-3.5-turbo", "claude-3-haiku"}


def test_the_defaults_begin_with_the_provider_that_is_named_first():
    assert TierTable().models("fast") == ["gpt-6-luna", "claude-haiku-5-5"]
    assert TierTable(providers=["anthropic"]).models(PREMIUM) == ["claude-opus-5-5", "gpt-6.1-sol"]
    assert TierTable(providers=["nobody"]).models(BALANCED) == ["gpt-6.1-terra", "claude-sonnet-5-5"]


def test_only_the_models_of_the_providers_that_can_be_asked_are_given():
    table = TierTable({"fast": ["house-7b", "claude-haiku-5-5"]})

    assert table.models(FAST, ["anthropic"]) == ["claude-haiku-5-5"]
    assert table.models(FAST, {"openai"}) == ["house-7b"]
    assert table.models(FAST, []) == []


def test_a_model_of_no_known_maker_is_asked_for_by_the_openai_client():
    assert client_of("claude-sonnet-5-5") == client_of(LLMModel.CLAUDE_OPUS) == "anthropic"
    assert client_of("gpt-6-luna") == client_of("llama3:8b") == client_of(LLMModel.GEMINI_PRO) == "openai"


def test_what_is_given_cannot_be_changed_through_the_answer():
    table = TierTable()

    table.models(FAST).clear()

    assert table.models(FAST)


@pytest.mark.parametrize(
    ("model", "tier"),
    [
        ("gpt-6-luna", FAST),
        ("gpt-6-luna-2026-10-01", FAST),
        ("claude-opus-5-5-20261001", PREMIUM),
        (LLMModel.GPT35_TURBO, FAST),
        (LLMModel.CLAUDE_HAIKU, FAST),
        (LLMModel.GPT4_TURBO, BALANCED),
        (LLMModel.CLAUDE_SONNET, BALANCED),
        (LLMModel.GPT4, PREMIUM),
        (LLMModel.CLAUDE_OPUS, PREMIUM),
        ("house-7b", None),
    ],
)
def test_a_model_stands_in_a_tier_also_under_its_dated_name(model, tier):
    assert TierTable().tier_of_model(model) is tier


@pytest.mark.parametrize("model", list(LLMModel))
def test_every_model_that_has_a_name_here_has_a_tier(model):
    assert TierTable().tier_of_model(model) is not None


def test_the_table_says_which_tier_an_old_model_has_before_the_product_document_does():
    assert TierTable({"fast": [LLMModel.GPT4]}).tier_of_model("gpt-4") is FAST


def test_below_each_tier_is_a_cheaper_one_and_below_fast_none():
    table = TierTable()

    assert (table.cheaper(PREMIUM), table.cheaper("balanced"), table.cheaper(FAST)) == (BALANCED, FAST, None)


def test_only_the_fast_tier_limits_its_prompts_below_the_step_where_its_models_get_dear():
    table, prices = TierTable(), Prices()

    limits = [table.max_input_tokens(tier) for tier in LLMTier]

    assert limits == [90_000, None, None]
    for model in table.models(FAST):
        assert prices.get(model).step(90_000) == prices.get(model).steps[0]
    assert TierTable(fast_max_input_tokens=5).max_input_tokens("fast") == 5


def test_every_model_of_the_default_tiers_has_a_price():
    prices, table = Prices(), TierTable()

    table.check(prices.known)

    for tier in LLMTier:
        assert table.models(tier)
        for model in table.models(tier):
            assert prices.estimate(model, 1000, 1000) > 0


def test_each_tier_costs_at_least_as_much_as_the_one_below():
    prices, table = Prices(), TierTable()

    for provider in ("openai", "anthropic"):
        costs = [prices.estimate(table.models(tier, [provider])[0], 1000, 1000) for tier in LLMTier]
        assert costs == sorted(costs)


def test_models_without_a_price_are_named_with_their_tier():
    table = TierTable({"fast": ["gpt-6-lunar", "gpt-6-luna"], "premium": ["best-model"]})

    with pytest.raises(ConfigurationError, match=r"gpt-6-lunar \(fast\), best-model \(premium\); .*SWARM_PRICES"):
        table.check(Prices().known)


@pytest.mark.parametrize(
    "models", [{"cheap": ["x"]}, {"fast": []}, {"fast": "gpt-4"}, {"fast": [""]}, {"fast": [None]}]
)
def test_a_table_that_contradicts_itself_is_refused(models):
    with pytest.raises(ConfigurationError, match="tier"):
        TierTable(models)


def test_a_task_type_can_not_be_mapped_to_what_is_no_tier():
    with pytest.raises(
        ConfigurationError, match="'weather': found tier 'cheap', needed one of: fast, balanced, premium"
    ):
        TierTable(task_tiers={"weather": "cheap"})


def test_a_tier_that_does_not_exist_is_refused():
    for ask in (TierTable().models, TierTable().cheaper, TierTable().max_input_tokens):
        with pytest.raises(InvalidInputError, match="tier: found 'cheap'"):
            ask("cheap")


# -- from the settings -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, "gpt-6-luna"),
        ({"OPENAI_API_KEY": "x"}, "gpt-6-luna"),
        ({"OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "x"}, "gpt-6-luna"),
        ({"OPENAI_BASE_URL": "http://localhost:1/v1", "ANTHROPIC_API_KEY": "x"}, "gpt-6-luna"),
        ({"ANTHROPIC_API_KEY": "x"}, "claude-haiku-5-5"),
        ({"ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": ""}, "claude-haiku-5-5"),
    ],
)
def test_the_provider_that_has_a_key_comes_first(monkeypatch, variables, first):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert TierTable.from_settings(Settings.load()).models("fast")[0] == first


def test_settings_name_the_models_of_a_tier(monkeypatch):
    monkeypatch.setenv("SWARM_TIER_FAST", " llama3:8b , gpt-6-luna,llama3:8b ")

    table = TierTable.from_settings(Settings.load(tier_premium="claude-opus-5-5"))

    assert table.models("fast") == ["llama3:8b", "gpt-6-luna"]
    assert table.models("balanced") == ["gpt-6.1-terra", "claude-sonnet-5-5"]
    assert table.models("premium") == ["claude-opus-5-5"]


@pytest.mark.parametrize("names", [",", "a,,b", "a b", " "])
def test_a_list_of_models_with_a_gap_is_refused(names):
    with pytest.raises(ConfigurationError, match=r"SWARM_TIER_FAST: found .*, needed names of models, best first"):
        Settings.load(tier_fast=names)


def test_a_wrong_address_or_key_is_not_repeated_in_the_message():
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(openai_base_url="https://me:sesame@host/v1", openai_api_key=7)

    assert "sesame" not in str(caught.value)
    assert "OPENAI_BASE_URL: found something else, needed a URL" in str(caught.value)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc", "Europe", "/etc/localtime"])
def test_a_time_zone_that_does_not_exist_is_refused(zone):
    with pytest.raises(ConfigurationError, match=r"SWARM_BUDGET_TZ: found .*, needed a time zone's name"):
        Settings.load(budget_tz=zone)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_a_time_zone_is_accepted(zone):
    assert Settings.load(budget_tz=zone).budget_tz == zone
