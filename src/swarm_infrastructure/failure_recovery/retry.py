"""Retries: how long to wait before the next attempt."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ..errors import InvalidInputError

__all__ = ["RetryPolicy", "backoff_s"]


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

    def __post_init__(self) -> None:
        for name, least in (("max_retries", 0), ("base_delay", 0.0), ("max_delay", 0.0), ("exponential_base", 1.0)):
            if not getattr(self, name) >= least:
                raise InvalidInputError(f"RetryPolicy.{name}", found=getattr(self, name), needed=f"at least {least}")


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
