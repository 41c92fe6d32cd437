"""Early stop: when a task is not worth another call to a model.

Owns the rules, and where a confidence may come from. Leaves what happens next, and counting it, to the caller: nothing
here touches Redis.

A confidence says how good an answer is, from 0 to 1. Below 0.3 the work is dropped or given to a better model; above 0.9
it is good enough and not refined any more; and a task that cost more than twice its estimate is stopped while its answers
are still doubtful. Models are poor judges of themselves: what they report is a hint, agreement of several answers or a
check that passes is better, so the source of a confidence is a ``Scorer`` of the user's choice.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol

from ..errors import InvalidInputError

__all__ = [
    "Action",
    "Decision",
    "EarlyStop",
    "Reason",
    "Scorer",
    "Thresholds",
    "agreement",
    "self_report",
    "validator_passed",
]


class Action(StrEnum):
    """What the rules advise."""

    CONTINUE = "continue"
    DROP_OR_ESCALATE = "drop_or_escalate"  #: no more calls to this model: drop the task, or ask a better one
    SKIP_REFINEMENT = "skip_refinement"  #: the answer is good enough, take it as it is


class Reason(StrEnum):
    """Which rule spoke."""

    LOW_CONFIDENCE = "low_confidence"
    HIGH_CONFIDENCE = "high_confidence"
    COST_OVERRUN = "cost_overrun"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the rules advise about one task, and why."""

    action: Action
    reason: Reason | None  #: None if it goes on
    task_type: str
    confidence: float

    @property
    def stop(self) -> bool:
        """Whether anything but going on is advised."""
        return self.action is not Action.CONTINUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The bounds of one task type; on a bound itself a task goes on.

    Raises:
        InvalidInputError: a bound outside 0 to 1, bounds in the wrong order, or a factor below 1.
    """

    drop_below: float = 0.3  # this and the next: the product document's early stopping rules
    skip_above: float = 0.9
    overrun_factor: float = 2.0  #: how many times its estimate a doubtful task may cost
    overrun_below: float = 0.5  #: what counts as doubtful there: above drop_below, or that rule alone would speak

    def __post_init__(self) -> None:
        for name in ("drop_below", "skip_above", "overrun_below"):
            checked_confidence(getattr(self, name), field=f"Thresholds.{name}")
        if self.drop_below > self.skip_above:
            raise InvalidInputError(
                "Thresholds.drop_below", found=self.drop_below, needed=f"at most skip_above ({self.skip_above:g})"
            )
        if not self.overrun_factor >= 1:
            raise InvalidInputError("Thresholds.overrun_factor", found=self.overrun_factor, needed="1 or more")


class Scorer(Protocol):
    """How sure we are of a task's answer: a confidence from 0 to 1, from one or several answers to the same task."""

    def __call__(self, answers: Sequence[Any], /) -> float:
        """The confidence; *answers* are at least one, the newest last."""
        ...


def self_report(field: str = "confidence") -> Scorer:
    """What the newest answer says of itself, in the key or attribute *field*."""

    def score(answers: Sequence[Any], /) -> float:
        answer = _some(answers)[-1]
        found = answer.get(field) if isinstance(answer, Mapping) else getattr(answer, field, None)
        return checked_confidence(found, field=field)

    return score


def agreement(key: Callable[[Any], Any] | None = None) -> Scorer:
    """The share of answers that say the same as most do; needs at least two.

    Args:
        key: what to compare of an answer; None: all of it, texts without regard to case and blanks.
    """

    def score(answers: Sequence[Any], /) -> float:
        if len(answers) < 2:  # one answer always agrees with itself
            raise InvalidInputError("answers", found=len(answers), needed="at least 2 to compare")
        counts = Counter(_comparable(key(answer) if key else answer) for answer in answers)
        return counts.most_common(1)[0][1] / len(answers)

    return score


def validator_passed(validator: Callable[[Any], Any]) -> Scorer:
    """The share of answers that pass *validator*: it gives neither False nor None, and raises no ValueError."""

    def passes(answer: Any) -> bool:
        try:
            return validator(answer) not in (False, None)
        except (ValueError, AssertionError):  # pydantic's ValidationError is a ValueError
            return False

    def score(answers: Sequence[Any], /) -> float:
        return sum(map(passes, _some(answers))) / len(answers)

    return score


