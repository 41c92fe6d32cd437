"""How answers look: tables for people, JSON for programs, one line on stderr for everything that is no data."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "WHOLE",
    "BoardOption",
    "Column",
    "Output",
    "OutputOption",
    "ReasonOption",
    "YesOption",
    "ago",
    "clock",
    "confirm",
    "cut",
    "help_if_alone",
    "say",
    "show",
    "show_json",
    "show_rows",
    "stdout",
    "table",
]

CELL = 200  # characters of a value in a table; --output json has the rest
WHOLE = 2000  # characters of what has to be read to its end
GAP, LEAST = 2, 12  # blanks between columns; what a column must show to be worth its place
UNBOUND = 1000  # columns of what is no terminal: a program that reads lines wants whole ones


class Output(StrEnum):
    """What stdout carries."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


OutputOption = Annotated[
    Output, typer.Option("--output", "-o", metavar="FORMAT", help="table, json, or jsonl (an object a line).")
]
BoardOption = Annotated[
    str | None, typer.Option("--board", "-b", metavar="NAME", help="The board, if the namespace has several.")
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept, and shown.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    ``text`` says what stands in it for a row. Where the terminal is too narrow a ``spare`` column is cut first, or left
    out, and a ``fold`` column breaks its text into lines; the others stay whole.
    """

    title: str
    text: Callable[[Any], Text | str | int]
    right: bool = False
    fold: bool = False
    spare: bool = False


def help_if_alone(context: typer.Context) -> None:
    """The callback of a group: called without a command, it shows its help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def say(line: str) -> None:
    """One message for people, on stderr."""
    sys.stdout.flush()
    print(f"swarm: {line}", file=sys.stderr, flush=True)


def stdout() -> Console:
    """A rich console on stdout: plain with NO_COLOR, off a terminal plain and as wide as the data."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    if console.is_terminal and not console.no_color:
        return console
    # rich keeps bold and dim with NO_COLOR; who sets it wants text
    width = console.width if console.is_terminal else UNBOUND
    return Console(highlight=False, markup=False, emoji=False, color_system=None, width=width)


def show(*parts: RenderableType) -> None:
    """Print on stdout; text that is plain has no blanks at the end of its lines."""
    console = stdout()
    if console.color_system is not None:
        console.print(*parts, sep="\n")
        return
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    for line in captured.get().splitlines():
        print(line.rstrip())


def show_json(data: Any, output: Output = Output.JSON) -> None:
    """*data* as JSON: spread over lines, or in one line for ``jsonl``."""
    indent = 2 if output is Output.JSON else None
    print(json.dumps(data, ensure_ascii=False, indent=indent, default=str), flush=True)


def show_rows(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], output: Output, *, empty: str = "nothing"
) -> None:
    """A list: a table, an array, or an object a line. *empty* is said, on stderr, instead of an empty table."""
    match output:
        case Output.JSON:
            show_json(list(rows))
        case Output.JSONL:
            for row in rows:
                show_json(row, output)
        case Output.TABLE if rows:
            show(table(rows, columns))
        case Output.TABLE:
            say(empty)


def table(rows: Sequence[Any], columns: Sequence[Column]) -> Table:
    """A table without frames, as wide as the terminal at most."""
    from rich.table import Table
    from rich.text import Text

    def cell(column: Column, row: Any) -> Text:
        found = column.text(row)
        return found if isinstance(found, Text) else Text(cut(str(found)))

    cells = [[cell(column, row) for row in rows] for column in columns]
    widths = [max([len(column.title), *(text.cell_len for text in cells[n])]) for n, column in enumerate(columns)]
    excess = sum(widths) + GAP * (len(columns) - 1) - stdout().width
    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    shown = []
    for column, texts, width in zip(columns, cells, widths, strict=True):
        room = width - max(excess, 0) if column.spare else width
        if column.spare:
            excess = 0 if room >= LEAST else excess - width - GAP
        if room < width and room < LEAST:
            continue
        drawn.add_column(
            column.title.upper(),
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
            max_width=room,
        )
        shown.append(texts)
    for line in zip(*shown, strict=True):
        drawn.add_row(*line)
    return drawn


def cut(text: str, most: int = CELL) -> str:
    """*text* in one line of at most *most* characters, without control characters."""
    line = "".join(each if each.isprintable() else " " for each in text[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"


def ago(seconds: float) -> str:
    """A time that passed, in one unit: "5 s", "3 min", "2 h", "4 d"."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def clock(ms: int, *, exact: bool = False) -> str:
    """A moment in local time: the time of day, with the date if it is not today's."""
    if not ms:
        return ""
    then = time.localtime(ms / 1000)
    text = time.strftime("%H:%M:%S", then) + (f".{ms % 1000:03d}" if exact else "")
    today = time.strftime("%Y-%m-%d")
    return text if time.strftime("%Y-%m-%d", then) == today else time.strftime("%Y-%m-%d ", then) + text


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if the user wants it: with ``--yes``, or by asking on a terminal.

    Raises:
        InvalidInputError: there is nobody to ask.
        typer.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        from ..errors import InvalidInputError

        raise InvalidInputError("confirmation", found="no terminal to ask on", needed="--yes")
    typer.confirm(f"swarm: {question}", abort=True, err=True)
