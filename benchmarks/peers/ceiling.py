"""The ceiling: what a C client gets out of the same server, with a reference that does the least (``ceiling.lua``)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from .environments import Environments
from .probe import make_payload
from .rig import Bench, FailedError

__all__ = ["measure_ceiling"]

HERE = Path(__file__).resolve().parent
KEYS = ("i:", "waiting", "leases", "done", "events")
FILL = 5_000  # items a call


def measure_ceiling(environments: Environments, *, quick: bool = False) -> dict[str, Any]:
    """Items per second in batches of 100 and one at a time, with Redis' µs an item; about two seconds."""
    told: dict[str, Any] = {}
    payload = json.dumps(make_payload(1), separators=(",", ":"))
    for name, batch, items in (("batch", 100, 60_000), ("one", 1, 10_000)):
        if quick:
            items //= 10
        with Bench(environments) as bench:
            bench.redis.function_load((HERE / "ceiling.lua").read_text())
            for first in range(0, items, FILL):
                fill = (first, min(FILL, items - first), payload)
                bench.redis.fcall("ceiling_fill", len(KEYS), *KEYS, *fill)
            meter = bench.meter([])
            port = str(bench.server.port)
            run = subprocess.run(
                [str(environments.ceiling), port, str(items), str(batch)], capture_output=True, text=True, timeout=120
            )
            if run.returncode:
                raise FailedError(run.stderr.strip())
            told[f"{name}_per_s"] = float(run.stdout)
            told[f"{name}_redis_us"] = meter.stop(items)["redis_us"]
    return told
