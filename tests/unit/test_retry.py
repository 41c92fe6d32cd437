from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.failure_recovery import RetryPolicy, backoff_s


@given(attempt=st.integers(1, 5000), base=st.floats(0, 100), ceiling=st.floats(0, 1000), seed=st.integers())
def test_a_pause_is_never_longer_than_the_policy_allows(attempt: int, base: float, ceiling: float, seed: int) -> None:
    policy = RetryPolicy(base_delay=base, max_delay=ceiling)
    assert 0 <= backoff_s(attempt, policy, Random(seed)) <= ceiling


def test_the_ceiling_doubles_with_each_attempt_until_the_longest_pause() -> None:
    class Highest(Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    policy = RetryPolicy(base_delay=1, max_delay=5)
    assert [backoff_s(n, policy, Highest()) for n in (1, 2, 3, 4, 5)] == [1, 2, 4, 5, 5]


def test_a_fleet_that_failed_together_does_not_return_together() -> None:
    pauses = {round(backoff_s(3, RetryPolicy(), Random(seed)), 3) for seed in range(50)}
    assert len(pauses) > 45


@pytest.mark.parametrize(
    "wrong", [{"base_delay": -1}, {"max_delay": -0.1}, {"max_retries": -1}, {"exponential_base": 0.5}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        RetryPolicy(**wrong)
