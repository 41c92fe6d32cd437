"""Items: what stands on the board, as Python sees it.

The payload is JSON that the client makes and Redis never opens: Lua's JSON turns ``[]`` into ``{}`` and loses digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel

from ..errors import InvalidInputError
from ..keys import lane_name

__all__ = ["Item", "Payload", "Priority", "Submission", "Submitted", "dump_payload", "merge"]

Payload = Mapping[str, Any] | BaseModel | Any  #: a dict, a pydantic model, a dataclass, or an object with ``to_dict``

MAX_DEPTH = 32
YEAR_S = 366 * 86400
DEFAULT_PRIORITY = 2
ANSWER_S = 7 * 86400.0  # how long the answers recorded for an item are kept after the newest one


class Priority:
    """Names for the usual priorities; any whole number from 0 (first) to 9 (last) will do."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


class Item(NamedTuple):
    """One item, as it was when it was read.

    A tuple and not a dataclass, because one is made for each item of each claim, and a tuple takes a fifth of the time.
    """

    id: str
    section: str
    status: str
    requires: str  #: the capability that an agent must have to claim it; "" for any agent
    priority: int  #: 0 (first) to 9 (last)
    version: int  #: grows by one with each change
    attempts: int  #: claims since it came to its section that were not handed back
    crashes: int  #: leases that ran out since it came to its section
    token: int  #: of the newest claim; 0 if it was never claimed
    holder: str  #: the agent that holds it, or ""
    origin: str  #: the status it was claimed from, while it is held
    seq: int  #: its order of arrival
    event: str  #: id of its newest event
    created_ms: int  #: when it was submitted, on Redis' clock
    changed_ms: int  #: when it changed last, on Redis' clock
    content_hash: str  #: its key in the dedup table, or ""
    payload: dict[str, Any]
    result: Any = None  #: what the last completion gave

    @property
    def lane(self) -> str:
        """``section/status/requires``."""
        return lane_name(self.section, self.status, self.requires)

    @property
    def claimed_from(self) -> str:
        """The lane that it was claimed from; its own lane if nobody holds it."""
        return lane_name(self.section, self.origin or self.status, self.requires)

    def as_dict(self) -> dict[str, Any]:
        """The payload as the product document's calls give it: with ``id``, ``status`` and where the item stands."""
        facts: dict[str, Any] = {
            "id": self.id,
            "status": self.status,
            "_bb_section": self.section,
            "_bb_version": self.version,
            "_bb_updated_at": self.changed_ms / 1000,
        }
        if self.result is not None:
            facts["_bb_result"] = self.result
        return self.payload | facts

    def facts(self) -> dict[str, Any]:
        """Everything known of the item, as JSON data."""
        return self._asdict()


def read_item(item_id: str, record: bytes | str, payload: bytes | None, result: bytes | None = None) -> Item:
    """The item that a record and a payload describe; `InvalidInputError` for a torn or forged one."""
    try:
        text = record.decode() if isinstance(record, bytes) else record
        (
            event, created_ms, priority, seq, _request, content_hash,
            section, status, requires, version, attempts, crashes, token, holder, origin, _endings,
        ) = text.split("|")  # fmt: skip
        event_ms = int(event.partition("-")[0] or 0)
        item = Item(
            item_id, section, status, requires, int(priority), int(version), int(attempts), int(crashes),
            int(token or 0), holder, origin, int(seq), event, int(created_ms or event_ms), event_ms, content_hash,
            orjson.loads(payload) if payload is not None else {}, orjson.loads(result) if result else None,
        )  # fmt: skip
    except ValueError as error:  # not UTF-8, not JSON, not a number, not 16 fields
        raise InvalidInputError(
            f"item {item_id!r}", found=record, needed="a record and JSON", step="see: swarm audit"
        ) from error
    if not isinstance(item.payload, dict):
        raise InvalidInputError(f"item {item_id!r}", found=payload, needed="a JSON object", step="see: swarm audit")
    return item


@dataclass(slots=True, kw_only=True)  # not frozen: one is made for each item, and that would take three times as long
class Submission:
    """An item to be put on the board."""

    id: str
    section: str
    payload: Payload
    status: str | None = None  #: the section's entry status, if None
    requires: str = ""
    priority: int = DEFAULT_PRIORITY
    delay_s: float = 0.0  #: not claimable before that
    content_hash: str = ""  #: refused as a duplicate if another item of the board has the same
    dedup_s: float = 0.0  #: how long the hash is remembered; 0: for ever


