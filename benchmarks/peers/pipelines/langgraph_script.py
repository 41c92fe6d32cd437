"""LangGraph: a graph of four nodes, a thread an item; checkpoints nowhere, in memory, or in SQLite."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph

from ..probe import make_payload
from . import STAGES, measure, order, run


class State(TypedDict):
    payload: dict[str, Any]
    stage: str


@asynccontextmanager
async def saver(kind: str) -> AsyncIterator[Any]:
    """Where checkpoints go."""
    if kind == "memory":
        yield InMemorySaver()
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            async with AsyncSqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.sqlite")) as found:
                await found.setup()  # write-ahead log, the quicker kind
                yield found
    else:
        yield None


def build(checkpointer: Any) -> Any:
    graph = StateGraph(State)
    for name in STAGES:

        async def stage(state: State, name: str = name) -> dict[str, str]:
            return {"stage": name}

        graph.add_node(name, stage)
    for before, after in zip((START, *STAGES), (*STAGES, END), strict=True):
        graph.add_edge(before, after)
    return graph.compile(checkpointer=checkpointer)


async def main() -> None:
    kind = str(order()["saver"])
    async with saver(kind) as checkpointer:
        graph = build(checkpointer)
        options: dict[str, Any] = {"durability": "async"} if kind == "sqlite" else {}

        async def one(number: int) -> None:
            thread = {"configurable": {"thread_id": str(number)}}
            await graph.ainvoke({"payload": make_payload(number), "stage": ""}, thread, **options)

        await measure(one)


if __name__ == "__main__":
    run(main)
