"""``swarm failures``: what went wrong lately."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .render import BoardOption, Column, Output, OutputOption, clock, cut, say, show_json, show_rows
from .session import finish, open_recovery

__all__ = ["failures"]

LIST = [
    Column("when", lambda row: clock(row["at_ms"], exact=True)),
    Column("type", lambda row: row["type"]),
    Column("agent", lambda row: row["agent_id"] or "-", fold=True),
    Column("task", lambda row: row["task_id"] or "-", fold=True),
    Column("well again", lambda row: clock(row["recovered_ms"]) if row["recovered_ms"] else "-"),
    Column("error", lambda row: cut(row["error"], 200), fold=True),
]


def failures(
    agent: Annotated[str | None, typer.Option("--agent", "-a", metavar="ID", help="Only this agent's.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")] = 20,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what went wrong lately, newest first, and how the swarm is."""

    async def read() -> tuple[list[dict[str, Any]], dict[str, Any]]:
        async with open_recovery(board) as recovery:
            found = await recovery.get_failure_history(agent, count=count)
            return [each.as_dict() for each in found], await recovery.get_health_status()

    rows, health = finish(read())
    if output is not Output.TABLE:
        show_json({"health": health, "failures": rows}, output)
        return
    show_rows(rows, LIST, output, empty="nothing failed lately")
    named = {"open breakers": health["open_breakers"], "waiting for a person": health["escalations"]}
    told = [f"{what}: {', '.join(names)}" for what, names in named.items() if names]
    say("; ".join([f"the swarm is {health['status']}", *told]))
