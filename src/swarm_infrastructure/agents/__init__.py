"""Agents: what users subclass, and what runs them."""

from __future__ import annotations

from .asking import Answered, ask_together
from .base import BaseAgent, Claims
from .runner import Runner
from .supervisor import Supervisor
from .swarm import Swarm
from .work import Complete, Fail, HandBack, Outcome, Work
from .worker import Worker

__all__ = [
    "Answered",
    "BaseAgent",
    "Claims",
    "Complete",
    "Fail",
    "HandBack",
    "Outcome",
    "Runner",
    "Supervisor",
    "Swarm",
    "Work",
    "Worker",
    "ask_together",
]
