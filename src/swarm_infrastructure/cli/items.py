"""``swarm items``: look at items, and put right what went wrong with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RefusedError
from .render import (
    BoardOption,
    Column,
    Output,
    OutputOption,
    ReasonOption,
    YesOption,
    clock,
    confirm,
    cut,
    help_if_alone,
    say,
    show,
    show_json,
    show_rows,
    table,
)
from .session import acting_user, finish, open_board

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..blackboard import Blackboard

__all__ = ["app"]

app = typer.Typer(
    help="Look at items and what is on record for them; bring them back from quarantine, retry, replay, archive or delete them.",
    callback=help_if_alone,
    invoke_without_command=True,
)

ItemArgument = Annotated[str, typer.Argument(metavar="ID", help="The item.")]
ItemsArgument = Annotated[list[str], typer.Argument(metavar="ID", help="One item, or several.")]

PARTLY = 6
TEXT_LINES = 40  # of a payload or result in `show`; --output json has the rest


def _title(row: Mapping[str, Any]) -> str:
    payload = row["payload"]
    return str(next((payload[name] for name in ("title", "name", "text", "content") if payload.get(name)), ""))


LIST = [
    Column("id", lambda row: row["id"], fold=True),
    Column("section", lambda row: row["section"]),
    Column("status", lambda row: row["status"]),
    Column("pri", lambda row: row["priority"], right=True),
    Column("tries", lambda row: row["attempts"], right=True),
    Column("holder", lambda row: row["holder"] or "-", fold=True),
    Column("changed", lambda row: clock(row["changed_ms"])),
    Column("title", _title, spare=True),
]
HISTORY = [
    Column("when", lambda row: clock(row["at_ms"], exact=True)),
    Column("what", lambda row: row["kind"]),
    Column("from → to", lambda row: _step(row["from"], row["to"]), fold=True),
    Column("by", lambda row: row["by"] or "-", fold=True),
    Column("reason", lambda row: cut(row["reason"], 80), fold=True),
]
STEPS = [
    Column("step", lambda row: row["step"], fold=True),
    Column("stage", lambda row: row["stage"].rstrip("/") or "-", fold=True),
    Column("when", lambda row: clock(row["at_ms"], exact=True) if row["at_ms"] else "-"),
    Column("bytes", lambda row: row["bytes"], right=True),
    Column("answer", lambda row: cut(row["answer"], 80), spare=True),
]
ERRORS = [
    Column("when", lambda row: clock(row["at_ms"], exact=True)),
    Column("what", lambda row: row["kind"]),
    Column("by", lambda row: row["agent"], fold=True),
    Column("error", lambda row: row["error"], fold=True),
]


@app.command("list")
def list_items(
    section: Annotated[str | None, typer.Option("--section", "-s", metavar="NAME", help="Only this section.")] = None,
    status: Annotated[str | None, typer.Option("--status", metavar="NAME", help="Only this status.")] = None,
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", metavar="ID", help="Only what this agent holds.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most so many.")] = 50,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List items, of a section, a status or an agent.

    They come by section and status, then by priority and order of arrival.
    """

    async def read() -> list[dict[str, Any]]:
        async with open_board(board) as blackboard:
            found = await blackboard.queries.select(section=section, status=status, agent=agent, limit=limit + 1)
            return [item.facts() for item in found]

    rows = finish(read())
    show_rows(rows[:limit], LIST, output, empty="no such items")
    if len(rows) > limit:
        say(f"the first {limit} are shown; for more: --limit {limit * 10}")


@app.command("show")
def show_item(
    item_id: ItemArgument,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="With everything that happened to it.")
    ] = True,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show an item, its errors and its history."""

    async def read() -> dict[str, Any]:
        async with open_board(board) as blackboard:
            item = await blackboard.get(item_id)
            facts = item.facts() | {
                "board": blackboard.board.name,
                "until_ms": await blackboard.queries.until_ms(item),
                "errors": await blackboard.errors(item_id),
            }
            if history:
                events = await blackboard.events.history(item_id, item.event)
                facts["history"] = [event.as_dict() for event in events]
            return facts

    facts = finish(read())
    if output is Output.TABLE:
        show(*_drawn(facts))
    else:
        show_json(facts, output)


@app.command()
def release(item_ids: ItemsArgument, reason: ReasonOption = "", board: BoardOption = None) -> int:
    """Bring items back from quarantine.

    Their attempts and crashes are forgotten.
    """
    return _change(
        item_ids, board, "released", lambda desk, each: desk.release(each, agent=acting_user(), reason=reason)
    )


@app.command()
def retry(item_ids: ItemsArgument, reason: ReasonOption = "", board: BoardOption = None) -> int:
    """Offer items that wait, or are in quarantine, now."""
    return _change(item_ids, board, "offered", lambda desk, each: desk.retry(each, agent=acting_user(), reason=reason))


@app.command()
def archive(item_ids: ItemsArgument, reason: ReasonOption = "", board: BoardOption = None) -> int:
    """Move finished items to the board's archive."""
    return _change(
        item_ids, board, "archived", lambda desk, each: desk.archive(each, agent=acting_user(), reason=reason)
    )


