"""The board's log: one small event for each change, written in the same function as the change.

An entry of the stream may carry many items that changed alike. Each item's row names its version and its previous
event, so that an item's history is read backwards in as many steps as it has events, without a scan. Where these are
the same as in the row before, the row is nothing but the item's id.

The log is trimmed (see ``retention``). What the events that went made of an item stays in the *base*: base and log
together give the live state, as the whole log would. An event of kind ``truncated`` and of no item says how much went.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import InvalidInputError, UnavailableError
from ..keys import BoardKeys
from ..store import Store, Word

__all__ = ["Base", "Event", "EventLog", "Page", "Trimmed", "place_in_log", "read_base"]

TRUNCATED = "truncated"
PAGE = 1000  # entries of one read
WAIT_S = 5.0  # of one read that waits


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of one item."""

    id: str  #: of the stream entry; its first part is milliseconds on Redis' clock
    kind: str  #: submitted, claimed, completed, failed, handed_back, lease_ended, quarantined, released, moved, truncated, …
    item: str  #: "" where a log was trimmed
    version: int  #: of the item after the change
    before: str  #: lane it left: section/status/requires; "" at birth
    after: str  #: lane it came to; "" when deleted
    agent: str
    token: int  #: of the claim; 0 if there was none
    reason: str
    trace: str
    previous: str  #: id of the item's event before this one; "" at birth

    @property
    def at_ms(self) -> int:
        """When it happened, milliseconds since the epoch."""
        return int(self.id.partition("-")[0])

    def as_dict(self) -> dict[str, Any]:
        """The event as JSON data, under the names of the product document where it has them."""
        return {
            "kind": self.kind,
            "item": self.item,
            "version": self.version,
            "from": self.before,
            "to": self.after,
            "by": self.agent,
            "token": self.token,
            "reason": self.reason,
            "trace": self.trace,
            "at_ms": self.at_ms,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What the events of an item that were trimmed made of it."""

    version: int
    lane: str
    origin: str  #: lane it was claimed from, if it was held
    holder: str
    token: int  #: of its last claim, 0 if there was none
    attempts: int
    crashes: int
    event: str  #: id of the last of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """How far a log was trimmed."""

    last: str  #: id of the newest entry that went
    entries: int  #: that went in all
    misfits: int = 0  #: changes among them that did not follow on the item's change before


class Page(NamedTuple):
    """What was written behind a place in the log."""

    entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]  #: of the stream, as Redis has them
    answer: Any  #: to the command behind the read; None if there is none
    end: str  #: where to read on
    gap: bool = False  #: Redis had been away: the log may have gone back behind what was read, as with a failover


def read_base(text: bytes) -> Base:
    """One field of the base."""
    version, lane, origin, holder, token, attempts, crashes, event = text.decode().split("|")
    return Base(
        version=int(version), lane=lane, origin=origin, holder=holder, token=int(token or 0), attempts=int(attempts),
        crashes=int(crashes), event=event,
    )  # fmt: skip


def place_in_log(entry_id: str) -> tuple[int, int]:
    """An entry's id as numbers, in the order of the log."""
    ms, _, n = entry_id.partition("-")
    return int(ms or 0), int(n or 0)


def read_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Iterator[Event]:
    """The events in one entry of the stream."""
    name = entry_id.decode()
    facts = {field.decode(): value.decode() for field, value in fields.items()}
    try:
        rows = facts["items"].split(",") if facts["kind"] != TRUNCATED else [" 0 "]
        said: list[str] = []
        for row in rows:
            item, *more = row.split(" ")
            said = more or said  # a row of nothing but an id says the same as the row before it
            version, previous, *other = said
            agent, token = other or (facts["agent"], facts["token"])
            yield Event(
                id=name,
                kind=facts["kind"],
                item=item,
                version=int(version),
                before=facts["from"],
                after=facts["to"],
                agent=agent,
                token=int(token or 0),
                reason=facts["reason"],
                trace=facts["trace"],
                previous=previous,
            )
    except (KeyError, ValueError) as error:
        raise InvalidInputError(
            f"event {name}", found=facts, needed="an event of this board", step="see: swarm audit"
        ) from error


class EventLog:
    """Reads a board's events."""

    def __init__(self, store: Store, keys: BoardKeys) -> None:
        self._store, self._keys = store, keys

    async def read(self, start: str = "-", end: str = "+", *, page: int = PAGE) -> AsyncIterator[Event]:
        """Events from *start* to *end* (stream ids; ``(id`` excludes it), oldest first."""
        while True:
            entries = await self._store.command("XRANGE", self._keys.events, start, end, "COUNT", page)
            for entry_id, fields in entries:
                for event in read_entry(entry_id, fields):
                    yield event
            if len(entries) < page:
                return
            start = "(" + entries[-1][0].decode()

    async def follow(self, start: str) -> AsyncIterator[Event]:
        """Events behind *start* (a stream id), and then those that come, for ever."""
        async for entry_id, fields in self.entries(start):
            for event in read_entry(entry_id, fields):
                yield event

    async def entries(self, start: str) -> AsyncIterator[tuple[bytes, Mapping[bytes, bytes]]]:
        """The entries of the stream behind *start* (a stream id), and then those that come, for ever: as Redis has them.

        Raises:
            StoreUnavailableError: Redis has been away for longer than calls are repeated.
        """
        while True:
            page = await self.next_page(start)
            start = page.end
            for entry in page.entries:
                yield entry

    async def next_page(self, start: str, *, behind: Sequence[Word] = ()) -> Page:
        """Wait for entries behind *start*, a while.

        Args:
            start: a stream id.
            behind: a command that waits in Redis with us (see `Store.next_entries`).

        Raises:
            StoreUnavailableError: Redis has been away for longer than calls are repeated.
        """
        try:
            entries, answer = await self._store.next_entries(self._keys.events, start, WAIT_S, behind=behind, most=PAGE)
        except UnavailableError:
            newest = await self.last_id()  # a read that is repeated waits for Redis to come back
            return Page([], None, min(start, newest, key=place_in_log), gap=True)
        return Page(entries, answer, entries[-1][0].decode() if entries else start)

    async def history(self, item_id: str, newest: str, *, most: int = 1000) -> list[Event]:
        """The events of one item, oldest first, walked back from its *newest* event.

        Where its earlier events were trimmed the first one is of kind ``truncated``, and tells what they made of it:
        the version and the lane that it had then.
        """
        events: list[Event] = []
        entry_id = newest
        while entry_id and len(events) < most:
            entries = await self._store.command("XRANGE", self._keys.events, entry_id, entry_id)
            if not entries:
                base = await self.base_of(item_id)
                if base is not None:  # which may have come further meanwhile than we had walked back
                    events = [each for each in events if place_in_log(each.id) > place_in_log(base.event)]
                    events.append(_earlier(item_id, base))
                break
            rows = [event for event in read_entry(*entries[0]) if event.item == item_id]
            if not rows:
                break
            events.append(rows[0])
            entry_id = rows[0].previous
        return events[::-1]

    async def base_of(self, item_id: str) -> Base | None:
        """What the trimmed events of an item made of it; None if none of them was trimmed."""
        text = await self._store.command("HGET", self._keys.base, item_id)
        return read_base(text) if text else None

    async def trimmed(self) -> Trimmed | None:
        """How far the log was trimmed; None if it is whole."""
        text = await self._store.command("HGET", self._keys.base, "")
        if text is None:
            return None
        last, entries, misfits = text.decode().split(" ")
        return Trimmed(last=last, entries=int(entries), misfits=int(misfits))

    async def last_id(self) -> str:
        """Id of the newest entry; ``0-0`` if there is none."""
        entries = await self._store.command("XREVRANGE", self._keys.events, "+", "-", "COUNT", 1)
        return entries[0][0].decode() if entries else "0-0"


def _earlier(item_id: str, base: Base) -> Event:
    return Event(
        id=base.event, kind=TRUNCATED, item=item_id, version=base.version, before="", after=base.lane, agent="", token=0,
        reason="earlier events were trimmed", trace="", previous="",
    )  # fmt: skip
