"""Early stop: the bounds of the product document, and where a confidence may come from."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from swarm_infrastructure.cost_manager.early_stop import (
    Action,
    EarlyStop,
    Reason,
    Thresholds,
    agreement,
    self_report,
    validator_passed,
)
from swarm_infrastructure.errors import InvalidInputError

RULES = EarlyStop()


@pytest.mark.parametrize(
    ("confidence", "action", "reason"),
    [
        (0, "drop_or_escalate", "low_confidence"),
        (0.299, "drop_or_escalate", "low_confidence"),
        (0.3, "continue", None),
        (0.5, "continue", None),
        (Decimal("0.9"), "continue", None),
        (0.901, "skip_refinement", "high_confidence"),
        (1, "skip_refinement", "high_confidence"),
    ],
)
def test_below_a_bound_work_is_dropped_above_one_it_is_good_enough(confidence, action, reason):
    decision = RULES.decide("script_final", confidence)

    assert (decision.action, decision.reason) == (action, reason)
    assert decision.stop is (reason is not None)
    assert (decision.task_type, decision.confidence) == ("script_final", float(confidence))


@pytest.mark.parametrize(
    ("confidence", "cost", "estimated", "reason"),
    [
        (0.4, 21, 10, Reason.COST_OVERRUN),
        (0.4, 20, 10, None),  # exactly twice is allowed
        (0.5, 21, 10, None),  # not doubtful enough
        (0.2, 21, 10, Reason.COST_OVERRUN),
        (0.2, 20, 10, Reason.LOW_CONFIDENCE),
        (0.95, 21, 10, Reason.HIGH_CONFIDENCE),
        (0.4, 21, None, None),
        (0.4, None, 10, None),
        (0.4, 1, 0, Reason.COST_OVERRUN),
        (0.4, 0, 0, None),
        (0.4, 2 * 10**15 + 1, 10**15, Reason.COST_OVERRUN),  # a float would not see the one
        (0.4, Decimal("0.21"), 0.1, Reason.COST_OVERRUN),
        (0.4, 0.1, Decimal("0.05"), None),  # 0.1 is ten cents, not a trifle more
    ],
)
def test_a_doubtful_task_that_costs_more_than_twice_its_estimate_is_stopped(confidence, cost, estimated, reason):
    decision = RULES.decide("x", confidence, cost=cost, estimated=estimated)

    assert decision.reason is reason
    if reason is Reason.COST_OVERRUN:
        assert decision.action is Action.DROP_OR_ESCALATE


def test_each_task_type_may_have_bounds_of_its_own():
    rules = EarlyStop({"fact_check": Thresholds(drop_below=0.6, skip_above=0.99)}, default=Thresholds(skip_above=0.8))

    assert rules.decide("fact_check", 0.5).reason is Reason.LOW_CONFIDENCE
    assert rules.decide("fact_check", 0.95).reason is None
    assert rules.decide("script_draft", 0.85).reason is Reason.HIGH_CONFIDENCE
    assert RULES.decide("fact_check", 0.5).reason is None


@pytest.mark.parametrize(
    "value",
    [-0.01, 1.01, float("nan"), float("inf"), Decimal("nan"), Decimal("sNaN"), True, "0.5", None, 10**400],
)
def test_what_is_no_confidence_is_refused(value):
    with pytest.raises(InvalidInputError, match="confidence: found"):
        RULES.decide("x", value)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "1"])
def test_what_is_no_cost_is_refused(value):
    with pytest.raises(InvalidInputError, match="cost: found"):
        RULES.decide("x", 0.5, cost=value, estimated=1)
    with pytest.raises(InvalidInputError, match="estimated: found"):
        RULES.decide("x", 0.5, cost=1, estimated=value)


@pytest.mark.parametrize(
    "bounds",
    [
        {"drop_below": -0.1},
        {"skip_above": 1.1},
        {"drop_below": 0.8, "skip_above": 0.7},
        {"overrun_factor": 0.5},
        {"overrun_factor": float("nan")},
        {"overrun_below": 2},
    ],
)
def test_bounds_that_contradict_each_other_are_refused(bounds):
    with pytest.raises(InvalidInputError, match="Thresholds"):
        Thresholds(**bounds)


@given(st.floats(0, 1), st.integers(0, 10**15) | st.none(), st.integers(0, 10**15) | st.none())
def test_there_is_a_decision_for_every_confidence_and_cost(confidence, cost, estimated):
    decision = RULES.decide("x", confidence, cost=cost, estimated=estimated)

    assert decision.stop is (decision.reason is not None)
    assert (decision.action is Action.SKIP_REFINEMENT) is (decision.reason is Reason.HIGH_CONFIDENCE)


# -- scorers -----------------------------------------------------------------------------------------------------------


class Verdict(BaseModel):
    label: str
    confidence: float = 0.5


@pytest.mark.parametrize(
    "answer", [{"confidence": 0.7}, SimpleNamespace(confidence=0.7), Verdict(label="x", confidence=0.7)]
)
def test_an_answer_may_say_how_sure_it_is(answer):
    assert self_report()([{"confidence": 0.1}, answer]) == 0.7


def test_an_answer_that_does_not_say_is_refused():
    with pytest.raises(InvalidInputError, match="certainty: found None"):
        self_report("certainty")([{"confidence": 1}])
    with pytest.raises(InvalidInputError, match="answers"):
        self_report()([])


@pytest.mark.parametrize(
    ("answers", "confidence"),
    [
        (["yes", "Yes ", "no", "YES"], 0.75),
        (["a", "b"], 0.5),
        ([{"label": "x", "why": 1}, {"why": 1, "label": "x"}], 1),
        ([Verdict(label="x"), Verdict(label="x"), Verdict(label="y"), Verdict(label="z")], 0.5),
        ([["a"], ["a"], ["b"], [1]], 0.5),
    ],
)
def test_answers_that_agree_are_trusted(answers, confidence):
    assert agreement()(answers) == confidence


def test_only_a_part_of_the_answers_may_be_compared():
    answers = [Verdict(label="x", confidence=0.1), Verdict(label="x", confidence=0.2)]

    assert agreement()(answers) == 0.5
    assert agreement(lambda answer: answer.label)(answers) == 1


def test_one_answer_agrees_with_nobody():
    with pytest.raises(InvalidInputError, match="needed at least 2"):
        agreement()(["yes"])


def test_an_answer_that_passes_a_check_is_trusted():
    adapter = TypeAdapter(Verdict)

    assert validator_passed(lambda text: len(text) < 5)(["four", "five!"]) == 0.5
    assert validator_passed(adapter.validate_python)([{"label": "x"}, {"label": 7}, {}, {"label": "y"}]) == 0.5
    assert validator_passed(lambda _: "")(["x"]) == 1  # it gave something back
    assert validator_passed(lambda _: None)(["x"]) == 0


def test_a_fault_in_a_check_is_not_taken_for_a_wrong_answer():
    with pytest.raises(ZeroDivisionError):
        validator_passed(lambda answer: 1 / answer)([0])
    with pytest.raises(InvalidInputError, match="answers"):
        validator_passed(bool)([])


def test_the_scorer_is_the_users_choice():
    assert EarlyStop().judge("x", {"confidence": 0.95}).reason is Reason.HIGH_CONFIDENCE
    assert EarlyStop(scorer=agreement()).judge("x", "a", "b", "c", "d").reason is Reason.LOW_CONFIDENCE
    assert EarlyStop(scorer=lambda answers: 0.4).judge("x", "a", cost=3, estimated=1).reason is Reason.COST_OVERRUN


def test_a_scorer_that_gives_no_confidence_is_refused():
    with pytest.raises(InvalidInputError, match="confidence: found 7"):
        EarlyStop(scorer=lambda answers: 7).judge("x", "a")
