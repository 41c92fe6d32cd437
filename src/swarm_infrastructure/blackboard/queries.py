"""Reading the board: by section, status and agent, and in numbers. No call scans what it does not return.

An item that nobody holds stands in its lane's line. A claimed or delayed one stands in the ``timed`` set of the lane it
comes back to, which holds about as many items as agents have slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from ..errors import InvalidInputError
from ..keys import BoardKeys, check_id, lane_name
from ..store import Store
from .items import Item, read_item
from .lifecycle import Board
from .similarity import similarity

__all__ = ["Queries", "SectionNumbers", "list_boards", "text_of"]

log = structlog.get_logger(__name__)

PAGE = 500
PAGE_ITEMS = 5000  # in one call, over all sets: a call that reads more keeps others waiting for 10 ms and longer


def text_of(payload: dict[str, Any]) -> str:
    """The text of a payload that stands for it when texts are compared: title and content."""
    return "\n".join(str(payload[name]) for name in ("title", "content") if payload.get(name))


QUEUE = ".queue"  #: what the name of a work queue's board ends with


async def list_boards(store: Store, namespace: str) -> list[str]:
    """Names of the boards in a namespace, those that hold locks left out; work queues end with `QUEUE`."""
    before, after = BoardKeys(namespace, "*").rules.split("*")
    found = {key.decode() async for key in store.scan(f"{before}*{after}")}
    names = {key.removeprefix(before).removesuffix(after) for key in found}
    return sorted(name for name in names if not name.endswith(".locks"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionNumbers:
    """How many items of a section an agent could take now, and why not the others."""

    section: str
    total: int
    ready: int  #: may be claimed now
    claimed: int
    delayed: int  #: may be claimed later
    quarantined: int
    resting: int  #: in a status that nobody claims
    by_status: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


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

    async def numbers(self) -> list[SectionNumbers]:
        """`SectionNumbers` of every section, in the board's order."""
        lanes = await self.timed_lanes()
        keys = [self._keys.lane(lane) for lane in lanes]
        clock, offset, *sizes = await self._store.commands(
            ("TIME",), ("HGET", self._keys.rules, "clock_offset_ms"), *(("ZCARD", each.line) for each in keys)
        )
        now_ms = int(clock[0]) * 1000 + int(clock[1]) // 1000 + int(offset or 0)
        ready, claimed, delayed = Counter[str](), Counter[str](), Counter[str]()
        for lane, size in zip(lanes, sizes, strict=True):
            ready[lane.split("/")[0]] += size
        for lane, each in zip(lanes, keys, strict=True):
            section = lane.split("/")[0]
            rows = await self._store.command("ZRANGE", each.timed, 0, -1, "WITHSCORES")
            for start in range(0, len(rows), PAGE):
                part = rows[start : start + PAGE]
                records = await self._store.command("HMGET", self._keys.items, *(row[0] for row in part))
                for (item_id, due_ms), record in zip(part, records, strict=True):
                    item = _read_row(item_id, record, None, None)
                    kind = claimed if item and item.holder else delayed if due_ms > now_ms else ready
                    kind[section] += item is not None
        answer = []
        for name, row in (await self.stats()).items():
            worn = row["by_status"].get(self._board.quarantine, 0)
            busy = ready[name] + claimed[name] + delayed[name] + worn
            answer.append(
                SectionNumbers(
                    section=name, total=row["total"], by_status=row["by_status"], quarantined=worn,
                    ready=ready[name], claimed=claimed[name], delayed=delayed[name], resting=max(0, row["total"] - busy),
                )
            )  # fmt: skip
        return answer

    async def select(
        self, *, section: str | None = None, status: str | None = None, agent: str | None = None, limit: int = 100
    ) -> list[Item]:
        """Up to *limit* items that are in *section*, have *status* and are held by *agent*, as far as these are given.

        Raises:
            UnknownSectionError, InvalidInputError: the board has no such section or status.
        """
        sections = [section] if section else list(self._board.sections)
        statuses = {name: [*self._board.section(name).statuses, self._board.quarantine] for name in sections}
        if status is not None and not any(status in known for known in statuses.values()):
            known = list(dict.fromkeys(each for all_of in statuses.values() for each in all_of))
            raise InvalidInputError("status", found=status, needed=f"one of {', '.join(known)}")
        if agent is not None:
            held = await self.by_agent(agent, section)
            return [item for item in held if status in (None, item.status)][:limit]
        counted, found = await self.stats(), list[Item]()
        for name in sections:
            for each in statuses[name]:
                if status in (None, each) and counted[name]["by_status"].get(each) and len(found) < limit:
                    found += await self.by_status(name, each, limit=limit - len(found))
        return found

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
        return list(dict.fromkeys(lane.split("/")[2] for lane in await self.counts() if lane.startswith(section + "/")))

    async def _pages(
        self, keys: Sequence[str], *, most: int | None = None, status: str = ""
    ) -> AsyncIterator[list[Item]]:
        """Items of these lines and timed sets, at most *most* of each: page by page, in the order of each set."""
        size = PAGE if most is None else min(PAGE, most)
        together = max(1, PAGE_ITEMS // size)
        for start in range(0, len(keys), together):
            left, skip = list(keys[start : start + together]), 0
            while left and (most is None or skip < most):
                size = PAGE if most is None else min(PAGE, most - skip)
                answer = await self._store.call(
                    "query", [self._keys.items, self._keys.payloads, self._keys.results, *left], [size, skip, status]
                )
                for _, *rows in answer:
                    yield [item for at in range(0, len(rows), 4) if (item := _read_row(*rows[at : at + 4]))]
                left = [key for key, (read, *_) in zip(left, answer, strict=True) if read == size]
                skip += size

    async def by_status(self, section: str, status: str, *, limit: int = 100) -> list[Item]:
        """Up to *limit* items, priority first, then the order of arrival.

        Raises:
            UnknownSectionError, InvalidInputError: the board has no such place.
        """
        if limit < 1:
            raise InvalidInputError("limit", found=limit, needed="1 or more")
        place, tags = self._board.place(section, status), await self._tags(section)
        found: dict[str, Item] = {}  # by id: what moved while we read may have been seen twice
        async for page in self._pages(self._lines(section, place.status, tags), most=limit):
            found.update((item.id, item) for item in page)
        async for page in self._pages(self._timed(section, place.status, tags), status=place.status):
            found.update((item.id, item) for item in page)
        return sorted(found.values(), key=lambda item: (item.priority, item.seq))[:limit]

    def _lines(self, section: str, status: str, tags: Sequence[str]) -> list[str]:
        return [self._keys.lane(lane_name(section, status, tag)).line for tag in tags]

    def _timed(self, section: str, status: str, tags: Sequence[str]) -> list[str]:
        """Where items with this status stand that are claimed or delayed: by time, and mixed with those of another."""
        ready = self._board.section(section).ready
        starts = [start for start, claimed in ready.items() if status in (start, claimed)]
        return [self._keys.lane(lane_name(section, start, tag)).timed for start in starts for tag in tags]

    async def items(self, section: str, status: str | None = None) -> AsyncIterator[Item]:
        """Every item of a section, page by page; what moves meanwhile may be seen twice or not at all."""
        statuses = [status] if status else [*self._board.section(section).statuses, self._board.quarantine]
        for each in statuses:
            if each == self._board.quarantine and not self._board.section(section).ready:
                continue
            place, tags = self._board.place(section, str(each)), await self._tags(section)
            async for page in self._pages(self._lines(section, place.status, tags)):
                for item in page:
                    yield item
            async for page in self._pages(self._timed(section, place.status, tags), status=place.status):
                for item in page:
                    yield item

    async def by_agent(self, agent_id: str, section: str | None = None) -> list[Item]:
        """Items that *agent_id* holds now."""
        check_id("agent id", agent_id)
        lanes = [lane for lane in await self.timed_lanes() if section is None or lane.startswith(f"{section}/")]
        return [item for item in await self.timed(lanes) if item.holder == agent_id]

    async def until_ms(self, item: Item) -> int | None:
        """When the claim on *item* ends, or the delay it waits for; None if it has neither."""
        due_ms = await self._store.command("ZSCORE", self._keys.lane(item.claimed_from).timed, item.id)
        return None if due_ms is None else int(due_ms)

    async def timed(self, lanes: Sequence[str]) -> list[Item]:
        """Items that are claimed from these lanes, or delayed in them."""
        found: dict[str, Item] = {}
        async for page in self._pages([self._keys.lane(lane).timed for lane in lanes]):
            found.update((item.id, item) for item in page)
        return list(found.values())

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


def _read_row(item_id: bytes, record: bytes | None, payload: bytes | None, result: bytes | None) -> Item | None:
    """The item of a row, or None if it is torn: one of those must not hide all the others."""
    if record is None:  # it stands in a line and nowhere else
        return None
    try:
        return read_item(item_id.decode(), record, payload, result)
    except InvalidInputError as error:
        log.warning("left out", item=item_id.decode(), why=str(error))
        return None
