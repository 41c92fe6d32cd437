"""What stands still on a board, item or no item: lanes that starve, waits that grow long, rings of waits. Reads Redis only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

from ..blackboard import Blackboard, Item
from ..blackboard.events import Event
from ..blackboard.items import read_item
from ..errors import InvalidInputError
from .cycles import find_cycles, missing_voters
from .explain import section_full
from .scene import Scene, duration, grouped, names_of, newest_events, read_scene
from .values import Standstill, StandstillKind

__all__ = ["PATIENCE_S", "find_standstills"]

PATIENCE_S = 60.0  # an item that has been ready for less is not called late, whatever others did
FAR_LONGER = 10  # times what half of the claims lately waited at most
REAPED_S = 10.0  # a sweeper looks every 6 s at the latest; a lease that ended longer ago was overlooked
PRIORITIES = range(10)
BAND = 10**15  # of a line's scores: see `score_of` in lua/shared/40_record.lua


@dataclass(slots=True)
class _Lane:
    """What the log tells of a lane."""

    waited_s: list[float] = field(default_factory=list)  #: of the claims lately: ready until claimed
    claimed_ms: list[int] = field(default_factory=list)  #: when something was claimed, newest first
    ready_ms: list[int] = field(default_factory=list)  #: since when those had been ready, as far as the log was read


async def find_standstills(blackboard: Blackboard, *, patience_s: float = PATIENCE_S) -> list[Standstill]:
    """What stands still on a board; nothing, if all that is ready will be claimed.

    Args:
        blackboard: the board.
        patience_s: how long an item may be ready before it can be called late.
    """
    scene = await read_scene(blackboard)
    found = [standstill async for standstill in _lanes(blackboard, scene, patience_s)]
    found += [standstill async for standstill in _leases(blackboard, scene)]
    found += await _full(blackboard)
    found += [cycle.standstill(scene) for cycle in find_cycles(scene, await missing_voters(blackboard, scene.waits))]
    found += [
        Standstill(
            kind=StandstillKind.BREAKER_OPEN, where=breaker.name,
            found=f"its breaker is open: it is not called for another {duration(breaker.wait_s)}",
            step=f"if it works again: swarm breakers close {breaker.name}",
            facts={"failures": breaker.failures, "wait_s": breaker.wait_s},
        )
        for breaker in scene.breakers
    ]  # fmt: skip
    return found


async def _lanes(blackboard: Blackboard, scene: Scene, patience_s: float) -> AsyncIterator[Standstill]:
    store, keys = blackboard.store, blackboard.keys
    lanes = await blackboard.queries.timed_lanes()
    sizes = await store.commands(*(("ZCARD", keys.lane(lane).line) for lane in lanes)) if lanes else []
    busy = [(lane, int(size)) for lane, size in zip(lanes, sizes, strict=True) if size]
    told = _by_lane(await newest_events(blackboard)) if busy else {}
    for lane, size in busy:
        first = await _first_of_each_priority(blackboard, lane)
        if not first:
            continue  # claimed while we looked
        groups = grouped(scene, scene.able(lane))
        oldest = min(first, key=lambda item: item.changed_ms)
        age_s = max(0.0, (scene.now_ms - oldest.changed_ms) / 1000)
        what = f"{size} ready {'item' if size == 1 else 'items'}, the oldest ({oldest.id}) for {duration(age_s)}"
        facts = {"items": size, "oldest": oldest.id, "oldest_s": round(age_s, 3)}
        if {"", "busy"} & groups.keys() or scene.silent() or (scene.is_queue and not groups):
            for item in first:
                late = _late(item, told.get(lane, _Lane()), scene, patience_s, lane)
                if late is not None:
                    yield late
        elif groups:
            whys = [f"{names_of(agent for agent, _ in rows)}: {rows[0][1].why}" for rows in groups.values()]
            kind = StandstillKind.STARVED if groups.keys() == {"offline"} else StandstillKind.STOPPED
            yield Standstill(
                kind=kind, where=lane.rstrip("/"), found=f"{what}; who could take them may not or can't ({'; '.join(whys)})",
                step=f"more: swarm why {oldest.id}",
                facts=facts | {"hindered": {name: len(rows) for name, rows in groups.items()}},
            )  # fmt: skip
        else:
            yield Standstill(
                kind=StandstillKind.STARVED, where=lane.rstrip("/"), found=f"{what}; no living agent claims from there",
                step=f"more: swarm why {oldest.id}", facts=facts,
            )  # fmt: skip


async def _first_of_each_priority(blackboard: Blackboard, lane: str) -> list[Item]:
    """The first item of each priority that stands in a line."""
    store, keys = blackboard.store, blackboard.keys
    line = keys.lane(lane).line
    bands = ((str(n * BAND), f"({(n + 1) * BAND}") for n in PRIORITIES)
    rows = await store.commands(*(("ZRANGEBYSCORE", line, low, high, "LIMIT", 0, 1) for low, high in bands))
    ids = [row[0].decode() for row in rows if row]
    items: list[Item] = []
    for item_id, record in zip(ids, await store.command("HMGET", keys.items, *ids) if ids else [], strict=True):
        try:
            item = read_item(item_id, record, None) if record is not None else None
        except InvalidInputError:
            continue  # torn: `swarm audit` names it
        if item is not None and not item.holder:
            items.append(item)
    return items


def _by_lane(events: Iterable[Event]) -> dict[str, _Lane]:
    """Claims of each lane, newest first, and how long each item had waited; *events* come newest first."""
    lanes: defaultdict[str, _Lane] = defaultdict(_Lane)
    open_claims: dict[str, Event] = {}
    for event in events:
        if (claim := open_claims.pop(event.item, None)) is not None and event.after == claim.before:
            lanes[claim.before].waited_s.append((claim.at_ms - event.at_ms) / 1000)
            lanes[claim.before].ready_ms.append(event.at_ms)
        if event.kind == "claimed":
            lanes[event.before].claimed_ms.append(event.at_ms)
            open_claims[event.item] = event
    return lanes


def _late(item: Item, lane: _Lane, scene: Scene, patience_s: float, name: str) -> Standstill | None:
    """Whether an item that somebody could take waits for too long all the same."""
    age_s = (scene.now_ms - item.changed_ms) / 1000
    passed = sum(at_ms > item.changed_ms for at_ms in lane.ready_ms)
    claimed = sum(at_ms > item.changed_ms for at_ms in lane.claimed_ms)
    usual_s = median(lane.waited_s) if lane.waited_s else 0.0
    if age_s < patience_s or age_s < FAR_LONGER * usual_s:
        return None
    facts = {
        "item": item.id, "priority": item.priority, "age_s": round(age_s, 3), "passed_by": passed,
        "usual_s": round(usual_s, 3),
    }  # fmt: skip
    waits = f"{item.id} (priority {item.priority}) has been ready for {duration(age_s)}"
    if passed:
        return Standstill(
            kind=StandstillKind.OVERTAKEN, where=name.rstrip("/"),
            found=f"{waits}, and {passed} that came later were claimed before it; half of the claims waited "
            f"{duration(usual_s)} at most",
            step=f"more hands (swarm run TARGET --processes N), or fewer items of a high priority; more: swarm why {item.id}",
            facts=facts,
        )  # fmt: skip
    usually = f"; half of the claims lately waited {duration(usual_s)} at most" if lane.waited_s else ""
    so_far = f"{claimed} of its lane were" if claimed else "nothing of its lane was"
    return Standstill(
        kind=StandstillKind.WAITS_LONG, where=name.rstrip("/"), found=f"{waits}, and meanwhile {so_far} claimed{usually}",
        step=f"more: swarm why {item.id}", facts=facts,
    )  # fmt: skip


async def _leases(blackboard: Blackboard, scene: Scene) -> AsyncIterator[Standstill]:
    """Leases that ended and were not taken back."""
    store, keys = blackboard.store, blackboard.keys
    lanes = await blackboard.queries.timed_lanes()
    before_ms = scene.now_ms - round(REAPED_S * 1000)
    asked = (("ZRANGEBYSCORE", keys.lane(lane).timed, "-inf", before_ms, "LIMIT", 0, 100) for lane in lanes)
    for lane, ids in zip(lanes, await store.commands(*asked) if lanes else [], strict=True):
        if ids:
            shown = ", ".join(name.decode() for name in ids[:3]) + (" …" if len(ids) > 3 else "")
            yield Standstill(
                kind=StandstillKind.LEASES_OVER, where=lane.rstrip("/"),
                found=f"leases or delays ended more than {duration(REAPED_S)} ago, and nobody took the items back "
                f"({len(ids)}{' or more' if len(ids) == 100 else ''}): {shown}",
                step="start a worker, which does so at once: swarm run TARGET",
                facts={"items": [name.decode() for name in ids]},
            )  # fmt: skip


async def _full(blackboard: Blackboard) -> list[Standstill]:
    return list(_full_sections(blackboard, await blackboard.queries.stats()))


def _full_sections(blackboard: Blackboard, stats: dict[str, dict[str, object]]) -> Iterator[Standstill]:
    for name, section in blackboard.board.sections.items():
        total = int(str(stats[name]["total"]))
        if 0 < section.cap <= total:
            reason = section_full(blackboard.board.name, name, total, section.cap)
            yield Standstill(
                kind=StandstillKind.SECTION_FULL, where=name, found=reason.found, step=reason.step, facts=reason.facts
            )
