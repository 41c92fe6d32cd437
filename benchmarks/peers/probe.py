"""The body of every task here: it counts itself in a memory-mapped file, which is read from outside.

So the runner sees how far a worker is, and when it began a task, without a command to Redis that would not be there
otherwise. Each worker process writes a slot of its own, so nothing has to be locked.
"""

from __future__ import annotations

import json
import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SLOTS", "Count", "Probe", "make_payload", "tick", "tick_with"]

_SLOT = struct.Struct("<qqq")  # bodies; when the first and when the last began, ns of CLOCK_MONOTONIC
SLOTS = 8
PAYLOAD_BYTES = 300


@dataclass(frozen=True, slots=True)
class Count:
    """What the bodies of all workers came to."""

    bodies: int
    workers: int  #: that have begun a body
    last_ns: int  #: when the newest body began; 0 before the first


class Probe:
    """The file, and one slot of it."""

    def __init__(self, path: str | Path, slot: int = 0) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SLOT.size * SLOTS)
        self._at = slot * _SLOT.size
        self._bodies = self._first_ns = 0

    @classmethod
    def create(cls, path: str | Path) -> Probe:
        """A probe that has counted nothing."""
        Path(path).write_bytes(bytes(_SLOT.size * SLOTS))
        return cls(path)

    def tick(self) -> None:
        """Count one body that begins now."""
        now = time.monotonic_ns()
        self._bodies += 1
        self._first_ns = self._first_ns or now
        _SLOT.pack_into(self._map, self._at, self._bodies, self._first_ns, now)

    def read(self) -> Count:
        """The count over all slots."""
        slots = [slot for slot in _SLOT.iter_unpack(self._map[:]) if slot[0]]
        return Count(sum(slot[0] for slot in slots), len(slots), max((slot[2] for slot in slots), default=0))


_probe: Probe | None = None


def tick_with(path: str, slot: int) -> None:
    """Have `tick` count in a slot of this file."""
    global _probe
    _probe = Probe(path, slot)


def tick() -> None:
    """The whole body of a task."""
    assert _probe is not None, "tick_with was not called"
    _probe.tick()


def make_payload(number: int) -> dict[str, Any]:
    """An object of 300 bytes as compact JSON, different for each *number* up to a billion."""
    payload = {"n": f"{number:09d}", "kind": "finding", "section": "research", "body": ""}
    payload["body"] = "x" * (PAYLOAD_BYTES - len(json.dumps(payload, separators=(",", ":"))))
    return payload
