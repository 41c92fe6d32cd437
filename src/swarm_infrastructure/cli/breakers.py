"""``swarm breakers``: backends that failed too often, and breakers opened or closed by hand."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .render import BoardOption, Column, Output, OutputOption, say, show_rows
from .session import finish, open_recovery

__all__ = ["app"]

app = typer.Typer(
    help="See backends that failed too often; open or close their breakers by hand.", invoke_without_command=True
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The backend: model:NAME, or a name of your own.")]
LIST = [
    Column("breaker", lambda row: row["name"], fold=True),
    Column("state", lambda row: row["state"].replace("_", "-")),
    Column("failures", lambda row: row["failures"], right=True),
    Column("tried again", lambda row: _again(row)),
]


def _again(row: dict[str, Any]) -> str:
    if row["state"] == "open":
        return f"in {row['wait_s']:.0f} s" if row["wait_s"] else "with the next call"
    return f"{row['probes']} probes under way" if row["state"] == "half_open" else "-"


@app.callback()
def breakers(context: typer.Context, board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """List breakers that are not simply closed, if no command is named."""
    if context.invoked_subcommand is None:
        list_breakers(board, output)


@app.command("list")
def list_breakers(board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """List breakers that are open, half-open, or have counted failures."""

    async def read() -> list[dict[str, Any]]:
        async with open_recovery(board) as recovery:
            return [asdict(each) for each in await recovery.breakers()]

    show_rows(finish(read()), LIST, output, empty="every backend works, as far as anybody has noticed")


@app.command("open")
def open_breaker(
    name: NameArgument,
    seconds: Annotated[float, typer.Option("--for", metavar="SECONDS", min=1, max=30 * 86400, help="How long.")] = 60.0,
    board: BoardOption = None,
) -> None:
    """Let nobody call a backend for a while."""

    async def change() -> None:
        async with open_recovery(board) as recovery:
            await recovery.breaker_states.open(name, seconds)

    finish(change())
    say(f"{name} is called by nobody for {seconds:g} s; close it: swarm breakers close {name}")


@app.command("close")
def close_breaker(name: NameArgument, board: BoardOption = None) -> None:
    """Let everybody call a backend again, its failures forgotten."""

    async def change() -> bool:
        async with open_recovery(board) as recovery:
            known = any(each.name == name for each in await recovery.breakers())
            await recovery.breaker_states.close(name)
            return known

    say(f"closed {name}" if finish(change()) else f"{name} was closed already")
