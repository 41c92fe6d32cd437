"""FastStream: fifty subscribers of one broker."""

from __future__ import annotations

import logging
import os

from faststream.redis import PubSub, RedisBroker

from . import BODY, CHANNEL, SUBSCRIBERS, Ear, measure, order, run


async def main() -> None:
    logging.disable(logging.CRITICAL)
    ear = Ear()
    broker = RedisBroker(str(order()["url"]), logger=None, apply_types=False)
    for number in range(SUBSCRIBERS):

        async def handler(body: object) -> None:
            ear.hear()

        handler.__name__ = f"handler_{number}"
        broker.subscriber(channel=PubSub(CHANNEL, polling_interval=0.001), title=handler.__name__)(handler)
    await broker.start()
    await measure(lambda: broker.publish(BODY, channel=CHANNEL), ear)
    os._exit(0)


if __name__ == "__main__":
    run(main)
