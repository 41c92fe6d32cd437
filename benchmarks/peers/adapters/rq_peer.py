"""RQ."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["Rq"]

NOOP, KEEP_S = f"{__name__}.noop", 3600


def noop(payload: dict[str, Any]) -> int:
    """The task."""
    tick()
    return 1


class Rq(Peer):
    """The worker that does not fork for each job."""

    packages = ("rq", "redis", "hiredis")
    pace = 450
    settings = "SimpleWorker (no fork a job), JSON, results kept for an hour; enqueue_many"
    delivery = "at least once: a scan of the jobs that were started"
    bulk = "enqueue_many"

    def open(self) -> None:
        import redis
        from rq import Queue
        from rq.serializers import JSONSerializer

        logging.disable(logging.CRITICAL)
        self._json = JSONSerializer
        self._redis = redis.Redis.from_url(self.order.url)
        self._queue = Queue("bench", connection=self._redis, serializer=JSONSerializer)

    def submit(self, payload: dict[str, Any]) -> Any:
        return self._queue.enqueue(NOOP, payload, result_ttl=KEEP_S)

    def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        prepare = type(self._queue).prepare_data
        self._queue.enqueue_many([prepare(NOOP, (each,), result_ttl=KEEP_S, timeout=180) for each in payloads])

    def submit_and_wait(self, payload: dict[str, Any]) -> None:
        assert self.submit(payload).latest_result(timeout=10) is not None  # blocks on the job's stream

    def work(self) -> None:
        from rq import SimpleWorker

        self.open()
        worker = SimpleWorker([self._queue], connection=self._redis, serializer=self._json)
        worker.work(with_scheduler=False, logging_level="CRITICAL")

    def is_drained(self, redis: Any, n: int) -> bool:
        waiting = redis.llen("rq:queue:bench") + redis.zcard("rq:wip:bench")
        return not waiting and redis.zcard("rq:finished:bench") >= n
