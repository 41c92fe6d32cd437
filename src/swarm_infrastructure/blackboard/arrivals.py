"""Waiting until an item has come somewhere: everybody who waits in a process shares one reader of the board's log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import structlog

from ..errors import InvalidInputError, ItemNotFoundError, UnavailableError
from ..keys import BoardKeys, check_id
from ..store import Store, Word
from ..store.batches import Batches
from .events import PAGE, EventLog, place_in_log
from .items import Item, read_rows
from .lifecycle import Board

__all__ = ["Arrivals"]

log = structlog.get_logger(__name__)
FEW = 8  # items waited for that are read along with the log: they come with the news, and not by another way there and back
MOST_AT_A_LOOK, LOOKS = 100, 4  # items of a call, and calls under way
RECENT_S = 5.0  # how long the end of the log, as it was once read, is a place to begin at
ANY = b""  # status

News = Item | str  #: the item, which has come; the event by which it had come; or "": look whether it has


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: frozenset[bytes]  #: statuses
    words: bytes  #: the same, for Redis
    news: asyncio.Future[News]

    def tell(self, news: News) -> None:
        if not self.news.done():
            self.news.set_result(news)


class _Place(NamedTuple):
    """How far the log was read."""

    id: str
    at: float  #: on this process' monotonic clock, when that was its end
    disruptions: int  #: of the store, before: the log may have gone back with the next


class Arrivals:
    """Who waits for which items of a board.

    The log is read while somebody waits: from behind what the first of them had seen of his item, or a little farther back.
    So who waits for an item that was just submitted is not woken by that. Looks at items that fall together travel in one
    call.

    Args:
        store: the Redis that holds it.
        keys: its keys.
        board: its rules.
        events: its log.
    """

    def __init__(self, store: Store, keys: BoardKeys, board: Board, events: EventLog) -> None:
        self._store, self._keys, self._board, self._events = store, keys, board, events
        self._over = frozenset({*board.final, board.quarantine})
        self._waiting: dict[bytes, list[_Waiter]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._read_from = "0-0"  # where it began
        self._read_to = _Place("0-0", -inf, 0)
        self._looks = Batches[tuple[str, bytes], Item](
            "looks at items", self._look_at, most=MOST_AT_A_LOOK, at_once=LOOKS
        )
        self._ends = Batches[None, str]("looks at the log", self._find_end, most=PAGE)

    async def wait_for(self, item_id: str, statuses: Sequence[str]) -> Item:
        """See `Blackboard.wait_for`."""
        wanted = frozenset(map(str, statuses)) or self._over
        known = {status for section in self._board.sections.values() for status in section.statuses}
        if unknown := wanted - known - self._over:
            raise InvalidInputError("status", found=", ".join(sorted(unknown)), needed="one of the board's")
        name = check_id("item id", item_id).encode()
        waiter = self._enter(name, wanted)
        try:
            while True:
                reader, start = self._reader, await self._start() if self._reader is None else ""
                item = await self._looks.send((item_id, waiter.words))
                if item.status in wanted:
                    return item
                if waiter.news.done():
                    pass  # something became of it while we looked
                elif self._reader is None:
                    if not start:
                        continue  # its reader ended in that moment: begin like one who comes now
                    self._begin(max(start, item.event, key=place_in_log))
                elif self._reader is not reader and place_in_log(self._read_from) > place_in_log(start):
                    continue  # another wait began it meanwhile, behind what may have become of the item after we looked
                news = await waiter.news
                waiter.news = asyncio.get_running_loop().create_future()
                event = news.event if isinstance(news, Item) else news
                if place_in_log(event) > place_in_log(item.event):  # else it is older than our look
                    # it was there, and may have moved on since
                    return news if isinstance(news, Item) else await self._looks.send((item_id, ANY))
        finally:
            self._leave(name, waiter)

    async def close(self) -> None:
        """Stop reading; whoever waits is cancelled."""
        reader, self._reader = self._reader, None
        for all_of_item in self._waiting.values():
            for each in all_of_item:
                each.news.cancel()
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await self._looks.cancel()
        await self._ends.cancel()

    def _enter(self, name: bytes, wanted: frozenset[str]) -> _Waiter:
        statuses = frozenset(status.encode() for status in wanted)
        waiter = _Waiter(statuses, b"|" + b"|".join(statuses) + b"|", asyncio.get_running_loop().create_future())
        self._waiting.setdefault(name, []).append(waiter)
        return waiter

    def _leave(self, name: bytes, waiter: _Waiter) -> None:
        all_of_item = self._waiting[name]
        all_of_item.remove(waiter)
        if not all_of_item:
            del self._waiting[name]

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _start(self) -> str:
        """A place in the log, not far behind its end, that is there before the item is looked at."""
        place = self._read_to
        if asyncio.get_running_loop().time() - place.at < RECENT_S and place.disruptions == self._store.disruptions:
            return place.id
        return await self._ends.send(None)

    async def _find_end(self, asked: Sequence[None]) -> list[str]:
        return [await self._events.last_id()] * len(asked)

    async def _look_at(self, asked: Sequence[tuple[str, bytes]]) -> list[Item | Exception]:
        answer = await self._store.call("read_arrived", self._keys.whole_items, [word for row in asked for word in row])
        return [self._read(name, answer[3 * at : 3 * at + 3]) for at, (name, _) in enumerate(asked)]

    def _read(self, name: str, row: Sequence[Any]) -> Item | Exception:
        """The item; one that has not come where it is waited for without its payload."""
        try:
            [item] = read_rows([name], row)
            return item or ItemNotFoundError(name, self._board.name)
        except InvalidInputError as error:  # it is torn: no reason to keep the others from theirs
            return error

    # -- reading ------------------------------------------------------------------------------------------------------

    def _begin(self, start: str) -> None:
        self._read_from = start
        self._reader = asyncio.create_task(self._read_on(start), name="arrivals")
        self._reader.add_done_callback(self._tell_end)

    async def _read_on(self, start: str) -> None:
        """Read until everybody who waits was told."""
        disruptions, at = self._store.disruptions, -inf
        while waiting := self._untold():
            words: list[Word] = [word for name, statuses in waiting.items() for word in (name, statuses)]
            few = len(waiting) <= FEW
            behind = self._store.words("read_arrived", self._keys.whole_items, words) if few else ()
            try:
                page = await self._events.next_page(start, behind=behind)
            except UnavailableError as error:
                log.warning("the log is not read, trying again", why=str(error))
                self._look()
                continue
            start = page.end
            at = asyncio.get_running_loop().time() if len(page.entries) < PAGE else -inf
            if page.gap:
                self._look()
            for nth, name in enumerate(waiting if page.answer else ()):
                self._give(name, page.answer[3 * nth : 3 * nth + 3])
            for entry_id, fields in page.entries:
                self._tell(entry_id.decode(), fields)
        self._read_to = _Place(start, at, disruptions)
        self._reader = None  # before the next one comes

    def _untold(self) -> dict[bytes, bytes]:
        """Items that somebody waits for who was not told, and where; one more than `FEW` at the most."""
        found: dict[bytes, bytes] = {}
        for name, all_of_item in self._waiting.items():
            words = [each.words for each in all_of_item if not each.news.done()]
            if words:
                found[name] = b"".join(words)
                if len(found) > FEW:
                    break
        return found

    def _look(self) -> None:
        """What happened while Redis was away may be missing in the log, as after a failover: everybody looks for himself."""
        for all_of_item in self._waiting.values():
            for each in all_of_item:
                each.tell("")

    def _tell_end(self, reader: asyncio.Task[None]) -> None:
        """Reading ended, by an error that a repeat does not mend."""
        error = None if reader.cancelled() else reader.exception()
        if error is None:
            return
        self._reader = None
        log.error("the log can't be read", why=str(error))
        for all_of_item in self._waiting.values():
            for each in all_of_item:
                if not each.news.done():
                    each.news.set_exception(error)

    def _give(self, name: bytes, row: Sequence[Any]) -> None:
        """Give an item that has come to those who wait for it there. Of one that is gone or torn they hear when they look."""
        item = self._read(name.decode(), row)
        if isinstance(item, Item):
            for each in self._waiting.get(name, ()):
                if item.status.encode() in each.wanted:
                    each.tell(item)

    def _tell(self, event: str, fields: Mapping[bytes, bytes]) -> None:
        """Tell those who wait for one of the items in an entry."""
        _, _, status = fields.get(b"to", b"").partition(b"/")
        status = status.partition(b"/")[0]
        for row in fields.get(b"items", b"").split(b","):
            for each in self._waiting.get(row.partition(b" ")[0], ()):
                if status in each.wanted:
                    each.tell(event)
                elif not status:  # it was deleted
                    each.tell("")
