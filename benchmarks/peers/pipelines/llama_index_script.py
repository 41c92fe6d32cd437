"""llama-index-workflows: four steps joined by events, a run an item."""

import logging
from typing import Any

from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from ..probe import make_payload
from . import measure, run


class Scouted(Event):
    payload: dict[str, Any]


class Analysed(Event):
    payload: dict[str, Any]


class Written(Event):
    payload: dict[str, Any]


class Newsroom(Workflow):
    @step
    async def scout(self, event: StartEvent) -> Scouted:
        return Scouted(payload=event.payload)

    @step
    async def analyse(self, event: Scouted) -> Analysed:
        return Analysed(payload=event.payload)

    @step
    async def write(self, event: Analysed) -> Written:
        return Written(payload=event.payload)

    @step
    async def publish(self, event: Written) -> StopEvent:
        return StopEvent(result=1)


async def main() -> None:
    logging.disable(logging.CRITICAL)
    newsroom = Newsroom(timeout=None)

    async def one(number: int) -> None:
        await newsroom.run(payload=make_payload(number))

    await measure(one)


if __name__ == "__main__":
    run(main)
