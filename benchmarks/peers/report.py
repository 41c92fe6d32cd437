"""The report: tables in Markdown from a result file, and where they stand in docs/performance.md."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .environments import PYTHONS, REPOSITORY
from .fanout import FANOUTS
from .pipelines import PIPELINES
from .targets import Figures, judge, ratio

__all__ = ["BEGIN", "END", "PAGE", "placed", "publish", "summary"]

PAGE = REPOSITORY / "docs" / "performance.md"
PLOTS = REPOSITORY / "docs" / "performance"
BEGIN, END = "<!-- peers: begin (written by `make bench-peers`) -->", "<!-- peers: end -->"
Result = Mapping[str, Any]


def summary(result: Result, others: Mapping[str, Result] | None = None) -> str:
    """All tables of a result; the targets beside those of *others*, which are known by a name."""
    parts = [
        _ceiling, _drain, _scaling, _enqueue, _latency, _growth, _memory, _pipeline, _fanout, _settings, _failures,
    ]  # fmt: skip
    texts = [_machine(result), _targets(result, others or {}), *(part(result) for part in parts)]
    return "\n\n".join(text for text in texts if text)


def publish(result: Result, source: Path) -> None:
    """Draw the plots and put the tables into docs/performance.md, between their marks."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    python = REPOSITORY / PYTHONS["peers"][0] / "bin" / "python"
    draw = [str(python), "-m", "peers.plots", str(source.resolve()), str(PLOTS)]
    drawn = subprocess.run(
        draw, cwd=REPOSITORY / "benchmarks", capture_output=True, text=True, check=True
    ).stdout.split()
    shown = "\n".join(f"![{name}](performance/{name}.svg)" for name in drawn)
    kept = {
        path.stem: json.loads(path.read_text()) for path in sorted(source.parent.glob("peers-*.json")) if path != source
    }
    others = {name: each for name, each in kept.items() if each["whole"]}
    PAGE.write_text(placed(PAGE.read_text(), f"{summary(result, others)}\n\n{shown}", PAGE))


def placed(page: str, tables: str, path: Path) -> str:
    """The text of a page with these tables between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: found no marks, needed the lines {BEGIN} and {END} where the tables are to stand")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 0, note: str = "") -> str:
    """A table whose first column and last *words* columns hold text, and the others numbers; "" without rows."""
    if not rows:
        return ""
    ways = ["---", *["---:"] * (len(head) - 1 - words), *["---"] * words]
    lines = [
        f"### {title}",
        "",
        *([note, ""] if note else []),
        "| " + " | ".join(head) + " |",
        "| " + " | ".join(ways) + " |",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def _spread(found: Mapping[int, float], digits: int = 0) -> str:
    if not found:
        return ""
    middle, least, most = statistics.median(found.values()), min(found.values()), max(found.values())
    return f"{middle:,.{digits}f}" + (f" ({least:,.{digits}f}-{most:,.{digits}f})" if len(found) > 1 else "")


def _how_often(result: Result, workload: str) -> str:
    """In how many repetitions each was measured; "" if all were in all of them."""
    rows = [row for row in result["rows"] if row["workload"] == workload and "error" not in row]
    measured = Counter(name for name, _ in {(row["peer"], row["rep"]) for row in rows})
    times = Counter(measured.values())
    if not times or set(times) == {_repetitions(result)}:
        return ""
    most = max(times, key=lambda n: times[n])
    told = [f"{n} of {', '.join(name for name in measured if measured[name] == n)}" for n in sorted(times) if n != most]
    return f"Repetitions: {'; '.join([*told, f'{most} of the others' if told else str(most)])}."


def _repetitions(result: Result) -> int:
    return 1 + max((int(row["rep"]) for row in result["rows"]), default=-1)


def _named(result: Result, workload: str, figure: str, *, least_first: bool = False, **tags: Any) -> list[str]:
    """The peers that were measured in a workload, best first."""
    figures = Figures(result)
    found = {name: figures.median(workload, name, figure, **tags) for name in result["peers"]}
    measured = {name: value for name, value in found.items() if value is not None}
    return sorted(measured, key=lambda name: measured[name], reverse=not least_first)


def _machine(result: Result) -> str:
    machine = result["machine"]
    node = f", Node {machine['node']}" if machine["node"] else ""
    left_out = f" Left out, as asked: {', '.join(result['left_out'])}." if result["left_out"] else ""
    commit = f" This runtime is at commit {machine['commit']}." if machine["commit"] else ""
    took = f" The run took {result['total_s'] / 60:.0f} minutes." if "total_s" in result else ""
    used = [row["others_cores"] for row in result["rows"] if "others_cores" in row]
    others = f" Other programs used {statistics.median(used):.1f} cores meanwhile." if used else ""
    return (
        f"{machine['date']}: {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}{node}, Redis {machine['redis']} on loopback, without persistence. "
        f"Medians of {_repetitions(result)} repetitions, or of as many as are told above a table, with the least and the "
        f"greatest where there is room.{took}{others}{commit}{left_out}"
    )


def _targets(result: Result, others: Mapping[str, Result]) -> str:
    """What was aimed at, and first how fast the machine was: the ceiling's rate, and the µs that its Redis took."""
    runs, beside = [result, *others.values()], [judge(each) for each in others.values()]
    speeds = [
        [_number(Figures(each).median("ceiling", "drain", name)) for each in runs]
        for name in ("batch_per_s", "batch_redis_us")
    ]
    rows = [
        [f"the ceiling in batches of 100, {what}", "", "", *speed, ""]
        for what, speed in zip(("items/s", "Redis' µs an item"), speeds, strict=True)
        if any(speed)
    ]
    for place, verdict in enumerate(judge(result)):
        if verdict.value is None and not result["whole"]:
            continue
        check, sign = verdict.check, "≤" if verdict.check.at_most else "≥"
        rows.append([
            f"{check.number} {check.what}", f"{sign} {check.floor:g}", f"{sign} {check.aim:g}", _times(verdict.value),
            *(_times(verdicts[place].value) for verdicts in beside), verdict.word,
        ])  # fmt: skip
    commits = {name: each["machine"]["commit"] for name, each in others.items()}
    head = [
        "",
        "floor",
        "aim",
        "measured",
        *(f"{name}, {commit}" if commit else name for name, commit in commits.items()),
        "",
    ]
    return _table("Targets", head, rows, words=1)


