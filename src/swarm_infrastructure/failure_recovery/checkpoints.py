"""Checkpoints: how far a task has come, so that whoever takes it over goes on from there.

A checkpoint is written as a whole in one call and replaces the one of its stage: a reader sees the old or the new one. It
carries a checksum, and the token of the claim under which it was written: if the task is an item of the board, only the
holder of its claim can write one, so a worker that was taken for dead can't turn the work back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..blackboard import Claim
from ..blackboard.blackboard import Blackboard
from ..blackboard.claims import current_claim
from ..blackboard.clock import list_older, read_clock_ms
from ..errors import ClaimLostError, InvalidInputError, ItemHeldError, LibraryMismatchError, WrongStatusError
from ..keys import check_id

__all__ = ["MAX_CHECKPOINT_BYTES", "Checkpoint", "Checkpoints", "read_checkpoint"]

MAX_CHECKPOINT_BYTES = 8 * 1024 * 1024
MAX_STAGES = 200
HOUR_S = 3600.0
LONGEST_H = 24 * 366


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How far a task had come."""

    task_id: str
    stage: str  #: what was done last
    data: dict[str, Any]
    agent_states: dict[str, Any] = field(default_factory=dict)
    created_at: float  #: seconds since the epoch, on Redis' clock
    expires_at: float
    token: int = 0  #: of the claim under which it was written; 0 if there was none
    done: tuple[
        str, ...
    ] = ()  #: the stages of the task that have a checkpoint, up to this one, in the order of their time


class Checkpoints:
    """The checkpoints of one board's tasks.

    Args:
        board: where the items are that tasks may stand for.
    """

    def __init__(self, board: Blackboard) -> None:
        self._board, self._store, self._keys = board, board.store, board.keys

    async def create(
        self,
        task_id: str,
        stage: str,
        data: Mapping[str, Any],
        agent_states: Mapping[str, Any] | None = None,
        ttl_hours: float = 24,
        *,
        claim: Claim | None = None,
    ) -> Checkpoint:
        """Keep how far a task has come.

        Args:
            task_id: an item, or any id.
            stage: what is done now.
            data: JSON data to go on from.
            agent_states: JSON data by agent.
            ttl_hours: how long it is kept.
            claim: on the item; by default the one in the hands of the handler that calls, or of this process.

        Raises:
            ClaimLostError: the claim does not hold any more; nothing was written.
            ItemHeldError, WrongStatusError: the task is an item that somebody has or had in hand, and the caller shows no claim.
            InvalidInputError: no JSON, larger than 8 MiB, too many stages, or a name that can't stand in a key.
            SectionFullError: Redis is out of memory.
        """
        check_id("task id", task_id)
        if not isinstance(stage, str) or not 0 < len(stage) <= 100 or not stage.isprintable():
            raise InvalidInputError(f"stage of task {task_id!r}", found=stage, needed="1 to 100 printable characters")
        if not 0 < ttl_hours <= LONGEST_H:
            raise InvalidInputError("ttl_hours", found=ttl_hours, needed=f"above 0, at most {LONGEST_H}")
        text = _dump(task_id, data, agent_states or {})
        claim = claim or self._own_claim(task_id)
        keys = self._keys
        answer = await self._store.call(
            "keep_checkpoint",
            [
                keys.rules, keys.items, keys.gates, keys.checkpoints, keys.checkpoints_of(task_id),
                keys.lane(claim.lane).timed if claim else keys.checkpoints,
            ],
            [task_id, stage, claim.token if claim else "", round(ttl_hours * HOUR_S * 1000), MAX_STAGES, text],
        )  # fmt: skip
        match answer:
            case [b"kept", at_us]:
                at_s = int(at_us) / 1e6
                return Checkpoint(
                    task_id=task_id, stage=stage, data=dict(data), agent_states=dict(agent_states or {}), created_at=at_s,
                    expires_at=at_s + ttl_hours * HOUR_S, token=claim.token if claim else 0, done=(stage,),
                )  # fmt: skip
            case [b"lost", why] if claim:
                raise ClaimLostError(task_id, claim.agent_id, claim.token, why.decode())
            case [b"held", b""]:
                raise WrongStatusError(
                    task_id, found="an item that was claimed, and that nobody holds now", needed="its holder's claim",
                    step="write it from the handler, or pass claim=",
                )  # fmt: skip
            case [b"held", holder]:
                raise ItemHeldError(task_id, holder.decode())
            case [b"full", found]:
                raise InvalidInputError(
                    f"stages of task {task_id!r}", found=f"{int(found)} with a checkpoint", needed=f"at most {MAX_STAGES}",
                    step="use one stage again, or delete the task's checkpoints",
                )  # fmt: skip
            case _:
                raise LibraryMismatchError("keep_checkpoint", answer)

    async def list(self, task_id: str) -> Sequence[Checkpoint]:
        """The checkpoints of a task, oldest first.

        Raises:
            InvalidInputError: one of them is torn, which nothing of ours can bring about.
        """
        check_id("task id", task_id)
        rows = await self._store.call("read_checkpoints", [self._keys.rules, self._keys.checkpoints_of(task_id)])
        found = sorted(
            (read_checkpoint(task_id, stage.decode(), text) for stage, text in zip(rows[::2], rows[1::2], strict=True)),
            key=lambda each: each[0],
        )
        done, listed = list[str](), list[Checkpoint]()
        for at_us, facts in found:
            done.append(facts["stage"])
            listed.append(Checkpoint(task_id=task_id, created_at=at_us / 1e6, done=tuple(done), **facts))
        return listed

    async def find(self, task_id: str, stage: str | None = None) -> Checkpoint | None:
        """The newest checkpoint of a task, or that of *stage*; None if there is none, or its time is over."""
        for each in reversed(await self.list(task_id)):
            if stage is None or each.stage == stage:
                return each
        return None

    async def tasks(self) -> Sequence[str]:
        """The tasks that have a checkpoint."""
        names = await self._store.command("ZRANGE", self._keys.checkpoints, 0, -1)
        return sorted({name.decode().partition("|")[0] for name in names})

    async def delete(self, task_id: str) -> bool:
        """Forget the checkpoints of a task; False if it had none."""
        check_id("task id", task_id)
        stages = await self._store.command("HKEYS", self._keys.checkpoints_of(task_id))
        names = [f"{task_id}|{stage.decode()}" for stage in stages]
        gone, *_ = await self._store.commands(
            ("DEL", self._keys.checkpoints_of(task_id)), *(("ZREM", self._keys.checkpoints, name) for name in names)
        )
        return bool(int(gone))

    async def sweep(self) -> None:
        """Forget the names of what ended by itself."""
        if await list_older(self._store, self._keys, self._keys.checkpoints, 0):
            now_ms = await read_clock_ms(self._store, self._keys)
            await self._store.command("ZREMRANGEBYSCORE", self._keys.checkpoints, "-inf", now_ms)

    def _own_claim(self, task_id: str) -> Claim | None:
        claim = current_claim()
        if claim is not None:  # inside of a handler: its own claim or none, whoever else of this process holds the item
            return claim if claim.item_id == task_id else None
        return self._board.leases.of_item(task_id)


