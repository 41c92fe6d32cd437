"""arq. It needs a redis-py before 6, and so an environment of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["Arq"]

AT_ONCE = 50


async def noop(context: dict[str, Any], payload: dict[str, Any]) -> int:
    """The task."""
    tick()
    return 1


class Arq(Peer):
    """It polls: every millisecond here, every half a second unless it is told."""

    environment = "arq"
    packages = ("arq", "redis", "hiredis", "uvloop")
    settings = "max_jobs 100, queue_read_limit 500, poll_delay 1 ms (500 by default), msgspec's JSON, results polled every 1 ms"
    delivery = "at least once: a key with a time to live while a job is in work"

    async def open(self) -> None:
        import msgspec
        from arq.connections import RedisSettings, create_pool

        self._server = RedisSettings.from_dsn(self.order.url)
        self._json = {"job_serializer": msgspec.json.encode, "job_deserializer": msgspec.json.decode}
        self._pool = await create_pool(self._server, **self._json)

    async def submit(self, payload: dict[str, Any]) -> Any:
        return await self._pool.enqueue_job("noop", payload)

    async def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(payloads), AT_ONCE):
            await asyncio.gather(*map(self.submit, payloads[start : start + AT_ONCE]))

    async def submit_and_wait(self, payload: dict[str, Any]) -> None:
        await (await self.submit(payload)).result(timeout=10, poll_delay=0.001)

    async def work(self) -> None:
        from arq.worker import Worker

        logging.disable(logging.CRITICAL)
        await self.open()
        worker = Worker(
            [noop], redis_settings=self._server, max_jobs=100, queue_read_limit=500, poll_delay=0.001, keep_result=3600,
            log_results=False, handle_signals=False, **self._json,
        )  # fmt: skip
        await worker.main()

    def is_drained(self, redis: Any, n: int) -> bool:
        return not redis.zcard("arq:queue") and redis.dbsize() >= n  # a key a result
