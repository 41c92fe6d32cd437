"""BullMQ on Node, the quickest of the peers: ``bullmq_node.js`` takes the same orders as ``process.py``."""

from __future__ import annotations

from typing import Any

from .base import Peer
from .bullmq_py import is_drained

__all__ = ["BullMQNode"]


class BullMQNode(Peer):
    """Fifty jobs at once; completing one and fetching the next is one call."""

    environment = "node"
    language = "node"
    packages = ("bullmq", "ioredis")
    pace = 20_000
    settings = "ioredis, concurrency 50, results by its event stream; addBulk; its bodies are counted once a loop turn"
    delivery = "at least once: lock per job, scan for stalled ones"
    bulk = "addBulk"
    most_waiting = 1_000_000

    def is_drained(self, redis: Any, n: int) -> bool:
        return is_drained(redis, n)
