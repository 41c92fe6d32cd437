"""``swarm checkpoints``: how far tasks had come."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..errors import RefusedError
from .render import BoardOption, Column, Output, OutputOption, YesOption, clock, confirm, say, show_json, show_rows
from .session import finish, open_recovery

__all__ = ["app"]

app = typer.Typer(help="See how far tasks had come, and forget it.", invoke_without_command=True)

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="The task; often an item.")]
LIST = [
    Column("task", lambda row: row["task_id"], fold=True),
    Column("stage", lambda row: row["stage"], fold=True),
    Column("written", lambda row: clock(round(row["created_at"] * 1000), exact=True)),
    Column("kept until", lambda row: clock(round(row["expires_at"] * 1000))),
    Column("token", lambda row: row["token"] or "-", right=True),
]


@app.callback()
def checkpoints(context: typer.Context, board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """List checkpoints, if no command is named."""
    if context.invoked_subcommand is None:
        list_checkpoints(None, board, output)


@app.command("list")
def list_checkpoints(
    task_id: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Only this task's.")] = None,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List checkpoints, of one task or all, each task's oldest first."""

    async def read() -> list[dict[str, Any]]:
        async with open_recovery(board) as recovery:
            tasks = [task_id] if task_id else await recovery.checkpoints.tasks()
            return [asdict(each) for task in tasks for each in await recovery.list_checkpoints(task)]

    show_rows(finish(read()), LIST, output, empty="no checkpoints")


@app.command()
def show(
    task_id: TaskArgument,
    stage: Annotated[str | None, typer.Option("--stage", metavar="NAME", help="This stage's, not the newest.")] = None,
    board: BoardOption = None,
) -> None:
    """Show the newest checkpoint of a task, with its data, as JSON."""

    async def read() -> dict[str, Any]:
        async with open_recovery(board) as recovery:
            found = await recovery.get_checkpoint(task_id, stage)
            if found is None:
                of = f"of stage {stage!r} " if stage else ""
                raise RefusedError(f"task {task_id!r} has no checkpoint {of}any more; list them: swarm checkpoints")
            return asdict(found)

    show_json(finish(read()), Output.JSON)


@app.command()
def delete(task_id: TaskArgument, yes: YesOption = False, board: BoardOption = None) -> None:
    """Forget the checkpoints of a task: its next attempt begins anew."""
    confirm(f"forget how far {task_id} had come?", yes=yes)

    async def change() -> None:
        async with open_recovery(board) as recovery:
            if not await recovery.checkpoints.delete(task_id):
                raise RefusedError(f"task {task_id!r} has no checkpoints; list them: swarm checkpoints")

    finish(change())
    say(f"forgot the checkpoints of {task_id}")
