"""The targets T1 to T14: what each is computed from, the floor that must hold, and the aim.

A ratio is made within each repetition, whose measurements were made minutes apart, and its median is what counts. "The
best peer" is the one with the best median; this runtime is no peer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CHECKS", "Check", "Figures", "Verdict", "faults", "judge", "ratio"]

Series = dict[int, float]  # repetition → value


class Figures:
    """The figures of a result file.

    Args:
        result: as ``run.py`` writes it: ``peers`` (name → facts) and ``rows``.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.peers: Mapping[str, Mapping[str, Any]] = result["peers"]
        self.rows: Sequence[Mapping[str, Any]] = result["rows"]

    def series(self, workload: str, peer: str, figure: str, **tags: Any) -> Series:
        """A figure by repetition; of the ceiling, *peer* is the round that it opened."""
        wanted = {"workload": workload, "peer": peer} | tags
        return {
            row["rep"]: float(row[figure])
            for row in self.rows
            if figure in row and all(row.get(name) == value for name, value in wanted.items())
        }

    def median(self, workload: str, peer: str, figure: str, **tags: Any) -> float | None:
        """The median of a figure, None if it was not measured."""
        found = self.series(workload, peer, figure, **tags)
        return statistics.median(found.values()) if found else None

    def others(self, workload: str, figure: str, *, durable_python: bool = False, **tags: Any) -> dict[str, float]:
        """Peer → the median of a figure, without ours."""
        told: dict[str, float] = {}
        for name, facts in self.peers.items():
            if facts["environment"] == "ours" or (
                durable_python and not (facts["durable"] and facts["language"] == "python")
            ):
                continue
            value = self.median(workload, name, figure, **tags)
            if value is not None:
                told[name] = value
        return told

    def of_best(self, workload: str, figure: str, *, least: bool = False, durable_python: bool = False) -> Series:
        """The figure of the best peer: with the greatest median, or the least."""
        found = self.others(workload, figure, durable_python=durable_python)
        if not found:
            return {}
        return self.series(workload, (min if least else max)(found, key=lambda name: found[name]), figure)


def ratio(above: Series, below: Series) -> float | None:
    """The median of what one is of the other, each within one repetition; None if no repetition has both."""
    both = [above[rep] / below[rep] for rep in above if below.get(rep)]
    return statistics.median(both) if both else None


