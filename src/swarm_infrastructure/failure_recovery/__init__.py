"""Recovery: what happens after something failed."""

from __future__ import annotations

from .retry import RetryPolicy, backoff_s

__all__ = ["RetryPolicy", "backoff_s"]
