"""swarm_infrastructure: a runtime for swarms of LLM agents that share a blackboard on Redis.

Names are imported when they are first used, so that ``swarm --help`` does not pay for what it doesn't need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = ("errors", "config", "blackboard", "failure_recovery", "monitoring", "swarm_infrastructure", "agents")


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
