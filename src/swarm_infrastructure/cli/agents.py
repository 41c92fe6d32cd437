"""``swarm agents``: who works here; stop them, let them go on, take their work away."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInputError
from .render import BoardOption, Column, Output, OutputOption, ReasonOption, YesOption, ago, confirm, say, show_rows
from .session import acting_user, finish, open_board, open_bus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ..blackboard import Blackboard
    from ..message_bus import Controls

__all__ = ["app"]

app = typer.Typer(
    help="See who works on a board; pause agents, let them go on, take their work away.", invoke_without_command=True
)

WhoArgument = Annotated[str | None, typer.Argument(metavar="WHO", help="An agent's id, or role:NAME.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every agent of the board.")]


def _place(row: Mapping[str, Any]) -> str:
    facts = row["facts"]
    return f"{facts['host']}:{facts['pid']}" if {"host", "pid"} <= facts.keys() else "-"


LIST = [
    Column("agent", lambda row: row["agent_id"], fold=True),
    Column("role", lambda row: row["role"]),
    Column("status", lambda row: row["status"] + (f" ({row['gate']})" if row["gate"] else ""), fold=True),
    Column("holds", lambda row: len(row["current_items"]), right=True),
    Column("done", lambda row: row["tasks_completed"], right=True),
    Column("failed", lambda row: row["tasks_failed"], right=True),
    Column("seen", lambda row: f"{ago(row['age_s'])} ago"),
    Column("where", _place, spare=True),
]


@app.callback()
def agents(context: typer.Context, board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """List agents, if no command is named."""
    if context.invoked_subcommand is None:
        list_agents(board, output)
    elif board is not None or output is not Output.TABLE:
        word = context.invoked_subcommand
        raise InvalidInputError("options", found=f"before {word!r}", needed=f"after it: swarm agents {word} ...")


@app.command("list")
def list_agents(board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """List agents: what they do, hold, and when they were seen."""

    async def read() -> list[dict[str, Any]]:
        async with open_board(board) as blackboard:
            return [agent.as_dict() for agent in await blackboard.agents.list()]

    show_rows(finish(read()), LIST, output, empty="no agents are registered; start some: swarm run TARGET")


@app.command()
def pause(
    who: WhoArgument = None, everyone: AllOption = False, reason: ReasonOption = "paused", board: BoardOption = None
) -> None:
    """Stop agents from claiming.

    What they hold they may finish.
    """
    from ..message_bus import Controls

    gate = _gate(who, everyone)

    async def shut() -> None:
        async with open_board(board) as blackboard, open_bus() as bus:
            await Controls(blackboard, bus.broadcast, sender=bus.agent_id).pause(gate, reason=reason)
            say(
                f"paused {_name(gate)} on board {blackboard.board.name!r}; let go on with: swarm agents resume {_word(gate)}"
            )
            await _warn_of_a_stranger(blackboard, gate)

    finish(shut())


@app.command()
def resume(who: WhoArgument = None, everyone: AllOption = False, board: BoardOption = None) -> None:
    """Let agents claim again."""
    from ..message_bus import Controls

    gate = _gate(who, everyone)

    async def open_gate() -> None:
        async with open_board(board) as blackboard, open_bus() as bus:
            was_shut = await Controls(blackboard, bus.broadcast, sender=bus.agent_id).resume(gate)
            name = f"{_name(gate)} on board {blackboard.board.name!r}"
            say(f"{name} may claim again" if was_shut else f"{name} was not paused")
            for other, why in (await blackboard.agents.gates()).items():
                say(f"still shut: {_name(other)} ({why}); open with: swarm agents resume {_word(other)}")

    finish(open_gate())


@app.command()
def drain(who: WhoArgument = None, everyone: AllOption = False, board: BoardOption = None) -> None:
    """Have agents finish what they hold, and leave.

    Agents that come later are not meant.
    """
    finish(_order("drain", _gate(who, everyone), board))


@app.command()
def shutdown(who: WhoArgument = None, everyone: AllOption = False, board: BoardOption = None) -> None:
    """Have agents leave within their grace.

    What they have not finished by then is handed back. Agents that come later are not meant.
    """
    finish(_order("shutdown", _gate(who, everyone), board))


@app.command()
def stop(
    reason: Annotated[str, typer.Argument(help="Why; every agent is told.")],
    yes: YesOption = False,
    board: BoardOption = None,
) -> None:
    """Emergency stop: everybody hands back what they hold, at once, and claims no more."""
    confirm("stop every agent at once?", yes=yes)

    async def halt() -> None:
        async with _controls(board) as controls:
            heard = await controls.emergency_stop(reason)
            say(
                f"stopped: {heard} processes heard it, others stop with their next claim; end it with: swarm agents resume --all"
            )

    finish(halt())


@contextlib.asynccontextmanager
async def _controls(board: str | None) -> AsyncIterator[Controls]:
    from ..message_bus import Controls

    async with open_board(board) as blackboard, open_bus() as bus:
        yield Controls(blackboard, bus.broadcast, sender=bus.agent_id)


async def _order(what: str, gate: str, board: str | None) -> None:
    async with _controls(board) as controls:
        told = await (controls.drain(gate) if what == "drain" else controls.shutdown(gate))
        if told:
            say(f"told to {what}: {', '.join(told)}; who is still here: swarm agents list")
        else:
            say(f"nobody was told: no agent is registered as {_name(gate)}; who is there: swarm agents list")


@app.command()
def revoke(
    agent_id: Annotated[str, typer.Argument(metavar="ID", help="The agent.")],
    yes: YesOption = False,
    reason: ReasonOption = "revoked",
    board: BoardOption = None,
) -> None:
    """Stop an agent for good, and take its claims away.

    They are offered again, and whatever it still writes is refused.
    """
    confirm(f"take everything away from {agent_id}?", yes=yes)

    async def take() -> None:
        async with open_board(board) as blackboard:
            lost = await blackboard.agents.revoke(agent_id, agent=acting_user(), reason=reason)
            say(f"revoked {agent_id}: {lost} claims are offered again; undo with: swarm agents resume {agent_id}")
            await _warn_of_a_stranger(blackboard, f"agent:{agent_id}")

    finish(take())


def _gate(who: str | None, everyone: bool) -> str:
    if (who is None) is not everyone:
        raise InvalidInputError(
            "WHO", found="both" if everyone else "nobody", needed="one of: an agent's id, role:NAME, --all"
        )
    if who is None:
        return "*"
    return who if who.startswith(("role:", "agent:")) else f"agent:{who}"


def _word(gate: str) -> str:
    return "--all" if gate == "*" else gate.removeprefix("agent:")


def _name(gate: str) -> str:
    return "all agents" if gate == "*" else gate.removeprefix("agent:")


async def _warn_of_a_stranger(blackboard: Blackboard, gate: str) -> None:
    kind, _, name = gate.partition(":")
    known = await blackboard.agents.list()
    if kind == "agent" and name not in {agent.agent_id for agent in known}:
        say(f"mind that no agent is registered as {name!r}; who is: swarm agents list")
    if kind == "role" and name not in {agent.role for agent in known}:
        say(f"mind that no agent has the role {name!r}; who is there: swarm agents list")
