"""The whole audit of a board: each invariant I1 to I20 as far as Redis alone can tell, with the verdict on each.

The parts stand where their subject is: `blackboard.audit` (items and the fold of the log), `blackboard.audit_log`,
`blackboard.audit_traces`, `cost_manager.audit`, `consensus.audit`, `failure_recovery.audit`. Here they are joined, and I20 is
added, which holds at rest only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from ..blackboard.audit import Breach, audit, read_board
from ..blackboard.audit_log import audit_log
from ..blackboard.audit_traces import SETTLE_S, audit_traces
from ..blackboard.findings import Findings
from ..blackboard.locks import lock_board_name
from ..blackboard.waits import Waits
from ..consensus import audit_debates
from ..cost_manager import Ledger, audit_money
from ..failure_recovery.audit import audit_checkpoints
from ..keys import BoardKeys, BusKeys
from ..store import Store

__all__ = ["INVARIANTS", "Invariant", "Verdict", "WholeAudit", "audit_whole"]

HOLDS, BROKEN, NOT_JUDGED = "holds", "broken", "not judged"
PAGE = 1000
LEFT_RECEIPTS = 1000  # of agents that came by hand and are not registered: one each


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """What must always hold, and how much of it Redis alone can tell."""

    name: str
    what: str
    beyond: str = ""  #: what of it can't be told from Redis, and what tells it


INVARIANTS = (
    Invariant(
        name="I1", what="each item stands in one place; the counters agree", beyond="what was accepted: the client's ledger"
    ),
    Invariant(name="I2", what="one claim per item; record, lease and counter name the same"),
    Invariant(name="I3", what="tokens grow with each claim; a claim ends once", beyond="refused writes leave no trace"),
    Invariant(
        name="I4", what="what ran out is offered again while workers live", beyond="within 1 s: the note tells how late it was"
    ),
    Invariant(name="I5", what="no claim while another one holds, no lease ended early"),
    Invariant(name="I6", what="only steps that the board allows, each raises the version by one"),
    Invariant(name="I7", what="the log gives the live state"),
    Invariant(name="I8", what="of items with one content one was accepted"),
    Invariant(name="I9", what="a request has one effect; receipts say what was given", beyond="answers to repeats: the tests"),
    Invariant(name="I10", what="counters are what was booked; nothing negative", beyond="caps that were changed since"),
    Invariant(name="I11", what="every hold is of a call that is open or sent, and ends"),
    Invariant(name="I12", what="attempts and crashes count; what wore out is not offered"),
    Invariant(name="I13", what="hand-backs count as no attempt and no crash", beyond="how long stopping took: make faults"),
    Invariant(name="I14", what="checkpoints are whole and of no stale claim"),
    Invariant(name="I15", what="no submit beyond a section's cap", beyond="behaviour without memory: the tests"),
    Invariant(name="I16", what="wake-ups are hints", beyond="only what happens without them shows it: make faults"),
    Invariant(name="I17", what="a doorbell has one token at most", beyond="claim calls per item: make faults"),
    Invariant(name="I18", what="what was acknowledged stands in the log", beyond="what a Redis lost as a whole: make faults"),
    Invariant(name="I19", what="a tenant sees only its own", beyond="rights are of users, not of data"),
    Invariant(name="I20", what="at rest nothing is held, awaited or left behind", beyond="tasks and connections: the tests"),
    Invariant(name="D", what="debates: tallies, verdicts and deadlines agree"),
)  # fmt: skip
NOWHERE = {
    "I16": "Redis does not show who would have been woken",
    "I19": "rights are of users, not of data",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the audit says of one invariant."""

    invariant: Invariant
    state: str  #: holds, broken or not judged
    breaches: int
    note: str  #: worth knowing; why it was not judged

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "invariant": self.invariant.name, "what": self.invariant.what, "state": self.state, "breaches": self.breaches,
            "note": self.note, "beyond": self.invariant.beyond,
        }  # fmt: skip


