"""swarm_infrastructure: a runtime for swarms of LLM agents that share a blackboard on Redis.

Names are imported when they are first used, so that ``swarm --help`` does not pay for what it doesn't need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents import Ballot, BaseAgent, Claims, Debater, Outcome, Seat, Swarm, Work
    from .blackboard import (
        NEWS,
        Blackboard,
        BlackboardSection,
        Board,
        ContentStatus,
        Item,
        NewsItem,
        Place,
        Priority,
        Section,
        Submission,
        Submitted,
        job_board,
    )
    from .config import Settings
    from .consensus import Debate, DebateOutcome, Debates
    from .cost_manager import (
        TASK_TIER_MAPPING,
        AgentBudget,
        Budget,
        BudgetStatus,
        CostManager,
        LLMModel,
        LLMTier,
        Prices,
        Spender,
        TierTable,
        TokenUsage,
    )
    from .errors import (
        BudgetExceededError,
        CircuitOpenError,
        ClaimLostError,
        ConfigurationError,
        LockAcquisitionError,
        ModelError,
        ModelUnavailableError,
        RefusedError,
        ReplayError,
        SwarmError,
        UnavailableError,
        UnknownPriceError,
    )
    from .failure_recovery import (
        Checkpoint,
        CircuitBreaker,
        CircuitBreakerConfig,
        FailureRecovery,
        FailureType,
        RecoveryAction,
        RetryPolicy,
    )
    from .llm import AnthropicClient, LLMClient, LLMRequest, LLMResult, OpenAIClient
    from .message_bus import (
        Channels,
        Message,
        MessageBus,
        MessageType,
        Processor,
        TaskMessage,
        Tick,
        To,
        TopicMessage,
        Topics,
    )
    from .monitoring import TraceType
    from .swarm_infrastructure import SwarmInfrastructure, with_infrastructure, with_retry_and_tracking

__version__ = "0.1.0"

__all__ = [
    "NEWS",
    "TASK_TIER_MAPPING",
    "AgentBudget",
    "AnthropicClient",
    "Ballot",
    "BaseAgent",
    "Blackboard",
    "BlackboardSection",
    "Board",
    "Budget",
    "BudgetExceededError",
    "BudgetStatus",
    "Channels",
    "Checkpoint",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitOpenError",
    "ClaimLostError",
    "Claims",
    "ConfigurationError",
    "ContentStatus",
    "CostManager",
    "Debate",
    "DebateOutcome",
    "Debater",
    "Debates",
    "FailureRecovery",
    "FailureType",
    "Item",
    "LLMClient",
    "LLMModel",
    "LLMRequest",
    "LLMResult",
    "LLMTier",
    "LockAcquisitionError",
    "Message",
    "MessageBus",
    "MessageType",
    "ModelError",
    "ModelUnavailableError",
    "NewsItem",
    "OpenAIClient",
    "Outcome",
    "Place",
    "Prices",
    "Priority",
    "Processor",
    "RecoveryAction",
    "RefusedError",
    "ReplayError",
    "RetryPolicy",
    "Seat",
    "Section",
    "Settings",
    "Spender",
    "Submission",
    "Submitted",
    "Swarm",
    "SwarmError",
    "SwarmInfrastructure",
    "TaskMessage",
    "Tick",
    "TierTable",
    "To",
    "TokenUsage",
    "TopicMessage",
    "Topics",
    "TraceType",
    "UnavailableError",
    "UnknownPriceError",
    "Work",
    "__version__",
    "job_board",
    "with_infrastructure",
    "with_retry_and_tracking",
]

_HOMES = (
    "errors", "config", "usage", "blackboard", "failure_recovery", "monitoring", "cost_manager", "llm", "message_bus",
    "consensus",
    "swarm_infrastructure",
    "agents",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:  # from the bottom up: what lies low is found without loading what lies above
            module = import_module(f".{home}", __name__)
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
