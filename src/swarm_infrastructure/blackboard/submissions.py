"""Putting items on the board: checked here, judged and written in Redis, 500 in one call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidInputError, LibraryMismatchError, SectionFullError, WrongStatusError
from ..keys import BoardKeys, check_id, check_name, lane_name
from ..store import Store
from ..telemetry import current_trace
from .claims import MOST_PER_CALL, new_request
from .items import Submission, Submitted, check_priority, check_seconds, dump_payload, one_line
from .lifecycle import Board

__all__ = ["Intake"]

AT_ONCE = 3  # calls of one submission under way: the next is made ready while Redis works. They arrive in order, unless repeated


class Intake:
    """Takes submissions for one board."""

    def __init__(self, store: Store, keys: BoardKeys, board: Board) -> None:
        self._store, self._keys, self._board = store, keys, board
        self._places: dict[
            tuple[str, str | None, str], tuple[str, int]
        ] = {}  # asked for → lane, most bytes: few, asked often

    async def submit(self, submissions: Sequence[Submission], agent: str) -> list[Submitted]:
        """See `Blackboard.submit`."""
        rows = [self._check(each) for each in submissions]
        parts = [slice(start, start + MOST_PER_CALL) for start in range(0, len(rows), MOST_PER_CALL)]
        if len(parts) == 1:
            return await self._send(submissions, rows, agent)
        answers: list[Submitted] = []
        sent: deque[asyncio.Task[list[Submitted]]] = deque()
        at_once = 1 if self._store.replicas else AT_ONCE  # calls that wait for replicas have connections of their own
        try:
            for part in parts:
                sent.append(asyncio.create_task(self._send(submissions[part], rows[part], agent)))
                if len(sent) == at_once:
                    answers += await sent[0]
                    sent.popleft()
            while sent:
                answers += await sent[0]
                sent.popleft()
        finally:  # without an error nothing is left
            for each in sent:
                each.cancel()
            await asyncio.gather(*sent, return_exceptions=True)
        return answers

    def _check(self, new: Submission) -> tuple[str, bytes]:
        check_id("item id", new.id)
        lane, most_bytes = self._place(new)
        check_priority(f"priority of item {new.id!r}", new.priority)
        for name, seconds in (("delay_s", new.delay_s), ("dedup_s", new.dedup_s)):
            if seconds or type(seconds) is not float:
                check_seconds(f"{name} of item {new.id!r}", seconds)
        if new.content_hash:
            check_id("content hash", new.content_hash)
        payload = dump_payload(new.payload, f"payload of item {new.id!r}")
        if len(payload) > most_bytes:
            raise InvalidInputError(
                f"payload of item {new.id!r}",
                found=f"{len(payload)} bytes",
                needed=f"at most {most_bytes}",
                step="store the text elsewhere and submit a reference",
            )
        return lane, payload

    def _place(self, new: Submission) -> tuple[str, int]:
        asked = (new.section, new.status, new.requires)
        known = self._places.get(asked)
        if known is None:
            place = self._board.place(str(new.section), new.status)
            if new.requires:
                check_name("capability", new.requires)
            lane = lane_name(place.section, place.status, new.requires)
            known = self._places[asked] = (lane, self._board.section(place.section).max_payload_bytes)
        return known

    async def _send(
        self, submissions: Sequence[Submission], rows: Sequence[tuple[str, bytes]], agent: str
    ) -> list[Submitted]:
        keys, lanes = self._keys, list(dict.fromkeys(lane for lane, _ in rows))
        called = [keys.rules, keys.items, keys.payloads, keys.events, keys.counts, keys.seq, keys.dedup]
        for name in lanes:
            lane = keys.lane(name)
            called += (lane.line, lane.timed, lane.bell)
        args: list[Any] = [new_request(), one_line(agent) if agent else "", current_trace()]
        index = {name: i + 1 for i, name in enumerate(lanes)}
        for new, (name, payload) in zip(submissions, rows, strict=True):
            args += (
                new.id, index[name], new.priority, round(new.delay_s * 1000),
                new.content_hash, round(new.dedup_s * 1000), payload,
            )  # fmt: skip
        answers = await self._store.call("submit", called, args)
        return [self._submitted(new, answer) for new, answer in zip(submissions, answers, strict=True)]

    def _submitted(self, new: Submission, answer: Any) -> Submitted:
        match answer:
            case b"submitted":
                return Submitted(id=new.id, accepted=True)
            case [b"exists", _]:
                return Submitted(id=new.id, accepted=False, duplicate_of=new.id)
            case [b"duplicate", first]:
                return Submitted(id=new.id, accepted=False, duplicate_of=first.decode())
            case [b"full", found, cap]:
                raise SectionFullError(new.section, found=f"{found} items", needed=f"fewer than {cap}")
            case [b"place", lane]:
                raise WrongStatusError(new.id, found=f"to be put in {lane.decode()!r}", needed="a place of the board")
            case [b"large", found, limit]:
                raise InvalidInputError(
                    f"payload of item {new.id!r}", found=f"{found} bytes", needed=f"at most {limit}"
                )
            case _:
                raise LibraryMismatchError("submit", answer)
