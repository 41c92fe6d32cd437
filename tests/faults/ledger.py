"""The ledger: what worker processes did, kept in a second Redis that no fault touches.

A line is one RPUSH over a connection that blocks, so a process that is killed loses none that it wrote, and one that is
cut off from its board still writes. `LedgerServer` runs that Redis.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from redis import Redis

from swarm_infrastructure.testing import RedisServer

LINES = "lines"


class Ledger:
    """Lines of JSON, each with what happened, when (seconds since the epoch) and in which process.

    Args:
        path: of the server's socket, or a link to it: the path of a socket must be short, that of a link need not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.redis = Redis(unix_socket_path=str(path.resolve()))
        self._lines: list[dict[str, Any]] = []

    def write(self, what: str, **facts: Any) -> None:
        line = {"what": what, "at": time.time(), "pid": os.getpid(), **facts}
        self.redis.rpush(LINES, json.dumps(line))

    def lines(self, what: str = "") -> list[dict[str, Any]]:
        """Every line so far, or those of one kind, oldest first."""
        while news := self.redis.lrange(LINES, len(self._lines), len(self._lines) + 9999):
            self._lines += [json.loads(line) for line in news]
        return [line for line in self._lines if not what or line["what"] == what]

    def clear(self) -> None:
        """Forget every line: of a round that is over."""
        self.redis.delete(LINES)
        self._lines = []

    def close(self) -> None:
        self.redis.close()


class LedgerServer:
    """The Redis of a ledger, reached by a link in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger"
        self._server = RedisServer("valkey")

    def start(self) -> Ledger:
        self._server.start()
        self.path.symlink_to(self._server.socket)
        return Ledger(self.path)

    def stop(self) -> None:
        self._server.stop()
        self.path.unlink(missing_ok=True)
