"""Traces: which work belongs together.

A trace is an id that every event of the board carries while it is open, so that the changes of one piece of work are
found again. Without an exporter that is all there is, and it costs nothing else.
"""

from __future__ import annotations

import secrets
import time
from enum import StrEnum

import structlog

from ..errors import InvalidInputError
from ..telemetry import trace_of_work

__all__ = ["TraceType", "Traces"]

log = structlog.get_logger(__name__)


class TraceType(StrEnum):
    """What a trace is about."""

    AGENT_DECISION = "agent_decision"
    CONSENSUS_VOTE = "consensus_vote"
    DEBATE_SESSION = "debate_session"
    SCRIPT_GENERATION = "script_generation"
    VIDEO_PRODUCTION = "video_production"
    QUALITY_REVIEW = "quality_review"
    END_TO_END = "end_to_end"


class Traces:
    """Opens and closes traces."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[TraceType, float]] = {}

    def start(self, trace_type: TraceType) -> str:
        """Open a trace for the running task. Returns its id: 32 hex digits, as W3C trace ids are."""
        trace_id = secrets.token_hex(16)
        self._open[trace_id] = (TraceType(trace_type), time.monotonic())
        trace_of_work.set(trace_id)
        return trace_id

    def end(self, trace_id: str, status: str = "success") -> float:
        """Close a trace. Returns how long it was open, seconds.

        Raises:
            InvalidInputError: it is not open.
        """
        try:
            trace_type, started = self._open.pop(trace_id)
        except KeyError:
            raise InvalidInputError(
                "trace id", found=trace_id, needed="an open trace", step="end each trace once"
            ) from None
        if trace_of_work.get() == trace_id:
            trace_of_work.set("")
        seconds = time.monotonic() - started
        log.debug("trace ended", trace=trace_id, type=trace_type.value, outcome=status, seconds=round(seconds, 4))
        return seconds
