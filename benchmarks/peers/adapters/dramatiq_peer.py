"""Dramatiq on its Redis broker."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["Dramatiq"]


class Dramatiq(Peer):
    """One thread: two, four and eight were slower for tasks that do nothing."""

    packages = ("dramatiq", "redis", "hiredis")
    settings = (
        "1 thread, 100 fetched a call, results in Redis; an idle worker asks every 100 ms, for latency every 1 ms"
    )
    delivery = "at least once: a set of what is not acknowledged, and heartbeats"

    def _broker(self) -> tuple[Any, Any]:
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.results import Results
        from dramatiq.results.backends import RedisBackend

        logging.disable(logging.CRITICAL)
        broker = RedisBroker(url=self.order.url)
        broker.add_middleware(Results(backend=RedisBackend(url=self.order.url)))
        dramatiq.set_broker(broker)

        @dramatiq.actor(store_results=True)
        def noop(payload: dict[str, Any]) -> int:
            tick()
            return 1

        return broker, noop

    def open(self) -> None:
        _, self._noop = self._broker()

    def submit(self, payload: dict[str, Any]) -> Any:
        return self._noop.send(payload)

    def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        for payload in payloads:
            self._noop.send(payload)

    def submit_and_wait(self, payload: dict[str, Any]) -> None:
        self.submit(payload).get_result(block=True, timeout=10_000)  # blocks on a list

    def work(self) -> None:
        os.environ["dramatiq_queue_prefetch"] = "100"  # noqa: SIM112 - its name, read when it is imported
        from dramatiq import Worker

        broker, _ = self._broker()
        Worker(broker, worker_threads=1, worker_timeout=1 if self.order.idle else 100).start()
        while True:
            time.sleep(3600)

    def is_drained(self, redis: Any, n: int) -> bool:
        return not redis.hlen("dramatiq:default.msgs") and redis.dbsize() >= n  # a key a result
