"""Prices: exact to the nano-dollar, never too low, never nothing for what is not known."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import genai_prices
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swarm_infrastructure.cost_manager.money import MOST_USD, NANO, shown, to_dollars, to_nano
from swarm_infrastructure.cost_manager.pricing import CONTEXTS, OLD_MODELS, ModelPrice, Prices, PriceStep
from swarm_infrastructure.cost_manager.tiers import LLMModel, LLMTier, TierTable
from swarm_infrastructure.errors import ConfigurationError, InvalidInputError, UnknownPriceError
from swarm_infrastructure.usage import TokenUsage

NOW = datetime(2026, 11, 20, tzinfo=UTC)  # prices change; these tests stay on one day
PRICES = Prices()
DEFAULTS = [model for tier in LLMTier for model in TierTable().models(tier)]
EVERY = sorted({*DEFAULTS, *map(str, LLMModel), "gpt-6-astra", "claude-fable-5-2", "gpt-4o-mini", "gemini-2.5-pro"})
STEPS = sorted({step.above_tokens for model in EVERY for step in PRICES.get(model, at=NOW).steps})


def near(bounds: list[int], most: int) -> st.SearchStrategy[int]:
    """Numbers from 0 to *most*, often just around the *bounds*."""
    close = [each for bound in bounds for each in range(bound - 2, bound + 3) if 0 <= each <= most]
    return st.integers(0, most) | (st.sampled_from(close) if close else st.nothing())


@st.composite
def usages(draw: st.DrawFn, most_input: int = 1_200_000, most_output: int = 200_000, writes: bool = True) -> TokenUsage:
    prompt, completion = draw(near(STEPS, most_input)), draw(near([], most_output))
    cached = draw(st.integers(0, prompt))
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        cache_write_tokens=draw(st.integers(0, prompt - cached)) if writes else 0,
        reasoning_tokens=draw(st.integers(0, completion)),
    )


def calculated(model: str, usage: TokenUsage, context: dict[str, str] | None = None) -> int:
    """What genai-prices makes of it, in nano-dollars, rounded up."""
    answer = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_reasoning_tokens=usage.reasoning_tokens,
        ),
        model,
        genai_request_timestamp=NOW,
        price_context=context,
    )
    return int((answer.total_price * NANO).to_integral_value(ROUND_CEILING))


# -- money -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "nano"),
    [
        (0, 0),
        (1, NANO),
        (0.1, 100_000_000),
        ("0.1", 100_000_000),
        (1e-9, 1),
        (Decimal("0.0000000001"), 1),  # a fraction of a nano-dollar is one
        (Decimal("8999999.9999999999999999999999999999"), 9_000_000 * NANO),  # more digits than a context keeps
        (Decimal("1.000000001"), 1_000_000_001),
        (9_000_000, 9_000_000 * NANO),
        (Decimal("1e-999999"), 1),
    ],
)
def test_dollars_become_whole_nano_dollars(amount, nano):
    assert to_nano(amount) == nano


@pytest.mark.parametrize(
    "amount",
    [-1, -1e-12, float("nan"), float("inf"), "NaN", "-inf", "sNaN", "$20", "", True, None, b"1", 9_000_001, "1e999999"],
)
def test_what_is_no_sum_of_money_is_refused_by_the_name_of_its_field(amount):
    with pytest.raises(InvalidInputError, match="daily_limit: found"):
        to_nano(amount, "daily_limit")


@given(st.integers(0, MOST_USD * NANO))
def test_nano_dollars_survive_the_way_to_dollars_and_back(nano):
    assert to_nano(to_dollars(nano)) == nano
    assert to_nano(str(to_dollars(nano))) == nano
    assert to_nano(shown(nano).lstrip("$").replace(",", "")) == nano


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"), (12_345_000, "$0.012345"), (12 * NANO, "$12.00"), (1, "$0.000000001"), (500_000_000, "$0.50"),
        (-500_000_000, "-$0.50"), (1_234_567 * NANO, "$1,234,567.00"),
    ],
)  # fmt: skip
def test_money_is_shown_with_the_decimals_that_it_has(nano, text):
    assert shown(nano) == text


# -- costs -------------------------------------------------------------------------------------------------------------


def test_a_thousand_tokens_in_and_five_hundred_out_cost_what_the_price_list_says():
    usage = TokenUsage(prompt_tokens=1000, completion_tokens=500)

    assert PRICES.cost(LLMModel.GPT4, usage, at=NOW) == to_nano("0.06")  # $30 and $60 per million
    assert PRICES.cost("gpt-6-luna", usage, at=NOW) == to_nano("0.00035")


def test_one_cached_token_of_a_small_model_costs_ten_nano_dollars():
    assert PRICES.cost("gpt-6-luna", TokenUsage(prompt_tokens=1, cached_tokens=1), at=NOW) == 10


def test_a_usage_of_which_only_the_total_is_known_is_not_free():
    assert PRICES.cost("gpt-6-luna", TokenUsage(total_tokens=1000), at=NOW) == to_nano("0.0005")


def test_a_fraction_of_a_nano_dollar_is_charged_as_one():
    usage = TokenUsage(prompt_tokens=1, cached_tokens=1)

    assert PRICES.cost("claude-haiku-5-5", usage, batch=True, at=NOW) == 5
    assert (
        PRICES.cost("gpt-6-luna", TokenUsage(prompt_tokens=1, cache_write_tokens=1), batch=True, at=NOW) == 63
    )  # 62.5


@pytest.mark.parametrize("model", [model for model in EVERY if model not in OLD_MODELS])
@settings(max_examples=40, deadline=None)
@given(usage=usages())
@example(usage=TokenUsage())
def test_costs_are_those_of_genai_prices_to_the_nano_dollar(model, usage):
    assert PRICES.cost(model, usage, at=NOW) == calculated(model, usage)
    for kind in ("batch", "flex"):
        assert PRICES.cost(model, usage, service_tier=kind, at=NOW) == calculated(model, usage, CONTEXTS[kind])


def test_every_priced_model_of_the_snapshot_costs_what_genai_prices_says():
    from genai_prices.data_snapshot import get_snapshot

    usage = TokenUsage(
        prompt_tokens=210_000, completion_tokens=900, cached_tokens=10_000, cache_write_tokens=7, reasoning_tokens=300
    )
    asked = genai_prices.Usage(
        input_tokens=210_000, output_tokens=900, cache_read_tokens=10_000, cache_write_tokens=7,
        output_reasoning_tokens=300,
    )  # fmt: skip
    compared = 0
    for provider in get_snapshot().providers:
        for model in provider.models:
            try:
                found, info = get_snapshot().find_provider_model(model.id, None, provider.id, None)
                needed = info.calc_price(asked, found, genai_request_timestamp=NOW).total_price
                cost = PRICES.cost(model.id, usage, provider=provider.id, at=NOW)
            except (LookupError, UnknownPriceError):
                continue
            assert cost == int((needed * NANO).to_integral_value(ROUND_CEILING)), (provider.id, model.id)
            compared += 1
    assert compared > 1500


def test_a_long_prompt_is_billed_as_a_whole_at_the_dearer_step():
    def cost(prompt: int) -> int:
        return PRICES.cost("claude-haiku-5-5", TokenUsage(prompt_tokens=prompt, completion_tokens=1000), at=NOW)

    assert cost(100_000) == to_nano("0.0105")  # 100,000 at $0.10 and 1,000 at $0.50
    assert cost(100_001) == to_nano("0.0525005")  # all of them at $0.50 and $2.50


@pytest.mark.parametrize(
    ("model", "kind", "factor"),
    [
        ("gpt-6-luna", "batch", Decimal("0.5")),
        ("claude-haiku-5-5", "batch", Decimal("0.5")),
        ("claude-opus-5-5", "batch", Decimal("0.5")),
        ("gpt-6.1-sol", "flex", Decimal("0.5")),
        ("gpt-6.1-terra", "priority", Decimal(2)),
        ("gpt-6.1-terra", "fast", Decimal(2)),
        ("claude-opus-5-5", "fast", Decimal(2)),
    ],
)
def test_each_service_tier_changes_the_price(model, kind, factor):
    usage = TokenUsage(prompt_tokens=10_000, completion_tokens=10_000, cached_tokens=1000)
    usual = PRICES.cost(model, usage, at=NOW)

    assert PRICES.cost(model, usage, service_tier=kind, at=NOW) == usual * factor
    assert calculated(model, usage, CONTEXTS[kind]) == usual * factor
    if kind == "batch":
        assert PRICES.cost(model, usage, batch=True, at=NOW) == usual * factor
        assert PRICES.estimate(model, 10, 10, batch=True, at=NOW) == PRICES.estimate(model, 10, 10, at=NOW) * factor


def test_every_service_tier_is_tested():
    assert set(CONTEXTS) == {"batch", "flex", "priority", "fast"}


@pytest.mark.parametrize("usual", [None, "", "auto", "default", "standard", "standard_only", "scale"])
def test_the_usual_service_tier_has_many_names(usual):
    usage = TokenUsage(prompt_tokens=10)

    assert PRICES.cost("gpt-6-luna", usage, service_tier=usual, at=NOW) == 1000


def test_a_service_tier_that_does_not_exist_is_refused_instead_of_ignored():
    with pytest.raises(InvalidInputError, match="service_tier: found 'priorty', needed none, or one of: batch, flex"):
        PRICES.cost("gpt-6-luna", TokenUsage(), service_tier="priorty")
    with pytest.raises(InvalidInputError, match="together with batch"):
        PRICES.cost("gpt-6-luna", TokenUsage(), service_tier="flex", batch=True)


def test_a_surcharge_that_no_source_lists_is_an_unknown_price_and_a_discount_is_not_given():
    usage = TokenUsage(prompt_tokens=1000)

    for model in ("claude-sonnet-5-5", "gpt-4", "gemini-ultra"):
        for surcharge in ("priority", "fast"):
            with pytest.raises(UnknownPriceError, match=rf"'{model} \({surcharge}\)'"):
                PRICES.cost(model, usage, service_tier=surcharge, at=NOW)
        assert PRICES.cost(model, usage, service_tier="flex", at=NOW) == PRICES.cost(model, usage, at=NOW)
    early = datetime(2026, 10, 1, tzinfo=UTC)  # the snapshot lists it from 12 October on
    with pytest.raises(UnknownPriceError):
        PRICES.cost("gpt-6-luna", usage, service_tier="priority", at=early)


def test_a_surcharge_is_not_taken_from_the_maker_for_a_provider_that_resells_the_model():
    from genai_prices.data_snapshot import get_snapshot

    usage = TokenUsage(prompt_tokens=1000)
    resold = get_snapshot().find_provider_model("gpt-6-luna", None, "azure", None)

    assert PRICES.get("gpt-6-luna", provider="azure", at=NOW).provider == resold[0].id == "azure"
    with pytest.raises(UnknownPriceError):
        PRICES.cost("gpt-6-luna", usage, provider="azure", service_tier="priority", at=NOW)


def test_a_discount_is_not_taken_from_the_maker_for_a_provider_that_resells_the_model():
    usage = TokenUsage(prompt_tokens=1000)

    own, resold = (PRICES.cost("gpt-4o", usage, provider=name, batch=True, at=NOW) for name in ("openai", "azure"))

    assert (own, resold) == (1_250_000, 2_500_000)


def test_a_price_that_has_changed_is_the_one_of_its_day():
    from genai_prices.data_snapshot import get_snapshot

    usage = TokenUsage(prompt_tokens=1000)
    early, late = datetime(2025, 6, 9, tzinfo=UTC), datetime(2025, 6, 11, tzinfo=UTC)
    info = get_snapshot().find_provider_model("o3", None, None, None)[1]

    before, after = (info.get_prices(at).input_mtok for at in (early, late))
    assert before != after  # or the snapshot has dropped that change, and another is needed here
    assert PRICES.cost("o3", usage, at=early) == before * 1_000_000
    assert PRICES.cost("o3", usage, at=late) == after * 1_000_000


@pytest.mark.parametrize("model", ["gpt-6-luna-2026-10-01", "gpt-6-luna-20261001", "GPT-6-Luna"])
def test_a_dated_name_has_the_price_of_its_model(model):
    assert PRICES.get(model, at=NOW).steps == PRICES.get("gpt-6-luna", at=NOW).steps


def test_a_fee_for_each_request_counts():
    assert PRICES.cost("sonar", TokenUsage(), provider="perplexity", at=NOW) > 0
    assert PRICES.estimate("sonar", 0, 0, provider="perplexity", at=NOW) > 0


# -- estimates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", EVERY)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_estimate_is_at_least_what_any_usage_within_its_bounds_costs(model, data):
    steps = [step.above_tokens for step in PRICES.get(model, at=NOW).steps]
    input_tokens, output_tokens = data.draw(near(steps, 1_200_000)), data.draw(st.integers(0, 200_000))
    writes = data.draw(st.booleans())
    kind = data.draw(st.sampled_from(["", "batch", "flex"]))
    usage = data.draw(usages(input_tokens, output_tokens, writes=writes))

    estimate = PRICES.estimate(
        model, input_tokens, output_tokens, cache_write=writes, service_tier=kind, at=NOW
    )  # fmt: skip

    assert estimate >= PRICES.cost(model, usage, service_tier=kind, at=NOW)


@pytest.mark.parametrize("model", DEFAULTS)
@pytest.mark.parametrize("step", [99_999, 100_000, 100_001, 271_999, 272_000, 272_001])
def test_an_estimate_is_exact_for_the_dearest_usage_within_its_bounds(model, step):
    fresh = TokenUsage(prompt_tokens=step, completion_tokens=4096)
    written = TokenUsage(prompt_tokens=step, completion_tokens=4096, cache_write_tokens=step)

    assert PRICES.estimate(model, step, 4096, at=NOW) == PRICES.cost(model, fresh, at=NOW)
    assert PRICES.estimate(model, step, 4096, cache_write=True, at=NOW) == PRICES.cost(model, written, at=NOW)


def test_an_estimate_covers_a_shorter_prompt_that_is_dearer(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(
        '{"rebate": {"input": 10, "output": 10, "steps": [{"above_tokens": 100, "input": 1, "output": 1}]}}'
    )
    prices = Prices(path)

    assert prices.estimate("rebate", 101, 0) == prices.cost("rebate", TokenUsage(prompt_tokens=100))


def test_an_estimate_takes_all_output_for_reasoning_where_that_is_dearer():
    step = PriceStep(
        input=Decimal(1), output=Decimal(2), cached=Decimal(1), cache_write=Decimal(1), reasoning=Decimal(3)
    )
    price = ModelPrice(model="thinker", provider="house", source="file", steps=(step,))

    assert price.estimate(0, 10) == price.cost(TokenUsage(completion_tokens=10, reasoning_tokens=10)) == 30_000
    assert price.cost(TokenUsage(completion_tokens=10)) == 20_000
    assert (
        PRICES.cost("sonar-deep-research", TokenUsage(completion_tokens=10, reasoning_tokens=10), provider="perplexity")
        == 30_000
    )


@pytest.mark.parametrize("count", [-1, 1.5, True, None, "7"])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(InvalidInputError, match="input_tokens"):
        PRICES.estimate("gpt-6-luna", count, 0)
    with pytest.raises(InvalidInputError, match="max_output_tokens"):
        PRICES.estimate("gpt-6-luna", 0, count)


def test_a_cost_that_no_counter_could_hold_is_refused():
    with pytest.raises(InvalidInputError, match="cost of a call to 'gpt-6-luna'"):
        PRICES.cost("gpt-6-luna", TokenUsage(prompt_tokens=10**20), at=NOW)


# -- what is not known -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "near"), [("gpt-6-lunar", "gpt-6-luna"), ("claude-haiku-55", "claude-haiku"), ("gemini-ultr", "gemini-ultra")]
)  # fmt: skip
def test_an_unknown_model_is_refused_with_a_name_that_is_like_it(model, near):
    assert not PRICES.known(model)
    for ask in (lambda: PRICES.cost(model, TokenUsage()), lambda: PRICES.estimate(model, 0, 0)):
        with pytest.raises(UnknownPriceError, match=rf"did you mean {near}") as caught:
            ask()
        assert caught.value.model == model


def test_a_model_like_no_other_is_refused_without_a_hint():
    with pytest.raises(UnknownPriceError) as caught:
        PRICES.get("zzzzzzzzzzzz")
    assert "did you mean" not in str(caught.value)
    assert "swarm models" in str(caught.value)


@pytest.mark.parametrize("model", ["", None, 7])
def test_what_is_no_name_is_refused(model):
    with pytest.raises(InvalidInputError, match="model"):
        PRICES.get(model)


def test_a_model_that_is_billed_by_the_hour_has_no_price_for_tokens():
    assert not PRICES.known("whisper-large-v3", provider="groq")


def test_an_embedder_has_no_price_for_output():
    def cost(usage: TokenUsage) -> int:
        return PRICES.cost("text-embedding-3-small", usage, provider="openai", at=NOW)

    assert cost(TokenUsage(prompt_tokens=1000)) == 20_000
    with pytest.raises(UnknownPriceError, match="output"):
        cost(TokenUsage(completion_tokens=1))


def test_an_unknown_provider_has_no_prices():
    assert not PRICES.known("gpt-6-luna", provider="nobody")


def test_unknown_models_count_for_the_default_if_there_is_one():
    prices = Prices(unknown=Decimal(50))
    usage = TokenUsage(prompt_tokens=500_000, completion_tokens=500_000, cached_tokens=200_000)

    assert prices.cost("house-model", usage) == prices.estimate("house-model", 500_000, 500_000) == 50 * NANO
    assert prices.get("house-model").source == "default"
    assert not prices.known("house-model")
    assert prices.cost("gpt-6-luna", usage, at=NOW) == PRICES.cost("gpt-6-luna", usage, at=NOW)
    with pytest.raises(UnknownPriceError):  # a surcharge of a known model: the default could be less
        prices.cost("claude-sonnet-5-5", usage, service_tier="priority", at=NOW)


@pytest.mark.parametrize("price", [Decimal(0), Decimal(-1), Decimal("nan"), "zero", None])
def test_unknown_models_can_not_be_free(price):
    with pytest.raises(InvalidInputError, match="unknown"):
        Prices(unknown=price)


@pytest.mark.parametrize("model", list(LLMModel))
def test_every_model_that_has_a_name_here_has_a_price(model):
    assert PRICES.known(model)
    assert PRICES.cost(model, TokenUsage(prompt_tokens=1000, completion_tokens=1000), at=NOW) > 0


def test_the_table_of_old_models_holds_only_what_genai_prices_does_not_know():
    for model in OLD_MODELS:
        with pytest.raises(LookupError):
            genai_prices.calc_price(genai_prices.Usage(input_tokens=1), model)


# -- the user's own file -----------------------------------------------------------------------------------------------

TOML = """
["house-7b.q4"]
input = 0.10
output = "0.40"
cached = "0.01"
cache_write = 0.125
provider = "house"
steps = [{ above_tokens = 1000, input = 0.20, output = 0.80 }, { above_tokens = 5000, input = 1, output = 2, cached = 0 }]

