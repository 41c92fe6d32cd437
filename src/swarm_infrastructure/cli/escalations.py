"""``swarm escalations``: what waits for a person."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import RefusedError
from .render import BoardOption, Column, Output, OutputOption, clock, cut, say, show_rows
from .session import finish, open_recovery

__all__ = ["app"]

app = typer.Typer(help="See what waits for a person, and say that it was seen to.", invoke_without_command=True)

LIST = [
    Column("since", lambda row: clock(row["at_ms"])),
    Column("task", lambda row: row["task_id"], fold=True),
    Column("type", lambda row: row["type"]),
    Column("agent", lambda row: row["agent_id"] or "-", fold=True),
    Column("why", lambda row: cut(row["why"], 200), fold=True),
]


@app.callback()
def escalations(context: typer.Context, board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """List what waits for a person, if no command is named."""
    if context.invoked_subcommand is None:
        list_escalations(board, output)


@app.command("list")
def list_escalations(board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """List what waits for a person, oldest first."""

    async def read() -> list[dict[str, Any]]:
        async with open_recovery(board) as recovery:
            return [each.as_dict() for each in await recovery.escalations()]

    show_rows(finish(read()), LIST, output, empty="nothing waits for a person")


@app.command()
def resolve(
    task_id: Annotated[str, typer.Argument(metavar="TASK", help="The task.")], board: BoardOption = None
) -> None:
    """Take a task off the list. What becomes of its item is another command: swarm items release, archive or delete."""

    async def change() -> None:
        async with open_recovery(board) as recovery:
            if not await recovery.resolve_escalation(task_id):
                raise RefusedError(f"task {task_id!r} does not wait for a person; list what does: swarm escalations")

    finish(change())
    say(f"resolved {task_id}")
