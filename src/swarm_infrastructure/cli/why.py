"""``swarm why``: why an item does not move, or what stands still on a board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .render import WHOLE, BoardOption, Column, Output, OutputOption, ago, cut, show, show_json, table
from .session import finish, open_session

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from ..blackboard import Blackboard
    from ..watchdog import Explanation, Standstill
    from .session import Session

__all__ = ["why"]

REASONS = [
    Column("reason", lambda row: row["kind"]),
    Column("found", lambda row: _found(row), fold=True),
]
STANDSTILLS = [
    Column("what", lambda row: row["kind"]),
    Column("where", lambda row: row["where"], fold=True),
    Column("found", lambda row: _found(row), fold=True),
]


def _found(row: Mapping[str, Any]) -> Text:
    """What was found, and on a line of its own what to do about it."""
    from rich.text import Text

    text = Text(cut(row["found"], WHOLE))
    if row["step"]:
        text.append(f"\n→ {cut(row['step'], WHOLE)}", "bold")
    return text


def why(
    item_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The item; without one: the boards.")] = None,
    board: BoardOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Say why an item does not move; without an item, what stands still on a board, or on all.

    Exit code 1 if something stands still and will not go on by itself (an item that is not there counts), else 0. Reads
    Redis and changes nothing.
    """
    if item_id is None:
        return _show_boards(finish(_standstills(board)), output)
    return _show_item(finish(_explanations(item_id, board)), output)


async def _explanations(item_id: str, name: str | None) -> list[Explanation]:
    """Of each board that has the item; of all that were asked, if none has."""
    from ..keys import check_id
    from ..watchdog import explain

    check_id("item id", item_id)
    async with open_session() as session:
        found = [await explain(desk, item_id) for desk in await _boards(session, name)]
        return [each for each in found if each.exists] or found


async def _standstills(name: str | None) -> list[tuple[str, list[Standstill]]]:
    from ..watchdog import find_standstills

    async with open_session() as session:
        return [(desk.board.name, await find_standstills(desk)) for desk in await _boards(session, name)]


async def _boards(session: Session, name: str | None) -> list[Blackboard]:
    names = await session.boards(name)
    if not names:
        raise session.no_boards()
    return [await session.board(each) for each in names]


def _show_item(found: Sequence[Explanation], output: Output) -> int:
    match output:
        case Output.TABLE:
            show(*_drawn(found))
        case Output.JSON:
            show_json([each.as_dict() for each in found])
        case Output.JSONL:
            for each in found:
                show_json(each.as_dict(), output)
    return int(any(each.stuck for each in found))


def _drawn(found: Sequence[Explanation]) -> list[RenderableType]:
    from rich.text import Text

    parts: list[RenderableType] = []
    for each in found:
        where = f" in {each.place}, for {ago(each.age_s)}" if each.exists else " is not there"
        parts.append(Text.assemble((each.item_id, "bold"), f" on board {each.board}{where}", end="\n"))
        parts.append(table([reason.as_dict() for reason in each.reasons], REASONS))
    return parts


def _show_boards(found: Sequence[tuple[str, list[Standstill]]], output: Output) -> int:
    from rich.text import Text

    rows = [{"board": name, "standstills": [each.as_dict() for each in standing]} for name, standing in found]
    match output:
        case Output.TABLE:
            for name, standing in found:
                said = (
                    f"{len(standing)} standstill{'' if len(standing) == 1 else 's'}"
                    if standing
                    else "nothing stands still"
                )
                show(Text.assemble((name, "bold"), f": {said}"))
                if standing:
                    show(table([each.as_dict() for each in standing], STANDSTILLS))
        case Output.JSON:
            show_json(rows)
        case Output.JSONL:
            for row in rows:
                show_json(row, output)
    return int(any(standing for _, standing in found))
