"""Retention: what a board keeps, and for how long.

==================  ===========================================================  =====================================
what                stays                                                        set by
==================  ===========================================================  =====================================
events              the newest so many, and none goes before a call may still    ``SWARM_EVENTS_KEEP``,
                    be repeated; what went is folded into the base first         ``SWARM_EVENTS_KEEP_S``
finished items      for their section's ``keep_s``                               the board
dedup marks         for as long as each was given                                ``Submission.dedup_s``
==================  ===========================================================  =====================================

Nothing goes silently: items leave with an event of their own, and a trimmed log says how far. Each step is one short call,
so that claims never wait for it; one process at a time takes a turn, and if it dies the next turn is another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from ..keys import BoardKeys
from ..store import Store
from .lifecycle import Board

__all__ = ["LogBound", "Retention", "RetentionRound", "pages_per_round", "take_turn"]

log = structlog.get_logger(__name__)

ROWS_PER_CALL = 500  # of the log: a call of 2 ms; the last entry may bring as many more
ITEMS_PER_CALL = 200  # each with keys of its own
PAGE = 500
PAGES_PER_ROUND = 10  # at least, of a lane's line and of dedup marks: the next round goes on where this one ended
ROUNDS = 20  # in which all of a long one is looked through, so that what goes keeps up with what comes
CALLS_PER_ROUND = 200  # of one kind: 200,000 rows; more wait for the next round
SLACK = 20  # a log is trimmed when it is a 20th over its bound, so that an idle board's log isn't touched


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBound:
    """How much of the event log is kept."""

    entries: int = 200_000  #: the newest; 0: all. 20 to 60 MB
    at_least_s: float = 300.0  #: younger ones stay, however many: calls that are repeated look themselves up in the log


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRound:
    """What one round took away."""

    events: int = 0  #: entries of the log
    items: int = 0
    marks: int = 0


def pages_per_round(size: int, page: int, least: int) -> int:
    """How many pages of something that holds *size* are to be looked at in a round."""
    return max(least, -(-size // (page * ROUNDS))) if size else 0


async def take_turn(store: Store, key: str, every_s: float) -> bool:
    """Whether it is the caller's turn to do what one process in *every_s* seconds is to do."""
    return bool(await store.call("take_turn", [key], [max(1, round(every_s * 1000))]))


class Retention:
    """Looks after what one board keeps.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        board: its rules.
        bound: of its log.
    """

    def __init__(self, store: Store, keys: BoardKeys, board: Board, bound: LogBound | None = None) -> None:
        self._store, self._keys, self._board = store, keys, board
        self._bound = bound or LogBound()
        self._places: dict[str, int] = {}  # lane → how much of its line was looked at
        self._marks_at = "0"

    async def run_once(self) -> RetentionRound:
        """One round: purge finished items, forget marks, trim the log."""
        items = await self.purge_items()
        return RetentionRound(items=items, marks=await self.purge_marks(), events=await self.trim_events())

    # -- the log ----------------------------------------------------------------------------------------------------

    async def trim_events(self) -> int:
        """Trim the log to its bound. Returns how many entries went."""
        keep, went, more = self._bound.entries, 0, bool(self._bound.entries)
        begin, calls = keep + keep // SLACK, 0
        while more and calls < CALLS_PER_ROUND:
            entries, again = await self._store.call(
                "trim_events", [self._keys.rules, self._keys.events, self._keys.base],
                [keep, begin, round(self._bound.at_least_s * 1000), 2 * keep, ROWS_PER_CALL],
            )  # fmt: skip
            went, more, begin, calls = went + int(entries), again == b"1", keep, calls + 1
        return went

    # -- items ------------------------------------------------------------------------------------------------------

    async def purge_items(self) -> int:
        """Purge items that have rested for longer than their section keeps them. Returns how many went."""
        statuses = self._board.kept_for_a_while()
        if not any(statuses.values()):
            return 0
        gone = 0
        for lane in await self._store.command("HKEYS", self._keys.counts):
            section, _, rest = lane.decode().partition("/")
            if rest and rest.partition("/")[0] in statuses.get(section, ()):
                gone += await self._purge_lane(lane.decode())
        return gone

    async def _purge_lane(self, lane: str) -> int:
        """From the head of its line, where the oldest stand, as long as some go; then a stretch further down, where one may
        have overtaken older ones."""
        gone = await self._purge_from(lane, 0, CALLS_PER_ROUND, until_none=True)
        size = int(await self._store.command("ZCARD", self._keys.lane(lane).line))
        pages = pages_per_round(size, PAGE, PAGES_PER_ROUND)
        return gone + await self._purge_from(lane, self._places.get(lane, 0), pages, until_none=False)

    async def _purge_from(self, lane: str, place: int, pages: int, *, until_none: bool) -> int:
        keys, gone = self._keys, 0
        line = keys.lane(lane).line
        for _ in range(pages):
            looked_at, *ids = await self._store.call("list_finished", [keys.rules, keys.items, line], [place, PAGE])
            went = await self._purge([each.decode() for each in ids], line)
            gone, place = gone + went, place + int(looked_at) - went
            if int(looked_at) < PAGE:
                place = 0
                break
            if until_none and not went:
                return gone
        if not until_none:
            self._places[lane] = place
        return gone

    async def _purge(self, ids: Sequence[str], line: str) -> int:
        keys, gone = self._keys, 0
        called = [keys.rules, keys.items, keys.payloads, keys.events, keys.counts, keys.results, keys.errors, line]
        for start in range(0, len(ids), ITEMS_PER_CALL):
            part = ids[start : start + ITEMS_PER_CALL]
            own = [key for each in part for key in keys.own(each)]
            gone += int(await self._store.call("purge_items", [*called, *own], ["", *part]))
        return gone

    # -- marks ------------------------------------------------------------------------------------------------------

    async def purge_marks(self) -> int:
        """Forget dedup marks whose time is over, some pages a round. Returns how many went."""
        gone, size = 0, int(await self._store.command("HLEN", self._keys.dedup))
        for _ in range(pages_per_round(size, PAGE, PAGES_PER_ROUND)):
            cursor, went = await self._store.call(
                "purge_marks", [self._keys.rules, self._keys.items, self._keys.dedup], [self._marks_at, PAGE]
            )
            self._marks_at, gone = cursor.decode(), gone + int(went)
            if self._marks_at == "0":
                break
        return gone
