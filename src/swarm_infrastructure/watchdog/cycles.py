"""Wait cycles: agents that wait for each other, so that none of them can go on.

The nodes of the graph are waits (see `blackboard.waits`), each with the locks that its task holds meanwhile:

- a wait for a lock leads to each wait of the task that holds it;
- a wait for a debate leads to the waits of each voter whose vote is missing, if that voter has no hand free to vote.

A lock counts as held only if Redis says so too, under the same token: a note that has grown old makes no cycle. Waits end by
themselves, at the timeout of a lock or the deadline of a debate; a cycle is time lost until then, and comes again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..blackboard import Blackboard
from ..blackboard.waits import Wait
from ..consensus import Debates
from ..errors import DebateNotFoundError
from .scene import Scene, duration
from .values import Standstill, StandstillKind

__all__ = ["WaitCycle", "find_cycles", "missing_voters"]


@dataclass(frozen=True, slots=True)
class WaitCycle:
    """Waits of which each waits for the next one, and the last for the first."""

    waits: tuple[Wait, ...]

    @property
    def key(self) -> frozenset[str]:
        """The same for the same cycle, wherever it is entered."""
        return frozenset(wait.id for wait in self.waits)

    def standstill(self, scene: Scene) -> Standstill:
        """The cycle, and the way out."""
        steps = []
        for wait, onward in zip(self.waits, (*self.waits[1:], self.waits[0]), strict=True):
            what = "the lock" if wait.kind == "lock" else "the debate"
            why = "holds" if wait.kind == "lock" else "has not voted in"
            waited = duration((scene.now_ms - wait.since_ms) / 1000)
            steps.append(f"{wait.agent_id} waits for {what} {wait.name!r} ({waited}), which {onward.agent_id} {why}")
        newest = max(self.waits, key=lambda wait: (wait.since_ms, wait.id))
        return Standstill(
            kind=StandstillKind.WAIT_CYCLE,
            where=" → ".join([*(wait.agent_id for wait in self.waits), self.waits[0].agent_id]),
            found="; ".join(steps),
            step=f"let one of them go: swarm agents shutdown {newest.agent_id}; for good: take locks in one order everywhere",
            facts={
                "waits": [
                    {"agent": wait.agent_id, "kind": wait.kind, "name": wait.name, "since_ms": wait.since_ms}
                    for wait in self.waits
                ],
            },
        )  # fmt: skip


async def missing_voters(blackboard: Blackboard, waits: Sequence[Wait]) -> dict[str, frozenset[str]]:
    """Debate that somebody waits for → agents that were invited by name and have not voted."""
    debates, found = Debates(blackboard.store, blackboard.keys), dict[str, frozenset[str]]()
    opened = {debate.id: debate for debate in await debates.open_debates()}
    for name in {wait.name for wait in waits if wait.kind == "debate"} & opened.keys():
        try:
            voted = {vote.agent_id for vote in await debates.votes(name)}
        except DebateNotFoundError:
            continue  # forgotten while we looked
        found[name] = frozenset(opened[name].voters) - voted
    return found


def find_cycles(scene: Scene, missing: Mapping[str, frozenset[str]]) -> list[WaitCycle]:
    """Every smallest cycle among the waits of a board, each once."""
    onward = {wait.id: _onward(wait, scene, missing) for wait in scene.waits}
    found: dict[frozenset[str], WaitCycle] = {}
    for start in scene.waits:
        cycle = _shortest(start, onward)
        if cycle is not None:
            found.setdefault(cycle.key, cycle)
    return list(found.values())


def _onward(wait: Wait, scene: Scene, missing: Mapping[str, frozenset[str]]) -> list[Wait]:
    if wait.kind == "lock":
        held = scene.locks.get(wait.name)
        if held is None:
            return []
        agent_id, token = held
        return [
            each for each in scene.waits if each.agent_id == agent_id and (wait.name, token) in each.holding
        ]  # fmt: skip
    waiting = Counter(each.agent_id for each in scene.waits)
    return [
        each for each in scene.waits
        if each.agent_id in missing.get(wait.name, ()) and waiting[each.agent_id] >= scene.slots_of(each.agent_id)
    ]  # fmt: skip


def _shortest(start: Wait, onward: Mapping[str, list[Wait]]) -> WaitCycle | None:
    """The shortest way from *start* back to it, if there is one."""
    ways: list[tuple[Wait, ...]] = [(start,)]
    seen: set[str] = set()
    while ways:
        longer: list[tuple[Wait, ...]] = []
        for way in ways:
            for each in onward[way[-1].id]:
                if each.id == start.id:
                    return WaitCycle(way)
                if each.id not in seen:
                    seen.add(each.id)
                    longer.append((*way, each))
        ways = longer
    return None
