"""``swarm audit``: does Redis hold what must always hold?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .render import WHOLE, BoardOption, Column, Output, OutputOption, cut, show, show_json, table
from .session import finish, open_session

if TYPE_CHECKING:
    from rich.text import Text

    from ..watchdog.audit import WholeAudit

__all__ = ["audit"]

VERDICTS = [
    Column("rule", lambda row: row["invariant"]),
    Column("state", lambda row: _state(row)),
    Column("what must hold", lambda row: _whole(row["what"] + (f" ({row['note']})" if row["note"] else "")), fold=True),
]
BREACHES = [
    Column("board", lambda row: row["board"]),
    Column("rule", lambda row: row["invariant"]),
    Column("item", lambda row: row["item"] or "(board)", fold=True),
    Column("what", lambda row: _whole(row["what"]), fold=True),
]


def _whole(text: str) -> Text:
    from rich.text import Text

    return Text(cut(text, WHOLE))


def _state(row: Mapping[str, Any]) -> Text:
    from rich.text import Text

    style = {"holds": "green", "broken": "red"}.get(row["state"], "yellow")
    return Text(f"broken {row['breaches']}×" if row["breaches"] else row["state"], style)


def audit(
    board: BoardOption = None,
    at_rest: Annotated[
        bool, typer.Option("--at-rest", help="Nobody is meant to be at work: nothing may be held or awaited.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> int:
    """Check every invariant of one board, or of all; exit code 1 if one is broken.

    Reads Redis and changes nothing; a swarm may be at work meanwhile.
    """
    reports = finish(_read(board, at_rest))
    match output:
        case Output.TABLE:
            _show(reports)
        case Output.JSON:
            show_json([report.as_dict() for report in reports])
        case Output.JSONL:
            for report in reports:
                show_json(report.as_dict(), output)
    return 0 if all(report.clean for report in reports) else 1


async def _read(board: str | None, at_rest: bool) -> list[WholeAudit]:
    from ..cost_manager.budgets import zone
    from ..watchdog.audit import audit_whole

    async with open_session() as session:
        names = await session.boards(board)
        if not names:
            raise session.no_boards()
        settings = session.settings
        return [
            await audit_whole(
                session.store,
                settings.namespace,
                name,
                zone=zone(settings.budget_tz),
                at_rest=at_rest,
            )
            for name in names
        ]


def _show(reports: list[WholeAudit]) -> None:
    from rich.text import Text

    for report in reports:
        broken = f"breaches: {len(report.breaches)}" if report.breaches else "every invariant holds"
        said = f"{report.board}: {report.items} items, {report.events} events: {broken}"
        show(Text(said, "" if report.clean else "red"), table([each.as_dict() for each in report.verdicts()], VERDICTS))
    rows = [
        {"board": each["board"], **breach} for each in (r.as_dict() for r in reports) for breach in each["breaches"]
    ]
    if rows:
        rows.sort(key=lambda row: (row["board"], row["invariant"], row["item"]))
        show(Text(""), table(rows, BREACHES))
