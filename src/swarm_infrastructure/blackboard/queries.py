"""Reading the board: by section, status and agent, and in numbers. No call scans what it does not return.

An item that nobody holds stands in its lane's line. A claimed or delayed one stands in the ``timed`` set of the lane it
comes back to, which holds about as many items as agents have slots.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from ..errors import InvalidInputError
from ..keys import BoardKeys, check_id, lane_name
from ..store import Store
from .items import Item, read_item
from .lifecycle import Board
from .similarity import similarity

__all__ = ["Queries", "text_of"]

PAGE = 500


def text_of(payload: dict[str, Any]) -> str:
    """The text of a payload that stands for it when texts are compared: title and content."""
    return "\n".join(str(payload[name]) for name in ("title", "content") if payload.get(name))


class Queries:
    """Reads one board."""

    def __init__(self, store: Store, keys: BoardKeys, board: Board) -> None:
        self._store, self._keys, self._board = store, keys, board

    async def counts(self) -> dict[str, int]:
        """Items by lane (``section/status/requires``); lanes without items are left out."""
        rows = await self._store.command("HGETALL", self._keys.counts)
        return {lane.decode(): int(n) for lane, n in rows.items() if b"/" in lane}

    async def stats(self) -> dict[str, dict[str, Any]]:
        """``{section: {"section", "total", "by_status"}}`` for every section of the board."""
        stats: dict[str, dict[str, Any]] = {
            name: {"section": name, "total": 0, "by_status": {}} for name in self._board.sections
        }
        for lane, n in (await self.counts()).items():
            section, status, _ = lane.split("/")
            row = stats.setdefault(section, {"section": section, "total": 0, "by_status": {}})
            row["total"] += n
            row["by_status"][status] = row["by_status"].get(status, 0) + n
        return stats

    async def timed_lanes(self) -> list[str]:
        """Every lane that items could be claimed from now, or come back to: those to reap and to look for claims in."""
        lanes: dict[str, None] = {}
        for lane in await self.counts():
            section, _, requires = lane.split("/")
            known = self._board.sections.get(section)
            for status in known.ready if known else ():
                lanes[lane_name(section, status, requires)] = None
        return list(lanes)

    async def _tags(self, section: str) -> list[str]:
        return list(
            dict.fromkeys(lane.split("/")[2] for lane in await self.counts() if lane.startswith(section + "/"))
        )

    async def _query(
        self, keys: Sequence[str], *, most: int, skip: int = 0, status: str = ""
    ) -> list[Item]:
        if not keys or most <= 0:
            return []
        rows = await self._store.call(
            "query", [self._keys.items, self._keys.payloads, self._keys.results, *keys], [most, skip, status]
        )
        return [
            read_item(rows[i].decode(), rows[i + 1], rows[i + 2], rows[i + 3]) for i in range(0, len(rows), 4)
        ]

    async def by_status(self, section: str, status: str, *, limit: int = 100) -> list[Item]:
        """Up to *limit* items, priority first, then the order of arrival.

        Raises:
            UnknownSectionError, InvalidInputError: the board has no such place.
        """
        if limit < 1:
            raise InvalidInputError("limit", found=limit, needed="1 or more")
        place = self._board.place(section, status)
        items: list[Item] = []
        tags = await self._tags(section)
        for start in range(0, len(tags), PAGE):
            names = [lane_name(section, place.status, tag) for tag in tags[start : start + PAGE]]
            lines = [self._keys.lane(name).line for name in names]
            while len(items) < limit:
                page = await self._query(lines, most=min(PAGE, limit - len(items)), skip=len(items))
                items += page
                if len(page) < PAGE:
                    break
            items += await self._timed(section, place.status, tags[start : start + PAGE], limit - len(items))
        items.sort(key=lambda item: (item.priority, item.seq))
        return items[:limit]

    async def _timed(self, section: str, status: str, tags: Sequence[str], most: int) -> list[Item]:
        """Items with this status that are claimed or delayed."""
        ready = self._board.section(section).ready
        starts = [start for start, claimed in ready.items() if status in (start, claimed)]
        keys = [self._keys.lane(lane_name(section, start, tag)).timed for start in starts for tag in tags]
        return await self._query(keys, most=min(max(most, 0), 5000), status=status)

    async def items(self, section: str, status: str | None = None) -> AsyncIterator[Item]:
        """Every item of a section, page by page; what moves meanwhile may be seen twice or not at all."""
        statuses = [status] if status else [*self._board.section(section).statuses, self._board.quarantine]
        for each in statuses:
            if each == self._board.quarantine and not self._board.section(section).ready:
                continue
            place = self._board.place(section, str(each))
            tags = await self._tags(section)
            lines = [self._keys.lane(lane_name(section, place.status, tag)).line for tag in tags]
            skip = 0
            while lines:
                page = await self._query(lines, most=PAGE, skip=skip)
                for item in page:
                    yield item
                skip += len(page)
                if len(page) < PAGE:
                    break
            for item in await self._timed(section, place.status, tags, 5000):
                yield item

    async def by_agent(self, agent_id: str, section: str | None = None) -> list[Item]:
        """Items that *agent_id* holds now."""
        check_id("agent id", agent_id)
        lanes = [lane for lane in await self.timed_lanes() if section is None or lane.startswith(f"{section}/")]
        return [item for item in await self.timed(lanes) if item.holder == agent_id]

    async def timed(self, lanes: Sequence[str]) -> list[Item]:
        """Items that are claimed from these lanes, or delayed in them."""
        items: list[Item] = []
        for start in range(0, len(lanes), PAGE):
            keys = [self._keys.lane(lane).timed for lane in lanes[start : start + PAGE]]
            items += await self._query(keys, most=5000)
        return items

    async def find_similar(self, section: str, content: str, threshold: float) -> list[dict[str, Any]]:
        """See `Blackboard.find_similar`."""
        if not 0 <= threshold <= 1:
            raise InvalidInputError("threshold", found=threshold, needed="0 to 1")
        found: list[dict[str, Any]] = []
        async for item in self.items(section):
            alike = similarity(content, text_of(item.payload))
            if alike < threshold and item.payload.get("content"):
                alike = max(alike, similarity(content, str(item.payload["content"])))
            if alike >= threshold:
                found.append(item.as_dict() | {"similarity": round(alike, 4)})
        return sorted(found, key=lambda row: -row["similarity"])