@app.command()
def delete(
    item_ids: ItemsArgument, yes: YesOption = False, reason: ReasonOption = "", board: BoardOption = None
) -> int:
    """Take items off the board for good."""
    many = item_ids[0] if len(item_ids) == 1 else f"{len(item_ids)} items"
    confirm(f"delete {many} for good?", yes=yes)

    async def remove(desk: Blackboard, item_id: str) -> object:
        item = await desk.get(item_id)
        return await desk.delete(item.section, item_id, agent=acting_user(), reason=reason)

    return _change(item_ids, board, "deleted", remove)


@app.command()
def steps(item_id: ItemArgument, board: BoardOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show what is on record for an item: what was done or paid for it, and is not done again."""

    async def read() -> list[dict[str, Any]]:
        async with open_board(board) as blackboard:
            from ..failure_recovery import Steps

            found = await Steps(blackboard.store, blackboard.keys).list(item_id)
            return [
                {
                    "step": step.name, "stage": step.stage, "at_ms": step.at_us // 1000, "token": step.token,
                    "key": step.key, "bytes": len(step.answer), "answer": step.answer.decode(errors="replace"),
                }
                for step in found
            ]  # fmt: skip

    show_rows(finish(read()), STEPS, output, empty=f"nothing is on record for {item_id}")


@app.command()
def replay(
    item_id: ItemArgument,
    start: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="A section, SECTION/STATUS, or a step that was done in it.")
    ] = "",
    copy_id: Annotated[str, typer.Option("--as", metavar="ID", help="The copy's id; ID~replay-N by default.")] = "",
    board: BoardOption = None,
) -> None:
    """Run an item again as a copy, with its recorded answers, at no cost.

    The copy goes to where the item was when its first answer was recorded, or to --from; the swarm that runs works on it.
    Nothing is called or paid for: a step that is not on record sends the copy to quarantine.
    """

    async def put() -> str:
        async with open_board(board) as blackboard:
            from ..failure_recovery import Steps

            recorded = Steps(blackboard.store, blackboard.keys)
            return await recorded.replay(blackboard, item_id, start=start, copy_id=copy_id, agent=acting_user())

    name = finish(put())
    say(f"{item_id} is replayed as {name}; follow it: swarm items show {name}")


def _change(
    item_ids: Sequence[str], board: str | None, done: str, change: Callable[[Blackboard, str], Awaitable[object]]
) -> int:
    """Change each item; one that is refused does not keep the others from it."""

    async def each() -> list[RefusedError]:
        refused: list[RefusedError] = []
        async with open_board(board) as blackboard:
            for item_id in dict.fromkeys(item_ids):
                try:
                    await change(blackboard, item_id)
                    say(f"{done} {item_id}")
                except RefusedError as error:
                    if len(item_ids) == 1:
                        raise
                    say(str(error))
                    refused.append(error)
        return refused

    refused = finish(each())
    if not refused:
        return 0
    return 1 if len(refused) == len(set(item_ids)) else PARTLY


def _drawn(facts: Mapping[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    def heading(title: str) -> Text:
        return Text(f"\n{title}", "bold")

    place = f"{facts['section']}/{facts['status']}" + (f", requires {facts['requires']}" if facts["requires"] else "")
    until = clock(facts["until_ms"] or 0)
    held = f"{facts['holder']} until {until} (token {facts['token']})" if facts["holder"] else "nobody"
    known = {
        "board": facts["board"],
        "stands in": place + (f", not before {until}" if until and not facts["holder"] else ""),
        "held by": held,
        "priority": facts["priority"],
        "version": facts["version"],
        "attempts": f"{facts['attempts']}, crashes {facts['crashes']}",
        "submitted": clock(facts["created_ms"]),
        "changed": clock(facts["changed_ms"]),
    }
    parts: list[RenderableType] = [Text(facts["id"], "bold")]
    parts += [Text(f"  {name:<10} {cut(str(value))}") for name, value in known.items()]
    parts += [heading("Payload"), *_as_lines(facts["payload"])]
    if facts["result"] is not None:
        parts += [heading("Result"), *_as_lines(facts["result"])]
    if facts["errors"]:
        parts += [heading("Errors"), table(facts["errors"], ERRORS)]
    if "history" in facts:
        parts += [heading("History"), table(facts["history"], HISTORY)]
    return parts


def _as_lines(data: Any) -> list[RenderableType]:
    """JSON for people: long texts and long lists are cut."""
    import json

    from rich.text import Text

    lines = json.dumps(data, ensure_ascii=False, indent=2).splitlines()
    shown = [Text("  " + cut(line)) for line in lines[:TEXT_LINES]]
    if len(lines) > TEXT_LINES:
        shown.append(Text(f"  … {len(lines) - TEXT_LINES} lines more: --output json"))
    return list(shown)


def _step(before: str, after: str) -> str:
    """Two lanes in few words: what stays the same is said once."""
    old, new = before.rstrip("/"), after.rstrip("/")
    if not old or not new:
        return f"{old or '(new)'} → {new or '(gone)'}"
    if old == new:
        return old
    section, _, rest = new.partition("/")
    return f"{old} → {rest if old.startswith(section + '/') else new}"
