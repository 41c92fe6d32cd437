"""Turns ``results/faults.jsonl`` into the section "Faults" of ``docs/reliability.md``: ``make faults-table``.

The section stands between two markers; what is around it stays. Of each test and server the newest line counts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "faults.jsonl"
PAGE = HERE.parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"

WORDS = {
    "n": "items", "lost": "lost", "accepted_twice": "accepted twice", "run_twice": "run twice",
    "recovery_p50_s": "median", "recovery_max_s": "longest", "audit": "audit",
}  # fmt: skip
SAID_ELSEWHERE = {*WORDS, "test", "fault", "server", "seed", "rounds", "lease_s"}

# Measured for this project on the machine of our own figures: Debian's Redis 7.0.15, AOF everysec, Python 3.11, two worker
# processes of four slots, each peer's reliability options on, lease (visibility, idle) 15 s, SIGTERM 30 s, freeze 6 s; one run
# each, no supervisor. Items: 40 of 1 s, 8 of 4 s, 24 of 3 s, 400 of 50 ms, 400 of 50 ms, 8 of 3 s.
PEERS = {
    "celery 5.7.0": ("92 s", "93 s", "0 / 0; 3.3 s", "0 / 0; 6.1 s", "0 / 38", "0"),
    "arq 0.28.0": ("25 s", "24 s", "4 / 0; 0.2 s", "364 / 0; workers exited", "0 / 0", "4 of 4"),
    "taskiq-redis 1.2.4": ("24 never", "4 of 8 never", "0 / 15 never; 1.8 s", "2 / 0; 2.4 s", "0 / 0", "0"),
    "dramatiq 2.2.1": ("4 never in 160 s", "124-128 s", "0 / 0; 3.3 s", "0 / 0; 2.1 s", "0 / 0", "0"),
    "saq 0.26.4": ("20-36 s", "19-34 s", "5 / 0; 0.2 s", "0 / 0; 2.0 s", "0 / 28", "4 of 4"),
    "rq 2.12.0": ("4 never in 160 s", "4 of 8 never", "0 / 0; 3.4 s", "1 / 0; 2.8 s", "0 / 0", "4 of 4"),
    "streaq 7.2.0": ("16 s", "13 s", "4 / 0; 0.4 s", "257; workers exited", "204; workers exited", "4 of 4"),
}
COLUMNS = (
    "", "kill -9 of a busy worker, backlog left: its items begun again after", "the same, nothing else to do",
    "SIGTERM: run again / never; exit", "Redis kill -9, back after 2 s: never / twice; first work after",
    "all connections killed every 0.5 s for 6 s: never / twice", "frozen for 3 leases: items run twice",
)  # fmt: skip

INTRODUCTION = """## Faults

`make faults` does this to real worker processes on a real server (Linux, two cores); `make faults-table` writes this section
from [faults.jsonl](../tests/faults/results/faults.jsonl). F1, F2, … number the kinds of fault. *Median* and *longest* are seconds
from the fault until what it hurt began again: for a killed worker's items at most the lease and a second.
"""
BESIDE = """
### Beside other queues

Six of these faults, done in the same way to other queues on the same machine: two workers of four slots, Redis 7.0 with AOF
everysec, each queue's reliability options on, lease 15 s (SIGTERM 30 s, freeze 6 s). One run each, without a supervisor: read it
for whether work comes back, not for ranks by seconds. Ours ran on the bundled Valkey. *Never* is not finished when the watch
ended: 160 s for the kills, 75 to 100 s for the others.
"""


def newest(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The newest line of each test and server, by fault."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        found[row["test"], row["server"]] = row
    return sorted(found.values(), key=lambda row: (_number(row.get("fault", "")), row["test"], row["server"]))


def _number(fault: str) -> int:
    return int(fault[1:]) if fault[1:].isdigit() else 99


def gathered(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all the crash points of one kind: sums, the greatest median and the longest of all."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        point = re.fullmatch(r"(.+) (before|after):(\w+)", row["test"])
        key = (f"{point[1]} at each crash point" if point else row["test"], row["server"])
        into = found.get(key)
        if into is None:
            found[key] = dict(row) | {"test": key[0]} | ({"points": 1} if point else {})
            continue
        into["points"] += 1
        for name, value in row.items():
            if name in ("n", "lost", "accepted_twice", "run_twice", "refused"):
                into[name] = into.get(name, 0) + value
            elif name.startswith("recovery"):
                into[name] = max(into.get(name, 0.0), value)
    return list(found.values())


def measured(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The table of our own figures."""
    head = ["fault", "what is done", "server", "rounds", "lease", *WORDS.values(), "besides"]
    lines = [_line(head), _line("---" for _ in head)]
    for row in gathered(row for row in rows if not row["test"].startswith("peers:")):
        more = ", ".join(f"{name} {value}" for name, value in row.items() if name not in SAID_ELSEWHERE)
        facts = [_seconds(name, row.get(name, "")) for name in WORDS]
        start = [row.get("fault", ""), row["test"], row["server"], row["rounds"], f"{row['lease_s']:g} s"]
        lines.append(_line([*start, *facts, more.replace("_", " ")]))
    return lines


def beside_peers(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The table of others' figures, ours in its first row if they were measured."""
    by = {row["test"].removeprefix("peers: "): row for row in rows if row["test"].startswith("peers:")}
    lines = [_line(COLUMNS), _line("---" for _ in COLUMNS)]
    if {"backlog", "quiet", "SIGTERM", "Redis", "connections", "frozen"} <= by.keys():
        redis, cut, frozen = by["Redis"], by["connections"], by["frozen"]
        own = [
            f"{by['backlog']['recovery_max_s']} s", f"{by['quiet']['recovery_max_s']} s",
            f"{by['SIGTERM']['run_twice']} / {by['SIGTERM']['lost']}; {by['SIGTERM']['exit_s']} s",
            f"{redis['lost']} / {redis['run_twice']}; {redis['first_work_s']} s", f"{cut['lost']} / {cut['run_twice']}",
            f"{frozen['run_twice']} of 4, each accepted once",
        ]  # fmt: skip
        lines.append(_line(["**swarm_infrastructure**", *(f"**{each}**" for each in own)]))
    return lines + [_line([name, *row]) for name, row in PEERS.items()]


def section(rows: list[dict[str, Any]]) -> str:
    """All between the markers."""
    return "\n".join([INTRODUCTION, *measured(rows), BESIDE, *beside_peers(rows), ""])


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _seconds(name: str, value: object) -> str:
    return f"{value:.2f} s" if name.endswith("_s") and isinstance(value, (int, float)) else str(value)


def write(page: Path, text: str) -> None:
    """Put the section in its place; at the end of the page if it has none yet."""
    whole, block = page.read_text() if page.exists() else "# Reliability\n", f"{BEGIN}\n{text}\n{END}"
    if BEGIN in whole:
        whole = re.sub(f"{BEGIN}.*?{END}", lambda _: block, whole, flags=re.DOTALL)
    else:
        whole = f"{whole.rstrip()}\n\n{block}\n"
    page.write_text(whole)


if __name__ == "__main__":
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    write(PAGE, section(newest(results.read_text().splitlines())))
