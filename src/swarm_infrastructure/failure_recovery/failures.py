"""Failures: their types, what is done about each, which there were lately, and which of them wait for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any
from uuid import uuid4

import orjson

from ..blackboard.items import clean_text
from ..errors import (
    CircuitOpenError,
    InvalidInputError,
    ModelError,
    ModelUnavailableError,
    RateLimitedError,
    UnavailableError,
)
from ..keys import BoardKeys, check_id
from ..store import Store

__all__ = ["ACTIONS", "Escalation", "Failure", "FailureType", "Failures", "RecoveryAction", "type_of_error"]

MOST_FAILURES = 1000
MAX_TEXT = 4096


class FailureType(StrEnum):
    """What went wrong."""

    AGENT_CRASH = "agent_crash"
    AGENT_TIMEOUT = "agent_timeout"
    LLM_ERROR = "llm_error"
    SERVICE_UNAVAILABLE = "service_unavailable"
    RATE_LIMIT = "rate_limit"
    VALIDATION_FAILED = "validation_failed"
    VISUAL_GEN_FAILED = "visual_gen_failed"
    VOICE_GEN_FAILED = "voice_gen_failed"
    VIDEO_RENDER_FAILED = "video_render_failed"
    NETWORK_ERROR = "network_error"
    UNKNOWN = "unknown"


class RecoveryAction(StrEnum):
    """What is done about it."""

    RETRY = "retry"  #: the same agent tries again after a while
    FALLBACK_AGENT = "fallback_agent"  #: another agent gets the task
    SKIP_TASK = "skip_task"  #: the work goes on without it
    ESCALATE = "escalate"  #: a person has to look, and is told
    ARCHIVE = "archive"  #: the item goes to the board's archive
    MANUAL_REVIEW = "manual_review"  #: a person has to look at what came out


ACTIONS: Mapping[FailureType, RecoveryAction] = {
    FailureType.AGENT_CRASH: RecoveryAction.FALLBACK_AGENT,
    FailureType.AGENT_TIMEOUT: RecoveryAction.FALLBACK_AGENT,
    FailureType.LLM_ERROR: RecoveryAction.RETRY,
    FailureType.SERVICE_UNAVAILABLE: RecoveryAction.RETRY,
    FailureType.RATE_LIMIT: RecoveryAction.RETRY,
    FailureType.VALIDATION_FAILED: RecoveryAction.MANUAL_REVIEW,
    FailureType.VISUAL_GEN_FAILED: RecoveryAction.FALLBACK_AGENT,
    FailureType.VOICE_GEN_FAILED: RecoveryAction.FALLBACK_AGENT,
    FailureType.VIDEO_RENDER_FAILED: RecoveryAction.RETRY,
    FailureType.NETWORK_ERROR: RecoveryAction.RETRY,
    FailureType.UNKNOWN: RecoveryAction.ESCALATE,
}


def type_of_error(error: BaseException) -> FailureType:
    """The type that an exception stands for."""
    match error:
        case RateLimitedError():
            return FailureType.RATE_LIMIT
        case ModelError() | ModelUnavailableError():
            return FailureType.LLM_ERROR
        case CircuitOpenError() | UnavailableError():
            return FailureType.SERVICE_UNAVAILABLE
        case InvalidInputError() | ValueError():
            return FailureType.VALIDATION_FAILED
        case TimeoutError():
            return FailureType.AGENT_TIMEOUT
        case OSError():
            return FailureType.NETWORK_ERROR
        case _:
            return FailureType.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something that went wrong."""

    id: str
    type: FailureType
    at_ms: int  #: on Redis' clock
    agent_id: str = ""
    task_id: str = ""
    error: str = ""
    recovered_ms: int = 0  #: when it was well again; 0 if it is not

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalation:
    """A task that waits for a person."""

    task_id: str
    why: str
    at_ms: int  #: on Redis' clock, of the first time
    agent_id: str = ""
    type: FailureType = FailureType.UNKNOWN
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


