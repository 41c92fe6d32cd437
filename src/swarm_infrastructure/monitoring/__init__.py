"""Seeing what a swarm does: logs and traces."""

from __future__ import annotations

from .logs import configure_logs
from .traces import Traces, TraceType

__all__ = ["TraceType", "Traces", "configure_logs"]
