"""streaQ: streams and Redis functions, on coredis."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["Streaq"]

QUEUE = "bench"


class Streaq(Peer):
    """A hundred tasks at once."""

    packages = ("streaq", "coredis", "uvloop")
    pace = 1_400
    settings = "concurrency 100, prefetch 100, msgspec's JSON, results kept for an hour; enqueue_many"
    delivery = "at least once: consumer group, idle entries are claimed again"
    bulk = "enqueue_many"

    def _build(self) -> None:
        import msgspec
        from streaq import Worker

        logging.disable(logging.CRITICAL)
        self._worker: Any = Worker(
            redis_url=self.order.url, queue_name=QUEUE, concurrency=100, prefetch=100, handle_signals=False,
            serializer=msgspec.json.encode, deserializer=msgspec.json.decode,
        )  # fmt: skip

        @self._worker.task(silent=True, ttl=3600)
        async def noop(payload: dict) -> int:  # type: ignore[type-arg] # it reads the annotations
            tick()
            return 1

        self._noop = noop

    async def open(self) -> None:
        self._build()
        await self._worker.__aenter__()

    async def submit(self, payload: dict[str, Any]) -> Any:
        return await self._noop.enqueue(payload)

    async def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        await self._worker.enqueue_many([self._noop.enqueue(payload) for payload in payloads])

    async def submit_and_wait(self, payload: dict[str, Any]) -> None:
        await (await self.submit(payload)).result(timeout=10)

    async def work(self) -> None:
        self._build()
        await self._worker.run_async()

    def is_drained(self, redis: Any, n: int) -> bool:
        streams = redis.scan_iter(f"streaq:{QUEUE}:*", count=10_000, _type="stream")
        return not any(redis.xlen(stream) for stream in streams) and redis.dbsize() >= n  # a key a result
