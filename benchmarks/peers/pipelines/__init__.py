"""Four stages that do nothing (scout, analyst, writer, publisher) in the frameworks that agents are built with.

A script of its own for each, run as ``python -m peers.pipelines.NAME ORDER`` in its environment, where ORDER is JSON:
``items``, ``most_s``, and ``saver`` where there is a choice. Ours is measured like a worker: see ``adapters/ours.py``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ..process import prefer_uvloop

__all__ = ["PIPELINES", "STAGES", "Pipeline", "measure", "order", "run", "tell"]

STAGES = ("scout", "analyst", "writer", "publisher")
WARM_UP = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A framework, and how it is set up."""

    module: str
    packages: tuple[str, ...]
    keeps: str  #: what is left of an item in the middle when its process dies
    saver: str = ""


PIPELINES = {
    "pydantic-graph": Pipeline(module="pydantic_graph_script", packages=("pydantic-graph",), keeps="nothing"),
    "autogen-core": Pipeline(module="autogen_script", packages=("autogen-core",), keeps="nothing: a queue in memory"),
    "langgraph": Pipeline(module="langgraph_script", packages=("langgraph",), keeps="nothing"),
    "langgraph-memory": Pipeline(
        module="langgraph_script", packages=("langgraph",), saver="memory", keeps="nothing: checkpoints in memory"
    ),
    "langgraph-sqlite": Pipeline(
        module="langgraph_script", packages=("langgraph", "langgraph-checkpoint-sqlite"), saver="sqlite",
        keeps="a checkpoint a step, in SQLite (durability async)",
    ),
    "llama-index-workflows": Pipeline(
        module="llama_index_script", packages=("llama-index-workflows",), keeps="nothing"
    ),
    "dbos": Pipeline(module="dbos_script", packages=("dbos",), keeps="each step's output, in SQLite"),
}  # fmt: skip


def order() -> dict[str, Any]:
    """What this script is to do."""
    return {"items": 2000, "most_s": 8.0, "saver": ""} | json.loads(sys.argv[1])


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a script."""
    prefer_uvloop()
    asyncio.run(main())  # type: ignore[arg-type]


def tell(way: str, items: int, seconds: float) -> None:
    """One line: so many items took so long."""
    print("\nPEER " + json.dumps({"way": way, "per_s": items / seconds, "items": items}), flush=True)


async def measure(one: Callable[[int], Awaitable[Any]], *, at_once: int = 50) -> None:
    """Take items through all stages, one after the other and then so many at once."""
    items, most_s = int(order()["items"]), float(order()["most_s"])
    for number in range(WARM_UP):
        await one(number)
    for way, lanes in (("one after the other", 1), (f"{at_once} at once", at_once)):
        first = WARM_UP if lanes == 1 else WARM_UP + items
        numbers = iter(range(first, first + items))
        began, done = time.perf_counter(), 0

        async def lane() -> None:
            nonlocal done
            for number in numbers:  # noqa: B023 - it ends before the next round
                await one(number)
                done += 1
                if time.perf_counter() - began > most_s:  # noqa: B023
                    return

        await asyncio.gather(*(lane() for _ in range(lanes)))
        tell(way, done, time.perf_counter() - began)