def _growth(figures: Figures, figure: str) -> float | None:
    many = figures.series("growth", "ours", figure, waiting=1_000_000)
    return ratio(many, figures.series("growth", "ours", figure, waiting=1_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure that has a target."""

    number: str
    what: str
    floor: float  #: must hold
    aim: float
    measure: Callable[[Figures], float | None]
    at_most: bool = False  #: smaller is better

    def holds(self, value: float, bound: float) -> bool:
        """Whether *value* is within *bound*."""
        return value <= bound if self.at_most else value >= bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a check."""

    check: Check
    value: float | None  #: None: not measured in this run

    @property
    def word(self) -> str:
        """``aim met``, ``met``, ``missed`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        if self.check.holds(self.value, self.check.aim):
            return "aim met"
        return "met" if self.check.holds(self.value, self.check.floor) else "missed"


def judge(result: Mapping[str, Any]) -> list[Verdict]:
    """Each check, computed from a result file."""
    figures = Figures(result)
    return [Verdict(check=check, value=check.measure(figures)) for check in CHECKS]


def faults(result: Mapping[str, Any]) -> list[str]:
    """What keeps a run from having shown that all floors hold: floors that were missed, measurements that failed, and, in
    a run that was to measure everything, targets that it did not measure."""
    told = [f"{row['workload']} of {row['peer']} failed: {row['error']}" for row in result["rows"] if "error" in row]
    for verdict in judge(result):
        check = verdict.check
        if verdict.value is None and result["whole"]:
            told.append(f"{check.number} not measured: {check.what}")
        elif verdict.word == "missed":
            told.append(f"{check.number} missed: {check.what}: {verdict.value:.2f}, floor {check.floor:g}")
    return told


CHECKS = (
    Check(
        number="T1", what="one agent, batches of 100 ÷ the ceiling in batches of 100", floor=0.40, aim=0.8,
        measure=lambda f: ratio(f.series("drain", "ours", "per_s"), f.series("ceiling", "drain", "batch_per_s")),
    ),
    Check(
        number="T2", what="the same ÷ the best peer", floor=1.5, aim=3,
        measure=lambda f: ratio(f.series("drain", "ours", "per_s"), f.of_best("drain", "per_s")),
    ),
    Check(
        number="T2", what="the same ÷ the best durable peer in Python", floor=8, aim=20,
        measure=lambda f: ratio(f.series("drain", "ours", "per_s"), f.of_best("drain", "per_s", durable_python=True)),
    ),
    Check(
        number="T3", what="50 agents, one item each ÷ BullMQ on Node", floor=1.0, aim=2,
        measure=lambda f: ratio(f.series("drain", "ours-50", "per_s"), f.series("drain", "bullmq-node", "per_s")),
    ),
    Check(
        number="T4", what="one agent, one item at a time ÷ the ceiling one at a time", floor=0.5, aim=0.8,
        measure=lambda f: ratio(f.series("drain", "ours-alone", "per_s"), f.series("ceiling", "drain", "one_per_s")),
    ),
    Check(
        number="T5", what="batches: worker's CPU, µs an item", floor=25, aim=12, at_most=True,
        measure=lambda f: f.median("drain", "ours", "worker_us"),
    ),
    Check(
        number="T5", what="batches: Redis' CPU, µs an item", floor=20, aim=13, at_most=True,
        measure=lambda f: f.median("drain", "ours", "redis_us"),
    ),
    Check(
        number="T6", what="submit → start, p50 ÷ the best peer's", floor=1.1, aim=0.7, at_most=True,
        measure=lambda f: ratio(f.series("latency", "ours", "start_p50_us"), f.of_best("latency", "start_p50_us", least=True)),
    ),
    Check(
        number="T6", what="submit → start, p99 ÷ its p50", floor=6, aim=3, at_most=True,
        measure=lambda f: ratio(f.series("latency", "ours", "start_p99_us"), f.series("latency", "ours", "start_p50_us")),
    ),
    Check(
        number="T6", what="commands a second that an idle worker sends", floor=1, aim=0.5, at_most=True,
        measure=lambda f: f.median("idle", "ours", "sent_per_s"),
    ),
    Check(
        number="T7", what="submit → result seen, p50 ÷ the best peer's", floor=0.9, aim=0.6, at_most=True,
        measure=lambda f: ratio(f.series("latency", "ours", "result_p50_us"), f.of_best("latency", "result_p50_us", least=True)),
    ),
    Check(
        number="T8", what="submitting in bulk ÷ the best peer", floor=2.5, aim=5,
        measure=lambda f: ratio(f.series("enqueue", "ours", "bulk_per_s"), f.of_best("enqueue", "bulk_per_s")),
    ),
    Check(
        number="T8", what="submitting one at a time ÷ the best peer", floor=0.8, aim=1.2,
        measure=lambda f: ratio(f.series("enqueue", "ours", "one_per_s"), f.of_best("enqueue", "one_per_s")),
    ),
    Check(
        number="T9", what="Redis' µs an item, 1,000,000 waiting ÷ 1,000", floor=1.4, aim=1.2, at_most=True,
        measure=lambda f: _growth(f, "redis_us"),
    ),
    Check(
        number="T9", what="rate, 1,000,000 waiting ÷ 1,000", floor=0.75, aim=0.9,
        measure=lambda f: _growth(f, "per_s"),
    ),
    Check(
        number="T10", what="bytes a waiting item, 300 of them its payload", floor=650, aim=500, at_most=True,
        measure=lambda f: f.median("memory", "ours", "waiting_bytes"),
    ),
    Check(
        number="T10", what="bytes a completed item, with its events", floor=900, aim=650, at_most=True,
        measure=lambda f: f.median("memory", "ours", "completed_bytes"),
    ),
    Check(
        number="T11", what="two workers ÷ one", floor=0.95, aim=1.2,
        measure=lambda f: ratio(f.series("scaling", "ours", "per_s"), f.series("drain", "ours", "per_s")),
    ),
    Check(
        number="T11", what="items that ran twice under two workers", floor=0, aim=0, at_most=True,
        measure=lambda f: max(f.series("scaling", "ours", "bodies_twice").values(), default=None),
    ),
    Check(
        number="T12", what="deliveries a second to 50 agents ÷ redis-py on 50 connections", floor=3, aim=8,
        measure=lambda f: ratio(f.series("fanout", "ours", "per_s"), f.series("fanout", "redis-py-50", "per_s")),
    ),
    Check(
        number="T12", what="the last agent has it, p50 ÷ redis-py on one connection", floor=1.2, aim=1.2, at_most=True,
        measure=lambda f: ratio(f.series("fanout", "ours", "last_p50_us"), f.series("fanout", "redis-py-1", "last_p50_us")),
    ),
    Check(
        number="T13", what="four durable stages, batches ÷ LangGraph on SQLite", floor=40, aim=100,
        measure=lambda f: ratio(
            f.series("pipeline", "ours-pipeline", "per_s"), f.series("pipeline", "langgraph-sqlite", "per_s")
        ),
    ),
    Check(
        number="T13", what="four durable stages, one at a time ÷ LangGraph in memory", floor=1.0, aim=2,
        measure=lambda f: ratio(
            f.series("pipeline", "ours-pipeline-alone", "per_s"), f.series("pipeline", "langgraph-memory", "per_s")
        ),
    ),
    Check(
        number="T13", what="four durable stages, batches ÷ pydantic-graph in memory", floor=1.5, aim=5,
        measure=lambda f: ratio(
            f.series("pipeline", "ours-pipeline", "per_s"), f.series("pipeline", "pydantic-graph", "per_s")
        ),
    ),
    Check(
        number="T14", what="batches: append-only file written every second ÷ none", floor=0.55, aim=0.7,
        measure=lambda f: ratio(f.series("aof", "ours", "per_s"), f.series("drain", "ours", "per_s")),
    ),
)  # fmt: skip