class EarlyStop:
    """The rules, with bounds for each task type.

    Args:
        thresholds: for some task types, other bounds than the default.
        default: for all other task types.
        scorer: where ``judge`` gets a confidence from.
    """

    def __init__(
        self,
        thresholds: Mapping[str, Thresholds] | None = None,
        *,
        default: Thresholds | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._thresholds = dict(thresholds or {})
        self._default = default or Thresholds()
        self._scorer = scorer or self_report()

    def thresholds(self, task_type: str) -> Thresholds:
        """The bounds of *task_type*."""
        return self._thresholds.get(task_type, self._default)

    def decide(
        self,
        task_type: str,
        confidence: float,
        *,
        cost: Decimal | float | None = None,
        estimated: Decimal | float | None = None,
    ) -> Decision:
        """What to do about a task whose answer has this *confidence*.

        A cost overrun is named before a low confidence, since it is the rarer news of the two.

        Args:
            task_type: chooses the bounds.
            confidence: from 0 to 1.
            cost: what the task cost so far; in nano-dollars or dollars, as *estimated*. None: not known.
            estimated: what it was to cost. None: not known.

        Raises:
            InvalidInputError: a confidence outside 0 to 1, a cost that is negative or no number.
        """
        sure = checked_confidence(confidence)
        bounds = self.thresholds(task_type)
        spent, planned = _amount("cost", cost), _amount("estimated", estimated)
        over = spent is not None and planned is not None and spent > planned * Decimal(str(bounds.overrun_factor))
        reason: Reason | None = None
        if over and sure < bounds.overrun_below:
            reason = Reason.COST_OVERRUN
        elif sure < bounds.drop_below:
            reason = Reason.LOW_CONFIDENCE
        elif sure > bounds.skip_above:
            reason = Reason.HIGH_CONFIDENCE
        match reason:
            case Reason.HIGH_CONFIDENCE:
                action = Action.SKIP_REFINEMENT
            case None:
                action = Action.CONTINUE
            case _:
                action = Action.DROP_OR_ESCALATE
        return Decision(action=action, reason=reason, task_type=task_type, confidence=sure)

    def judge(
        self,
        task_type: str,
        *answers: Any,
        cost: Decimal | float | None = None,
        estimated: Decimal | float | None = None,
    ) -> Decision:
        """The same about *answers* to one task, with the confidence that the scorer gives them."""
        return self.decide(task_type, self._scorer(answers), cost=cost, estimated=estimated)


def checked_confidence(value: Any, *, field: str = "confidence") -> float:
    """*value*, if it is a confidence.

    Raises:
        InvalidInputError: no number, NaN, below 0 or above 1.
    """
    try:
        number = float(value) if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):  # a Decimal's signalling NaN, an int that no float can hold
        number = math.nan
    if not 0 <= number <= 1:  # NaN is not, either
        raise InvalidInputError(field, found=value, needed="a number from 0 to 1")
    return number


def _amount(field: str, value: Decimal | float | None) -> Decimal | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidInputError(field, found=value, needed="a number, 0 or more")
    amount = Decimal(repr(value) if isinstance(value, float) else value)
    if not amount.is_finite() or amount < 0:
        raise InvalidInputError(field, found=value, needed="a number, 0 or more")
    return amount


def _some(answers: Sequence[Any]) -> Sequence[Any]:
    if not answers:
        raise InvalidInputError("answers", found=0, needed="at least 1")
    return answers


def _comparable(answer: Any) -> Any:
    """*answer* as something that equal answers share, and that can be counted."""
    if isinstance(answer, str):
        return " ".join(answer.casefold().split())
    if hasattr(answer, "model_dump"):  # a pydantic model
        answer = answer.model_dump(mode="json")
    try:
        hash(answer)
    except TypeError:
        return json.dumps(answer, sort_keys=True, default=repr)
    return answer