@dataclass(slots=True, kw_only=True)
class WholeAudit:
    """What the audit of a board found."""

    board: str
    items: int
    events: int
    breaches: list[Breach] = field(default_factory=list)
    notes: Mapping[str, str] = field(default_factory=dict)  #: by invariant
    skipped: Mapping[str, str] = field(default_factory=dict)  #: invariant → why it was not judged

    @property
    def clean(self) -> bool:
        """Whether nothing is broken."""
        return not self.breaches

    def verdicts(self) -> list[Verdict]:
        """Each invariant in order."""
        counted = {each.name: 0 for each in INVARIANTS}
        for breach in self.breaches:
            counted[breach.invariant if breach.invariant in counted else "D"] += 1
        return [
            Verdict(
                invariant=each, breaches=counted[each.name],
                state=BROKEN if counted[each.name] else NOT_JUDGED if each.name in self.skipped else HOLDS,
                note=self.skipped.get(each.name, "") or self.notes.get(each.name, ""),
            )
            for each in INVARIANTS
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "board": self.board, "items": self.items, "events": self.events, "clean": self.clean,
            "breaches": [{"invariant": b.invariant, "item": b.item, "what": b.what} for b in self.breaches],
            "skipped": [f"{name}: {why}" for name, why in self.skipped.items()],
            "invariants": [verdict.as_dict() for verdict in self.verdicts()],
        }  # fmt: skip


async def audit_whole(
    store: Store,
    namespace: str,
    name: str,
    *,
    zone: ZoneInfo,
    at_rest: bool = False,
    settle_s: float = SETTLE_S,
) -> WholeAudit:
    """Check every invariant of one board; a swarm may be at work meanwhile.

    Args:
        store: the Redis that holds it.
        namespace: of the board.
        name: of the board.
        zone: where the ledger counts its days.
        at_rest: nothing is meant to be at work: check I20 too.
        settle_s: if leases are over, how long to wait for somebody to take them back.

    Raises:
        ConfigurationError: there is no board of this name, or its definition can't be read.
    """
    keys = BoardKeys(namespace, name)
    board = await read_board(store, namespace, name)
    report = await audit(store, namespace, name)
    found = Findings(breaches=report.breaches, skipped=dict(NOWHERE))
    if report.skipped:
        found.notes["I1"] = f"not compared: {', '.join(report.skipped)}"
    found.add(await audit_log(store, keys, board))
    found.add(await audit_traces(store, keys, board, settle_s=settle_s))
    ledger = Ledger(store, keys, zone)
    found.breaches += await audit_money(ledger)
    found.breaches += await audit_debates(store, keys)
    found.add(await audit_checkpoints(store, keys))
    if at_rest:
        found.add(await audit_at_rest(store, namespace, name, ledger))
    else:
        found.skipped["I20"] = "holds at rest only: --at-rest"
    return WholeAudit(
        board=name, items=report.items, events=report.events, breaches=found.breaches, notes=found.notes,
        skipped=found.skipped,
    )  # fmt: skip


async def audit_at_rest(store: Store, namespace: str, name: str, ledger: Ledger) -> Findings:
    """I20 of a board on which nobody is meant to work: every lease, hold, wait, lock and call that is left."""
    keys, found = BoardKeys(namespace, name), Findings()
    for desk, what in ((keys, "claims"), (BoardKeys(namespace, lock_board_name(name)), "locks")):
        for agent, n in (await store.command("HGETALL", desk.held)).items():
            if int(n):
                found.breach("I20", "", f"{agent.decode()!r} holds {int(n)} {what if int(n) != 1 else what[:-1]}")
    books = await ledger.standing()
    for id, (state, *_) in books.reservations.items():
        if state in ("open", "sent"):
            found.breach("I20", id, f"the reservation is {state}: money is held for a call")
    for counter, row in books.counters.items():
        if any(row[1:6:2]):
            found.breach(
                "I20", "", f"the counter {counter} still holds {row[1]} nano-dollars, {row[3]} tokens, {row[5]} calls"
            )
    for wait in await Waits(store, keys).list():
        found.breach("I20", "", f"{wait.agent_id!r} waits for the {wait.kind} {wait.name!r}")
    await _calls(store, namespace, found)
    receipts = {each.decode() for each in await store.command("HKEYS", keys.receipts)}
    left = receipts - {each.decode() for each in await store.command("HKEYS", keys.agents)}
    if len(left) > LEFT_RECEIPTS:
        found.breach("I20", "", f"{len(left)} receipts are of agents that are not registered; {LEFT_RECEIPTS} may be")
    elif left:
        found.notes["I20"] = f"{len(left)} receipts are of agents that are not registered"
    return found


async def _calls(store: Store, namespace: str, found: Findings) -> None:
    """Calls that wait for somebody to take them; of the namespace, whichever board was asked for."""
    prefix = BusKeys(namespace).requests("")
    pattern, cursor = prefix.replace("[", "\\[").replace("*", "\\*") + "*", b"0"
    while True:
        cursor, page = await store.command("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        for key in sorted(set(page)):
            waiting = int(await store.command("LLEN", key))
            if waiting:
                service = key.decode().removeprefix(prefix)
                found.breach("I20", "", f"{waiting} calls of service {service!r} wait for somebody to take them")
        if int(cursor) == 0:
            return
