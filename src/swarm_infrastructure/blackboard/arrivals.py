"""Waiting until an item has come somewhere: everybody who waits in a process shares one reader of the board's log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from ..errors import InvalidInputError, UnavailableError
from .events import EventLog
from .items import Item
from .lifecycle import Board

__all__ = ["Arrivals"]

log = structlog.get_logger(__name__)
LINGER_S = 5.0  # how long the log is read on when nobody waits any more: the next one begins sooner


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: frozenset[bytes]
    news: asyncio.Future[bool]  #: True: it has come; False: look whether it has

    def tell(self, *, there: bool) -> None:
        if not self.news.done():
            self.news.set_result(there)


class Arrivals:
    """Who waits for which items of a board.

    Args:
        events: its log.
        board: its rules.
        get: reads an item.
    """

    def __init__(self, events: EventLog, board: Board, *, get: Callable[[str], Awaitable[Item]]) -> None:
        self._events, self._board, self._get = events, board, get
        self._over = frozenset({*board.final, board.quarantine})
        self._waiting: dict[bytes, list[_Waiter]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def wait_for(self, item_id: str, statuses: Sequence[str]) -> Item:
        """See `Blackboard.wait_for`."""
        wanted = frozenset(map(str, statuses)) or self._over
        known = {status for section in self._board.sections.values() for status in section.statuses}
        if unknown := wanted - known - self._over:
            raise InvalidInputError("status", found=", ".join(sorted(unknown)), needed="one of the board's")
        await self._read()
        waiter = self._enter(item_id, wanted)
        try:
            while True:
                item = await self._get(item_id)
                if item.status in wanted:
                    return item
                if await waiter.news:  # it was there, and may have moved on since
                    return await self._get(item_id)
                waiter.news = asyncio.get_running_loop().create_future()
        finally:
            self._leave(item_id, waiter)

    async def close(self) -> None:
        """Stop reading; whoever waits is cancelled."""
        tasks = [task for task in (self._beginning, self._reader) if task is not None]
        self._stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for all_of_item in self._waiting.values():
            for each in all_of_item:
                each.news.cancel()

    def _enter(self, item_id: str, wanted: frozenset[str]) -> _Waiter:
        waiter = _Waiter(frozenset(status.encode() for status in wanted), asyncio.get_running_loop().create_future())
        self._waiting.setdefault(item_id.encode(), []).append(waiter)
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        return waiter

    def _leave(self, item_id: str, waiter: _Waiter) -> None:
        all_of_item = self._waiting[item_id.encode()]
        all_of_item.remove(waiter)
        if not all_of_item:
            del self._waiting[item_id.encode()]
        if not self._waiting and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(LINGER_S, self._stop)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Begin to read, and return when nothing that happens from now on can be missed."""
        if self._reader is not None and not self._reader.done():
            return
        if self._beginning is None or self._beginning.done():
            self._beginning = asyncio.create_task(self._begin(), name="arrivals begin")
            self._beginning.add_done_callback(_retrieve)
        await asyncio.shield(self._beginning)

    async def _begin(self) -> None:
        self._reader = asyncio.create_task(self._read_on(await self._events.last_id()), name="arrivals")
        self._reader.add_done_callback(self._tell_end)

    async def _read_on(self, start: str) -> None:
        while True:
            try:
                async for entry_id, fields in self._events.entries(start, on_gap=self._look):
                    start = entry_id.decode()
                    self._tell(fields)
            except UnavailableError as error:
                log.warning("the log is not read, trying again", why=str(error))

    def _look(self) -> None:
        """What happened while Redis was away may be missing in the log, as after a failover: everybody looks for himself."""
        for all_of_item in self._waiting.values():
            for each in all_of_item:
                each.tell(there=False)

    def _tell_end(self, reader: asyncio.Task[None]) -> None:
        """Reading ended, by an error that a repeat does not mend."""
        error = None if reader.cancelled() else reader.exception()
        if error is None:
            return
        log.error("the log can't be read", why=str(error))
        for all_of_item in self._waiting.values():
            for each in all_of_item:
                if not each.news.done():
                    each.news.set_exception(error)

    def _tell(self, fields: Mapping[bytes, bytes]) -> None:
        if not self._waiting:
            return
        _, _, status = fields.get(b"to", b"").partition(b"/")
        status = status.partition(b"/")[0]
        for row in fields.get(b"items", b"").split(b","):
            for each in self._waiting.get(row.partition(b" ")[0], ()):
                if status in each.wanted:
                    each.tell(there=True)
                elif not status:  # it was deleted
                    each.tell(there=False)

    def _stop(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None  # it ends in the next turn of the loop: who comes before that needs another one


def _retrieve(task: asyncio.Task[None]) -> None:
    """Look at the outcome: what failed when nobody waited any more is nothing to warn of."""
    if not task.cancelled():
        task.exception()
