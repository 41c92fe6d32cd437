"""Boards as data: sections, statuses, and the steps between them.

A board is built once, checked as a whole, and registered in Redis, where every function keeps to it: no client, old or
buggy, can take an item a step that its board does not allow.

An item stands in a *section* with a *status*. Some statuses are *ready*: an agent may claim the item, and the claim turns
the status into another (or leaves it, where working and waiting look the same). When a lease runs out the item goes back
to the status it was claimed from. When its handler fails it waits in the section's ``retry`` status. When it has failed or
crashed too often it goes to ``quarantine``, where nobody can claim it, until a person releases it. Those steps follow
from the sections and are not listed; ``steps`` lists what agents decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

import orjson

from ..errors import BoardError, InvalidInputError, UnknownSectionError
from ..keys import check_name

__all__ = ["Board", "Place", "Section", "job_board"]

MAX_PAYLOAD_BYTES = 256 * 1024  # an article is 20 KB; a megabyte in Redis wants to be a file and a path
MAX_KEEP_S = 100 * 366 * 86400
MAX_LEASE_S = 366 * 86400  # a lease for ever would be none: a dead holder's item never came back


@dataclass(frozen=True, slots=True)
class Place:
    """A section and a status in it, written ``section/status``."""

    section: str
    status: str

    @classmethod
    def parse(cls, text: str | Place) -> Place:
        """Read ``section/status``."""
        if isinstance(text, Place):
            return text
        section, bar, status = text.partition("/")
        if not bar or not section or not status:
            raise InvalidInputError("place", found=text, needed="'section/status'")
        return cls(section, status)

    def __str__(self) -> str:
        return f"{self.section}/{self.status}"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a board.

    Args:
        ready: claimable status → the status that a claim turns it into (may be the same).
        resting: statuses in which items may stand here without being claimable.
        entry: the status of an item that comes here without one; the first ready one, else the first resting one.
        then: claimed status → ``section/status`` where completing leads when the agent names no place.
        retry: where a failed item waits for its next attempt; the status it was claimed from, if None. Must be ready.
        lease_s: how long a claim holds without a renewal, seconds.
        max_attempts: claims that may fail before quarantine; 0: any number.
        max_crashes: leases that may run out before quarantine; 0: any number.
        cap: items that may stand here before submitting is refused; 0: any number. Completions are never refused.
        max_payload_bytes: of one item's JSON.
        keep_s: how long items in its resting, final statuses are kept, seconds; None: for ever. Then they go, with their
            payload, result, errors and answers; their content hash stays known for as long as it was given.
    """

    ready: Mapping[str, str] = field(default_factory=dict)
    resting: tuple[str, ...] = ()
    entry: str = ""
    then: Mapping[str, str] = field(default_factory=dict)
    retry: str | None = None
    lease_s: float = 30.0  # three heartbeats of 10 s
    max_attempts: int = 5
    max_crashes: int = 3
    cap: int = 0
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    keep_s: float | None = None

    def __post_init__(self) -> None:
        # enum members become plain strings: they are keys of JSON objects and of Redis hashes
        for name in ("ready", "then"):
            plain = {str(key): str(value) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(plain))
        object.__setattr__(self, "resting", tuple(map(str, self.resting)))
        object.__setattr__(self, "entry", str(self.entry))
        object.__setattr__(self, "retry", None if self.retry is None else str(self.retry))
        if not self.entry:
            object.__setattr__(self, "entry", next(iter([*self.ready, *self.resting]), ""))

    @property
    def statuses(self) -> tuple[str, ...]:
        """Every status that an item may have here, quarantine aside."""
        return tuple(dict.fromkeys([*self.ready, *self.ready.values(), *self.resting]))

    def retry_status(self, claimed_from: str) -> str:
        """Where an item that was claimed from *claimed_from* waits after a failure."""
        return self.retry or claimed_from


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board: validated as a whole when it is built.

    Args:
        name: of the board, unique in its namespace.
        sections: by name.
        steps: status → statuses that an agent may take an item to.
        final: statuses in which an item's life ends.
        quarantine: the status of items that wore out; must stand in no section's lists.
        archive: ``section/status`` to which `Blackboard.archive` moves finished items, if the board keeps them.

    Raises:
        BoardError: lists every contradiction: a status that nothing leads to, one from which no end can be reached, a
            ready status without a way out, a place that does not exist, a name that can't be one.
    """

    name: str
    sections: Mapping[str, Section]
    steps: Mapping[str, frozenset[str]]
    final: frozenset[str]
    quarantine: str = "quarantined"
    archive: str | None = None

    def __post_init__(self) -> None:
        steps = {str(status): frozenset(map(str, targets)) for status, targets in self.steps.items()}
        sections = {str(name): section for name, section in self.sections.items()}
        object.__setattr__(self, "sections", MappingProxyType(sections))
        object.__setattr__(self, "steps", MappingProxyType(steps))
        object.__setattr__(self, "final", frozenset(map(str, self.final)))
        object.__setattr__(self, "quarantine", str(self.quarantine))
        faults = _Faults(self).find()
        if faults:
            raise BoardError(self.name, faults)

    def section(self, name: str) -> Section:
        """The section called *name*.

        Raises:
            UnknownSectionError: the board has none of this name.
        """
        try:
            return self.sections[name]
        except KeyError:
            raise UnknownSectionError(str(name), self.name, list(self.sections)) from None

    def place(self, section: str, status: str | None = None) -> Place:
        """*section* with *status*, or with the section's entry status.

        Raises:
            UnknownSectionError: no such section.
            InvalidInputError: no such status in it.
        """
        found = self.section(section)
        status = str(status) if status else found.entry
        if status not in found.statuses and not (status == self.quarantine and found.ready):
            raise InvalidInputError(
                f"status in section {str(section)!r}", found=status, needed=f"one of {', '.join(found.statuses)}"
            )
        return Place(str(section), status)

    def is_ready(self, section: str, status: str) -> bool:
        """Whether an item at this place can be claimed."""
        return status in self.section(section).ready

    def allows(self, before: str, after: str) -> bool:
        """Whether an agent may take an item from one status to the other."""
        return after in self.steps.get(before, ())

    def kept_for_a_while(self) -> dict[str, list[str]]:
        """Section → its statuses in which items are purged once they have rested for its ``keep_s``."""
        return {
            name: [status for status in section.resting if status in self.final and status not in section.ready]
            for name, section in self.sections.items()
            if section.keep_s is not None
        }

    def with_sections(
        self, name: str | None = None, *, steps: Mapping[str, Any] | None = None, final: Any = (), **sections: Section
    ) -> Board:
        """This board with more sections, steps and final statuses, under a name of its own if one is given."""
        merged = {status: set(targets) for status, targets in self.steps.items()}
        for status, targets in (steps or {}).items():
            merged.setdefault(status, set()).update(targets)
        return replace(
            self,
            name=name or self.name,
            sections={**self.sections, **sections},
            steps={status: frozenset(targets) for status, targets in merged.items()},
            final=self.final | frozenset(final),
        )

    def with_lease(self, lease_s: float) -> Self:
        """This board with another lease in every section, seconds."""
        return replace(
            self, sections={name: replace(section, lease_s=lease_s) for name, section in self.sections.items()}
        )

    # -- what Redis holds -------------------------------------------------------------------------------------------

    def definition(self) -> dict[str, Any]:
        """The board as JSON data; `Board.from_definition` reads it."""
        return {
            "name": self.name,
            "sections": {
                name: {
                    "ready": dict(section.ready),
                    "resting": list(section.resting),
                    "entry": section.entry,
                    "then": dict(section.then),
                    "retry": section.retry,
                    "lease_s": section.lease_s,
                    "max_attempts": section.max_attempts,
                    "max_crashes": section.max_crashes,
                    "cap": section.cap,
                    "max_payload_bytes": section.max_payload_bytes,
                    **({} if section.keep_s is None else {"keep_s": section.keep_s}),
                }
                for name, section in self.sections.items()
            },
            "steps": {status: sorted(targets) for status, targets in self.steps.items()},
            "final": sorted(self.final),
            "quarantine": self.quarantine,
            "archive": self.archive,
        }

    @classmethod
    def from_definition(cls, data: Mapping[str, Any]) -> Board:
        """The board that `definition` described."""
        return cls(
            name=data["name"],
            sections={
                name: Section(**{**section, "resting": tuple(section["resting"])})
                for name, section in data["sections"].items()
            },
            steps={status: frozenset(targets) for status, targets in data["steps"].items()},
            final=frozenset(data["final"]),
            quarantine=data["quarantine"],
            archive=data["archive"],
        )

    def digest(self) -> str:
        """SHA-256 of the definition, in hex: two boards with the same digest have the same rules.

        Leases are left out: each claim names its own, and workers with different ones get on together.
        """
        definition = self.definition()
        for section in definition["sections"].values():
            del section["lease_s"]
        return hashlib.sha256(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def rules(self) -> dict[str, str]:
        """The fields that Redis enforces; ``lua/shared/30_rules.lua`` names them."""
        rules = {"definition": orjson.dumps(self.definition()).decode(), "quarantine": self.quarantine}
        for name, section in self.sections.items():
            rules[f"limits|{name}"] = (
                f"{section.max_attempts}|{section.max_crashes}|{section.cap}|{section.max_payload_bytes}"
            )
            rules[f"retry|{name}"] = section.retry or ""
            for status in section.statuses:
                rules[f"at|{name}|{status}"] = section.ready.get(status, "-")
            if section.ready:
                rules[f"at|{name}|{self.quarantine}"] = "-"
        for section_name, statuses in self.kept_for_a_while().items():
            for status in statuses:
                rules[f"keep|{section_name}|{status}"] = str(round((self.sections[section_name].keep_s or 0) * 1000))
        for status, targets in self.steps.items():
            for target in targets:
                rules[f"step|{status}|{target}"] = "1"
        return rules


class _Faults:
    """The contradictions of a board, in words."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.faults: list[str] = []

    def find(self) -> list[str]:
        self._names()
        if not self.board.sections:
            self.faults.append("it has no section; give it at least one")
        for name, section in self.board.sections.items():
            self._section(name, section)
        if not self.faults:
            self._steps()
        return self.faults

    def _names(self) -> None:
        board = self.board
        statuses = {s for section in board.sections.values() for s in section.statuses}
        named = [("board", board.name), ("status", board.quarantine)]
        named += [("section", name) for name in board.sections]
        named += [("status", s) for s in statuses | set(board.steps) | {t for ts in board.steps.values() for t in ts}]
        for what, name in named:
            try:
                check_name(what, name)
            except (InvalidInputError, TypeError) as error:
                self.faults.append(str(error))

    def _section(self, name: str, section: Section) -> None:
        board, fault = self.board, self.faults.append
        if not section.statuses:
            fault(f"section {name!r} has no status; give it ready or resting ones")
            return
        if section.entry not in (*section.ready, *section.resting):
            needed = ", ".join(dict.fromkeys([*section.ready, *section.resting]))
            fault(f"section {name!r} has entry {section.entry!r}, needed a ready or resting status: {needed}")
        if section.retry is not None and section.retry not in section.ready:
            fault(f"section {name!r} retries in {section.retry!r}, which is not ready there: it would wait for ever")
        if board.quarantine in section.statuses:
            fault(f"section {name!r} uses {board.quarantine!r}, which is the quarantine; name one of them differently")
        if not (isinstance(section.lease_s, int | float) and 0.05 <= section.lease_s <= MAX_LEASE_S):
            fault(f"section {name!r} has lease_s {section.lease_s!r}, needed seconds from 0.05 to {MAX_LEASE_S}")
        for limit, value, least in (
            ("max_attempts", section.max_attempts, 0),
            ("max_crashes", section.max_crashes, 0),
            ("cap", section.cap, 0),
            ("max_payload_bytes", section.max_payload_bytes, 1),
        ):
            # 2.5 or 1e6 would reach Redis as text that it can't read, and so as no limit at all
            if type(value) is not int or value < least:
                fault(f"section {name!r} has {limit} {value!r}, needed a whole number of at least {least}")
        if section.keep_s is not None:
            if not (isinstance(section.keep_s, int | float) and 0.001 <= section.keep_s <= MAX_KEEP_S):
                fault(
                    f"section {name!r} has keep_s {section.keep_s!r}, needed seconds from 0.001 to {MAX_KEEP_S}, or None"
                )
            if not set(section.resting) & board.final:
                fault(f"section {name!r} has keep_s but no status that is resting and final: nothing would ever go")
        for claimed, target in section.then.items():
            if claimed not in section.ready.values():
                fault(f"section {name!r} has a 'then' for {claimed!r}, which no claim leads to")
            self._place(f"section {name!r}: 'then' of {claimed!r}", target, claimed)
        if board.archive is not None:
            self._place("archive", board.archive, None)

    def _place(self, what: str, text: str, before: str | None) -> None:
        try:
            place = Place.parse(text)
        except InvalidInputError as error:
            self.faults.append(f"{what}: {error}")
            return
        section = self.board.sections.get(place.section)
        if section is None or place.status not in section.statuses:
            self.faults.append(f"{what} leads to {text!r}, a place the board does not have")
        elif before is not None and not self.board.allows(before, place.status):
            self.faults.append(f"{what} leads to {place.status!r}, but steps allow {before!r} no such step")

    def _steps(self) -> None:
        board, fault = self.board, self.faults.append
        stands = {s for section in board.sections.values() for s in section.statuses}
        for status in sorted(set(board.steps) | {t for targets in board.steps.values() for t in targets} | board.final):
            if status not in stands:
                fault(f"status {status!r} is in no section; add it to one, or drop it from steps and final")
        for status in sorted(board.final):
            if board.steps.get(status) and not any(status in s.resting for s in board.sections.values()):
                fault(f"final status {status!r} rests in no section")
        after: dict[str, set[str]] = {status: set(board.steps.get(status, ())) for status in stands}
        for section in board.sections.values():
            for status, claimed in section.ready.items():
                after[status].add(claimed)
                after[claimed].add(section.retry_status(status))
        self._reachable(stands, after)
        self._ways_out(stands, after)

    def _reachable(self, stands: set[str], after: dict[str, set[str]]) -> None:
        found = {section.entry for section in self.board.sections.values()}
        edge = list(found)
        while edge:
            for status in after.get(edge.pop(), ()):
                if status not in found:
                    found.add(status)
                    edge.append(status)
        for status in sorted(stands - found):
            self.faults.append(f"status {status!r} can't be reached; add a step that leads to it, or drop it")

    def _ways_out(self, stands: set[str], after: dict[str, set[str]]) -> None:
        board = self.board
        for name, section in board.sections.items():
            for status, claimed in section.ready.items():
                if not board.steps.get(claimed):
                    self.faults.append(
                        f"ready status {status!r} in section {name!r} has no way out: a claim makes it {claimed!r}, "
                        "and no step leads on from there"
                    )
        ending = set(board.final)
        grown = True
        while grown:
            grown = False
            for status in stands - ending:
                if after[status] & ending:
                    ending.add(status)
                    grown = True
        for status in sorted(stands - ending):
            self.faults.append(f"dead end: from {status!r} no final status can be reached ({', '.join(board.final)})")


def job_board(name: str, *sections: str, **limits: Any) -> Board:
    """A board of plain work queues: ``waiting`` → ``active`` → ``done``, each section a queue of its own.

    Args:
        name: of the board.
        sections: the queues; one called ``jobs`` if none is named.
        limits: of every section: ``lease_s``, ``max_attempts``, ``max_crashes``, ``cap``, ``max_payload_bytes``, ``keep_s``.
    """
    return Board(
        name=name,
        sections={
            queue: Section(ready={"waiting": "active"}, resting=("done",), then={"active": f"{queue}/done"}, **limits)
            for queue in sections or ("jobs",)
        },
        steps={"active": frozenset({"done", "waiting"})},
        final=frozenset({"done"}),
    )
