"""redis-py: a connection a subscriber, or one connection and a queue a subscriber."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import redis.asyncio

from . import BODY, CHANNEL, SUBSCRIBERS, Ear, measure, order, run


async def read(messages: Any, hand_on: Any) -> None:
    async for message in messages.listen():
        if message["type"] == "message":
            hand_on(message["data"])


async def listen(queue: asyncio.Queue[bytes], ear: Ear) -> None:
    while True:
        ear.hear(await queue.get())


async def main() -> None:
    url, connections, ear = str(order()["url"]), int(order()["connections"]), Ear()
    speaker = redis.asyncio.from_url(url)
    tasks = []
    for _ in range(connections):
        messages = redis.asyncio.from_url(url).pubsub()
        await messages.subscribe(CHANNEL)
        queues: list[asyncio.Queue[bytes]] = [asyncio.Queue() for _ in range(SUBSCRIBERS // connections)]

        def hand_on(data: bytes, queues: list[asyncio.Queue[bytes]] = queues) -> None:
            for queue in queues:
                queue.put_nowait(data)

        if len(queues) == 1:
            tasks.append(asyncio.create_task(read(messages, ear.hear)))
        else:
            tasks.append(asyncio.create_task(read(messages, hand_on)))
            tasks += [asyncio.create_task(listen(queue, ear)) for queue in queues]
    await measure(lambda: speaker.publish(CHANNEL, BODY), ear)
    os._exit(0)


if __name__ == "__main__":
    run(main)
