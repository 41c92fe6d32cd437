"""Retries: how long to wait before the next attempt, which failures are worth one, and when a backend has had enough of them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import ParamSpec, TypeVar

import structlog
import tenacity

from ..errors import InvalidInputError, UnavailableError

__all__ = ["RETRYABLE", "RetryBudget", "RetryPolicy", "backoff_s", "retry_call", "with_retry"]

log = structlog.get_logger(__name__)
RETRYABLE: tuple[type[BaseException], ...] = (UnavailableError, ConnectionError, TimeoutError)
Given = ParamSpec("Given")
Answer = TypeVar("Answer")
OnWait = Callable[[BaseException, int, float], None]  #: the failure, the attempt that failed, seconds until the next


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently to try again.

    Raises:
        InvalidInputError: a negative delay, or a base below 1.
    """

    max_retries: int = 3  #: attempts after the first; an item's own limit is its section's ``max_attempts``
    base_delay: float = 1.0  #: seconds; the ceiling before the first retry
    max_delay: float = 60.0  #: seconds; the ceiling of ceilings
    exponential_base: float = 2.0  #: the ceiling grows by this factor with each attempt
    retry_on: tuple[type[BaseException], ...] = RETRYABLE  #: failures that may pass by themselves
    max_retry_after: float = 120.0  #: seconds; who asks to wait for longer is not asked again

    def __post_init__(self) -> None:
        least = {"max_retries": 0, "base_delay": 0.0, "max_delay": 0.0, "exponential_base": 1.0, "max_retry_after": 0.0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise InvalidInputError(f"RetryPolicy.{name}", found=getattr(self, name), needed=f"at least {bound}")


def backoff_s(attempt: int, policy: RetryPolicy, random: Random) -> float:
    """Seconds to wait before retry number *attempt*.

    Full jitter: anywhere from 0 to the ceiling, so that a fleet that failed together does not return together.

    Args:
        attempt: 1 for the first retry.
        policy: its delays are seconds.
        random: source of the jitter.

    Returns:
        Seconds, in ``[0, policy.max_delay]``.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    try:
        ceiling = policy.base_delay * policy.exponential_base ** (attempt - 1)
    except OverflowError:  # 2.0 ** 1024 is no float any more, and far past any max_delay
        ceiling = policy.max_delay
    return random.uniform(0, min(ceiling, policy.max_delay))


class RetryBudget:
    """How many retries a backend is worth to this process: a storm of failures gets few, a rare failure gets its own.

    A bucket of *most* tokens: a failure takes one, a success brings *ratio* of one back, and while half of them or fewer
    are left nothing is retried.

    Args:
        most: tokens of a full bucket.
        ratio: tokens that a success brings back; 0.1 bounds retries to about a tenth of all calls.

    Source: gRPC proposal A6, "Throttling Retry Attempts and Hedged RPCs".
    """

    def __init__(self, most: float = 10.0, ratio: float = 0.1) -> None:
        if not (most > 0 and 0 < ratio <= most):
            raise InvalidInputError("RetryBudget", found=(most, ratio), needed="most above 0, 0 < ratio <= most")
        self._most, self._ratio = most, ratio
        self.left = most  #: tokens

    @property
    def allows(self) -> bool:
        """Whether a failed call may be tried again."""
        return self.left > self._most / 2

    def succeeded(self) -> None:
        """A call went well."""
        self.left = min(self._most, self.left + self._ratio)

    def failed(self) -> None:
        """A call failed in a way that a retry may help."""
        self.left = max(0.0, self.left - 1)


async def retry_call(
    call: Callable[[], Awaitable[Answer]],
    policy: RetryPolicy,
    *,
    random: Random | None = None,
    budget: RetryBudget | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    on_wait: OnWait | None = None,
    unless: Callable[[BaseException], bool] | None = None,
) -> Answer:
    """The answer of *call*, which is called again after failures that may pass.

    A ``retry_after_s`` of the failure is waited for at least, as far as the policy allows.

    Args:
        call: makes one attempt.
        policy: how often, how patiently, after what.
        random: source of jitter.
        budget: of the backend; while it allows none, a failure is raised at once.
        sleep: waits for so many seconds.
        on_wait: told before each wait.
        unless: of failures that the policy tries again, those that are none of the backend's: they are raised at once.

    Raises:
        BaseException: what the last attempt raised, as it was raised.
    """
    jitter = random or Random()

    def retries(error: BaseException) -> bool:
        if not isinstance(error, policy.retry_on) or (unless is not None and unless(error)):
            return False
        if budget is not None:
            budget.failed()
        return (budget is None or budget.allows) and _asked_to_wait(error) <= policy.max_retry_after

    def wait_s(state: tenacity.RetryCallState) -> float:
        return max(backoff_s(state.attempt_number, policy, jitter), _asked_to_wait(_failure(state)))

    def tell(state: tenacity.RetryCallState) -> None:
        if on_wait is not None:
            on_wait(_failure(state), state.attempt_number, state.next_action.sleep if state.next_action else 0.0)

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(retries), wait=wait_s, stop=tenacity.stop_after_attempt(policy.max_retries + 1),
        sleep=sleep, before_sleep=tell, reraise=True,
    )  # fmt: skip

    async def attempt() -> Answer:  # tenacity awaits coroutine functions alone
        return await call()

    answer: Answer = await retrying(attempt)
    if budget is not None:
        budget.succeeded()
    return answer


def with_retry(
    policy: RetryPolicy | None = None,
    *,
    random: Random | None = None,
    budget: RetryBudget | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Callable[[Callable[Given, Awaitable[Answer]]], Callable[Given, Awaitable[Answer]]]:
    """Decorate a coroutine function: what it does is tried again as `retry_call` does."""
    chosen = policy or RetryPolicy()

    def decorate(function: Callable[Given, Awaitable[Answer]]) -> Callable[Given, Awaitable[Answer]]:
        def told(error: BaseException, attempt: int, pause_s: float) -> None:
            name = getattr(function, "__qualname__", repr(function))
            log.warning("trying again", call=name, attempt=attempt, in_s=round(pause_s, 3), why=repr(error))

        @functools.wraps(function)
        async def retried(*args: Given.args, **kwargs: Given.kwargs) -> Answer:
            return await retry_call(
                lambda: function(*args, **kwargs), chosen, random=random, budget=budget, sleep=sleep, on_wait=told
            )

        return retried

    return decorate


def _failure(state: tenacity.RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None  # nobody waits after a success
    return error


def _asked_to_wait(error: BaseException) -> float:
    asked = getattr(error, "retry_after_s", None)
    return float(asked) if isinstance(asked, int | float) else 0.0
