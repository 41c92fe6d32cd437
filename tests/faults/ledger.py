"""The ledger: what worker processes did, in a file that no fault touches.

A line is one append of one process, so lines never mix, and a process that is killed loses none that it wrote.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Ledger:
    """Lines of JSON, each with what happened, when (seconds since the epoch) and in which process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lines: list[dict[str, Any]] = []
        self._read_to, self._torn = 0, b""

    def write(self, what: str, **facts: Any) -> None:
        line = {"what": what, "at": time.time(), "pid": os.getpid(), **facts}
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")

    def lines(self, what: str = "") -> list[dict[str, Any]]:
        """Every line so far, or those of one kind, oldest first."""
        while data := os.pread(self._descriptor, 1 << 20, self._read_to):
            self._read_to += len(data)
            *whole, self._torn = (self._torn + data).split(b"\n")
            self._lines += [json.loads(line) for line in whole]
        return [line for line in self._lines if not what or line["what"] == what]

    def close(self) -> None:
        os.close(self._descriptor)
