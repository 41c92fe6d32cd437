"""taskiq with the brokers of taskiq-redis: a list, which forgets what was taken, and a stream, which does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["TaskiqList", "TaskiqStream"]

QUEUE, AT_ONCE = "bench", 50


class TaskiqList(Peer):
    """A hundred tasks at once."""

    packages = ("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop")
    durable = False
    settings = "max_async_tasks 100, max_prefetch 100, orjson, results in Redis, polled every 1 ms (200 by default)"
    delivery = "at most once: what was popped is gone"

    def _new_broker(self) -> Any:
        from taskiq_redis import ListQueueBroker

        return ListQueueBroker(self.order.url, queue_name=QUEUE)

    def _build(self) -> None:
        from taskiq.serializers import ORJSONSerializer
        from taskiq_redis import RedisAsyncResultBackend

        logging.disable(logging.CRITICAL)
        results: Any = RedisAsyncResultBackend(self.order.url, result_ex_time=3600)
        self._broker = self._new_broker().with_serializer(ORJSONSerializer()).with_result_backend(results)

        @self._broker.task(task_name="noop")
        async def noop(payload: dict[str, Any]) -> int:
            tick()
            return 1

        self._noop = noop

    async def open(self) -> None:
        self._build()
        await self._broker.startup()

    async def submit(self, payload: dict[str, Any]) -> Any:
        return await self._noop.kiq(payload)

    async def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(payloads), AT_ONCE):
            await asyncio.gather(*map(self.submit, payloads[start : start + AT_ONCE]))

    async def submit_and_wait(self, payload: dict[str, Any]) -> None:
        await (await self.submit(payload)).wait_result(check_interval=0.001, timeout=10)

    async def work(self) -> None:
        from taskiq.api import run_receiver_task

        self._build()
        self._broker.is_worker_process = True
        await run_receiver_task(
            self._broker, run_startup=True, validate_params=False, max_async_tasks=100, max_prefetch=100
        )

    def is_drained(self, redis: Any, n: int) -> bool:
        return not redis.llen(QUEUE) and redis.dbsize() >= n  # a key a result


class TaskiqStream(TaskiqList):
    """The same, on a stream with a consumer group."""

    durable = True
    settings = TaskiqList.settings + "; 100 read a call"
    delivery = "at least once: consumer group, acknowledged one by one"

    def _new_broker(self) -> Any:
        from taskiq_redis import RedisStreamBroker

        return RedisStreamBroker(self.order.url, queue_name=QUEUE, consumer_id="0")

    def is_drained(self, redis: Any, n: int) -> bool:
        [group] = redis.xinfo_groups(QUEUE)
        return not group["lag"] and not group["pending"] and redis.dbsize() >= n
