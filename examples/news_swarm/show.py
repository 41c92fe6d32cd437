"""What the news swarm shows: progress bars on a terminal, plain lines off it, a table at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from swarm_infrastructure.cost_manager import Paused
from swarm_infrastructure.cost_manager.money import shown

from .tally import Tally

__all__ = ["Display", "show_summary"]

STAGES = {
    "screened": ("raw_feed",),
    "judged": ("raw_feed", "debate_queue"),
    "written": ("raw_feed", "debate_queue", "consensus"),
    "finished": ("raw_feed", "debate_queue", "consensus", "production_floor", "review_queue"),
}
LINE_EVERY_S = 2.0


class Display:
    """Progress of a run; use it as ``with Display(console) as display``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._last_line, self._last_at = "", 0.0
        self._paused: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=self._console, transient=True,
            )  # fmt: skip
            self._progress.start()
            self._tasks = {stage: self._progress.add_task(stage, total=None) for stage in STAGES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def tell_paused(self, paused: list[Paused]) -> None:
        """Say which agents stand still for want of money, and what lets them go on; each once."""
        now = {each.who: str(each) for each in paused}
        for who, line in now.items():
            if who not in self._paused:
                self._console.print(f"paused: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        for who in self._paused.keys() - now.keys():
            self._console.print(f"goes on: {who}", style="green", highlight=False, markup=False)
        self._paused = now

    def update(self, stats: dict[str, dict[str, Any]]) -> None:
        """Show where the stories stand now."""
        done = {"published": stats["published"]["total"], "archived": stats["archive"]["total"]}
        waiting = {section: stats[section]["total"] for section in STAGES["finished"]}
        total = sum(done.values()) + sum(waiting.values())
        if self._progress is not None:
            for stage, before in STAGES.items():
                left = sum(waiting[section] for section in before)
                self._progress.update(self._tasks[stage], total=total, completed=total - left)
            return
        line = ", ".join(f"{n} in {section}" for section, n in waiting.items() if n) or "nothing waiting"
        line += f"; {done['published']} published, {done['archived']} archived"
        now = time.monotonic()
        if line != self._last_line and now - self._last_at >= LINE_EVERY_S:
            self._console.print(line, highlight=False, soft_wrap=True)
            self._last_line, self._last_at = line, now


def show_summary(console: Console, tally: Tally, seconds: float, out: str, *, extractive: bool = True) -> None:
    """The table at the end, and where to look."""
    table = Table(title="News swarm", title_justify="left", show_header=True, header_style="bold")
    table.add_column("")
    table.add_column("articles", justify="right")
    table.add_column("what that means", overflow="fold")
    rows = [
        ("read", tally.read, f"from {tally.sources - len(tally.unread)} of {tally.sources} sources"),
        ("published", len(tally.published), f"a folder each in {out}"),
        (
            "duplicates",
            len(tally.duplicates),
            f"{tally.known} known texts, {tally.near} near-copies, each linked to its original",
        ),
        ("rejected", len(tally.rejected), "not news, too thin, or an entry without text"),
        ("failed", len(tally.failed), "in quarantine: swarm items list --status quarantined" if tally.failed else ""),
    ]
    for name, n, meaning in rows:
        table.add_row(name, str(n), meaning, style="red" if name == "failed" and n else None)
    table.add_section()
    table.add_row("seconds", f"{seconds:.1f}", f"{tally.read / max(seconds, 1e-9):.0f} articles a second")
    costs = tally.costs
    table.add_row("cost", shown(costs.total), "no language model was called" if extractive else "")
    for title, part in (("by agent", costs.by_role), ("by tier", costs.by_tier)):
        listed = ", ".join(f"{name} {shown(nano)}" for name, nano in sorted(part.items(), key=lambda each: -each[1]))
        table.add_row(title, "", listed or "nothing was asked")
    console.print(table)
    for location, why in tally.unread.items():
        console.print(f"not read: {location}: {why}", style="red", highlight=False, markup=False)
