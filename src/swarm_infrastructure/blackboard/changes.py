"""Changing items without a claim on them: read, change, write if nobody came in between, else once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import (
    ClaimLostError,
    InvalidInputError,
    ItemHeldError,
    ItemNotFoundError,
    LibraryMismatchError,
    VersionConflictError,
    WrongStatusError,
)
from ..keys import BoardKeys, check_id, check_name, lane_name
from ..store import Store
from ..telemetry import current_trace
from .claims import Claim, new_request
from .items import Item, check_priority, one_line
from .leases import LeaseKeeper
from .lifecycle import Board, Place

__all__ = ["TRIES", "Changes"]

TRIES = 20  # of a change against other writers; 50 at once on one item need about 10


class Changes:
    """Changes the items of one board.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        board: its rules.
        find: reads an item.
        leases: the claims that this process keeps: its own it may write through.
    """

    def __init__(
        self,
        store: Store,
        keys: BoardKeys,
        board: Board,
        *,
        find: Callable[[str], Awaitable[Item | None]],
        leases: LeaseKeeper,
    ) -> None:
        self._store, self._keys, self._board = store, keys, board
        self._find, self._leases = find, leases

    async def change(
        self,
        item_id: str,
        kind: str,
        *,
        section: str,
        to: Place | None = None,
        requires: str | None = None,
        payload: Callable[[Item], bytes] | None = None,
        priority: int | None = None,
        agent: str = "",
        reason: str = "",
    ) -> int:
        """Read, change and write, until nobody came in between. Returns the new version."""
        check_id("item id", item_id)
        self._board.section(section)
        if requires:
            check_name("capability", requires)
        if priority is not None:
            check_priority(f"priority of item {item_id!r}", priority)
        for _ in range(TRIES):
            item = await self._find(item_id)
            if item is None or item.section != section:
                raise ItemNotFoundError(item_id, self._board.name, section)
            request, keys = new_request(), self._keys
            before = keys.lane(item.claimed_from)
            after = keys.lane(lane_name(to.section, to.status, requires or "")) if to else before
            own = self.own_claim(item)
            answer = await self._store.call(
                "change_item",
                [
                    keys.rules, keys.items, keys.payloads, keys.events, keys.counts,
                    before.line, before.timed, before.bell, after.line, after.timed, after.bell,
                ],
                [
                    item_id, item.version, request, kind, one_line(agent), one_line(reason), current_trace(),
                    "" if priority is None else priority, "", payload(item) if payload else b"", own.token if own else "",
                ],
            )  # fmt: skip
            match answer:
                case [b"changed", version]:
                    return int(version)
                case [b"version" | b"lane", _]:
                    continue  # somebody was quicker: read again
                case _:
                    raise self._refusal(item, answer)
        raise VersionConflictError(item_id, found=0, needed=0)

    async def delete(self, item_id: str, section: str, *, agent: str, reason: str) -> bool:
        """See `Blackboard.delete`."""
        self._board.section(str(section))
        for _ in range(TRIES):
            item = await self._find(item_id)
            if item is None or item.section != section:
                return False
            keys, lane = self._keys, self._keys.lane(item.lane)
            answer = await self._store.call(
                "delete_item",
                [
                    keys.rules, keys.items, keys.payloads, keys.events, keys.counts, keys.dedup, keys.results,
                    keys.errors, lane.line, lane.timed, *keys.own(item_id),
                ],
                [item_id, item.version, one_line(agent), one_line(reason), current_trace()],
            )  # fmt: skip
            match answer:
                case [b"deleted"]:
                    return True
                case [b"missing"]:
                    return False
                case [b"held", holder]:
                    raise ItemHeldError(item_id, holder.decode())
                case [b"version" | b"lane", _]:
                    continue
                case _:
                    raise LibraryMismatchError("delete_item", answer)
        raise VersionConflictError(item_id, found=0, needed=0)

    def _refusal(self, item: Item, answer: Any) -> Exception:
        match answer:
            case [b"missing"]:
                return ItemNotFoundError(item.id, self._board.name)
            case [b"held", holder]:
                return ItemHeldError(item.id, holder.decode())
            case [b"lost", why]:
                return ClaimLostError(item.id, item.holder, item.token, why.decode())
            case [b"step", before, after]:
                allowed = ", ".join(sorted(self._board.steps.get(before.decode(), ()))) or "nothing"
                return WrongStatusError(
                    item.id,
                    found=f"in {item.section}/{before.decode()}",
                    needed=f"a status from which {after.decode()!r} is allowed",
                    step=f"from {before.decode()!r} the board allows: {allowed}",
                )
            case [b"place", lane]:
                return WrongStatusError(
                    item.id, found=f"to be sent to {lane.decode()!r}", needed="a place of the board"
                )
            case [b"large", found, limit]:
                return InvalidInputError(
                    f"payload of item {item.id!r}", found=f"{found} bytes", needed=f"at most {limit}"
                )
            case _:
                return LibraryMismatchError("change_item", answer)

    def own_claim(self, item: Item) -> Claim | None:
        """The claim on *item* that this process keeps, if it is the newest one."""
        return self._leases.find(item.id, item.token) if item.holder else None
