"""The swarm of the soak: four sections that an item passes one after the other; some items ask a model on their way.

A script of its own. Every ten seconds each process writes a line of JSON about itself to ``--samples``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import time
from collections import deque
from pathlib import Path

from swarm_infrastructure import BaseAgent, Board, Budget, Claims, Item, Outcome, Section, Swarm, Work
from swarm_infrastructure.llm import LLMRequest
from swarm_infrastructure.testing import FunctionLLM

SECTIONS = ("gather", "draft", "check", "publish")
KEEP_S = 60.0  # published items
MODEL = "gpt-4o-mini"


def _section(name: str, after: str) -> Section:
    last = name == SECTIONS[-1]
    return Section(
        ready={"waiting": "active"}, resting=("done",) if last else (), then={"active": after},
        max_attempts=0, max_crashes=0, keep_s=KEEP_S if last else None,
    )  # fmt: skip


BOARD = Board(
    name="soak",
    sections={
        name: _section(name, f"{after}/waiting" if after else "publish/done")
        for name, after in zip(SECTIONS, [*SECTIONS[1:], ""], strict=True)
    },
    steps={"active": frozenset({"waiting", "done"})},
    final=frozenset({"done"}),
)


class Stage(BaseAgent):
    """Passes items on."""

    async def setup(self) -> None:
        self.sampling = asyncio.create_task(sample(), name="samples")

    async def process(self, item: Item, work: Work) -> Outcome:
        if item.payload["asks"] and item.section == "draft":
            answer = await work.ask("content_analysis", f"What of {item.id}?", model=MODEL, max_output_tokens=50)
            return work.done(patch={"angle": answer.text})
        return work.done()


class Gatherer(Stage):
    """The first section."""

    claims = Claims("gather", batch=50)


class Drafter(Stage):
    """The second; asks the model."""

    claims = Claims("draft", batch=50)


class Checker(Stage):
    """The third."""

    claims = Claims("check", batch=50)


class Publisher(Stage):
    """The last."""

    claims = Claims("publish", batch=50)


class Stub(FunctionLLM):
    """A model that remembers nothing of what it was asked."""

    def __init__(self) -> None:
        super().__init__(self._after_a_while)
        self.requests = deque(maxlen=1)  # type: ignore[assignment]

    @staticmethod
    async def _after_a_while(request: LLMRequest) -> str:
        await asyncio.sleep(0.05)
        return "an angle"


samples: Path
every_s: float
sampled = asyncio.Event()


async def sample() -> None:
    """Write down every so often what this process holds; one of its agents does."""
    if sampled.is_set():
        return
    sampled.set()
    while True:
        facts = {
            "at": time.time(),
            "pid": os.getpid(),
            "rss_kb": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024,
            "fds": len(os.listdir("/proc/self/fd")),
            "tasks": len(asyncio.all_tasks()),
            "objects": len(gc.get_objects()),
        }
        with samples.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        await asyncio.sleep(every_s)


def main() -> None:
    global samples, every_s
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--every", type=float, default=10.0)
    options = parser.parse_args()
    samples, every_s = options.samples, options.every
    agents = [Gatherer, Drafter, Checker, Publisher]
    Swarm(agents, board=BOARD, llm=Stub(), budget=Budget(daily_limit=1000)).run(processes=1)


if __name__ == "__main__":
    main()
