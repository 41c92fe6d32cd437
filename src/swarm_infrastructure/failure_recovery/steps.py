"""Durable steps: what was done or paid for an item is recorded with it, and not done again after a crash.

A step is named by its name and a digest of its arguments, so that it stands for what is done and not for who does it or
when. The record is written with the claim's token: who has lost the item can't write. Answers of paid model calls stand
in the same place, written by the call that settles them (`Ledger.settle`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import orjson
from pydantic import BaseModel

from ..blackboard import Claim, Submission
from ..blackboard.blackboard import Blackboard
from ..blackboard.items import ANSWER_S
from ..errors import ClaimLostError, InvalidInputError, LibraryMismatchError, ReplayError
from ..keys import BoardKeys, check_id
from ..store import Store

__all__ = ["MAX_STEPS", "MAX_STEP_BYTES", "RecordedStep", "Steps", "dump_answer", "step_key"]

MAX_STEP_BYTES = 1024 * 1024  # four times an item's payload; what is larger wants to be a file and a path
MAX_STEPS = 3000  # fields of an item's record: about 1,500 steps
REPLAYED, AT, INPUT = "@replay", "@at|", "@input|"
Doing = tuple[int, str, str]  # a step that is being done: whose `Steps`, item, step
_inside: ContextVar[frozenset[Doing]] = ContextVar("_inside", default=frozenset())  # what this task does, or is part of


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStep:
    """One step that is on record for an item."""

    key: str  #: name:digest
    stage: str  #: the lane that the item was claimed from, or "" if not its holder did it (a debater)
    token: int  #: of the claim; 0 if there was none
    at_us: int  #: microseconds on Redis' clock; 0 if it is not known
    answer: bytes  #: JSON

    @property
    def name(self) -> str:
        """What the step is called."""
        return self.key.rpartition(":")[0] or self.key


class Steps:
    """The records of one board's items."""

    def __init__(self, store: Store, keys: BoardKeys) -> None:
        self._store, self._keys = store, keys
        self._doing: WeakValueDictionary[Doing, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def alone(self, item_id: str, step: str) -> AsyncIterator[None]:
        """Wait until nobody else in this process does this step of the item: who looks for its record then finds it.

        What is done within a step and is called the same does not wait for it.
        """
        name = (id(self), item_id, step)
        if name in _inside.get():
            yield
            return
        doing = self._doing.setdefault(name, asyncio.Lock())
        async with doing:
            before = _inside.set(_inside.get() | {name})
            try:
                yield
            finally:
                _inside.reset(before)

    async def find(self, item_id: str, step: str) -> bytes | None:
        """What is on record for a step, or None.

        Raises:
            ReplayError: nothing is, and the item is a replay.
        """
        found: bytes | None
        found, replayed = await self._store.command("HMGET", self._keys.answers(item_id), step, REPLAYED)
        if found is None and replayed is not None:
            raise ReplayError(item_id, step)
        return found

    async def record(self, item_id: str, step: str, answer: bytes, *, claim: Claim | None) -> bytes:
        """Keep what a step of an item came to. Returns the record that stands: the first one.

        Args:
            item_id: the item.
            step: its name in the record, see `step_key`.
            answer: JSON.
            claim: on the item; None for one that others hold.

        Raises:
            ClaimLostError: the claim does not hold any more; nothing was written.
            InvalidInputError: the answer is too large, or the item has too many steps.
            SectionFullError: Redis is out of memory.
        """
        if len(answer) > MAX_STEP_BYTES:
            raise InvalidInputError(
                f"answer of step {step!r} of item {item_id!r}", found=f"{len(answer):,} bytes",
                needed=f"at most {MAX_STEP_BYTES:,}", step="write it to a file and return where it is",
            )  # fmt: skip
        keys = self._keys
        found = await self._store.call(
            "record_step",
            [
                keys.rules, keys.items, keys.payloads, keys.answers(item_id), keys.gates,
                *([keys.lane(claim.lane).timed] if claim else []),
            ],
            [
                item_id, claim.token if claim else "", claim.lane if claim else "", step, answer, round(ANSWER_S * 1000),
                MAX_STEPS,
            ],
        )  # fmt: skip
        match found:
            case [b"recorded", stands]:
                return bytes(stands)
            case [b"lost", why] if claim:
                raise ClaimLostError(item_id, claim.agent_id, claim.token, why.decode())
            case [b"unrecorded"]:
                raise ReplayError(item_id, step)
            case [b"full", fields]:
                raise InvalidInputError(
                    f"steps of item {item_id!r}", found=f"{int(fields):,} fields on record",
                    needed=f"fewer than {MAX_STEPS:,}", step="do more in one step",
                )  # fmt: skip
            case _:
                raise LibraryMismatchError("record_step", found)

    async def list(self, item_id: str) -> Sequence[RecordedStep]:
        """Every step on record for an item, oldest first."""
        return _read_steps(await self._rows(item_id))

    async def original(self, item_id: str) -> str | None:
        """The item whose replay this is, or None."""
        found = await self._store.command("HGET", self._keys.answers(item_id), REPLAYED)
        return found.decode() if found else None

    async def replay(
        self, board: Blackboard, item_id: str, *, start: str = "", copy_id: str = "", agent: str = ""
    ) -> str:
        """Put a copy of an item on the board that lives through it again, from where it stood, at no cost.

        Each of its steps takes the recorded answer; one that has none is not done but refused (`ReplayError`), so that a
        replay never calls or pays for anything.

        Args:
            board: the board of the item.
            item_id: the original; it is not changed, and need not be on the board any more.
            start: a stage (``section``, ``section/status``) or the name of a step that was done in it; by default the first
                stage that has a step on record.
            copy_id: of the copy; ``ID~replay-N`` by default.
            agent: who asks.

        Returns:
            The copy's id.

        Raises:
            InvalidInputError: nothing is on record for the item, or *start* names nothing that is.
        """
        rows = await self._rows(check_id("item id", item_id))
        inputs = {name.removeprefix(INPUT): text for name, text in rows.items() if name.startswith(INPUT)}
        steps = [step for step in _read_steps(rows) if step.stage in inputs]
        if not steps:
            raise InvalidInputError(
                f"replay of item {item_id!r}", found="nothing on record for it", needed="an item whose steps are recorded",
                step="work.ask and work.step record them, for as long as the item stays and a week after the last one",
            )  # fmt: skip
        stage = _stage_of(item_id, steps, start)
        section, status, requires = stage.split("/")
        kept = {name: text for name, text in rows.items() if name != REPLAYED}
        for number in range(1, 1000):
            name = check_id("item id", copy_id or f"{item_id}~replay-{number}")
            key = self._keys.answers(name)
            free = await board.find(name) is None  # an item at work must not become a replay
            # no end: without its mark the copy would be an item like any other; it goes with the copy
            if not free or not int(await self._store.command("HSETNX", key, REPLAYED, item_id)):
                if copy_id:
                    raise InvalidInputError("id of the copy", found=copy_id, needed="one that was not used before")
                continue
            await self._store.command("HSET", key, *(part for pair in kept.items() for part in pair))
            submission = Submission(
                id=name, section=section, status=status, requires=requires, payload=orjson.loads(inputs[stage])
            )
            try:
                await self._store.command("PERSIST", key)
                [answer] = await board.submit(submission, agent=agent)
            except BaseException:
                await self._store.command("DEL", key)
                raise
            if answer.accepted:
                return name
            await self._store.command("DEL", key)  # somebody put an item of this id on the board meanwhile
            if copy_id:
                raise InvalidInputError("id of the copy", found=copy_id, needed="one that was not used before")
        raise InvalidInputError("replays", found=f"999 of item {item_id!r}", needed="fewer", step="delete some of them")

    async def _rows(self, item_id: str) -> dict[str, bytes]:
        rows = await self._store.command("HGETALL", self._keys.answers(item_id))
        pairs = rows.items() if isinstance(rows, Mapping) else zip(rows[::2], rows[1::2], strict=True)
        return {name.decode(): text for name, text in pairs}


def step_key(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """``name:digest``: what stands for a step with these arguments.

    Args:
        name: 1 to 100 characters.
        args: JSON data, pydantic models or dataclasses; so are *kwargs*.

    Raises:
        InvalidInputError: a name or an argument that can't stand in a record.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 100 or name[0] == "@" or not name.isprintable():
        raise InvalidInputError("step", found=name, needed="1 to 100 printable characters, the first one no @")
    try:
        text = orjson.dumps([list(args), dict(kwargs)], default=_plain, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise InvalidInputError(
            f"arguments of step {name!r}", found=str(error), needed="JSON data, pydantic models or dataclasses",
            step="pass what tells one call from another, and let the function have the rest from elsewhere",
        ) from error  # fmt: skip
    return f"{name}:{hashlib.sha256(text).hexdigest()[:32]}"


def dump_answer(name: str, value: Any) -> bytes:
    """*value* as JSON.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        return orjson.dumps(value, default=_plain)
    except (orjson.JSONEncodeError, TypeError) as error:
        raise InvalidInputError(
            f"answer of step {name!r}", found=str(error), needed="JSON data, a pydantic model or a dataclass"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} is no JSON data")


def _read_steps(rows: Mapping[str, bytes]) -> list[RecordedStep]:
    steps = []
    for name, answer in rows.items():
        if name.startswith("@"):
            continue
        stage, token, at_us = (rows.get(AT + name) or b"- - 0").decode().split(" ")
        known = stage != "-"
        steps.append(
            RecordedStep(
                key=name,
                stage=stage if known else "",
                token=int(token) if known else 0,
                at_us=int(at_us),
                answer=answer,
            )
        )
    return sorted(steps, key=lambda step: (step.at_us, step.key))


def _stage_of(item_id: str, steps: Sequence[RecordedStep], start: str) -> str:
    if not start:
        return steps[0].stage
    for step in steps:
        section, status, _ = step.stage.split("/")
        if start in (step.name, step.key, step.stage, section, f"{section}/{status}"):
            return step.stage
    known = dict.fromkeys(word for step in steps for word in ("/".join(step.stage.split("/")[:2]), step.name))
    raise InvalidInputError(f"start of a replay of {item_id!r}", found=start, needed=f"one of {', '.join(known)}")
