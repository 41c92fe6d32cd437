"""Agents: what users subclass, and what runs them."""

from __future__ import annotations

from .asking import Answered, ask_together
from .base import BaseAgent, Claims
from .debater import Ballot, Debater, Seat, bench
from .runner import Runner
from .supervisor import Supervisor
from .swarm import Swarm
from .work import Complete, Fail, HandBack, Outcome, Work
from .worker import Worker

__all__ = [
    "Answered",
    "Ballot",
    "BaseAgent",
    "Claims",
    "Complete",
    "Debater",
    "Fail",
    "HandBack",
    "Outcome",
    "Runner",
    "Seat",
    "Supervisor",
    "Swarm",
    "Work",
    "Worker",
    "ask_together",
    "bench",
]
