"""coredis: fifty PubSub objects."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Any

import coredis

from . import BODY, CHANNEL, SUBSCRIBERS, Ear, measure, order, run


async def read(messages: Any, ear: Ear) -> None:
    async for message in messages:
        if message and message["type"] == "message":
            ear.hear()


async def main() -> None:
    url, ear, tasks = str(order()["url"]), Ear(), []
    async with AsyncExitStack() as opened:
        speaker = await opened.enter_async_context(coredis.Redis.from_url(url))
        client = await opened.enter_async_context(coredis.Redis.from_url(url, max_connections=SUBSCRIBERS + 10))
        for _ in range(SUBSCRIBERS):
            messages = client.pubsub(channels=[CHANNEL], ignore_subscribe_messages=True)
            tasks.append(asyncio.create_task(read(await opened.enter_async_context(messages), ear)))
        await measure(lambda: speaker.publish(CHANNEL, BODY), ear)
        os._exit(0)


if __name__ == "__main__":
    run(main)
