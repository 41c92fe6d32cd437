"""Huey on Redis lists."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["Huey"]


class Huey(Peer):
    """One thread that blocks on the list."""

    packages = ("huey", "redis", "hiredis")
    durable = False
    settings = "1 thread, blocking pop, pickle, results in a hash, polled every 1 ms"
    delivery = "at most once: what was popped is gone"

    def _huey(self) -> tuple[Any, Any]:
        from huey import RedisHuey

        logging.disable(logging.CRITICAL)
        huey = RedisHuey("bench", url=self.order.url, results=True, store_none=False, blocking=True)

        @huey.task()
        def noop(payload: dict[str, Any]) -> int:
            tick()
            return 1

        return huey, noop

    def open(self) -> None:
        _, self._noop = self._huey()

    def submit(self, payload: dict[str, Any]) -> Any:
        return self._noop(payload)

    def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        for payload in payloads:
            self._noop(payload)

    def submit_and_wait(self, payload: dict[str, Any]) -> None:
        self.submit(payload)(blocking=True, timeout=10, backoff=1, max_delay=0.001)

    def work(self) -> None:
        huey, _ = self._huey()
        consumer = huey.create_consumer(workers=1, worker_type="thread", periodic=False, check_worker_health=False)
        consumer._set_signal_handlers = lambda: None  # its own ones wait for what never comes
        consumer.run()

    def is_drained(self, redis: Any, n: int) -> bool:
        return not redis.llen("huey.redis.bench") and redis.hlen("huey.results.bench") >= n
