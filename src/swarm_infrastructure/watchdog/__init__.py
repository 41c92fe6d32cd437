"""The watchdog: why an item does not move, and what stands still on a board. It reads Redis and says what it found."""

from __future__ import annotations

from .explain import explain
from .standstills import find_standstills
from .values import Explanation, Reason, ReasonKind, Standstill, StandstillKind
from .watchdog import Watchdog

__all__ = [
    "Explanation",
    "Reason",
    "ReasonKind",
    "Standstill",
    "StandstillKind",
    "Watchdog",
    "explain",
    "find_standstills",
]