def _dump(task_id: str, data: Mapping[str, Any], agent_states: Mapping[str, Any]) -> bytes:
    what = f"checkpoint of task {task_id!r}"
    if not isinstance(data, Mapping) or not isinstance(agent_states, Mapping):
        raise InvalidInputError(what, found=type(data).__name__, needed="data and agent_states as dicts of JSON data")
    try:
        body = orjson.dumps({"data": dict(data), "agent_states": dict(agent_states)})
    except (orjson.JSONEncodeError, TypeError) as error:
        raise InvalidInputError(what, found=str(error), needed="JSON data") from error
    if len(body) > MAX_CHECKPOINT_BYTES:
        raise InvalidInputError(
            what, found=f"{len(body):,} bytes", needed=f"at most {MAX_CHECKPOINT_BYTES:,}",
            step="write it to a file and keep where it is",
        )  # fmt: skip
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def read_checkpoint(task_id: str, stage: str, text: bytes) -> tuple[int, dict[str, Any]]:
    """When a checkpoint was written (µs), and its fields, from what Redis keeps; `InvalidInputError` if it is torn."""
    try:
        head, checksum, body = text.split(b"\n", 2)
        at_us, ends_ms, token = (int(word) for word in head.split(b" "))
    except ValueError:
        at_us, ends_ms, token, checksum, body = 0, 0, 0, b"", text
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise InvalidInputError(
            f"checkpoint {stage!r} of task {task_id!r}", found="bytes that don't fit their checksum", needed="it whole",
            step="somebody else wrote there; delete the task's checkpoints",
        )  # fmt: skip
    return at_us, {"stage": stage, "token": token, "expires_at": ends_ms / 1000, **orjson.loads(body)}
