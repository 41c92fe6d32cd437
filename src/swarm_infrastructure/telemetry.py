"""What every part says about itself without knowing who listens: the trace that the current work belongs to."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["current_trace", "current_traceparent", "trace_of_work", "traceparent_of_work"]

trace_of_work: ContextVar[str] = ContextVar("trace_of_work", default="")
traceparent_of_work: ContextVar[str | None] = ContextVar("traceparent_of_work", default=None)


def current_traceparent() -> str | None:
    """W3C ``traceparent`` of what the running task works for, to be sent along with messages; or None."""
    return traceparent_of_work.get()


def current_trace() -> str:
    """Id of the trace that the running task works for, or ""."""
    return trace_of_work.get()
