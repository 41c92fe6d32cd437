"""Guard: the breaker that a call stands behind, as the calls that carry it need to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["NO_GUARD", "Guard", "Heard"]

Heard = Literal["ok", "failed", "unknown"]  #: how a call ended; ``unknown`` says nothing of the backend
NO_GUARD = ("", 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A breaker's name and rules."""

    name: str
    failures: int  #: in a row that open it
    recovery_s: float  #: how long it lets nobody pass
    probes: int  #: calls that it lets pass at once after that
    probe_s: float  #: after which a probe that reports nothing is believed to be dead
    successes: int  #: of probes that close it

    def entering(self) -> tuple[Any, ...]:
        """What a call brings to pass: name, probes, milliseconds of a probe."""
        return (self.name, self.probes, round(self.probe_s * 1000))

    def leaving(self, heard: Heard) -> tuple[Any, ...]:
        """What it brings when it has ended: name, how, failures, milliseconds of recovery, successes."""
        return (self.name, heard, self.failures, round(self.recovery_s * 1000), self.successes)
