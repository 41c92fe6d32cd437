"""What topics are spoken of with: messages, places, letters, lags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ...errors import InvalidInputError
from ..codec import JSON, Codec

__all__ = ["DeadLetter", "GroupLag", "PartitionLag", "Published", "To", "TopicMessage", "TopicSettings", "begin_after"]

LAST = 999_999_999  # of the entries of one millisecond: more than Redis can write in it
_ENTRY = re.compile(r"\d{1,15}(-\d{1,15})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMessage:
    """A message of a topic, as it lies in Redis."""

    id: str  #: given when it was published; the same id is stored once
    key: str  #: messages of one key stay in order; "" has none
    type: str  #: of its body, a word
    content_type: str  #: how the body is written: ``json``
    body: bytes
    traceparent: str | None  #: W3C trace context of whoever published it
    partition: int
    entry: str  #: its place there, ``ms-n``; comparable within the topic: it is the time when it was published

    async def decode(self, as_: Any = Any, codec: Codec = JSON) -> Any:
        """The body as *as_*.

        Raises:
            InvalidInputError: it does not fit; the message names the field.
        """
        return await codec.decode(self.content_type, self.body, as_)


@dataclass(frozen=True, slots=True)
class To:
    """Where a handler's answer goes, when it is not its processor's target: ``To("other.topic", answer, key="k")``."""

    topic: str
    body: Any
    key: str | None = None  #: None: that of the message it answers
    id: str | None = None  #: None: a new one


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where a message was put."""

    topic: str
    id: str
    partition: int
    entry: str
    duplicate: bool  #: this id was published before: this is where the first one lies, and nothing was written


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings:
    """What holds for a topic, for all who use it."""

    partitions: int
    keep_s: float  #: acknowledged messages older than this go; 0: whatever their age, they stay
    keep_entries: int  #: acknowledged messages beyond this many go; 0: no limit
    most: int  #: messages that it may hold; 0: no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that a group could not process."""

    id: str  #: of the letter, for `Topic.redrive`
    group: str
    reason: str  #: ``failed``, ``crashed`` or ``invalid``
    error: str
    attempts: int
    message: TopicMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """How far a group is behind in one partition."""

    partition: int
    waiting: int  #: never delivered yet
    pending: int  #: delivered, not acknowledged
    exact: bool  #: False: Redis does not know after a replay far back; then `waiting` is the most it can be

    @property
    def total(self) -> int:
        """All that is still to be acknowledged."""
        return self.waiting + self.pending


@dataclass(frozen=True, slots=True)
class GroupLag:
    """How far a group is behind."""

    group: str
    partitions: Sequence[PartitionLag] = field(default_factory=tuple)

    @property
    def total(self) -> int:
        """Messages that it has not acknowledged."""
        return sum(each.total for each in self.partitions)


def begin_after(place: str | datetime) -> str:
    """The id after which a group begins that is to begin at *place*: ``earliest``, ``latest``, an entry's id, a time.

    Raises:
        InvalidInputError: it is none of these.
    """
    if place == "earliest":
        return "0"
    if place == "latest":
        return "$"
    if isinstance(place, datetime):
        if place.tzinfo is None:
            raise InvalidInputError("the time to begin at", found=place.isoformat(), needed="one with a time zone")
        place = f"{max(0, int(place.timestamp() * 1000))}-0"
    if not _ENTRY.fullmatch(place):
        raise InvalidInputError(
            "the place to begin at", found=place, needed="earliest, latest, an entry's id (ms-n) or a datetime"
        )
    ms, _, number = place.partition("-")
    if int(number or 0):
        return f"{int(ms)}-{int(number) - 1}"
    return f"{int(ms) - 1}-{LAST}" if int(ms) else "0"
