"""The plots, as SVG: ``python -m peers.plots RESULT FOLDER``. It needs matplotlib, which the peers' environment has.

It prints the names of the plots that it drew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from .targets import Figures

OURS, PEER, CEILING, GRID = "#c8501e", "#8da0b3", "#333333", "#e6e6e6"
WIDTH = 8.0  # inches


def drain(figures: Figures) -> bool:
    """Tasks a second of each, and the ceiling."""
    ceiling = figures.median("ceiling", "drain", "batch_per_s")
    extra = {} if ceiling is None else {"ceiling (C, batches)": ceiling}
    return _dots(figures, "drain", "per_s", "tasks per second, one worker process", extra=extra)


def latency(figures: Figures) -> bool:
    """µs until the body begins, and until the result is seen."""
    names = _measured(figures, "latency", "result_p50_us")
    if not names:
        return False
    names.sort(key=lambda name: -(figures.median("latency", name, "result_p50_us") or 0))
    fig, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.32 * len(names)))
    for row, name in enumerate(names):
        for what, offset, alpha in (("start", 0.2, 1.0), ("result", -0.2, 0.55)):
            cuts = [figures.median("latency", name, f"{what}_{cut}_us") or 0 for cut in ("p50", "p99")]
            axes.plot(
                cuts, [row + offset] * 2, color=_colour(figures, name), alpha=alpha, linewidth=4, solid_capstyle="butt"
            )
            axes.plot(cuts[0], row + offset, "|", color=CEILING, markersize=9)
    axes.set_yticks(range(len(names)), names)
    _logarithmic(axes.xaxis)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_xlabel("µs on an idle worker, p50 to p99: until the body begins (above), until the result is seen (below)")
    _tidy(fig, axes)
    return True


def growth(figures: Figures) -> bool:
    """The rate against the backlog."""
    sizes = sorted({row["waiting"] for row in figures.rows if row["workload"] == "growth" and "per_s" in row})
    names = _measured(figures, "growth", "per_s")
    if len(sizes) < 2 or not names:
        return False
    lines = {
        name: [(size, rate) for size in sizes if (rate := figures.median("growth", name, "per_s", waiting=size))]
        for name in names
    }
    places = _apart({name: points[-1][1] for name, points in lines.items()}, least=1.17)
    fig, axes = plt.subplots(figsize=(WIDTH, 4.2))
    for name, points in lines.items():
        colour = _colour(figures, name)
        axes.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2 if colour == OURS else 1, markersize=3)
        # from where its line ends, which is sooner for those that had no greater backlog, to its name
        ends = (points[-1], (sizes[-1] * 1.1, places[name]))
        axes.plot(*zip(*ends, strict=True), ":", color=colour, linewidth=0.6)
        axes.text(sizes[-1] * 1.15, places[name], name, va="center", fontsize=8)
    axes.set_xscale("log")
    _logarithmic(axes.yaxis)
    axes.set_xlim(right=sizes[-1] * 6)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tasks waiting behind")
    axes.set_ylabel("tasks per second")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    _tidy(fig, axes)
    return True


def pipeline(figures: Figures) -> bool:
    """Items a second through four stages."""
    return _dots(figures, "pipeline", "per_s", "items per second through four stages")


def fanout(figures: Figures) -> bool:
    """Deliveries a second to fifty subscribers."""
    return _dots(figures, "fanout", "per_s", "deliveries per second to 50 subscribers of one process")


def _dots(
    figures: Figures, workload: str, figure: str, label: str, *, extra: Mapping[str, float] | None = None
) -> bool:
    """A dot a peer on a logarithmic axis, where bars would have no beginning."""
    values: dict[str, float] = {
        name: figures.median(workload, name, figure) or 0 for name in _measured(figures, workload, figure)
    }
    if not values:
        return False
    values |= extra or {}
    names = sorted(values, key=lambda name: values[name])
    fig, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.28 * len(names)))
    for row, name in enumerate(names):
        axes.plot(values[name], row, "o", color=_colour(figures, name), markersize=8)
        axes.annotate(
            f"{values[name]:,.0f}",
            (values[name], row),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(names)), names)
    _logarithmic(axes.xaxis)
    axes.margins(x=0.12)
    axes.grid(axis="both", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(label)
    _tidy(fig, axes)
    return True


def _apart(values: Mapping[str, float], least: float) -> dict[str, float]:
    """Places for labels beside *values*, in their order, each at least *least* times the one below."""
    places: dict[str, float] = {}
    below = 0.0
    for name in sorted(values, key=lambda name: values[name]):
        below = places[name] = max(values[name], below * least)
    return places


def _measured(figures: Figures, workload: str, figure: str) -> list[str]:
    return [name for name in figures.peers if figures.median(workload, name, figure) is not None]


def _colour(figures: Figures, name: str) -> str:
    if name not in figures.peers:
        return CEILING
    return OURS if figures.peers[name]["environment"] == "ours" else PEER


def _logarithmic(axis: Any) -> None:
    """Ticks at 1, 2 and 5, in plain numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_locator(NullLocator())


def _tidy(fig: Any, axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    fig.tight_layout()


PLOTS: tuple[Callable[[Figures], bool], ...] = (drain, latency, growth, pipeline, fanout)


def main() -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "peers", "font.size": 9, "svg.fonttype": "none"}
    result, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    figures = Figures(result)
    for draw in PLOTS:
        if draw(figures):
            plt.savefig(folder / f"peers-{draw.__name__}.svg", metadata={"Date": None})
            plt.close()
            print(f"peers-{draw.__name__}")


if __name__ == "__main__":
    main()
