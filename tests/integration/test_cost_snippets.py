"""The product document's cost snippets, as they are written there."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import pytest
from given import OpenBoard

from swarm_infrastructure import AgentBudget, CostManager, LLMModel, LLMTier, TokenUsage, job_board
from swarm_infrastructure.cost_manager import TASK_TIER_MAPPING
from swarm_infrastructure.errors import InvalidInputError, UnknownPriceError


@pytest.fixture
async def cost_manager(open_board: OpenBoard) -> CostManager:
    return CostManager.of(await open_board(job_board("jobs")))


async def test_the_cost_snippets_of_the_product_document_run_as_written(cost_manager: CostManager) -> None:
    # Record usage
    await cost_manager.record_usage(
        agent_id="writer_1",
        task_id="script_001",
        task_type="script_final",
        model=LLMModel.GPT4,
        tokens=TokenUsage(prompt_tokens=1000, completion_tokens=500),
        duration_ms=3000,
        confidence_score=0.92
    )  # fmt: skip

    # Set agent budget
    budget = AgentBudget(
        agent_id="writer_1",
        daily_limit=100.0,
        hourly_limit=20.0,
        task_limit=10.0,
        alert_threshold=0.8  # Alert at 80%
    )  # fmt: skip
    await cost_manager.set_budget(budget)

    # Check budget
    printed = io.StringIO()
    with redirect_stdout(printed):
        status = await cost_manager.get_budget_status("writer_1")
        print(f"Daily: ${status.daily_spent:.2f} / ${status.daily_limit:.2f}")

    assert printed.getvalue() == "Daily: $0.06 / $100.00\n"  # 1000 x $30 and 500 x $60 per million tokens


async def test_both_ends_of_confidence_stop_a_task_and_tell_why(cost_manager: CostManager) -> None:
    stopped: list[tuple[Any, ...]] = []
    cost_manager.register_stop_handler(lambda *facts: stopped.append(facts))
    agent_id, task_id = "writer_1", "script_001"
    for confidence_score in (0.2, 0.95):
        # Automatic early stopping based on confidence
        if confidence_score < 0.3:
            # Stop processing - low quality
            await cost_manager._trigger_stop(agent_id, task_id, confidence_score)
        elif confidence_score > 0.9:
            # Stop processing - good enough
            await cost_manager._trigger_stop(agent_id, task_id, confidence_score)

    assert stopped == [
        ("writer_1", "script_001", 0.2, "low_confidence"),
        ("writer_1", "script_001", 0.95, "high_confidence"),
    ]


def test_the_task_types_of_the_product_document_have_its_tiers() -> None:
    assert {TASK_TIER_MAPPING[task] for task in ("news_scout", "content_filter", "topic_tagging")} == {LLMTier.FAST}
    assert {TASK_TIER_MAPPING[task] for task in ("content_analysis", "debate_argument", "script_draft")} == {
        LLMTier.BALANCED
    }
    assert {TASK_TIER_MAPPING[task] for task in ("script_final", "quality_assurance")} == {LLMTier.PREMIUM}


async def test_a_total_without_its_parts_is_not_free(cost_manager: CostManager) -> None:
    assert cost_manager.calculate_cost(LLMModel.GPT4, TokenUsage(total_tokens=500)) == 0.03  # all at the dearer side


async def test_the_sixty_first_call_in_a_minute_is_refused(cost_manager: CostManager) -> None:
    answers = [await cost_manager.check_rate_limit("writer_1") for _ in range(61)]
    assert answers == [True] * 60 + [False]
    assert await cost_manager.check_rate_limit("writer_2"), "each agent has its own limit"


async def test_reports_are_the_sums_of_what_was_recorded(cost_manager: CostManager) -> None:
    for n in range(4):
        await cost_manager.record_usage(
            f"writer_{n % 2}", f"t{n}", "script_final", LLMModel.GPT4, TokenUsage(prompt_tokens=1000), 5.0
        )
    everybody, one = await cost_manager.get_global_report(), await cost_manager.get_agent_report("writer_1")
    assert (everybody["cost"], everybody["calls"], everybody["tokens"]) == (0.12, 4, 4000)
    assert (one["cost"], sorted(one["by_task"])) == (0.06, ["t1", "t3"])
    assert everybody["by_agent"]["writer_1"]["cost"] == one["cost"]


async def test_a_call_recorded_twice_under_one_id_is_booked_once(cost_manager: CostManager) -> None:
    for _ in range(2):
        await cost_manager.record_usage(
            "w", "t", "script_final", LLMModel.GPT4, TokenUsage(prompt_tokens=1000), request_id="req-1"
        )
    assert (await cost_manager.get_global_report())["calls"] == 1


async def test_nothing_is_booked_for_a_model_without_a_price(cost_manager: CostManager) -> None:
    with pytest.raises(UnknownPriceError, match="mystery-1"):
        await cost_manager.record_usage("w", "t", "script_final", "mystery-1", TokenUsage(prompt_tokens=1000))
    assert await cost_manager.ledger.counters() == {}


async def test_a_spent_tier_share_leads_to_a_cheaper_model_and_at_last_to_a_refusal(cost_manager: CostManager) -> None:
    from swarm_infrastructure import BudgetExceededError

    shares = {"premium": 0.2, "balanced": 0.5, "fast": 0.3}
    await cost_manager.set_budget(AgentBudget(agent_id="w", daily_limit=1.0, tier_limits=shares))
    chosen = []
    with pytest.raises(BudgetExceededError):
        for n in range(9):
            model = await cost_manager.select_model("script_final", "w", needed=0.15)
            chosen.append(cost_manager.get_tier_for_model(model))
            spent = TokenUsage(
                completion_tokens=15_000_000 // {"premium": 1000, "balanced": 500, "fast": 50}[chosen[-1]]
            )
            price = cost_manager.calculate_cost(model, spent)
            assert price > 0, n
            await cost_manager.record_usage("w", "t", "script_final", model, spent)
    assert chosen == sorted(chosen, key=["premium", "balanced", "fast"].index)
    assert set(chosen) == {"premium", "balanced", "fast"}


async def test_a_decorated_call_is_booked_once(cost_manager: CostManager) -> None:
    @cost_manager.track_costs("writer_1", "script_final", LLMModel.GPT4)
    async def write() -> TokenUsage:
        return TokenUsage(prompt_tokens=1000, completion_tokens=500)

    assert await write() == TokenUsage(prompt_tokens=1000, completion_tokens=500)
    assert (await cost_manager.get_agent_report("writer_1"))["cost"] == 0.06


async def test_a_budget_that_makes_no_sense_is_refused_by_name() -> None:
    for facts, name in [
        ({"daily_limit": -1}, "daily_limit"),
        ({"hourly_limit": float("nan")}, "hourly_limit"),
        ({"task_limit": 1e12}, "task_limit"),
        ({"alert_threshold": 0}, "alert_threshold"),
        ({"tier_limits": {"premium": 1.5}}, "tier_limits"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"on_exceeded": "explode"}, "on_exceeded"),
    ]:
        with pytest.raises(InvalidInputError, match=name):
            AgentBudget(agent_id="w", **facts)  # type: ignore[arg-type]
