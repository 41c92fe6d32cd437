"""Messages: what agents tell each other. Owns the envelope, its limits and its types; leaves sending to ``bus`` and ``topics``.

An envelope is JSON of a versioned model. A reader ignores fields that it does not know, so an older one reads what a
newer one wrote; what it can't read at all, it refuses with an error that names the field.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import uuid4

import orjson
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from ..blackboard import Priority
from ..errors import InvalidInputError
from ..telemetry import current_traceparent

__all__ = ["MAX_MESSAGE_BYTES", "Message", "MessageType", "TaskMessage"]

MAX_MESSAGE_BYTES = 256 * 1024  # as an item's payload: what is larger wants to be a file and a path
VERSION = 1  #: of the envelope


class MessageType(StrEnum):
    """The types that the runtime itself knows. Any other word will do for messages of your own."""

    TASK_ASSIGN = "task.assign"
    TASK_COMPLETE = "task.complete"
    TASK_FAILED = "task.failed"
    TASK_CANCEL = "task.cancel"
    DEBATE_INVITE = "debate.invite"
    DEBATE_ARGUMENT = "debate.argument"
    DEBATE_VOTE = "debate.vote"
    DEBATE_CONSENSUS = "debate.consensus"
    PROD_START = "prod.start"
    PROD_PROGRESS = "prod.progress"
    PROD_COMPLETE = "prod.complete"
    PROD_FAILED = "prod.failed"
    HEARTBEAT = "system.heartbeat"
    AGENT_REGISTER = "system.agent_register"
    AGENT_UNREGISTER = "system.agent_unregister"
    AGENT_STATUS = "system.agent_status"
    BUDGET_ALERT = "system.budget_alert"
    PAUSE = "control.pause"
    RESUME = "control.resume"
    DRAIN = "control.drain"
    SHUTDOWN = "control.shutdown"
    EMERGENCY = "control.emergency"
    RPC_REQUEST = "rpc.request"
    RPC_RESPONSE = "rpc.response"


_Type = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}$")]


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")

    def to_json(self) -> bytes:
        """The message as JSON.

        Raises:
            InvalidInputError: it is larger than `MAX_MESSAGE_BYTES`, or holds what JSON can't.
        """
        try:
            text = orjson.dumps(self.model_dump(exclude_none=True))
        except (orjson.JSONEncodeError, ValueError) as error:
            raise InvalidInputError(
                f"{type(self).__name__} {self.name!r}", found=str(error), needed="JSON data"
            ) from error
        if len(text) > MAX_MESSAGE_BYTES:
            raise InvalidInputError(
                f"{type(self).__name__} {self.name!r}", found=f"{len(text):,} bytes", needed=f"at most {MAX_MESSAGE_BYTES:,}",
                step="put the data on the board or into a file and send where it is",
            )  # fmt: skip
        return text

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: it is none; the message names the field.
        """
        try:
            return cls.from_data(orjson.loads(text))
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(cls.__name__, found=f"no JSON ({error})", needed="a JSON object") from error

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Read what `to_json` wrote, parsed already.

        Raises:
            InvalidInputError: it is none; the message names the field.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise InvalidInputError(
                f"{cls.__name__}: {field}", found=first.get("input"), needed=first["msg"]
            ) from error

    @property
    def name(self) -> str:
        """What it is called in errors."""
        raise NotImplementedError


class Message(_Envelope):
    """Something that one agent says. Made by `create`; sent messages are not changed."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(default_factory=lambda: uuid4().hex, min_length=1, max_length=256)
    type: _Type
    sender: str = Field(min_length=1, max_length=1024)
    recipient: str = Field(default="", max_length=1024)  #: an agent, a channel, or "" for whoever listens
    payload: Any = Field(default_factory=dict)  #: JSON data
    priority: int = Field(default=Priority.NORMAL, ge=0, le=9)  #: 0 first
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    correlation_id: str | None = None  #: what it belongs to, such as the request that it answers
    reply_to: str | None = None  #: the channel where an answer is awaited
    ttl: float = Field(
        default=300.0, gt=0, allow_inf_nan=False
    )  #: seconds after `timestamp` in which it is worth reading
    traceparent: str | None = None  #: W3C trace context of whoever sent it
    attributes: dict[str, Any] = Field(default_factory=dict)  #: of a foreign CloudEvent, so that it can be told again
    version: int = Field(default=VERSION, ge=1)  #: of the envelope

    @field_validator("timestamp")
    @classmethod
    def _in_utc(cls, when: datetime) -> datetime:
        if when.tzinfo is None:
            raise ValueError("a time with a zone, such as 2026-01-31T12:00:00Z")
        return when.astimezone(UTC)

    @classmethod
    def create(
        cls, msg_type: MessageType | str, sender: str, recipient: str = "", payload: Any = None, **facts: Any
    ) -> Self:
        """A new message.

        Args:
            msg_type: a `MessageType`, or a word of your own.
            sender: who says it.
            recipient: an agent, or "".
            payload: JSON data; ``{}`` by default.
            facts: ``priority``, ``ttl``, ``correlation_id``, ``reply_to``, ``traceparent`` (by default that of the
                running work), ``id``.

        Raises:
            InvalidInputError: a fact is wrong; the message names it.
        """
        facts.setdefault("traceparent", current_traceparent())
        try:
            return cls(
                type=str(msg_type),
                sender=sender,
                recipient=recipient,
                payload={} if payload is None else payload,
                **facts,
            )
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InvalidInputError(f"Message: {field}", found=first.get("input"), needed=first["msg"]) from error

    @property
    def name(self) -> str:
        """Its type and id."""
        return f"{self.type}:{self.id}"

    @property
    def deadline(self) -> datetime:
        """When it is not worth reading any more."""
        try:
            return self.timestamp + timedelta(seconds=self.ttl)
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)

    def is_expired(self, now: datetime | None = None) -> bool:
        """Whether its deadline has passed."""
        return (now or datetime.now(UTC)) >= self.deadline

    def reply(self, msg_type: MessageType | str, sender: str, payload: Any = None, **facts: Any) -> Message:
        """An answer: to the sender, with the same correlation id (this message's id, if it has none)."""
        facts = {"correlation_id": self.correlation_id or self.id, "traceparent": self.traceparent, **facts}
        return Message.create(msg_type, sender, self.sender, payload, **facts)


class TaskMessage(_Envelope):
    """A task for a work queue."""

    task_id: str = Field(default_factory=lambda: uuid4().hex, min_length=1, max_length=128)
    task_type: _Type
    parameters: dict[str, Any] = Field(default_factory=dict)
    deadline: datetime | None = None  #: after this it is not handed out any more; with a time zone
    estimated_tokens: int = Field(default=0, ge=0)
    max_retries: int = Field(default=3, ge=0)  #: attempts after the first one
    priority: int = Field(default=Priority.NORMAL, ge=0, le=9)
    traceparent: str | None = None
    version: int = Field(default=VERSION, ge=1)

    _claim: Any = PrivateAttr(None)  # of the one that took it from its queue

    @field_validator("deadline")
    @classmethod
    def _with_zone(cls, when: datetime | None) -> datetime | None:
        if when is not None and when.tzinfo is None:
            raise ValueError("a time with a zone, such as 2026-01-31T12:00:00Z")
        return when

    @property
    def name(self) -> str:
        """Its id."""
        return self.task_id
