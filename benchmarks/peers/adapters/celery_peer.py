"""Celery over Redis, results in Redis."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["Celery"]


class Celery(Peer):
    """The solo pool: no other was quicker with one process for tasks that do nothing."""

    packages = ("celery", "kombu", "redis", "hiredis")
    pace = 1_000
    most_waiting = 10_000  # it submits a thousand a second
    settings = "solo pool, prefetch 100, acks_late, JSON, results in Redis; no gossip, mingle, heartbeat or events"
    delivery = "at least once: acks_late and the hash of what is not acknowledged"

    def _app(self) -> tuple[Any, Any]:
        from celery import Celery as App

        app = App("bench", broker=self.order.url, backend=self.order.url)
        app.conf.update(
            task_acks_late=True,
            worker_prefetch_multiplier=100,
            result_expires=3600,
            worker_send_task_events=False,
            task_send_sent_event=False,
            worker_hijack_root_logger=False,
            broker_connection_retry_on_startup=True,
            worker_cancel_long_running_tasks_on_connection_loss=False,
        )

        @app.task(name="noop")
        def noop(payload: dict[str, Any]) -> int:
            tick()
            return 1

        return app, noop

    def open(self) -> None:
        app, self._noop = self._app()
        self._producer = app.producer_pool.acquire(block=True)

    def submit(self, payload: dict[str, Any]) -> Any:
        return self._noop.delay(payload)

    def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        for payload in payloads:  # there is no bulk call; one producer for all is what helps
            self._noop.apply_async((payload,), producer=self._producer)

    def submit_and_wait(self, payload: dict[str, Any]) -> None:
        self.submit(payload).get(timeout=10)  # told by pub/sub

    def work(self) -> None:
        app, _ = self._app()
        quiet = ["--loglevel", "CRITICAL", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        app.worker_main(["worker", "-P", "solo", "-c", "1", *quiet, "-n", f"w{os.getpid()}@bench"])

    def is_drained(self, redis: Any, n: int) -> bool:
        return not redis.llen("celery") and not redis.hlen("unacked") and redis.dbsize() >= n  # a key a result
