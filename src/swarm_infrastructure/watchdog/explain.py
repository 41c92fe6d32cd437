"""Why one item does not move: each reason with what was found and the next step. Reads Redis only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

from ..blackboard import Blackboard, Item
from ..blackboard.events import Event, EventLog, read_entry
from ..blackboard.queries import QUEUE
from ..blackboard.registry import AgentState
from ..consensus import Debates
from ..consensus.values import Debate
from ..errors import InvalidInputError
from ..keys import check_id
from .scene import Scene, duration, grouped, names_of, newest_events, read_scene
from .values import Explanation, Reason, ReasonKind

__all__ = ["explain"]

SEARCHED = 100_000  # entries of the log that are looked through for an item that is gone: a second or two
PAGE = 1000
LAST_ERRORS = 3
JUST_NOW_S = 2.0  # a lease that ended so lately is about to be taken back


async def explain(blackboard: Blackboard, item_id: str) -> Explanation:
    """Why an item does not move.

    Args:
        blackboard: its board.
        item_id: the item; there need be none of this id.

    Returns:
        The reasons, the weightiest first; at least one.

    Raises:
        InvalidInputError: no id, or what Redis holds of the item is torn.
        StoreUnavailableError: Redis does not answer.
    """
    item = await blackboard.find(check_id("item id", item_id))
    scene = await read_scene(blackboard)
    if item is None:
        reasons = [reason async for reason in _missing(blackboard, item_id, scene.now_ms)]
        return Explanation(board=scene.board, item_id=item_id, place="", since_ms=0, age_s=0.0, reasons=tuple(reasons))
    reasons = await _Inquiry(blackboard, item, scene).reasons()
    return Explanation(
        board=scene.board, item_id=item_id, place=_place(item), since_ms=item.changed_ms,
        age_s=max(0.0, (scene.now_ms - item.changed_ms) / 1000), reasons=tuple(reasons),
    )  # fmt: skip


def _place(item: Item) -> str:
    return f"{item.section}/{item.status}" + (f", requires {item.requires}" if item.requires else "")


class _Inquiry:
    """One item, and what is known of its board."""

    def __init__(self, blackboard: Blackboard, item: Item, scene: Scene) -> None:
        self._blackboard, self._item, self._scene = blackboard, item, scene
        self._board = blackboard.board

    async def reasons(self) -> list[Reason]:
        item, section = self._item, self._board.sections.get(self._item.section)
        debates = [each async for each in self._debates()]
        if item.status == self._board.quarantine:
            return [await self._quarantined(), *debates]
        if item.holder:
            return [*await self._held(), *debates, *self._services()]
        if section is not None and item.status in section.ready:
            until_ms = await self._blackboard.queries.until_ms(item)
            if until_ms is not None and until_ms > self._scene.now_ms:
                return [await self._delayed(until_ms), *debates]
            standing = await self._ready()
            return [*standing, *debates, *(self._services() if all(each.passes for each in standing) else ())]
        return [*debates, self._resting()]

    # -- by where it stands -----------------------------------------------------------------------------------------

    async def _quarantined(self) -> Reason:
        item, errors = self._item, await self._blackboard.errors(self._item.id)
        last = [str(each.get("error", "")) for each in errors[-LAST_ERRORS:]][::-1]
        told = f"; the last error: {last[0]}" if last else ""
        how_often = f"after {_n(item.attempts, 'attempt')} and {_n(item.crashes, 'crash', 'crashes')}"
        return Reason(
            kind=ReasonKind.QUARANTINED,
            found=f"it is in quarantine {how_often}{told}",
            step=f"mend the cause, then: swarm items release {item.id}",
            facts={"attempts": item.attempts, "crashes": item.crashes, "errors": last},
        )

    async def _held(self) -> list[Reason]:
        item, scene = self._item, self._scene
        ends_ms = await self._blackboard.queries.until_ms(item)
        claimed_ms = await self._claimed_ms()
        left_s = ((ends_ms or 0) - scene.now_ms) / 1000
        holder = next((agent for agent in scene.agents if agent.agent_id == item.holder), None)
        facts: dict[str, Any] = {
            "agent": item.holder, "token": item.token, "claimed_ms": claimed_ms, "lease_ends_ms": ends_ms,
            "lease_left_s": round(left_s, 3), "attempt": item.attempts,
        }  # fmt: skip
        if left_s <= 0:
            alive = any(scene.hindrance(agent).kind != "offline" for agent in scene.agents)
            if alive and left_s > -JUST_NOW_S:
                found = f"the lease of {item.holder} has just ended: it is offered again at once"
                return [Reason(kind=ReasonKind.WORKED_ON, found=found, facts=facts)]
            step = "" if alive else "start a worker, which takes it back at once: swarm run TARGET"
            found = f"{item.holder} held it until its lease ended {duration(-left_s)} ago; nobody has taken it back yet"
            return [Reason(kind=ReasonKind.LEASE_OVER, found=found, step=step, facts=facts)]
        renewed_ms = (ends_ms or 0) - round(self._board.section(item.section).lease_s * 1000)
        renewed = claimed_ms and claimed_ms + 500 < renewed_ms <= scene.now_ms  # else its lease is not the section's
        facts["renewed_ms"] = renewed_ms if renewed else None
        parts = [f"{item.holder} works on it"]
        parts += [f" for {duration((scene.now_ms - claimed_ms) / 1000)}"] if claimed_ms else []
        parts += [f" (attempt {item.attempts})" if item.attempts > 1 else ""]
        parts += [f"; its lease ends in {duration(left_s)}"]
        if renewed:
            parts += [f", renewed {duration((scene.now_ms - renewed_ms) / 1000)} ago"]
        step = ""
        if holder is not None and scene.hindrance(holder).kind == "offline":
            parts += [
                f"; {item.holder} was {scene.hindrance(holder).why}: if it is dead, the item is offered again then"
            ]
        elif renewed:
            step = f"if it hangs, take it away: swarm agents revoke {item.holder}"
        return [
            *self._lock_waits(),
            Reason(kind=ReasonKind.WORKED_ON, found="".join(parts), step=step, facts=facts),
        ]  # fmt: skip

    async def _claimed_ms(self) -> int:
        """When the claim of now began; 0 if the log has forgotten."""
        entry = self._item.event
        for event in (await EventLog(self._blackboard.store, self._blackboard.keys).history(self._item.id, entry))[
            ::-1
        ]:
            if event.kind == "claimed" and event.token == self._item.token:
                return event.at_ms
        return 0

    def _lock_waits(self) -> Iterator[Reason]:
        for wait in self._scene.waits:
            here = wait.agent_id == self._item.holder and wait.item_id in ("", self._item.id)
            if here and wait.kind == "lock":
                holder, _ = self._scene.locks.get(wait.name, ("", 0))
                since = duration((self._scene.now_ms - wait.since_ms) / 1000)
                by = f", which {holder} holds" if holder else ""
                yield Reason(
                    kind=ReasonKind.LOCK,
                    found=f"{wait.agent_id} has waited for the lock {wait.name!r} for {since}{by}",
                    step=f"who holds it: swarm items show {wait.name} --board {self._board.name}.locks; rings: swarm why",
                    facts={"agent": wait.agent_id, "lock": wait.name, "since_ms": wait.since_ms, "held_by": holder},
                )

    async def _delayed(self, until_ms: int) -> Reason:
        item = self._item
        left_s = (until_ms - self._scene.now_ms) / 1000
        errors = await self._blackboard.errors(item.id) if item.attempts else []
        after = f" after attempt {item.attempts} failed ({errors[-1].get('error', '')})" if errors else ""
        return Reason(
            kind=ReasonKind.DELAYED,
            found=f"it waits{after}: not to be claimed for another {duration(left_s)}",
            step=f"sooner: swarm items retry {item.id}",
            facts={"until_ms": until_ms, "left_s": round(left_s, 3), "attempts": item.attempts},
        )

    def _resting(self) -> Reason:
        item, onward = self._item, sorted(self._board.steps.get(self._item.status, ()))
        if item.status in self._board.final:
            return Reason(
                kind=ReasonKind.FINISHED, found=f"its life has ended: {item.status!r} is final on this board",
                facts={"status": item.status},
            )  # fmt: skip
        to = f"; from there it may go to {', '.join(onward)}" if onward else ""
        return Reason(
            kind=ReasonKind.RESTING, found=f"no agent claims {item.section}/{item.status}: somebody has to move it{to}",
            facts={"status": item.status, "steps": onward},
        )  # fmt: skip

    # -- ready ------------------------------------------------------------------------------------------------------

    async def _ready(self) -> list[Reason]:
        scene, lane = self._scene, self._item.lane
        able = scene.able(lane)
        groups = grouped(scene, able)
        if "" in groups or "busy" in groups:
            found = [await self._in_line()]
            if "" not in groups:
                slots = _n(len(groups["busy"]), "agent")
                who = names_of(agent for agent, _ in groups["busy"])
                found.append(Reason(
                    kind=ReasonKind.BUSY, found=f"every slot of the {slots} that can take it is taken: {who}",
                    step="more hands: swarm run TARGET --processes N", facts={"agents": _ids(groups["busy"])},
                ))  # fmt: skip
            return found
        if able:
            return [*self._kept(groups), await self._in_line()]
        silent = scene.silent()
        if silent or scene.is_queue:
            who = f" ({names_of(silent)} work here and don't say what they claim)" if silent else ""
            line = await self._in_line()
            return [Reason(kind=line.kind, found=line.found + who, step=line.step, facts=line.facts)]
        return [self._nobody(), await self._in_line()]

    def _nobody(self) -> Reason:
        """Nobody who is registered claims from its lane: for want of a capability, or because nobody comes there."""
        item, scene = self._item, self._scene
        place = f"{item.section}/{item.status}/"
        there = [agent for agent in scene.agents if any(each.startswith(place) for each in scene.lanes_of(agent) or ())]
        if there:
            known = sorted({tag for agent in there for tag in agent.capabilities})
            return Reason(
                kind=ReasonKind.NO_CAPABILITY,
                found=f"it requires {item.requires!r}; who claims {item.section}/{item.status} ({names_of(there)}) "
                f"can do {', '.join(known) or 'nothing that has a name'}",
                step=f"run an agent with capabilities = [{item.requires!r}]",
                facts={"requires": item.requires, "capabilities": known, "agents": [each.agent_id for each in there]},
            )
        claimed = sorted({lane.rstrip("/") for agent in scene.agents for lane in scene.lanes_of(agent) or ()})
        if not scene.agents:
            found = "no agent is registered on this board"
        else:
            found = (
                f"no agent claims {item.section}/{item.status}; those here claim {', '.join(claimed[:6]) or 'nothing'}"
            )
            found += f" and {len(claimed) - 6} more" if len(claimed) > 6 else ""
        return Reason(
            kind=ReasonKind.NOBODY_CLAIMS, found=found,
            step=f"run an agent with claims = Claims({item.section!r}): swarm run TARGET",
            facts={"section": item.section, "status": item.status, "claimed": claimed},
        )  # fmt: skip

    def _kept(self, groups: dict[str, list[Any]]) -> Iterator[Reason]:
        """Why those who could take it may not claim."""
        scene = self._scene
        for kind in ("budget", "revoked", "paused", "leaving", "offline"):
            rows = groups.get(kind)
            if not rows:
                continue
            agents = [agent for agent, _ in rows]
            facts: dict[str, Any] = {"agents": [agent.agent_id for agent in agents]}
            first, why = rows[0]
            if kind == "budget":
                told = why.paused
                if told is not None:
                    facts |= {"scope": told.scope, "needed": told.needed, "left": told.left, "unit": told.unit}
                said, _, step = why.why.partition("; raise it: ")
                yield Reason(kind=ReasonKind.BUDGET, found=said, step=step, facts=facts)
            elif kind == "offline":
                silent_s = min(agent.age_s for agent in agents)
                yield Reason(
                    kind=ReasonKind.ALL_OFFLINE,
                    found=f"who could take it ({names_of(agents)}) was not heard of for {duration(silent_s)}",
                    step="start their workers again: swarm run TARGET", facts=facts | {"silent_s": silent_s},
                )  # fmt: skip
            elif kind == "leaving":
                yield Reason(
                    kind=ReasonKind.LEAVING, found=f"who could take it ({names_of(agents)}) was told to {why.why}",
                    step="start others: swarm run TARGET", facts=facts,
                )  # fmt: skip
            else:
                said = "" if why.why == kind else f": {why.why}"
                yield Reason(
                    kind=ReasonKind(kind), found=f"who could take it ({names_of(agents)}) is {kind}{said}",
                    step=f"let go on: swarm agents resume {scene.gate_of(first)}", facts=facts,
                )  # fmt: skip

    async def _in_line(self) -> Reason:
        item, now_ms = self._item, self._scene.now_ms
        lane = self._blackboard.keys.lane(item.lane)
        rank = await self._blackboard.store.command("ZRANK", lane.line, item.id)
        before = int(rank or 0)  # None: its delay ended just now, or it was claimed while we looked
        taken = [
            event.at_ms for event in await newest_events(self._blackboard)
            if event.kind == "claimed" and event.before == item.lane
        ]  # fmt: skip
        waits = duration((now_ms - item.changed_ms) / 1000)
        facts: dict[str, Any] = {"before": before, "waits_s": round((now_ms - item.changed_ms) / 1000, 3)}
        found = f"it is the next of its lane, ready for {waits}"
        if before:
            found = f"{_n(before, 'item')} of its lane {_is(before)} before it (its priority is {item.priority})"
        if not taken:
            return Reason(
                kind=ReasonKind.IN_LINE, found=f"{found}; of this lane nothing was claimed lately", facts=facts
            )
        over_s = max((now_ms - taken[-1]) / 1000, 1.0)
        per_s = len(taken) / over_s
        facts |= {"claims_per_s": round(per_s, 4), "last_claim_s": round((now_ms - taken[0]) / 1000, 3)}
        found += f"; the last claim of this lane was {duration((now_ms - taken[0]) / 1000)} ago"
        if before:
            found += f", {_rate(per_s)}: its turn in about {duration((before + 1) / per_s)}"
        return Reason(kind=ReasonKind.IN_LINE, found=found, facts=facts)

    # -- what it waits for elsewhere ----------------------------------------------------------------------------------

    def _services(self) -> Iterator[Reason]:
        """Services that nobody may call now. Which of them the agent needs, Redis does not know."""
        for breaker in self._scene.breakers:
            yield Reason(
                kind=ReasonKind.BREAKER_OPEN,
                found=f"the breaker of {breaker.name} is open: it is not called for another {duration(breaker.wait_s)}",
                step=f"if it works again: swarm breakers close {breaker.name}",
                facts={"breaker": breaker.name, "wait_s": breaker.wait_s},
            )
        for name, wait_s in self._scene.rates.items():
            yield Reason(
                kind=ReasonKind.RATE_LIMIT,
                found=f"{name.removeprefix('model:')} has asked not to be called for another {duration(wait_s)}",
                facts={"name": name, "wait_s": round(wait_s, 3)},
            )

    async def _debates(self) -> AsyncIterator[Reason]:
        debates = Debates(self._blackboard.store, self._blackboard.keys)
        for debate in await debates.open_debates():
            if debate.item_id == self._item.id:
                voted = {vote.agent_id for vote in await debates.votes(debate.id)}
                yield _waits_for_votes(debate, voted)


def _waits_for_votes(debate: Debate, voted: set[str]) -> Reason:
    missing = [each for each in debate.voters if each not in voted]
    count = f"{debate.votes} of {debate.expected} votes" if debate.expected else _n(debate.votes, "vote")
    who = f"; {', '.join(missing[:5])} {'has' if len(missing) == 1 else 'have'} not voted" if missing else ""
    who = who or (f"; any {' or '.join(debate.roles)} may vote" if debate.roles else "")
    return Reason(
        kind=ReasonKind.VOTES,
        found=f"the debate {debate.id!r} has {count}{who}; it ends in {duration(debate.left_s)} at the latest",
        facts={
            "debate": debate.id, "missing": missing, "votes": debate.votes, "quorum": debate.quorum,
            "deadline_ms": debate.deadline_ms,
        },
    )  # fmt: skip


async def _missing(blackboard: Blackboard, item_id: str, now_ms: int) -> AsyncIterator[Reason]:
    """No such item: when it was deleted, or what may have kept it from coming."""
    last, searched, whole = await _last_event(blackboard, item_id)
    if last is not None:
        by, why = f" by {last.agent}" if last.agent else "", f": {last.reason}" if last.reason else ""
        ago = duration((now_ms - last.at_ms) / 1000)
        yield Reason(
            kind=ReasonKind.MISSING, found=f"it was deleted {ago} ago{by} from {last.before.rstrip('/')}{why}",
            facts={"deleted_ms": last.at_ms, "by": last.agent, "reason": last.reason, "from": last.before},
        )  # fmt: skip
        return
    log = "the log" if whole else f"the newest {searched} entries of the log"
    yield Reason(
        kind=ReasonKind.MISSING, found=f"there is no such item, and {log} {'knows' if whole else 'know'} nothing of it",
        step="items there are: swarm items list", facts={"searched": searched, "whole_log": whole},
    )  # fmt: skip
    counted = await blackboard.queries.stats()
    for name, section in blackboard.board.sections.items():
        if 0 < section.cap <= counted[name]["total"]:
            yield section_full(blackboard.board.name, name, counted[name]["total"], section.cap)


def section_full(board: str, name: str, total: int, cap: int) -> Reason:
    """The reason that a section takes no more items."""
    queue = board.endswith(QUEUE)
    return Reason(
        kind=ReasonKind.SECTION_FULL, found=f"section {name!r} is full ({total} of {cap}): submits are refused",
        step="" if queue else f"make room: swarm items list --section {name}, then archive or delete",
        facts={"section": name, "items": total, "cap": cap},
    )  # fmt: skip


async def _last_event(blackboard: Blackboard, item_id: str) -> tuple[Event | None, int, bool]:
    """The newest event of an item that is gone, how many entries were looked through, and whether those were all."""
    end, searched = "+", 0
    while searched < SEARCHED:
        entries: Sequence[Any] = await blackboard.store.command(
            "XREVRANGE", blackboard.keys.events, end, "-", "COUNT", PAGE
        )
        searched += len(entries)
        for entry_id, fields in entries:
            if item_id.encode() not in fields.get(b"items", b""):
                continue
            try:
                found = [event for event in read_entry(entry_id, fields) if event.item == item_id]
            except InvalidInputError:
                continue
            if found:
                return found[-1], searched, False
        if len(entries) < PAGE:
            return None, searched, await EventLog(blackboard.store, blackboard.keys).trimmed() is None
        end = "(" + entries[-1][0].decode()
    return None, searched, False


def _ids(rows: Iterable[tuple[AgentState, Any]]) -> list[str]:
    return [agent.agent_id for agent, _ in rows]


def _n(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _rate(per_s: float) -> str:
    return f"{per_s:.1f} a second" if per_s >= 1 else f"{per_s * 60:.1f} a minute"