@dataclass(slots=True, kw_only=True)
class Submitted:
    """What became of a submission. Truthy if it was accepted."""

    id: str
    accepted: bool
    duplicate_of: str = ""  #: id of the item that has the same id or content; "" if accepted

    def __bool__(self) -> bool:
        return self.accepted


def check_seconds(what: str, seconds: float, *, least: float = 0.0) -> int:
    """*seconds* as whole milliseconds.

    Raises:
        InvalidInputError: it is no number from *least* to a year.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not least <= seconds <= YEAR_S:
        raise InvalidInputError(what, found=seconds, needed=f"seconds, from {least:g} to {YEAR_S} (a year)")
    return round(seconds * 1000)


def check_priority(what: str, priority: int) -> int:
    """*priority*; `InvalidInputError` if it is no whole number from 0 to 9."""
    if type(priority) is not int or not 0 <= priority <= 9:
        raise InvalidInputError(what, found=priority, needed="0 (first) to 9 (last)")
    return priority


def clean_text(text: object, most: int) -> str:
    """*text* as Redis takes it, cut at *most* characters: what is no Unicode (a lone surrogate) becomes a ``?``."""
    return str(text)[:most].encode("utf-8", "replace").decode()


def dump_payload(payload: Payload, what: str = "payload") -> bytes:
    """*payload* as JSON.

    Raises:
        InvalidInputError: it is no object, holds something JSON has no word for (NaN included), or is nested
            deeper than 32.
    """
    data: Any
    if type(payload) is dict:
        return dump_json(payload, what)
    if isinstance(payload, BaseModel):
        data = payload.model_dump(mode="json")
    elif hasattr(payload, "to_dict"):
        data = payload.to_dict()
    elif is_dataclass(payload) and not isinstance(payload, type):
        data = asdict(payload)
    else:
        data = payload
    if not isinstance(data, Mapping):
        raise InvalidInputError(what, found=type(data).__name__, needed="a JSON object (dict, model or dataclass)")
    return dump_json(data if isinstance(data, dict) else dict(data), what)


def dump_json(data: Any, what: str) -> bytes:
    """*data* as JSON; `InvalidInputError` if it can't be."""
    try:
        text = orjson.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        _check_values(data, what, 1)  # which may say it better
        raise InvalidInputError(what, found=data, needed="JSON data", step=str(error)) from error
    # orjson writes NaN and Infinity as null without a word: the number would be lost
    if b"null" in text or text.count(b"{") + text.count(b"[") > MAX_DEPTH:
        _check_values(data, what, 1)
    return text


def _check_values(data: Any, what: str, depth: int) -> None:
    if isinstance(data, dict | list | tuple):
        if depth > MAX_DEPTH:
            raise InvalidInputError(what, found=f"depth {depth}", needed=f"at most {MAX_DEPTH}", step="flatten it")
        for value in data.values() if isinstance(data, dict) else data:
            if isinstance(value, float | dict | list | tuple) or is_dataclass(value):
                _check_values(value, what, depth + 1)
    elif isinstance(data, float):
        if data != data or data in (float("inf"), float("-inf")):
            raise InvalidInputError(what, found=data, needed="a finite number", step="leave it out or send text")
    elif is_dataclass(data):
        _check_values([getattr(data, each.name) for each in fields(data)], what, depth)


def merge(
    payload: Mapping[str, Any], patch: Mapping[str, Any] | Callable[[dict[str, Any]], Any] | None
) -> dict[str, Any]:
    """*payload* with the fields of *patch* in place of its own; None removes a field.

    A callable gets a copy to change, or returns the new payload.
    """
    merged = dict(payload)
    if callable(patch):
        changed = patch(merged)
        if changed is None:
            return merged
        if not isinstance(changed, Mapping):
            raise InvalidInputError("patch", found=changed, needed="a function that changes a dict or returns one")
        return dict(changed)
    if not isinstance(patch, Mapping | None):
        raise InvalidInputError("patch", found=patch, needed="a dict of fields, or a function")
    for name, value in (patch or {}).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged


def read_rows(item_ids: Iterable[str], answer: Sequence[Any]) -> list[Item | None]:
    """The items in an answer of ``read_items`` for these ids; None where there is none."""
    rows = zip(item_ids, answer[0::3], answer[1::3], answer[2::3], strict=True)
    return [read_item(name, record, payload, result) if record else None for name, record, payload, result in rows]


def one_line(text: object) -> str:
    """*text* as it goes into an event: one line of at most 300 characters."""
    return " ".join(clean_text(text, 2000).split())[:300]
