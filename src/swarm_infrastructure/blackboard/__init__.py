"""The blackboard: shared memory with leases, fencing and a log of every change."""

from __future__ import annotations

from .blackboard import Blackboard
from .claims import Claim, ClaimDesk, Claimed, ClaimRequest, Ending
from .events import Event, EventLog
from .items import Item, Priority, Submission, Submitted
from .leases import Lease, LeaseKeeper
from .lifecycle import Board, Place, Section, job_board
from .locks import Lock
from .news import NEWS, BlackboardSection, ContentStatus, NewsItem
from .registry import AgentRegistry, AgentState, AgentStatus

__all__ = [
    "NEWS",
    "AgentRegistry",
    "AgentState",
    "AgentStatus",
    "Blackboard",
    "BlackboardSection",
    "Board",
    "Claim",
    "ClaimDesk",
    "ClaimRequest",
    "Claimed",
    "ContentStatus",
    "Ending",
    "Event",
    "EventLog",
    "Item",
    "Lease",
    "LeaseKeeper",
    "Lock",
    "NewsItem",
    "Place",
    "Priority",
    "Section",
    "Submission",
    "Submitted",
    "job_board",
]
