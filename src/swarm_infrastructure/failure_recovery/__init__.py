"""Recovery: what happens after something failed.

``retry`` tries again, ``circuit_breaker`` leaves a failing backend alone, ``fallback`` finds somebody else, ``checkpoints``
and ``steps`` keep what was done, ``failures`` remembers what went wrong and what waits for a person.
"""

from __future__ import annotations

from ..errors import CircuitOpenError, ReplayError
from .checkpoints import Checkpoint, Checkpoints
from .circuit_breaker import Breakers, BreakerState, CircuitBreaker, CircuitBreakerConfig
from .failure_recovery import FailureRecovery, Recovery
from .failures import ACTIONS, Escalation, Failure, FailureType, RecoveryAction, type_of_error
from .fallback import FallbackAgents, FallbackChain
from .retry import RetryBudget, RetryPolicy, backoff_s, retry_call, with_retry
from .steps import RecordedStep, Steps

__all__ = [
    "ACTIONS",
    "BreakerState",
    "Breakers",
    "Checkpoint",
    "Checkpoints",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpenError",
    "Escalation",
    "Failure",
    "FailureRecovery",
    "FailureType",
    "FallbackAgents",
    "FallbackChain",
    "RecordedStep",
    "Recovery",
    "RecoveryAction",
    "ReplayError",
    "RetryBudget",
    "RetryPolicy",
    "Steps",
    "backoff_s",
    "retry_call",
    "type_of_error",
    "with_retry",
]
