"""swarm_infrastructure: a runtime for swarms of LLM agents that share a blackboard on Redis."""

from __future__ import annotations

from .agents import BaseAgent, Claims, Outcome, Swarm, Work
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
from .errors import (
    ClaimLostError,
    ConfigurationError,
    LockAcquisitionError,
    RefusedError,
    SwarmError,
    UnavailableError,
)
from .failure_recovery import RetryPolicy
from .monitoring import TraceType
from .swarm_infrastructure import SwarmInfrastructure

__version__ = "0.1.0"

__all__ = [
    "NEWS",
    "BaseAgent",
    "Blackboard",
    "BlackboardSection",
    "Board",
    "ClaimLostError",
    "Claims",
    "ConfigurationError",
    "ContentStatus",
    "Item",
    "LockAcquisitionError",
    "NewsItem",
    "Outcome",
    "Place",
    "Priority",
    "RefusedError",
    "RetryPolicy",
    "Section",
    "Settings",
    "Submission",
    "Submitted",
    "Swarm",
    "SwarmError",
    "SwarmInfrastructure",
    "TraceType",
    "UnavailableError",
    "Work",
    "__version__",
    "job_board",
]
