from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_infrastructure.errors import CircuitOpenError, InvalidInputError, ModelUnavailableError, UnavailableError
from swarm_infrastructure.failure_recovery import RetryBudget, RetryPolicy, backoff_s, retry_call, with_retry


@given(attempt=st.integers(1, 5000), base=st.floats(0, 100), ceiling=st.floats(0, 1000), seed=st.integers())
def test_a_pause_is_never_longer_than_the_policy_allows(attempt: int, base: float, ceiling: float, seed: int) -> None:
    policy = RetryPolicy(base_delay=base, max_delay=ceiling)
    assert 0 <= backoff_s(attempt, policy, Random(seed)) <= ceiling


def test_the_ceiling_doubles_with_each_attempt_until_the_longest_pause() -> None:
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


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Highest(Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Service:
    """Fails with the errors that it is given, one after the other, and then works."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.calls = list(errors), 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def test_what_may_pass_is_tried_again_with_growing_pauses() -> None:
    clock, service = Clock(), Service(ConnectionError("reset"), TimeoutError(), UnavailableError("busy"))
    policy = RetryPolicy(max_retries=3, base_delay=1.0, max_delay=3.0)
    assert await retry_call(service, policy, random=Highest(), sleep=clock.sleep) == "done"
    assert clock.slept == [1.0, 2.0, 3.0]


async def test_after_the_last_attempt_its_own_error_is_raised() -> None:
    service = Service(*(UnavailableError(f"busy {n}") for n in range(9)))
    with pytest.raises(UnavailableError, match="busy 2"):
        await retry_call(service, RetryPolicy(max_retries=2), sleep=Clock().sleep)
    assert service.calls == 3


@pytest.mark.parametrize("error", [ValueError("wrong"), CircuitOpenError("runway", 5.0), KeyError("x")])
async def test_what_will_not_pass_by_itself_is_not_tried_again(error: Exception) -> None:
    clock, service = Clock(), Service(error)
    with pytest.raises(type(error)):
        await retry_call(service, RetryPolicy(), sleep=clock.sleep)
    assert (service.calls, clock.slept) == (1, [])


async def test_a_policy_names_what_else_is_tried_again() -> None:
    service = Service(ValueError("flaky"))
    assert await retry_call(service, RetryPolicy(retry_on=(ValueError,)), sleep=Clock().sleep) == "done"


async def test_a_service_that_asks_to_wait_is_left_alone_for_so_long() -> None:
    clock = Clock()
    await retry_call(Service(ModelUnavailableError("m", "busy", retry_after_s=7.5)), RetryPolicy(), sleep=clock.sleep)
    assert clock.slept == [7.5]


async def test_a_service_that_asks_to_wait_for_too_long_is_given_up() -> None:
    service = Service(ModelUnavailableError("m", "come back tomorrow", retry_after_s=86400))
    with pytest.raises(ModelUnavailableError, match="tomorrow"):
        await retry_call(service, RetryPolicy(), sleep=Clock().sleep)
    assert service.calls == 1


async def test_in_a_storm_of_failures_the_budget_ends_the_retries() -> None:
    budget, calls = RetryBudget(most=10, ratio=0.1), 0
    for _ in range(100):
        service = Service(*(UnavailableError("down") for _ in range(9)))
        with pytest.raises(UnavailableError):
            await retry_call(service, RetryPolicy(), budget=budget, sleep=Clock().sleep)
        calls += service.calls
    assert calls == 103  # three retries while the bucket was more than half full, then none

    for _ in range(60):
        await retry_call(Service(), RetryPolicy(), budget=budget, sleep=Clock().sleep)
    assert budget.allows  # successes have filled it again


async def test_a_decorated_function_keeps_its_name_and_arguments() -> None:
    @with_retry(RetryPolicy(max_retries=1), sleep=Clock().sleep)
    async def add(a: int, *, b: int) -> int:
        """Adds."""
        return a + b

    assert (add.__name__, add.__doc__, await add(1, b=2)) == ("add", "Adds.", 3)


async def test_a_cancelled_call_is_not_tried_again() -> None:
    service = Service(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await retry_call(service, RetryPolicy(), sleep=Clock().sleep)
    assert service.calls == 1
