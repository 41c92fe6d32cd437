"""AutoGen's core: four routed agents on the single-threaded runtime, by topics, and by asking one after the other."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from autogen_core import (
    AgentId,
    DefaultTopicId,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TypeSubscription,
    message_handler,
)

from ..probe import make_payload
from . import STAGES, order, run, tell


@dataclass
class News:
    payload: dict[str, Any]
    stage: int


class Told(RoutedAgent):
    """Publishes what it was told to the next stage's topic."""

    finished = 0

    @message_handler
    async def on_news(self, message: News, ctx: MessageContext) -> None:
        if message.stage + 1 < len(STAGES):
            following = News(message.payload, message.stage + 1)
            await self.publish_message(following, DefaultTopicId(type=STAGES[following.stage]))
        else:
            Told.finished += 1


class Asked(RoutedAgent):
    """Answers with what goes to the next stage."""

    @message_handler
    async def on_news(self, message: News, ctx: MessageContext) -> News:
        return News(message.payload, message.stage + 1)


async def main() -> None:
    logging.disable(logging.CRITICAL)
    items = int(order()["items"])
    runtime = SingleThreadedAgentRuntime()
    for name in STAGES:
        await Told.register(runtime, name, lambda: Told("tells the next"))
        await runtime.add_subscription(TypeSubscription(name, name))
        await Asked.register(runtime, f"ask_{name}", lambda: Asked("answers"))
    payloads = [make_payload(number) for number in range(items)]
    runtime.start()
    began = time.perf_counter()
    for payload in payloads:
        await runtime.publish_message(News(payload, 0), DefaultTopicId(type=STAGES[0]))
    await runtime.stop_when_idle()
    assert Told.finished == items
    tell("published, all at once", items, time.perf_counter() - began)
    runtime.start()
    began = time.perf_counter()
    for payload in payloads:
        news = News(payload, 0)
        for name in STAGES:
            news = await runtime.send_message(news, AgentId(f"ask_{name}", "default"))
    tell("asked, one after the other", items, time.perf_counter() - began)
    await runtime.stop()


if __name__ == "__main__":
    run(main)
