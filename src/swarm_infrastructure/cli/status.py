"""``swarm status``: what stands where, who works on it, and what stops them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UnavailableError
from .render import BoardOption, Column, Output, OutputOption, cut, show, show_json, stdout, table
from .session import Session, finish, open_session

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["status"]

NUMBERS = ("total", "ready", "claimed", "delayed", "quarantined", "resting")
SECTIONS = [
    Column("section", lambda row: row["section"]),
    Column("items", lambda row: row["total"], right=True),
    Column("ready", lambda row: row["ready"], right=True),
    Column("claimed", lambda row: row["claimed"], right=True),
    Column("delayed", lambda row: row["delayed"], right=True),
    Column("quarantined", lambda row: row["quarantined"], right=True),
    Column("by status", lambda row: ", ".join(f"{name} {n}" for name, n in row["by_status"].items()), fold=True),
]


def status(
    board: BoardOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How often, with --watch.")] = 2.0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show where Redis is, and for each board its items, agents and shut gates."""
    if watch:
        finish(_watch(board, every, output))
    else:
        facts = finish(_read(board))
        if output is Output.TABLE:
            show(_drawn(facts))
        else:
            show_json(facts, output)


async def _watch(board: str | None, every_s: float, output: Output) -> None:
    import asyncio

    facts = await _read(board)  # what is wrong from the beginning ends the command
    if output is not Output.TABLE:
        while True:
            show_json(facts, output)
            await asyncio.sleep(every_s)
            facts = await _read(board)
    from rich.live import Live
    from rich.text import Text

    with Live(_drawn(facts), console=stdout(), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(every_s)
            try:
                live.update(_drawn(await _read(board)), refresh=True)
            except UnavailableError as error:
                live.update(Text(f"swarm: {error}"), refresh=True)


async def _read(board: str | None) -> dict[str, Any]:
    async with open_session() as session:
        info = await session.store.info()
        name = "valkey" if "valkey_version" in info else "redis"
        return {
            "redis": {
                "found": session.located.how,
                "url": session.store.shown,
                "private": session.settings.redis_url_from_env() is None,
                "version": f"{name} {info[f'{name}_version']}",
            },
            "namespace": session.settings.namespace,
            "boards": [await _read_board(session, each) for each in await session.boards(board)],
        }


async def _read_board(session: Session, name: str) -> dict[str, Any]:
    blackboard = await session.board(name)
    sections = [section.as_dict() for section in await blackboard.queries.numbers()]
    agents = await blackboard.agents.list()
    totals = {word: sum(section[word] for section in sections) for word in NUMBERS}
    offline = sum(agent.status.value == "offline" for agent in agents)
    return {
        "board": name,
        **totals,
        "sections": sections,
        "agents": {"alive": len(agents) - offline, "offline": offline},
        "gates": await blackboard.agents.gates(),
    }


def _drawn(facts: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from ..blackboard.queries import QUEUE

    redis = facts["redis"]
    where = redis["found"] if redis["private"] else f"{redis['url']} ({redis['found']})"
    parts: list[RenderableType] = [Text(f"{redis['version']}, {where}, namespace {facts['namespace']}")]
    if not facts["boards"]:
        parts.append(Text("No board yet; a swarm makes one: swarm run TARGET"))
    for board in facts["boards"]:
        agents = board["agents"]
        line = Text.assemble("\n", (f"Board {board['board']}", "bold"), f": {board['total']} items, ")
        line.append(f"{agents['alive']} agents alive")
        if agents["offline"]:
            line.append(f", {agents['offline']} offline", "yellow")
        if (
            board["ready"] and not agents["alive"] and not board["board"].endswith(QUEUE)
        ):  # whose workers need not register
            line.append("; nobody takes what is ready", "yellow")
        parts.append(line)
        for who, why in sorted(board["gates"].items()):
            parts.append(
                Text(f"Gate shut for {'all' if who == '*' else who.removeprefix('agent:')}: {cut(why)}", "yellow")
            )
        rows = board["sections"]
        if len(rows) > 1:
            rows = [*rows, {"section": "(all)", "by_status": {}, **{word: board[word] for word in NUMBERS}}]
        parts.append(table(rows, SECTIONS))
    return Group(*parts)
