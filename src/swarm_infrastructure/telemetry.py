"""What every part says about itself without knowing who listens: the trace that the current work belongs to."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["current_trace", "trace_of_work"]

trace_of_work: ContextVar[str] = ContextVar("trace_of_work", default="")


def current_trace() -> str:
    """Id of the trace that the running task works for, or ""."""
    return trace_of_work.get()
