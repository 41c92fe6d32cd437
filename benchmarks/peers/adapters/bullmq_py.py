"""BullMQ for Python: the Lua scripts are those of the Node package."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from ..probe import tick
from .base import Peer

__all__ = ["BullMQ", "is_drained"]

QUEUE = "bench"
SUBSCRIBED_S = 0.5  # until its reader of events is at the end of the stream; it does not say when


def is_drained(redis: Any, n: int) -> bool:
    """Whether BullMQ's own sets say so, in either language."""
    prefix = f"bull:{QUEUE}"
    waiting = redis.llen(f"{prefix}:wait") + redis.zcard(f"{prefix}:prioritized") + redis.llen(f"{prefix}:active")
    return not waiting and redis.zcard(f"{prefix}:completed") >= n


class BullMQ(Peer):
    """Fifty jobs at once; one for latency, as each idle slot asks Redis at each wake-up."""

    packages = ("bullmq", "redis", "hiredis", "uvloop")
    settings = (
        "concurrency 50, 1 for latency (an idle slot costs a call a wake-up); results by its event stream; addBulk"
    )
    delivery = "at least once: lock per job, scan for stalled ones"
    bulk = "addBulk"

    async def open(self) -> None:
        from bullmq import Queue

        logging.disable(logging.CRITICAL)
        self._queue = Queue(QUEUE, {"connection": self.order.url})
        self._ended: dict[str, asyncio.Event] = {}
        self._events: Any = None

    async def submit(self, payload: dict[str, Any]) -> Any:
        return await self._queue.add("noop", payload, {"removeOnComplete": False})

    async def submit_many(self, payloads: Sequence[dict[str, Any]]) -> None:
        options = {"removeOnComplete": False}
        await self._queue.addBulk([{"name": "noop", "data": payload, "opts": options} for payload in payloads])

    async def submit_and_wait(self, payload: dict[str, Any]) -> None:
        if self._events is None:
            from bullmq.queue_events import QueueEvents

            self._events = QueueEvents(QUEUE, {"connection": self.order.url})
            self._events.on("completed", lambda event, *_: self._end_of(event["jobId"]).set())
            await asyncio.sleep(SUBSCRIBED_S)
        job = await self.submit(payload)
        async with asyncio.timeout(10):
            await self._end_of(job.id).wait()
        del self._ended[job.id]

    def _end_of(self, job_id: str) -> asyncio.Event:
        return self._ended.setdefault(job_id, asyncio.Event())  # its end may be told before its id

    async def work(self) -> None:
        from bullmq import Worker

        logging.disable(logging.CRITICAL)

        async def noop(job: Any, token: str) -> int:
            tick()
            return 1

        slots = 1 if self.order.idle else 50
        options = {"connection": self.order.url, "concurrency": slots, "removeOnComplete": {"count": -1}}
        self._worker = Worker(QUEUE, noop, options)
        await asyncio.Event().wait()

    def is_drained(self, redis: Any, n: int) -> bool:
        return is_drained(redis, n)