[gpt-4]
input = 1
output = 2

[local]
input = 0
output = 0
"""


@pytest.fixture(params=["toml", "json"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Prices:
    import tomllib

    path = tmp_path / f"prices.{request.param}"
    path.write_text(TOML if request.param == "toml" else json.dumps(tomllib.loads(TOML)))
    return Prices(path)


def test_the_users_file_is_read(own):
    def cost(**tokens: int) -> int:
        return own.cost("house-7b.q4", TokenUsage(**tokens))

    assert (
        cost(prompt_tokens=1000, cached_tokens=500, cache_write_tokens=100, completion_tokens=10)
        == 40000 + 5000 + 12500 + 4000
    )
    assert (
        cost(prompt_tokens=1001, cached_tokens=1) == 1001 * 200
    )  # a step without a price for cached: that of its input
    assert cost(prompt_tokens=5001, cached_tokens=1) == 5000 * 1000
    assert own.get("house-7b.q4").source == "file"
    assert own.known("house-7b.q4", provider="house")
    assert not own.known("house-7b.q4", provider="openai")


def test_the_users_file_wins_over_the_snapshot_and_may_name_a_model_that_is_free(own):
    assert own.cost("gpt-4", TokenUsage(prompt_tokens=1)) == 1000
    assert own.known("local")
    assert own.cost("local", TokenUsage(prompt_tokens=10**6)) == 0


def test_the_users_file_sets_no_surcharges(own):
    with pytest.raises(UnknownPriceError, match="priority"):
        own.cost("house-7b.q4", TokenUsage(), service_tier="priority")


def test_rows_list_the_users_models_and_those_of_this_package_or_the_ones_named(own):
    assert [row.model for row in own.rows()] == ["house-7b.q4", "gpt-4", "local", "gemini-ultra"]
    assert [(row.model, row.source) for row in own.rows(["gpt-6-luna", "gpt-4", "no-such-model"])] == [
        ("gpt-6-luna", "genai-prices"),
        ("gpt-4", "file"),
    ]


@given(st.decimals(0, 1000, places=9), st.decimals(0, 1000, places=9), usages(10**6, 10**6))
@settings(max_examples=50, deadline=None)
def test_prices_of_the_file_are_exact(tmp_path_factory, price_in, price_out, usage):
    path = tmp_path_factory.mktemp("prices") / "own.json"
    path.write_text(f'{{"m": {{"input": {price_in:f}, "output": "{price_out:f}"}}}}')

    exact = (usage.prompt_tokens * price_in + usage.completion_tokens * price_out) * 1000
    assert Prices(path).cost("m", usage) == int(exact.to_integral_value(ROUND_CEILING))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.toml", "m = {{ input = {0}, output = 0 }}"),
        ("p.json", '{{"m": {{"input": {0}, "output": 0}}}}'),
        ("p.json", '{{"m": {{"input": "{0}", "output": 0}}}}'),
    ],
)
def test_a_price_keeps_all_its_digits(tmp_path, name, text):
    (tmp_path / name).write_text(text.format("0.12345678901234567891"))

    assert Prices(tmp_path / name).get("m").steps[0].input == Decimal("0.12345678901234567891")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.toml", '[m]\ninput = 1', "m.output: found nothing, needed dollars per million tokens"),
        ("p.toml", '[m]\ninput = -1\noutput = 1', "m.input: found -1, needed"),
        ("p.toml", '[m]\ninput = nan\noutput = 1', "m.input: found Decimal('NaN')"),
        ("p.toml", '[m]\ninput = inf\noutput = 1', "m.input: found"),
        ("p.toml", '[m]\ninput = true\noutput = 1', "m.input: found True"),
        ("p.toml", '[m]\ninput = "$1"\noutput = 1', "m.input: found '$1'"),
        ("p.toml", '[m]\ninput = 5000000\noutput = 1', "from 0 to 1,000,000"),
        ("p.toml", '[m]\ninput = 1\noutput = 1\ncahced = 1', "m.cahced: found no such field"),
        ("p.toml", '[m]\ninput = 1\noutput = 1\nprovider = 1', "m.provider: found 1"),
        ("p.toml", '[m]\ninput = 1\noutput = 1\nsteps = 7', "m.steps: found 7"),
        ("p.toml", '[m]\ninput = 1\noutput = 1\nsteps = [{input = 1, output = 1}]', "m.steps[0].above_tokens: found None"),
        ("p.toml", '[m]\ninput = 1\noutput = 1\nsteps = [{above_tokens = 9, input = 1}]', "m.steps[0].output: found nothing"),
        (
            "p.toml",
            '[m]\ninput=1\noutput=1\nsteps=[{above_tokens=9,input=1,output=1},{above_tokens=9,input=1,output=1}]',
            "m.steps[1].above_tokens: found 9, needed a whole number above 9",
        ),
        ("p.toml", '[gpt-6.1-sol]\ninput = 1\noutput = 1', 'a name with a dot in it needs quotes: ["gpt-6.1-sol"]'),
        ("p.toml", 'm = 3', "m: found 3, needed a table"),
        ("p.toml", '[m', "found no TOML"),
        ("p.json", '{"m": ', "found no JSON"),
        ("p.json", '{"m": {"input": 1, "output": 1, "input": 2}}', "input twice"),
        ("p.json", '{"m": {"input": NaN, "output": 1}}', "m.input: found nan"),
        ("p.json", '[1]', "found list, needed an object"),
        ("p.yaml", 'm: 1', "found '.yaml', needed .toml or .json"),
    ],
)  # fmt: skip
def test_a_fault_in_the_users_file_is_named_with_its_model(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        Prices(tmp_path / name)

    assert str(caught.value).startswith(f"SWARM_PRICES: {tmp_path / name}")
    assert said in str(caught.value)


def test_all_faults_of_the_users_file_are_named_at_once(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text("[a]\ninput = -1\noutput = 1\n[b]\ninput = 1\n[good]\ninput = 1\noutput = 1")

    with pytest.raises(ConfigurationError) as caught:
        Prices(path)

    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == ["  - a.input", "  - b.output"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_can_not_be_read_is_named(tmp_path, content):
    path = tmp_path / "p.toml"
    if content:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"SWARM_PRICES: .*p\.toml: found"):
        Prices(path)
