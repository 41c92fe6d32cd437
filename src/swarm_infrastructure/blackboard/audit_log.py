"""The audit of the log beside its fold: was each answer that was given kept, and given once? Reads Redis and nothing else.

====  ==================================================================================================
I5    no claim of an item between a claim and its end; no lease was taken back before it ended
I9    a request changed an item once, however often it was sent
I13   a hand-back counts as no attempt and no crash
I15   no submit was accepted into a section beyond its cap
I18   what a record says was acknowledged stands in the log; results belong to items; no item came uncounted
====  ==================================================================================================

The records are read first, then the base that trimmed events left, and the log after them, up to its end of then: so it
reaches at least as far as they do, and a board at work looks no different from one at rest. What was trimmed is taken at its
base's word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..errors import InvalidInputError
from ..keys import BoardKeys
from ..store import Store
from .audit import ENDS, RESETS
from .events import Base, Event, EventLog, read_base, read_entry
from .findings import Findings
from .items import Item, read_item
from .lifecycle import Board

__all__ = ["audit_log"]

PAGE = 1000
ENDINGS = 15  # the field of a record that names the last two claims that ended
LATE_MS = 1000  # I4: how long after its end a lease may be taken back, while agents live


@dataclass(slots=True)
class _Story:
    """What the log tells of one item, as far as its record has come."""

    record: str = ""
    item: Item | None = None
    first: int = 0  #: the version of its first event in the log
    base: Base | None = None  #: what its trimmed events made of it, before the log was read
    holder: str = ""
    token: int = 0
    attempts: int | None = None  #: since its last reset, hand-backs taken off; None if the log begins later
    handed_back: int = 0
    crashes: int = 0
    section: str = ""
    ends: dict[int, tuple[int, str]] = field(
        default_factory=dict
    )  #: version → token and kind of the claim that ended then


async def audit_log(store: Store, keys: BoardKeys, board: Board) -> Findings:
    """Every breach of I5, I9, I13, I15 and I18 that the log of one board shows; leases taken back late, in a note."""
    return await _LogAudit(store, keys, board).run()


class _LogAudit:
    def __init__(self, store: Store, keys: BoardKeys, board: Board) -> None:
        self._store, self._keys, self._board = store, keys, board
        self._stories: dict[str, _Story] = {}
        self._requests: set[tuple[str, str]] = set()
        self._sections: Counter[str] = Counter()
        self._over: dict[str, tuple[int, str]] = {}  # section → items after its newest submit, and that item
        self._log = EventLog(store, keys)
        self._born, self._whole = 0, True
        self.found = Findings()

    async def run(self) -> Findings:
        await self._read_records()
        await self._read_base()
        end = await self._log.last_id()
        async for request, events in self._entries(end):
            for event in events:
                self._take(event, request)
            self._count_submits(events)
        for name, story in self._stories.items():
            await self._check_endings(name, story)
            self._check_hand_backs(name, story)
        self._check_caps()
        await self._check_arrivals()
        await self._check_results()
        await self._check_errors()
        return self.found

    async def _read_records(self) -> None:
        async for name, record in self._scan(self._keys.items):
            try:
                item = read_item(name, record, None)
            except InvalidInputError:
                continue  # torn: the audit of the board names it
            self._stories[name] = _Story(record=record.decode(), item=item)

    async def _read_base(self) -> None:
        self._whole = await self._log.trimmed() is None
        async for name, text in self._scan(self._keys.base):
            if name in self._stories:
                try:
                    self._stories[name].base = read_base(text)
                except ValueError:
                    continue  # torn: the audit of the board names it

    async def _scan(self, key: str) -> AsyncIterator[tuple[str, bytes]]:
        cursor: int | bytes = 0
        while True:
            cursor, page = await self._store.command("HSCAN", key, cursor, "COUNT", PAGE)
            for name, value in page.items() if isinstance(page, Mapping) else zip(page[::2], page[1::2], strict=True):
                yield name.decode(errors="replace"), value
            if int(cursor) == 0:
                return

    async def _entries(self, end: str) -> AsyncIterator[tuple[str, list[Event]]]:
        start = "-"
        while True:
            entries = await self._store.command("XRANGE", self._keys.events, start, end, "COUNT", PAGE)
            for entry_id, fields in entries:
                try:
                    yield fields.get(b"request", b"").decode(), list(read_entry(entry_id, fields))
                except InvalidInputError:
                    self._whole = False  # the audit of the board names it
            if len(entries) < PAGE:
                return
            start = "(" + entries[-1][0].decode()

    # -- event by event -----------------------------------------------------------------------------------------------

    def _take(self, event: Event, request: str) -> None:
        if not event.item:
            return  # it tells of a trim
        if request:
            if (request, event.item) in self._requests:
                self.found.breach(
                    "I9", event.item, f"request {request} changed it again in event {event.id} ({event.kind})"
                )
            self._requests.add((request, event.item))
        story = self._stories.setdefault(event.item, _Story())
        if event.kind == "submitted":
            fresh = _Story(record=story.record, item=story.item, first=event.version, attempts=0)
            story = self._stories[event.item] = fresh
            self._born += 1
        elif not story.first:
            story.first, self._whole = event.version, False  # the log was trimmed
            if story.base is not None and story.base.version == event.version - 1:  # and not further while we read
                story.holder, story.token = story.base.holder, story.base.token
                story.attempts, story.crashes = story.base.attempts, story.base.crashes
        if story.item is not None and _place(event.id) > _place(story.item.event):
            return  # newer than the record as we read it
        self._claim_or_end(event, story)
        if event.kind in RESETS or event.kind == "submitted":
            story.attempts, story.handed_back, story.crashes = 0, 0, 0
        elif event.kind == "claimed" and story.attempts is not None:
            story.attempts += 1
        elif event.kind in ("handed_back", "revoked"):
            story.handed_back += 1
            story.attempts = None if story.attempts is None else max(0, story.attempts - 1)
        elif event.kind == "lease_ended" or (event.kind == "quarantined" and event.reason.startswith("lease ended (")):
            story.crashes += 1

    def _claim_or_end(self, event: Event, story: _Story) -> None:
        if event.kind == "claimed":
            if story.holder:
                what = (
                    f"{event.agent!r} claimed it (event {event.id}) while the claim of {story.holder!r} had not ended"
                )
                self.found.breach("I5", event.item, what)
            story.holder, story.token = event.agent, event.token
        elif event.kind in ENDS:
            story.holder = ""
            story.ends[event.version] = (event.token, event.kind)

    def _count_submits(self, events: list[Event]) -> None:
        """Items of each section after an entry; what a submit made of it is remembered until the next one."""
        entered = dict[str, str]()
        for event in events:
            left, come = event.before.partition("/")[0], event.after.partition("/")[0]
            if left != come:
                if left:
                    self._sections[left] -= 1
                if come:
                    self._sections[come] += 1
            if event.kind == "submitted":
                entered[come] = event.item
        for section, item in entered.items():
            self._over[section] = (self._sections[section], item)

    # -- at the end ---------------------------------------------------------------------------------------------------

    async def _check_endings(self, name: str, story: _Story) -> None:
        for ending in story.record.split("|")[ENDINGS].split(",") if story.record else ():
            token, kind, version = (*ending.split(":"), "", "")[:3]
            if not version.isdigit() or not token.isdigit() or int(version) < story.first:
                continue
            if story.ends.get(int(version)) != (int(token), kind):
                if await self._was_trimmed(name, story, int(version)):
                    continue
                what = f"its record says that claim {token} ended ({kind}) as version {version}; the log says otherwise"
                self.found.breach("I18", name, what)

    async def _was_trimmed(self, name: str, story: _Story, version: int) -> bool:
        """Whether the event that gave the item this version is gone from the log, perhaps since we began to read."""
        if story.base is None or story.base.version < version:
            try:
                story.base = await self._log.base_of(name)
            except ValueError:
                return False  # torn: the audit of the board names it
        return story.base is not None and version <= story.base.version

    def _check_hand_backs(self, name: str, story: _Story) -> None:
        item = story.item
        if item is None or not story.handed_back or story.attempts is None:
            return
        handed = f"was handed back {story.handed_back} times"
        if item.attempts > story.attempts:
            self.found.breach(
                "I13", name, f"it {handed}, and {item.attempts} attempts count instead of {story.attempts}"
            )
        if item.crashes > story.crashes:
            self.found.breach("I13", name, f"it {handed}, and {item.crashes} crashes count instead of {story.crashes}")

    def _check_caps(self) -> None:
        if not any(section.cap for section in self._board.sections.values()):
            self.found.notes["I15"] = "no section has a cap"
            return
        if not self._whole:
            self.found.skipped["I15"] = "the log does not go back to the first item"
            return
        for name, section in self._board.sections.items():
            items, newest = self._over.get(name, (0, ""))
            if 0 < section.cap < items and self._sections[name] > section.cap:
                what = (
                    f"section {name!r} had {items} items after its newest submit ({newest}), its cap is {section.cap}"
                )
                self.found.breach("I15", newest, what)

    async def _check_arrivals(self) -> None:
        seq = int(await self._store.command("GET", self._keys.seq) or 0)  # after the log: it only grows
        last = max((story.item.seq for story in self._stories.values() if story.item), default=0)
        if seq < max(last, self._born):
            what = f"{seq} items are counted as submitted, the log has {self._born}, and one of them has number {last}"
            self.found.breach("I18", "", what)

    async def _check_results(self) -> None:
        for name in await self._store.command("HKEYS", self._keys.results):
            known = self._stories.get(name.decode())
            if known is not None and known.item is not None:
                continue
            there, result = await self._store.commands(
                ("HEXISTS", self._keys.items, name), ("HEXISTS", self._keys.results, name)
            )
            if result and not there:
                self.found.breach("I18", name.decode(), "it has a result but no record")

    async def _check_errors(self) -> None:
        """How late leases were taken back, as the errors of the items tell. Redis may have been away: no breach."""
        late, worst_ms, known = 0, 0, 0
        async for name, text in self._scan(self._keys.errors):
            for line in text.splitlines():
                row = _error(line)
                if row.get("kind") != "lease_ended" or not isinstance(row.get("late_ms"), int):
                    continue
                known += 1
                late += row["late_ms"] > LATE_MS
                worst_ms = max(worst_ms, row["late_ms"])
                if row["late_ms"] < 0:
                    what = f"its lease (token {row.get('token')}) was taken back {-row['late_ms']} ms before it ended"
                    self.found.breach("I5", name, what)
        if known:
            self.found.notes["I4"] = f"{late} of {known} leases were taken back later than 1 s after their end, " + (
                f"the latest after {worst_ms / 1000:.1f} s"
            )


def _error(line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}  # cut off where the oldest lines go
    return row if isinstance(row, dict) else {}


def _place(entry_id: str) -> tuple[int, int]:
    ms, _, n = entry_id.partition("-")
    return int(ms or 0), int(n or 0)