def _ceiling(result: Result) -> str:
    figures = Figures(result)
    rounds = dict.fromkeys(row["peer"] for row in result["rows"] if row["workload"] == "ceiling")
    rows = [
        [f"before {name}", *(cell for way in ("batch", "one") for cell in (
            _spread(figures.series("ceiling", name, f"{way}_per_s")),
            _number(figures.median("ceiling", name, f"{way}_redis_us"), 1),
        ))]
        for name in rounds
    ]  # fmt: skip
    head = ["", "batches of 100", "Redis µs", "one at a time", "Redis µs"]
    return _table("The ceiling: a C client, items per second", head, rows)


def _drain(result: Result) -> str:
    figures = Figures(result)
    ceiling, ours = figures.series("ceiling", "drain", "batch_per_s"), figures.series("drain", "ours", "per_s")
    rows = []
    for name in _named(result, "drain", "per_s"):
        found = figures.series("drain", name, "per_s")
        rows.append([
            name, _spread(found), _number(ratio(found, ceiling), 3), _times(ratio(ours, found)),
            *(_number(figures.median("drain", name, each), 1) for each in ("worker_us", "redis_us", "commands")),
        ])  # fmt: skip
    return _table(
        "Drain: one worker process, tasks that do nothing",
        ["", "tasks/s", "÷ ceiling", "ours ÷ it", "worker µs", "Redis µs", "commands a task"], rows,
        note=_how_often(result, "drain"),
    )  # fmt: skip


def _scaling(result: Result) -> str:
    figures = Figures(result)
    rows = []
    for name in dict.fromkeys(_named(result, "scaling", "per_s") + _named(result, "aof", "per_s")):
        one = figures.series("drain", name, "per_s")
        two, appended = figures.series("scaling", name, "per_s"), figures.series("aof", name, "per_s")
        twice = max(figures.series("scaling", name, "bodies_twice").values(), default=None)
        rows.append([
            name, _spread(two), _number(ratio(two, one), 2), _number(twice), _spread(appended), _number(ratio(appended, one), 2),
        ])  # fmt: skip
    head = ["", "two workers, tasks/s", "÷ one", "ran twice", "AOF everysec, tasks/s", "÷ none"]
    note = _how_often(result, "scaling") or _how_often(result, "aof")
    return _table("Two worker processes; an append-only file", head, rows, note=note)


def _enqueue(result: Result) -> str:
    figures = Figures(result)
    rows = [
        [name, *(_spread(figures.series("enqueue", name, each)) for each in ("one_per_s", "bulk_per_s")),
         result["peers"][name].get("bulk") or "no bulk call: many single ones"]
        for name in _named(result, "enqueue", "bulk_per_s")
    ]  # fmt: skip
    head = ["", "one at a time", "in bulk", "bulk call"]
    return _table("Submitting, tasks per second", head, rows, words=1, note=_how_often(result, "enqueue"))


