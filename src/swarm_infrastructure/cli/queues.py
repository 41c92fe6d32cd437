"""``swarm queues``: work queues, the tasks that come next, and those that were set aside."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .render import Column, Output, OutputOption, cut, say, show_rows
from .session import finish, open_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ..message_bus import TaskQueues


__all__ = ["app"]

app = typer.Typer(help="See work queues, the tasks that come next, and those set aside.", invoke_without_command=True)

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="Its name, such as swarm.work.production.")]
CountOption = Annotated[int, typer.Option("--count", "-n", min=1, help="How many.")]
LIST = [
    Column("queue", lambda row: row["queue"], fold=True),
    Column("ready", lambda row: row["ready"], right=True),
    Column("delayed", lambda row: row["delayed"], right=True),
    Column("claimed", lambda row: row["claimed"], right=True),
    Column("done", lambda row: row["done"], right=True),
    Column("set aside", lambda row: row["set_aside"], right=True),
]
TASKS = [
    Column("task", lambda row: row["task_id"], fold=True),
    Column("type", lambda row: row["task_type"]),
    Column("priority", lambda row: row["priority"], right=True),
    Column("deadline", lambda row: row["deadline"] or "-"),
    Column("parameters", lambda row: cut(json.dumps(row["parameters"])), fold=True),
]
ASIDE = [*TASKS[:2], Column("why", lambda row: cut(row["why"]), fold=True)]


@contextlib.asynccontextmanager
async def _open(queue: str | None = None) -> AsyncIterator[TaskQueues]:
    from ..message_bus import TaskQueues

    async with open_session() as session:
        queues = TaskQueues(session.store, session.settings.namespace)
        try:
            if queue is not None and queue not in (known := await queues.names()):
                needed = f"one of namespace {session.settings.namespace!r}: {', '.join(known) or 'which has none yet'}"
                raise InvalidInputError("QUEUE", found=queue, needed=needed)
            yield queues
        finally:
            await queues.close()


@app.callback()
def queues(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List work queues, if no command is named."""
    if context.invoked_subcommand is None:
        list_queues(output)


@app.command("list")
def list_queues(output: OutputOption = Output.TABLE) -> None:
    """List work queues, and how many tasks stand where."""

    async def read() -> list[dict[str, Any]]:
        async with _open() as queues:
            rows = []
            for name in await queues.names():
                [numbers] = await (await queues.board(name)).queries.numbers()
                facts = numbers.as_dict()
                row = {"queue": name, **{word: facts[word] for word in ("ready", "delayed", "claimed")}}
                rows.append(row | {"done": facts["resting"], "set_aside": facts["quarantined"]})
            return rows

    show_rows(finish(read()), LIST, output, empty="no work queue yet; the first task put into one makes it")


@app.command()
def peek(queue: QueueArgument, count: CountOption = 10, output: OutputOption = Output.TABLE) -> None:
    """Show the next tasks of a queue, without taking them."""

    async def read() -> list[dict[str, Any]]:
        async with _open(queue) as queues:
            return [task.model_dump(mode="json") for task in await queues.peek(queue, count)]

    show_rows(finish(read()), TASKS, output, empty=f"{queue} is empty")


@app.command()
def aside(queue: QueueArgument, count: CountOption = 100, output: OutputOption = Output.TABLE) -> None:
    """Show tasks that were set aside, and why: they failed or crashed too often, or came too late."""

    async def read() -> list[dict[str, Any]]:
        async with _open(queue) as queues:
            found = await queues.set_aside(queue, count)
            return [task.model_dump(mode="json") | {"why": why} for task, why in found]

    show_rows(finish(read()), ASIDE, output, empty=f"nothing of {queue} was set aside")


@app.command()
def redrive(
    queue: QueueArgument,
    task_id: Annotated[str | None, typer.Argument(metavar="TASK", help="Its id.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every task that was set aside.")] = False,
) -> None:
    """Let tasks that were set aside be tried again, with all their attempts."""
    if (task_id is None) is not everything:
        raise InvalidInputError("TASK", found="both" if everything else "none", needed="one of: a task's id, --all")

    async def put_back() -> None:
        async with _open(queue) as queues:
            ids = [task_id] if task_id else [task.task_id for task, _ in await queues.set_aside(queue, 10_000)]
            for each in ids:
                await queues.redrive(queue, each)
            say(f"{len(ids)} tasks of {queue} are tried again")

    finish(put_back())
