"""``swarm audit``: does Redis hold what must always hold?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .render import WHOLE, BoardOption, Column, Output, OutputOption, cut, show, show_json, table
from .session import finish, open_session

if TYPE_CHECKING:
    from rich.text import Text

    from ..blackboard.audit import AuditReport
    from .session import Session

__all__ = ["audit"]

BREACHES = [
    Column("board", lambda row: row["board"]),
    Column("rule", lambda row: row["invariant"]),
    Column("item", lambda row: row["item"] or "(board)", fold=True),
    Column("what", lambda row: _whole(row["what"]), fold=True),
]


def _whole(text: str) -> Text:
    from rich.text import Text

    return Text(cut(text, WHOLE))


def audit(board: BoardOption = None, output: OutputOption = Output.TABLE) -> int:
    """Check every invariant of one board, or of all; exit code 1 if one is broken.

    Reads Redis and changes nothing; a swarm may be at work meanwhile.
    """
    reports = finish(_read(board))
    match output:
        case Output.TABLE:
            _show(reports)
        case Output.JSON:
            show_json([report.as_dict() for report in reports])
        case Output.JSONL:
            for report in reports:
                show_json(report.as_dict(), output)
    return 0 if all(report.clean for report in reports) else 1


async def _read(board: str | None) -> list[AuditReport]:
    async with open_session() as session:
        names = await session.boards(board)
        if not names:
            raise session.no_boards()
        return [await _audit_all(session, name) for name in names]


async def _audit_all(session: Session, name: str) -> AuditReport:
    """The audit of the board, of its money and of its debates."""
    from ..blackboard.audit import audit as audit_board
    from ..consensus import audit_debates
    from ..cost_manager import Ledger, audit_money
    from ..cost_manager.budgets import zone
    from ..keys import BoardKeys

    namespace = session.settings.namespace
    report = await audit_board(session.store, namespace, name)
    keys = BoardKeys(namespace, name)
    report.breaches += await audit_money(Ledger(session.store, keys, zone(session.settings.budget_tz)))
    report.breaches += await audit_debates(session.store, keys)
    return report


def _show(reports: list[AuditReport]) -> None:
    from rich.text import Text

    for report in reports:
        found = f"breaches: {len(report.breaches)}" if report.breaches else "every invariant holds"
        show(
            Text(
                f"{report.board}: {report.items} items, {report.events} events: {found}", "" if report.clean else "red"
            )
        )
        for skipped in report.skipped:
            show(Text(f"{report.board}: not compared: {skipped}", "yellow"))
    rows = [
        {"board": each["board"], **breach} for each in (r.as_dict() for r in reports) for breach in each["breaches"]
    ]
    if rows:
        rows.sort(key=lambda row: (row["board"], row["invariant"], row["item"]))
        show(Text(""), table(rows, BREACHES))
