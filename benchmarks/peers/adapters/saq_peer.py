"""SAQ on Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["Saq"]

AT_ONCE = 50


async def noop(context: dict[str, Any], *, payload: dict[str, Any]) -> int:
    """The task."""
    tick()
    return 1


class Saq(Peer):
    """Ten jobs at once: fifty were no quicker, a hundred stood still."""

    packages = ("saq", "redis", "hiredis", "uvloop")
    settings = "concurrency 10, orjson, results kept for an hour, polled every 1 ms (its apply() takes a second)"
    delivery = "at least once: a list of what is active, and a sweep"

    async def open(self) -> None:
        import orjson
        import redis.asyncio
        from saq.queue.redis import RedisQueue

        logging.disable(logging.CRITICAL)
        client = redis.asyncio.from_url(self.order.url)
        self._queue = RedisQueue(client, name="bench", dump=orjson.dumps, load=orjson.loads, max_concurrent_ops=100)
        await self._queue.connect()

    async def submit(self, payload: dict[str, Any]) -> Any:
        return await self._queue.enqueue("noop", payload=payload, ttl=3600)

    async def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(payloads), AT_ONCE):
            await asyncio.gather(*map(self.submit, payloads[start : start + AT_ONCE]))

    async def submit_and_wait(self, payload: dict[str, Any]) -> None:
        job = await self.submit(payload)
        while (found := await self._queue.job(job.key)) is None or found.status != "complete":
            await asyncio.sleep(0.001)

    async def work(self) -> None:
        from saq import Worker

        await self.open()
        await Worker(self._queue, functions=[("noop", noop)], concurrency=10).start()

    def is_drained(self, redis: Any, n: int) -> bool:
        return not redis.zcard("saq:bench:incomplete") and redis.dbsize() >= n  # a key a job