class Failures:
    """What failed lately on one board; the newest `MOST_FAILURES` are kept."""

    def __init__(self, store: Store, keys: BoardKeys) -> None:
        self._store, self._keys = store, keys

    async def record(
        self, failure_type: FailureType | str, *, agent_id: str = "", task_id: str = "", error: str = ""
    ) -> str:
        """Remember a failure. Returns its id, for `recovered`."""
        row = {
            "id": uuid4().hex[:16], "type": FailureType(failure_type), "agent_id": agent_id, "task_id": task_id,
            "error": clean_text(error, MAX_TEXT),
        }  # fmt: skip
        await self._add(row)
        return str(row["id"])

    async def recovered(self, failure_id: str) -> None:
        """Remember that what failed is well again."""
        await self._add({"recovered": failure_id})

    async def _add(self, row: Mapping[str, Any]) -> None:
        # a repeat of this command adds the row once more; readers take the first of an id
        await self._store.command(
            "XADD", self._keys.failures, "MAXLEN", "~", MOST_FAILURES, "*", "row", orjson.dumps(dict(row))
        )

    async def history(
        self, *, agent_id: str | None = None, failure_type: FailureType | str | None = None, count: int = 100
    ) -> Sequence[Failure]:
        """The newest failures, newest first."""
        rows = await self._store.command("XRANGE", self._keys.failures, "-", "+")
        found: dict[str, Failure] = {}
        for name, fields in rows:
            text = fields[b"row"] if isinstance(fields, Mapping) else fields[1]
            row, at_ms = orjson.loads(text), int(name.split(b"-")[0])
            if known := found.get(row.get("recovered", "")):
                found[known.id] = Failure(**{**known.as_dict(), "recovered_ms": known.recovered_ms or at_ms})
            elif "id" in row:
                found.setdefault(row["id"], Failure(**row | {"type": FailureType(row["type"])}, at_ms=at_ms))
        wanted = (
            each for each in reversed(found.values())
            if (agent_id is None or each.agent_id == agent_id) and (failure_type is None or each.type == failure_type)
        )  # fmt: skip
        return [each for each, _ in zip(wanted, range(count), strict=False)]

    # -- escalations ------------------------------------------------------------------------------------------------

    async def escalate(
        self,
        task_id: str,
        why: str,
        *,
        agent_id: str = "",
        failure_type: FailureType | str = FailureType.UNKNOWN,
        **facts: Any,
    ) -> Escalation:
        """Put a task on the list of what waits for a person; a task stands there once, with what was said last."""
        check_id("task id", task_id)
        clock, before = await self._store.commands(("TIME",), ("HGET", self._keys.escalations, task_id))
        at_ms = orjson.loads(before)["at_ms"] if before else int(clock[0]) * 1000 + int(clock[1]) // 1000
        told = Escalation(
            task_id=task_id, why=clean_text(why, MAX_TEXT), at_ms=at_ms, agent_id=agent_id, type=FailureType(failure_type),
            facts=facts,
        )  # fmt: skip
        try:
            text = orjson.dumps(told.as_dict())
        except orjson.JSONEncodeError as error:
            raise InvalidInputError(f"escalation of {task_id!r}", found=str(error), needed="JSON data") from error
        await self._store.command("HSET", self._keys.escalations, task_id, text)
        return told

    async def escalations(self) -> Sequence[Escalation]:
        """What waits for a person, oldest first."""
        rows = await self._store.command("HVALS", self._keys.escalations)
        listed = [orjson.loads(text) for text in rows]
        found = [Escalation(**row | {"type": FailureType(row["type"])}) for row in listed]
        return sorted(found, key=lambda each: each.at_ms)

    async def resolve(self, task_id: str) -> bool:
        """Take a task off the list; False if it was not on it."""
        return bool(await self._store.command("HDEL", self._keys.escalations, task_id))