def _latency(result: Result) -> str:
    figures = Figures(result)

    def cuts(name: str, what: str) -> str:
        return " / ".join(_number(figures.median("latency", name, f"{what}_{cut}_us")) for cut in ("p50", "p95", "p99"))

    def idle(name: str) -> list[str]:
        told = (figures.median("idle", name, f"{each}_per_s") for each in ("sent", "commands"))
        return [_number(value, 1) for value in told]

    names = _named(result, "latency", "start_p50_us", least_first=True) + _named(result, "idle", "sent_per_s")
    rows = [[name, cuts(name, "start"), cuts(name, "result"), *idle(name)] for name in dict.fromkeys(names)]
    head = ["", "submit → start", "submit → result seen", "commands/s an idle worker sends", "with those in scripts"]
    minute = "Commands: of one minute in which there is nothing to do." if _named(result, "idle", "sent_per_s") else ""
    note = f"{_how_often(result, 'latency')} {minute}".strip()
    return _table("Latency on an idle worker, µs, p50 / p95 / p99", head, rows, note=note)


def _growth(result: Result) -> str:
    figures = Figures(result)
    sizes = sorted({row["waiting"] for row in result["rows"] if row["workload"] == "growth" and "per_s" in row})
    if not sizes:
        return ""

    def of(name: str, size: int, figure: str) -> dict[int, float]:
        return figures.series("growth", name, figure, waiting=size)

    rows = []
    for name in _named(result, "growth", "per_s", waiting=sizes[0]):
        most = max(size for size in sizes if of(name, size, "per_s"))
        rows.append([
            name, *(_number(figures.median("growth", name, "per_s", waiting=size)) for size in sizes),
            *(_number(ratio(of(name, most, each), of(name, sizes[0], each)), 2) for each in ("per_s", "redis_us")),
        ])  # fmt: skip
    head = ["", *(f"{size:,}" for size in sizes), f"rate, most ÷ {sizes[0]:,}", f"Redis µs, most ÷ {sizes[0]:,}"]
    title = "Growth: tasks per second with so many waiting behind"
    return _table(title, head, rows, note=_how_often(result, "growth"))


def _memory(result: Result) -> str:
    figures = Figures(result)
    rows = [
        [name, *(_number(figures.median("memory", name, each)) for each in ("waiting_bytes", "completed_bytes"))]
        for name in _named(result, "memory", "waiting_bytes", least_first=True)
    ]
    head = ["", "waiting", "completed, with what is kept"]
    return _table("Bytes of Redis a task with a payload of 300", head, rows, note=_how_often(result, "memory"))


def _pipeline(result: Result) -> str:
    figures = Figures(result)
    rows = []
    for name in _named(result, "pipeline", "per_s"):
        found = figures.series("pipeline", name, "per_s")
        way = next((row["way"] for row in result["rows"] if row["peer"] == name and "way" in row), "all at once")
        keeps = PIPELINES[name].keeps if name in PIPELINES else "each transition, in Redis, with its event"
        rows.append([name, _spread(found), _number(250_000 / statistics.median(found.values())), way, keeps])
    head = ["", "items/s", "µs a transition", "how", "what a crash leaves"]
    note = _how_often(result, "pipeline")
    return _table("Four stages that do nothing, one process", head, rows, words=2, note=note)


def _fanout(result: Result) -> str:
    figures = Figures(result)
    rows = [
        [name, _spread(figures.series("fanout", name, "per_s")),
         *(_number(figures.median("fanout", name, each)) for each in ("first_p50_us", "last_p50_us", "last_p99_us")),
         FANOUTS[name].settings]
        for name in _named(result, "fanout", "per_s")
    ]  # fmt: skip
    head = ["", "deliveries/s", "first, p50 µs", "last, p50 µs", "last, p99 µs", "how"]
    note = _how_often(result, "fanout")
    return _table("One message to 50 subscribers of a process", head, rows, words=1, note=note)


def _settings(result: Result) -> str:
    rows = []
    for name, facts in result["peers"].items():
        versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
        rows.append([name, versions, facts["settings"], facts["delivery"]])
    head = ["", "versions", "settings", "what is promised of a task"]
    return _table("Who took part, and how", head, rows, words=3)


def _failures(result: Result) -> str:
    rows = [[f"{row['workload']}, {row['peer']}, repetition {row['rep'] + 1}", row["error"].replace("|", "/")]
            for row in result["rows"] if "error" in row]  # fmt: skip
    return _table("What failed", ["", "why"], rows, words=1)
