"""A board in plain Python: what Redis ought to answer and to hold after each call.

Written from the design and the docstrings, never from the Lua, so that the two can disagree. Dicts, and a clock that
only `Model.advance` moves. A call that the board refuses raises `Refused` with the error that a caller would see.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm_infrastructure import errors
from swarm_infrastructure.blackboard import Board

REAPED_PER_CALL = 50


class Refused(Exception):
    """The board says no."""

    def __init__(self, error: type[errors.SwarmError]) -> None:
        self.error = error
        super().__init__(error.__name__)


@dataclass(frozen=True, kw_only=True)
class New:
    """What is submitted."""

    id: str
    section: str
    status: str
    payload: dict[str, Any]
    requires: str = ""
    priority: int = 2
    delay_ms: int = 0
    content_hash: str = ""
    dedup_ms: int = 0  # 0: for ever


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What an agent would claim."""

    agent: str
    role: str
    most: int
    most_held: int = 0


@dataclass(kw_only=True)
class Thing:
    """An item."""

    id: str
    section: str
    status: str
    requires: str
    priority: int
    seq: int
    payload: dict[str, Any]
    content_hash: str
    version: int = 1
    attempts: int = 0
    crashes: int = 0
    token: int = 0  # of its newest claim
    holder: str = ""
    origin: str = ""  # status it was claimed from
    ends_ms: int = 0  # of the lease
    due_ms: int = 0  # not claimable before
    result: Any = None
    errors: list[tuple[str, str]] = field(default_factory=list)  # what happened, to which agent
    endings: list[tuple[int, str, int]] = field(default_factory=list)  # of its last two claims: token, word, version

    @property
    def lane(self) -> tuple[str, str, str]:
        """Section, status (the one it comes back to, while it is held) and capability."""
        return self.section, self.origin or self.status, self.requires


