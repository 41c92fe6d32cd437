"""The audit: does Redis hold what the invariants say? Reads Redis and nothing else.

====  ==================================================================================================
I1    each item stands in exactly one line or timed set, the one its record names; the counters agree
I2    at most one live claim per item; record, timed set and the agent's counter name the same
I3    tokens grow with each claim of an item; a claim ends once, with its own token
I6    each change is a step that the board allows, and raises the version by one
I7    folding the log, from the base that trimmed events left, gives the live state
I8    of the items with one content hash exactly one was accepted
I12   attempts and crashes are counted, and a worn-out item is not offered until somebody releases it
====  ==================================================================================================

A board may be at work meanwhile: what looks wrong in the first reading is read again, item by item and as one
transaction, and only what stays wrong is reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..errors import BoardError, ConfigurationError, InvalidInputError
from ..keys import BoardKeys
from ..store import Store
from .events import Base, Event, EventLog, place_in_log, read_base
from .items import Item, read_item
from .lifecycle import Board

__all__ = ["AuditReport", "Breach", "audit", "read_board"]

READINGS = 4  # of a suspect before it is believed; a change in between looks wrong once, not four times
PAGE = 1000
ENDS = frozenset({"completed", "failed", "quarantined", "handed_back", "revoked", "lease_ended"})
RESETS = frozenset({"completed", "moved", "released"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One thing that must not be."""

    invariant: str  #: I1, I2, …
    item: str  #: its id; "" if the breach is not one item's
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.item or '(board)'}: {self.what}"


@dataclass(slots=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    board: str
    items: int = 0
    events: int = 0
    breaches: list[Breach] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  #: what could not be compared because the board never stood still

    @property
    def clean(self) -> bool:
        """Whether every invariant holds."""
        return not self.breaches

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "board": self.board,
            "items": self.items,
            "events": self.events,
            "clean": self.clean,
            "breaches": [{"invariant": b.invariant, "item": b.item, "what": b.what} for b in self.breaches],
            "skipped": self.skipped,
        }


@dataclass(slots=True, kw_only=True)
class _View:
    """Everything Redis says about one item."""

    id: str
    record: bytes | None = None
    payload: bool = False
    places: dict[str, float] = field(default_factory=dict)  #: line or timed key (without prefix) → score
    events: list[Event] = field(default_factory=list)
    base: bytes | None = None  #: what its trimmed events made of it
    mark: str | None = None  #: id that the dedup table gives for its content hash


@dataclass(slots=True)
class _State:
    """What the log says about one item."""

    version: int = 0
    lane: str = ""
    origin: str = ""
    holder: str = ""
    token: int = 0
    attempts: int | None = 0
    crashes: int | None = 0
    event: str = ""
    born: bool = False
    gone: bool = False

    @classmethod
    def of(cls, base: Base) -> _State:
        """The state after the events that were trimmed."""
        return cls(
            version=base.version, lane=base.lane, origin=base.origin, holder=base.holder, token=base.token,
            attempts=base.attempts, crashes=base.crashes, event=base.event, born=True,
        )  # fmt: skip


async def read_board(store: Store, namespace: str, name: str) -> Board:
    """The board as it is registered in Redis.

    Raises:
        ConfigurationError: there is no board of this name, or its definition can't be read.
    """
    text = await store.command("HGET", BoardKeys(namespace, name).rules, "definition")
    if text is None:
        raise ConfigurationError(
            f"no board {name!r} in namespace {namespace!r} at {store.shown}; run a swarm on it first, or set SWARM_ID"
        )
    try:
        return Board.from_definition(orjson.loads(text))
    except (orjson.JSONDecodeError, KeyError, TypeError, BoardError) as error:
        raise ConfigurationError(f"the definition of board {name!r} in Redis is torn: {error}") from error


async def audit(store: Store, namespace: str, name: str) -> AuditReport:
    """Check every invariant of one board; see the module's table."""
    return await _Audit(store, BoardKeys(namespace, name), await read_board(store, namespace, name)).run()


