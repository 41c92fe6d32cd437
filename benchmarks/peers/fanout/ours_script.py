"""Ours: fifty agents' buses on one hub."""

from __future__ import annotations

import json
import os

from swarm_infrastructure.message_bus import Channels, Hub, Message, MessageBus, TaskQueues
from swarm_infrastructure.store import Store

from . import BODY, SUBSCRIBERS, Ear, measure, order, run


async def main() -> None:
    url = str(order()["url"])
    async with Store(url) as speaking, Store(url) as listening:
        ear, speaker = Ear(), Hub(speaking, "peers")
        hub, queues = Hub(listening, "peers"), TaskQueues(listening, "peers")
        for number in range(SUBSCRIBERS):
            bus = MessageBus(hub, queues, f"a{number}")
            bus.on("note", ear.hear)
            await bus.start()
        payload = json.loads(BODY)

        async def publish() -> None:
            await speaker.publish(Channels.BROADCAST_ALL, Message.create("note", "peers", payload=payload))

        await measure(publish, ear)
        os._exit(0)


if __name__ == "__main__":
    run(main)
