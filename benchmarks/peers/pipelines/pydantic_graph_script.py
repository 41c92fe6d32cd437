"""pydantic-graph: four steps by GraphBuilder, a run an item."""

from __future__ import annotations

from typing import Any

from pydantic_graph import GraphBuilder, StepContext

from ..probe import make_payload
from . import STAGES, measure, run


def build() -> Any:
    builder: Any = GraphBuilder(input_type=dict, output_type=dict)

    async def step(context: StepContext[None, None, dict[str, Any]]) -> dict[str, Any]:
        return context.inputs

    steps = [builder.step(node_id=name)(step) for name in STAGES]
    ways = zip([builder.start_node, *steps], [*steps, builder.end_node], strict=True)
    builder.add(*(builder.edge_from(before).to(after) for before, after in ways))
    return builder.build()


async def main() -> None:
    graph = build()
    await measure(lambda number: graph.run(inputs=make_payload(number)))


if __name__ == "__main__":
    run(main)