class _Audit:
    def __init__(self, store: Store, keys: BoardKeys, board: Board) -> None:
        self._store, self._keys, self._board = store, keys, board
        self._log = EventLog(store, keys)
        self._views: dict[str, _View] = {}
        self._last_event = "0-0"
        self._report = AuditReport(board=board.name)

    async def run(self) -> AuditReport:
        await self._check_rules()
        await self._read_items()
        await self._read_places()
        await self._read_marks()
        await self._read_events()
        await self._read_base()  # after the log: what is trimmed while we read stands in one of them, or in both
        suspects = {view.id: found for view in self._views.values() if (found := list(self._check(view)))}
        for _ in range(READINGS):
            if not suspects:
                break
            suspects = await self._look_again(suspects)
        self._report.breaches += [breach for found in suspects.values() for breach in found]
        self._report.items = sum(view.record is not None for view in self._views.values())
        await self._check_sums()
        return self._report

    # -- reading ----------------------------------------------------------------------------------------------------

    def _view(self, item_id: str) -> _View:
        view = self._views.get(item_id)
        if view is None:
            view = self._views[item_id] = _View(id=item_id)
        return view

    async def _scan(self, command: str, key: str) -> Any:
        cursor: int | bytes = 0
        while True:
            cursor, page = await self._store.command(command, key, cursor, "COUNT", PAGE)
            rows = page.items() if isinstance(page, Mapping) else page
            for name, value in rows:
                yield name.decode(errors="replace"), value
            if int(cursor) == 0:
                return

    async def _read_items(self) -> None:
        async for item_id, record in self._scan("HSCAN", self._keys.items):
            self._view(item_id).record = record
        async for item_id, _ in self._scan("HSCAN", self._keys.payloads):
            self._view(item_id).payload = True

    async def _places(self) -> list[str]:
        names: list[str] = []
        for kind in ("lane:", "timed:"):
            pattern = self._keys.prefix.replace("[", "\\[").replace("*", "\\*") + kind + "*"
            names += [key.decode().removeprefix(self._keys.prefix) async for key in self._store.scan(pattern)]
        return sorted(set(names))

    async def _read_places(self) -> None:
        for name in await self._places():
            async for item_id, score in self._scan("ZSCAN", self._keys.prefix + name):
                self._view(item_id).places[name] = float(score)

    async def _read_marks(self) -> None:
        self._marks = {
            mark: value.decode().partition("|")[0] async for mark, value in self._scan("HSCAN", self._keys.dedup)
        }
        for view in self._views.values():
            item = self._item(view)
            view.mark = self._marks.get(item.content_hash) if item and item.content_hash else None

    async def _read_events(self) -> None:
        start = "-" if self._last_event == "0-0" else "(" + self._last_event
        end = await self._log.last_id()  # and no farther: a busy board may write faster than we read
        try:
            async for event in self._log.read(start, end):
                if event.item:
                    self._view(event.item).events.append(event)
                self._last_event = event.id
                self._report.events += 1
        except InvalidInputError as error:
            self._report.breaches.append(Breach(invariant="I7", item="", what=str(error)))

    async def _read_base(self) -> None:
        async for item_id, base in self._scan("HSCAN", self._keys.base):
            if item_id:
                self._view(item_id).base = base
        self._trimmed = await self._log.trimmed()
        if self._trimmed is not None and self._trimmed.misfits:
            what = f"{self._trimmed.misfits} trimmed events did not follow on the item's event before"
            self._report.breaches.append(Breach(invariant="I7", item="", what=what))

    async def _look_again(self, suspects: Iterable[str]) -> dict[str, list[Breach]]:
        places, ids, views = await self._places(), list(suspects), list[_View]()
        together = max(1, PAGE // (2 + len(places)))
        for start in range(0, len(ids), together):
            views += await self._read_again(ids[start : start + together], places)
        self._views.update((view.id, view) for view in views)
        await self._read_events()  # after the records: the log must reach at least as far as they do
        for start in range(0, len(views), PAGE):
            part = views[start : start + PAGE]
            for view, base in zip(
                part, await self._store.command("HMGET", self._keys.base, *(v.id for v in part)), strict=True
            ):
                view.base = base
        return {view.id: found for view in views if (found := list(self._check(view)))}

    async def _read_again(self, ids: Sequence[str], places: Sequence[str]) -> list[_View]:
        questions: list[tuple[str, str, str]] = []
        for item_id in ids:
            questions += [("HGET", self._keys.items, item_id), ("HEXISTS", self._keys.payloads, item_id)]
            questions += [("ZSCORE", self._keys.prefix + name, item_id) for name in places]
        answers, views = iter(await self._store.commands(*questions)), []
        for item_id in ids:
            view = _View(
                id=item_id, record=next(answers), payload=bool(next(answers)), events=self._view(item_id).events
            )
            scores = [(name, next(answers)) for name in places]
            view.places = {name: float(score) for name, score in scores if score is not None}
            views.append(view)
        marked = [(view, item.content_hash) for view in views if (item := self._item(view)) and item.content_hash]
        if marked:
            marks = await self._store.command("HMGET", self._keys.dedup, *(mark for _, mark in marked))
            for (view, _), mark in zip(marked, marks, strict=True):
                view.mark = mark.decode().partition("|")[0] if mark else None
        return views

    def _item(self, view: _View) -> Item | None:
        if view.record is None:
            return None
        try:
            return read_item(view.id, view.record, None)
        except (InvalidInputError, ValueError):
            return None

    # -- checking ---------------------------------------------------------------------------------------------------

    async def _check_rules(self) -> None:
        found = await self._store.command("HGETALL", self._keys.rules)
        needed = self._board.rules() | {"digest": self._board.digest()}
        for name, value in needed.items():
            if found.get(name.encode(), b"").decode() != value:
                self._report.breaches.append(
                    Breach(
                        invariant="I6", item="", what=f"rule {name!r} is {found.get(name.encode())!r}, needed {value!r}"
                    )
                )
        for name in sorted(set(found) - {name.encode() for name in needed} - {b"clock_offset_ms"}):
            self._report.breaches.append(
                Breach(invariant="I6", item="", what=f"rule {name.decode()!r} is in no definition")
            )

    def _check(self, view: _View) -> Iterable[Breach]:
        def breach(invariant: str, what: str) -> Breach:
            return Breach(invariant=invariant, item=view.id, what=what)

        item = self._item(view)
        if view.record is not None and item is None:
            yield breach("I1", f"its record is torn: {view.record!r:.120}")
            return
        if item is None:
            if view.places:
                yield breach("I1", f"it stands in {', '.join(view.places)} but has no record")
            if view.payload:
                yield breach("I1", "it has a payload but no record")
        else:
            yield from self._check_place(view, item, breach)
            if item.content_hash and view.mark != view.id:
                what = f"was accepted for {view.mark!r} too" if view.mark else "is forgotten: a copy would be accepted"
                yield breach("I8", f"content hash {item.content_hash} {what}")
        try:
            base = read_base(view.base) if view.base is not None else None
        except ValueError:
            yield breach("I7", f"what its trimmed events made of it is torn: {view.base!r:.120}")
            return
        state, faults = self._fold(view, item, base)
        for invariant, what in faults:
            yield breach(invariant, what)
        yield from self._check_state(item, state, breach)

    def _check_place(self, view: _View, item: Item, breach: Any) -> Iterable[Breach]:
        section = self._board.sections.get(item.section)
        if section is None or (item.status not in section.statuses and item.status != self._board.quarantine):
            yield breach("I6", f"it stands in {item.section}/{item.status}, which the board does not have")
            return
        if not view.payload:
            yield breach("I1", "its payload is gone")
        ready = item.status in section.ready and not item.holder
        allowed = {f"timed:{item.claimed_from}"} if item.holder else {f"lane:{item.lane}"}
        if ready:
            allowed.add(f"timed:{item.lane}")  # delayed
        standing = sorted(view.places)
        if len(standing) != 1 or standing[0] not in allowed:
            yield breach(
                "I2" if item.holder else "I1",
                f"it stands in {', '.join(standing) or 'nothing'}, needed exactly {' or '.join(sorted(allowed))}",
            )
        if standing and standing[0].startswith("lane:") and view.places[standing[0]] != _score(item):
            yield breach("I1", f"its place in line is {view.places[standing[0]]:.0f}, its record says {_score(item)}")
        if item.holder and section.ready.get(item.origin) != item.status:
            yield breach(
                "I2", f"{item.holder!r} holds it from {item.origin!r}, from where a claim does not give {item.status!r}"
            )
        if not item.holder and item.origin:
            yield breach("I2", f"nobody holds it, but it was claimed from {item.origin!r}")
        if item.status != self._board.quarantine and not item.holder and item.status in section.ready:
            if 0 < section.max_crashes <= item.crashes:
                yield breach(
                    "I12", f"it crashed {item.crashes} times and is still offered (limit {section.max_crashes})"
                )
            if 0 < section.max_attempts <= item.attempts:
                yield breach(
                    "I12", f"it had {item.attempts} attempts and is still offered (limit {section.max_attempts})"
                )

    def _check_state(self, item: Item | None, state: _State | None, breach: Any) -> Iterable[Breach]:
        if state is None:
            if item is not None:
                yield breach("I7", "the log knows nothing of it")
            return
        if item is None:
            if not state.gone:
                yield breach("I1", f"it is gone, but the log last saw it in {state.lane}")
            return
        told = {
            "version": (item.version, state.version),
            "lane": (item.lane, state.lane),
            "holder": (item.holder, state.holder),
            "event": (item.event, state.event),
            "token": (item.token, state.token or item.token),
            "attempts": (item.attempts, item.attempts if state.attempts is None else state.attempts),
            "crashes": (item.crashes, item.crashes if state.crashes is None else state.crashes),
        }
        for name, (found, needed) in told.items():
            if found != needed:
                invariant = "I12" if name in ("attempts", "crashes") else "I7"
                yield breach(invariant, f"its {name} is {found!r}, the log says {needed!r}")

    def _fold(self, view: _View, item: Item | None, base: Base | None) -> tuple[_State | None, list[tuple[str, str]]]:
        newest = place_in_log(item.event) if item else None
        state = _State.of(base) if base else None
        faults: list[tuple[str, str]] = []
        for event in view.events:
            if newest is not None and place_in_log(event.id) > newest:
                break  # newer than the record as we read it
            if base is not None and place_in_log(event.id) <= place_in_log(base.event):
                continue  # trimmed while we read
            if state is None or (event.kind == "submitted" and state.gone):
                state = _State(born=event.kind == "submitted")
                if not state.born:  # its first events are gone, and nobody knows what they made of it
                    if item is not None:
                        faults.append(("I7", f"event {event.id} ({event.kind}) is the first that the log has of it"))
                    state.version, state.lane, state.attempts, state.crashes = (
                        event.version - 1,
                        event.before,
                        None,
                        None,
                    )
            faults += self._step(state, event)
        return state, faults

    def _step(self, state: _State, event: Event) -> list[tuple[str, str]]:
        faults: list[tuple[str, str]] = []
        where = f"event {event.id} ({event.kind})"
        if event.version != state.version + 1:
            faults.append(("I6", f"{where} raises the version from {state.version} to {event.version}"))
        if event.before != state.lane:
            faults.append(("I7", f"{where} leaves {event.before!r}, but it stood in {state.lane!r}"))
        if not self._legal(state, event):
            faults.append(
                ("I6", f"{where} goes from {event.before!r} to {event.after!r}, which the board does not allow")
            )
        if event.kind == "claimed":
            if state.holder:
                faults.append(("I2", f"{where} by {event.agent!r} while {state.holder!r} held it"))
            if event.token <= state.token:
                faults.append(("I3", f"{where} has token {event.token}, not above {state.token}"))
            if event.before.split("/")[1] == self._board.quarantine:
                faults.append(("I12", f"{where} out of quarantine"))
            state.holder, state.token, state.origin = event.agent, event.token, event.before
            state.attempts = None if state.attempts is None else state.attempts + 1
        elif event.kind in ENDS:
            if (state.born or state.holder) and (event.token, event.agent) != (state.token, state.holder):
                held = f"{state.holder!r} held {state.token}"
                faults.append(("I3", f"{where} by {event.agent!r} with token {event.token}; {held}"))
            state.token = state.token or event.token
            state.holder = ""
        elif event.kind in ("moved", "released", "retried", "deleted") and state.holder:
            faults.append(("I2", f"{where} while {state.holder!r} held it"))
        _count(state, event)
        state.version, state.lane, state.event = event.version, event.after, event.id
        state.gone = event.kind == "deleted"
        return faults

    def _legal(self, state: _State, event: Event) -> bool:
        board = self._board
        if event.kind == "deleted":
            return event.after == ""
        section, status, requires = event.after.split("/")
        place = board.sections.get(section)
        quarantine = status == board.quarantine
        if place is None or not (status in place.statuses or (quarantine and place.ready)):
            return False
        if event.kind == "submitted":
            return event.before == ""
        old_section, old_status, old_requires = event.before.split("/")
        stays = (section, requires) == (old_section, old_requires)
        match event.kind:
            case "claimed":
                return stays and place.ready.get(old_status) == status
            case "completed" | "moved":
                return board.allows(old_status, status)
            case "handed_back" | "revoked" | "lease_ended":
                return stays and place.ready.get(status) == old_status and state.origin in ("", event.after)
            case "failed":
                origins = [start for start, claimed in place.ready.items() if claimed == old_status]
                return stays and status in {place.retry_status(start) for start in origins}
            case "quarantined":
                return stays and quarantine
            case "released":
                return stays and old_status == board.quarantine and status in place.ready
            case "updated" | "retried":
                return event.before == event.after
            case _:
                return False

    async def _check_sums(self) -> None:
        """Counters of the whole board: compared when nothing changed while they were read."""
        for _ in range(READINGS):
            before = await self._log.last_id()
            counts, held = await self._store.commands(("HGETALL", self._keys.counts), ("HGETALL", self._keys.held))
            fence = await self._store.command("GET", self._keys.fence)
            views = [_View(id=name, record=record) async for name, record in self._scan("HSCAN", self._keys.items)]
            items = [item for view in views if (item := self._item(view))]
            if await self._log.last_id() == before:
                self._compare_sums({item.id: item for item in items}, counts, held, int(fence or 0))
                return
        self._report.skipped.append("counters (the board never stood still)")

    def _compare_sums(
        self, items: Mapping[str, Item], counts: Mapping[bytes, bytes], held: Mapping[bytes, bytes], fence: int
    ) -> None:
        lanes = Counter(item.lane for item in items.values())
        lanes.update(item.section for item in items.values())
        for what, invariant, needed, found in (
            ("items counted in", "I1", lanes, {name.decode(): int(n) for name, n in counts.items()}),
            ("claims counted for", "I2", Counter(i.holder for i in items.values() if i.holder), {
                name.decode(): int(n) for name, n in held.items()
            }),
        ):  # fmt: skip
            for name in sorted(set(needed) | set(found)):
                if needed.get(name, 0) != found.get(name, 0):
                    self._report.breaches.append(
                        Breach(
                            invariant=invariant,
                            item="",
                            what=f"{what} {name!r}: {found.get(name, 0)}, there are {needed.get(name, 0)}",
                        )
                    )
        for item in items.values():
            if item.token > fence and fence:
                self._report.breaches.append(
                    Breach(invariant="I3", item=item.id, what=f"its token {item.token} is above the newest, {fence}")
                )


def _count(state: _State, event: Event) -> None:
    if event.kind == "submitted" or event.kind in RESETS:
        state.attempts, state.crashes = 0, 0
    elif event.kind in ("handed_back", "revoked") and state.attempts is not None:
        state.attempts = max(0, state.attempts - 1)
    elif event.kind == "lease_ended" or (event.kind == "quarantined" and event.reason.startswith("lease ended (")):
        state.crashes = None if state.crashes is None else state.crashes + 1


def _score(item: Item) -> int:
    """Its place in a line: see ``score_of`` in ``lua/shared/40_record.lua``."""
    return item.priority * 10**15 + item.seq
