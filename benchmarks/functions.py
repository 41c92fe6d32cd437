"""What Redis' own time goes to: microseconds per item of each function of an item's life, and of the commands inside it.

    python benchmarks/functions.py [--kind redis|valkey] [--items 10000] [--agents 1] [--reps 5]
        [--against PATH]

Items are submitted 500 a call, claimed 100 a call by so many agents, and completed 100 a call, on a fresh server without
persistence each time. The figures are Redis' own (``INFO commandstats``), so that neither the client nor the network is in
them. What a function takes beside its commands is Lua, its garbage collector, and passing values to and fro. ``--against``
names another checkout of this project: both are measured in turn, so that a change is compared in one sitting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from swarm_infrastructure import Blackboard, Submission, job_board
from swarm_infrastructure.blackboard.claims import Claimed, ClaimRequest
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

PAYLOAD = {"kind": "finding", "section": "research", "body": "x" * 250}  # 300 bytes as JSON
HERE = Path(__file__).resolve()


async def measure(kind: str, items: int, agents: int) -> dict[str, dict[str, float]]:
    """Microseconds per item by phase, then by command; ``fcall`` is the whole function, the others are inside it."""
    told: dict[str, dict[str, float]] = {}
    with RedisServer(kind) as server:
        async with Store(server.url) as store, Blackboard(store, job_board("bench")) as board:

            async def spent_us() -> dict[str, float]:
                stats = await store.command("INFO", "commandstats")
                return {name.removeprefix("cmdstat_"): float(row["usec"]) for name, row in stats.items()}

            async def phase(name: str, work: Callable[[], Awaitable[None]]) -> None:
                before = await spent_us()
                await work()
                after = await spent_us()
                told[name] = {each: (us - before.get(each, 0.0)) / items for each, us in after.items()}

            async def submit() -> None:
                for start in range(0, items, 500):
                    await board.submit(
                        *(Submission(id=f"i{start + i:08d}", section="jobs", payload=PAYLOAD) for i in range(500))
                    )

            hands: list[list[Claimed]] = []

            async def claim() -> None:
                lanes = board.claims.lanes("jobs")
                requests = [
                    ClaimRequest(agent_id=f"agent_{n}", role="noop", lanes=lanes, most=100 // agents, lease_s=30)
                    for n in range(agents)
                ]
                while got := [
                    each for hand in await board.claims.claim(*requests) if isinstance(hand, list) for each in hand
                ]:
                    hands.append(got)

            async def end() -> None:
                for hand in hands:
                    await asyncio.gather(*(board.complete(each.claim, of=each.item) for each in hand))

            await phase("submit", submit)
            await phase("claim", claim)
            await phase("end", end)
            assert sum(map(len, hands)) == items, "not all were claimed"
    return told


def run_in(checkout: Path, kind: str, items: int, agents: int) -> dict[str, dict[str, float]]:
    """`measure` in a process of its own, with the package of *checkout*."""
    done = subprocess.run(
        [sys.executable, str(HERE), "--one", "--kind", kind, "--items", str(items), "--agents", str(agents)],
        env=os.environ | {"PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=("redis", "valkey"), default="redis")
    parser.add_argument("--items", type=int, default=10_000, help="a multiple of 500 (default: 10,000)")
    parser.add_argument("--agents", type=int, default=1, help="who share a call of 100 (default: 1)")
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asyncio.run(measure(options.kind, options.items, options.agents))))
        return
    checkouts = {"here": HERE.parent.parent} | ({"against": options.against.resolve()} if options.against else {})
    runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in checkouts}
    for _ in range(options.reps):
        for name, checkout in checkouts.items():
            runs[name].append(run_in(checkout, options.kind, options.items, options.agents))
    print(f"{options.kind}: us of Redis per item, median of {options.reps} (least), and the commands inside")
    for phase in ("submit", "claim", "end"):
        for name, found in runs.items():
            whole = [each[phase]["fcall"] for each in found]
            inside = {
                command: statistics.median(each[phase].get(command, 0.0) for each in found)
                for command in found[0][phase]
                if command not in ("fcall", "info")
            }
            costly = sorted(((us, command) for command, us in inside.items() if us >= 0.05), reverse=True)
            told = ", ".join(f"{command} {us:.2f}" for us, command in costly)
            print(f"{phase:7} {name:8} {statistics.median(whole):6.2f} ({min(whole):5.2f})   {told}")


if __name__ == "__main__":
    main()