class Model:
    """One board."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.now_ms = 0
        self.items: dict[str, Thing] = {}
        self.marks: dict[str, tuple[str, int]] = {}  # content hash → who has it, until when (0: for ever)
        self.gates: set[str] = set()
        self.tallies: Counter[tuple[str, str]] = Counter()  # agent, ending
        self.submitted = 0
        self.token = 0

    # -- what can be seen ---------------------------------------------------------------------------------------------

    def query(self, section: str, status: str) -> list[str]:
        return [each.id for each in self._line(self.items.values()) if (each.section, each.status) == (section, status)]

    def stats(self) -> dict[str, dict[str, int]]:
        stats: dict[str, dict[str, int]] = {name: {} for name in self.board.sections}
        for each in self.items.values():
            stats[each.section][each.status] = stats[each.section].get(each.status, 0) + 1
        return stats

    def held_by(self, agent: str) -> list[str]:
        return sorted(each.id for each in self.items.values() if each.holder == agent)

    def gated(self, agent: str, role: str) -> bool:
        return not self.gates.isdisjoint({"*", f"role:{role}", f"agent:{agent}"})

    @staticmethod
    def _line(things: Iterable[Thing]) -> list[Thing]:
        return sorted(things, key=lambda each: (each.priority, each.seq))  # an item never loses its place in time

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, ms: int) -> None:
        self.now_ms += ms

    def reap(self, lanes: Iterable[tuple[str, str, str]]) -> int:
        """Leases that ran out end: each is one crash."""
        wanted = set(lanes)
        over = [e for e in self.items.values() if e.holder and e.lane in wanted and e.ends_ms <= self.now_ms]
        for thing in sorted(over, key=lambda each: each.ends_ms)[:REAPED_PER_CALL]:
            thing.crashes += 1
            thing.errors.append(("lease_ended", thing.holder))
            self._settle(thing, "lease_ended", worn=self._worn(thing))
        return len(over)

    def _worn(self, thing: Thing) -> bool:
        limits = self.board.sections[thing.section]
        return 0 < limits.max_crashes <= thing.crashes or 0 < limits.max_attempts <= thing.attempts

    def _settle(self, thing: Thing, word: str, *, worn: bool = False, status: str = "", delay_ms: int = 0) -> str:
        """A claim is over: the item waits again, or is put away."""
        if word != "lease_ended":  # which nobody asked for
            word = "quarantined" if worn else word
            self.tallies[thing.holder, word] += 1
        thing.status = self.board.quarantine if worn else status or thing.origin
        thing.holder, thing.origin, thing.ends_ms = "", "", 0
        self._wait(thing, delay_ms)
        thing.version += 1
        return word

    def _wait(self, thing: Thing, delay_ms: int) -> None:
        ready = thing.status in self.board.sections[thing.section].ready
        thing.due_ms = self.now_ms + delay_ms if ready and delay_ms else 0

    # -- submitting ---------------------------------------------------------------------------------------------------

    def submit(self, *many: New) -> list[str]:
        """For each ``""`` if it was accepted, else the id of the item that is there already.

        A section that is full takes nothing more of them; the others are written all the same.
        """
        answers = [self._submit(new) for new in many]
        if None in answers:
            raise Refused(errors.SectionFullError)
        return [answer or "" for answer in answers]

    def _submit(self, new: New) -> str | None:
        if new.id in self.items:
            return new.id
        first, expires_ms = self.marks.get(new.content_hash, ("", 0)) if new.content_hash else ("", 0)
        if first and (not expires_ms or expires_ms > self.now_ms):
            return first
        cap = self.board.sections[new.section].cap
        if cap and sum(each.section == new.section for each in self.items.values()) >= cap:
            return None
        self.submitted += 1
        thing = Thing(
            id=new.id, section=new.section, status=new.status, requires=new.requires, priority=new.priority,
            seq=self.submitted, payload=new.payload, content_hash=new.content_hash,
        )  # fmt: skip
        self._wait(thing, new.delay_ms)
        self.items[new.id] = thing
        if first in self.items:
            self.items[first].content_hash = ""  # its time was over, the hash is another's now
        if new.content_hash:
            self.marks[new.content_hash] = (new.id, self.now_ms + new.dedup_ms if new.dedup_ms else 0)
        return ""

    # -- claiming -----------------------------------------------------------------------------------------------------

    def claim(self, asks: Sequence[Ask], lanes: Sequence[tuple[str, str, str]], lease_ms: int) -> list[list[Thing]]:
        """What each ask gets; nothing behind a shut gate."""
        self.reap(lanes)
        self.token += 1
        hands: list[list[Thing]] = [[] for _ in asks]
        wanted = [0 if self.gated(ask.agent, ask.role) else self._room(ask, asks[:i]) for i, ask in enumerate(asks)]
        line = [each for each in self._line(self.items.values()) if each.lane in lanes and self.claimable(each)]
        line = line[: sum(wanted)]
        while line:  # round and round: nobody gets two while another has none
            for hand, ask, most in zip(hands, asks, wanted, strict=True):
                if line and len(hand) < most:
                    hand.append(self._take(line.pop(0), ask.agent, lease_ms))
        return hands

    def _room(self, ask: Ask, before: Sequence[Ask]) -> int:
        if not ask.most_held:
            return ask.most
        promised = sum(other.most for other in before if other.agent == ask.agent)
        return max(0, min(ask.most, ask.most_held - len(self.held_by(ask.agent)) - promised))

    def claim_item(self, item_id: str, agent: str, role: str, lease_ms: int) -> Thing | None:
        thing = self._get(item_id)
        self.token += 1
        if self.gated(agent, role):
            return None
        if thing.holder and thing.ends_ms <= self.now_ms:
            self.reap([thing.lane])
        return self._take(thing, agent, lease_ms) if self.claimable(thing) else None

    def claimable(self, thing: Thing) -> bool:
        ready = thing.status in self.board.sections[thing.section].ready
        return ready and not thing.holder and thing.due_ms <= self.now_ms

    def _take(self, thing: Thing, agent: str, lease_ms: int) -> Thing:
        thing.origin, thing.status = thing.status, self.board.sections[thing.section].ready[thing.status]
        thing.holder, thing.token, thing.ends_ms, thing.due_ms = agent, self.token, self.now_ms + lease_ms, 0
        thing.attempts += 1
        thing.version += 1
        return thing

    def holds(self, item_id: str, token: int) -> bool:
        """Whether a claim is alive. One whose lease ran out is dead, even if nobody has taken the item back yet."""
        thing = self.items.get(item_id)
        return thing is not None and bool(thing.holder) and thing.token == token and thing.ends_ms > self.now_ms

    def renew(self, item_id: str, token: int, lease_ms: int) -> bool:
        if not self.holds(item_id, token):
            return False
        self.items[item_id].ends_ms = self.now_ms + lease_ms
        return True

    # -- ending a claim -----------------------------------------------------------------------------------------------

    def _ending(self, item_id: str, token: int, *words: str) -> tuple[Thing, tuple[str, int] | None]:
        """The item, and the first answer if this claim ended in one of these *words* before."""
        thing = self.items.get(item_id)
        for ended, word, version in thing.endings if thing else ():
            if ended == token and word in words:
                return self.items[item_id], (word, version)
        if thing is None or not self.holds(item_id, token):
            raise Refused(errors.ClaimLostError)
        return thing, None

    @staticmethod
    def _ended(thing: Thing, word: str) -> tuple[str, int]:
        thing.endings = [(thing.token, word, thing.version), *thing.endings][:2]
        return word, thing.version

    def complete(
        self, item_id: str, token: int, to: tuple[str, str] | None, *, claimed_as: tuple[str, str], requires: str = "",
        patch: Mapping[str, Any] | None = None, result: Any = None, delay_ms: int = 0,
    ) -> tuple[str, int]:  # fmt: skip
        """End a claim, made in section and status *claimed_as*, with success."""
        if to is None:
            then = self.board.sections[claimed_as[0]].then.get(claimed_as[1])
            if then is None:
                raise Refused(errors.WrongStatusError)
            section, _, status = then.partition("/")
            to = section, status
        thing, answer = self._ending(item_id, token, "completed")
        if answer:
            return answer
        self._check_step(thing, to[1])
        if patch is not None:
            self._write(thing, to[0], patch)
        thing.result = result if result is not None else thing.result
        thing.section, thing.requires, thing.attempts, thing.crashes = to[0], requires, 0, 0
        return self._ended(thing, self._settle(thing, "completed", status=to[1], delay_ms=delay_ms))

    def fail(self, item_id: str, token: int, *, retry_in_ms: int = 0, give_up: bool = False) -> tuple[str, int]:
        words = ("quarantined",) if give_up else ("failed", "quarantined")
        thing, answer = self._ending(item_id, token, *words)
        if answer:
            return answer
        thing.errors.append(("failed", thing.holder))
        status, worn = self.board.sections[thing.section].retry_status(thing.origin), give_up or self._worn(thing)
        return self._ended(thing, self._settle(thing, "failed", status=status, worn=worn, delay_ms=retry_in_ms))

    def hand_back(self, item_id: str, token: int, *, delay_ms: int = 0) -> tuple[str, int]:
        thing, answer = self._ending(item_id, token, "handed_back")
        return answer or self._give_back(thing, "handed_back", delay_ms)

    def _give_back(self, thing: Thing, word: str, delay_ms: int = 0) -> tuple[str, int]:
        thing.attempts -= 1
        return self._ended(thing, self._settle(thing, word, delay_ms=delay_ms))

    # -- changing without a claim -------------------------------------------------------------------------------------

    def update(
        self, section: str, item_id: str, patch: Mapping[str, Any], priority: int | None = None, token: int = 0
    ) -> None:
        thing = self._get(item_id, section)
        if thing.holder and thing.token == token and thing.ends_ms <= self.now_ms:
            raise Refused(errors.ClaimLostError)
        if not self.holds(item_id, token):
            self._check_free(thing)
        self._write(thing, section, patch)
        thing.priority = thing.priority if priority is None else priority
        thing.version += 1

    def move(self, item_id: str, section: str, to: tuple[str, str], *, requires: str, patch: Any = None) -> None:
        thing = self._get(item_id, section)
        self._check_free(thing)
        self._check_step(thing, to[1])
        if patch:
            self._write(thing, to[0], patch)
        self._place(thing, *to, requires)

    def release(self, item_id: str) -> int:
        thing = self._get(item_id)
        if thing.status != self.board.quarantine:
            raise Refused(errors.WrongStatusError)
        section = self.board.sections[thing.section]
        back = section.entry if section.entry in section.ready else next(iter(section.ready))  # where it is offered
        return self._place(thing, thing.section, back, thing.requires)

    def retry(self, item_id: str) -> int:
        thing = self._get(item_id)
        if thing.status == self.board.quarantine:
            return self.release(item_id)
        if thing.status not in self.board.sections[thing.section].ready:
            raise Refused(errors.WrongStatusError)
        self._check_free(thing)
        thing.due_ms = 0
        thing.version += 1
        return thing.version

    def archive(self, item_id: str) -> int:
        thing = self._get(item_id)
        if self.board.archive is None:
            raise Refused(errors.WrongStatusError)
        section, _, status = self.board.archive.partition("/")
        self.move(item_id, thing.section, (section, status), requires="")
        return thing.version

    def delete(self, section: str, item_id: str) -> bool:
        thing = self.items.get(item_id)
        if thing is None or thing.section != section:
            return False
        self._check_free(thing)
        if self.marks.get(thing.content_hash, ("",))[0] == item_id:
            del self.marks[thing.content_hash]
        del self.items[item_id]
        return True

    def purge_marks(self) -> int:
        """Hashes whose time is over are forgotten."""
        over = [each for each, (_, ends_ms) in self.marks.items() if ends_ms and ends_ms <= self.now_ms]
        for each in over:
            item_id, _ = self.marks.pop(each)
            if item_id in self.items and self.items[item_id].content_hash == each:
                self.items[item_id].content_hash = ""
        return len(over)

    def _place(self, thing: Thing, section: str, status: str, requires: str) -> int:
        thing.section, thing.status, thing.requires = section, status, requires
        thing.attempts, thing.crashes, thing.due_ms = 0, 0, 0
        thing.version += 1
        return thing.version

    def _get(self, item_id: str, section: str = "") -> Thing:
        thing = self.items.get(item_id)
        if thing is None or (section and thing.section != section):
            raise Refused(errors.ItemNotFoundError)
        return thing

    def _check_free(self, thing: Thing) -> None:
        if thing.holder:  # also when its lease ran out: first somebody has to take it back
            raise Refused(errors.ItemHeldError)

    def _check_step(self, thing: Thing, status: str) -> None:
        if status not in self.board.steps.get(thing.status, ()):
            raise Refused(errors.WrongStatusError)

    def _write(self, thing: Thing, section: str, patch: Mapping[str, Any]) -> None:
        payload = {name: value for name, value in (thing.payload | patch).items() if value is not None}
        if len(json.dumps(payload, separators=(",", ":"))) > self.board.sections[section].max_payload_bytes:
            raise Refused(errors.InvalidInputError)
        thing.payload = payload

    # -- gates --------------------------------------------------------------------------------------------------------

    def pause(self, who: str) -> None:
        self.gates.add(who)

    def resume(self, who: str) -> bool:
        shut = who in self.gates
        self.gates.discard(who)
        return shut

    def revoke(self, agent: str) -> int:
        """The agent is stopped and its claims are offered again, those too whose leases ran out unnoticed."""
        self.gates.add(f"agent:{agent}")
        held = [each for each in self.items.values() if each.holder == agent]
        for thing in held:
            self._give_back(thing, "revoked")
        return len(held)
