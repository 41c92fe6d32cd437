"""CloudEvents 1.0: our messages as events that other systems read, and theirs as our messages. Nothing is lost either way.

Owns the mapping to the JSON (structured) form. Leaves sending to whoever has a connection.

================  =====================================================================================================
message           event
================  =====================================================================================================
id, type          ``id``, ``type``
sender            ``source``; a sender that is no URI reference as ``swarm:`` and its text, percent-encoded
timestamp         ``time``
payload           ``data``; ``{"data_base64": …}`` as ``data_base64``
traceparent       ``traceparent``, of the distributed-tracing extension
correlation_id    ``correlationid``, of the correlation extension
others            ``swarmrecipient``, ``swarmpriority``, ``swarmttl``, ``swarmreplyto``, ``swarmversion``, unless default
attributes        the attribute of that name: ``subject``, ``dataschema``, ``datacontenttype``, extensions
================  =====================================================================================================

What an event can't say in this way (text with control characters, an attribute that is a list) goes into ``swarmfields`` as
JSON text. What a message can't say (another time zone, no data at all) goes into ``attributes["cloudevent"]``: the difference
between the event and what the message alone would give, so that `to_cloud_event` tells it again. A difference that no
longer fits its message, because the message was changed, is passed over.

Source: CloudEvents 1.0.2 with its JSON event format; extensions "distributed tracing" and "correlation".
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote, unquote

from pydantic import ValidationError

from ..errors import InvalidInputError
from .messages import MAX_MESSAGE_BYTES, VERSION, Message

__all__ = ["from_cloud_event", "to_cloud_event"]

Event = dict[str, Any]

MAX_EVENT_BYTES = 2 * MAX_MESSAGE_BYTES  # a message of full size and what is added to it
DEFAULT_TYPE = "application/json"
DIFFERENCE = "cloudevent"  #: in `Message.attributes`
FIELDS = "swarmfields"
_NAMING = "a name of lower-case letters and digits"
_EXTENSIONS = {
    "recipient": "swarmrecipient", "reply_to": "swarmreplyto", "correlation_id": "correlationid", "traceparent": "traceparent",
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {name: field.default for name, field in Message.model_fields.items()}
_CORE = frozenset({"specversion", "id", "source", "type", "time", "data", "data_base64"})
_OURS = _CORE | {*_EXTENSIONS.values(), "swarmpriority", "swarmttl", "swarmversion", FIELDS, DIFFERENCE}
_NAME = re.compile(r"[a-z0-9]+")
_INTEGER = range(-(2**31), 2**31)
# U+0000-1F, U+7F-9F, lone surrogates and noncharacters may not stand in a String
_NONCHARACTERS = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_FORBIDDEN = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
_CHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%[0-9A-Fa-f]{2})"
_SEGMENT = rf"(?:{_CHAR}|:)"
_AUTHORITY = rf"//(?:\[[0-9A-Fa-fv:.]+\]|{_SEGMENT}*)(?::\d*)?"
_PATH = rf"(?:{_AUTHORITY}(?:/{_SEGMENT}*)*|/(?:{_SEGMENT}+(?:/{_SEGMENT}*)*)?"
_TAIL = rf"(?:\?(?:{_SEGMENT}|[/?])*)?(?:#(?:{_SEGMENT}|[/?])*)?"
_URI = re.compile(rf"[A-Za-z][A-Za-z0-9+.\-]*:{_PATH}|{_SEGMENT}+(?:/{_SEGMENT}*)*)?{_TAIL}")
_REFERENCE = re.compile(rf"{_PATH}|{_CHAR}+(?:/{_SEGMENT}*)*)?{_TAIL}")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt]([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)(?:\.(\d+))?"
    r"(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_EARLIEST, _LATEST = datetime(1, 1, 2, tzinfo=UTC), datetime(9990, 1, 1, tzinfo=UTC)  # so that no deadline overflows


def to_cloud_event(message: Message) -> Event:
    """The message as an event: a new dict, in JSON's types.

    Raises:
        InvalidInputError: its payload or attributes are no JSON data.
    """
    difference = message.attributes.get(DIFFERENCE)
    if isinstance(difference, Mapping) and isinstance(difference.get("set"), Mapping):
        bare = {name: value for name, value in message.attributes.items() if name != DIFFERENCE}
        event = _event_of(message.model_copy(update={"attributes": bare}))
        for name in difference.get("without", ()):
            event.pop(name, None)
        event |= json.loads(_text(difference["set"], "attributes"))
        try:
            if _told(_message_of_checked(event, message.timestamp)) == _told(message):
                return event
        except InvalidInputError:  # somebody else's word in our place
            pass
    return _event_of(message)


def from_cloud_event(event: Mapping[str, Any] | bytes | str) -> Message:
    """The event as a message.

    Args:
        event: as data, or as JSON text. One without a time is dated now.

    Raises:
        InvalidInputError: it is no valid CloudEvent 1.0; the message names the attribute.
    """
    return _message_of_checked(_read(event), datetime.now(UTC))


# --- message → event --------------------------------------------------------------------------------------------------


def _event_of(message: Message) -> Event:
    """What the message alone says; `_message_of` reads it back."""
    event: Event = {"specversion": "1.0", "id": message.id, "source": _source(message.sender), "type": message.type}
    event["time"] = message.timestamp.isoformat().replace("+00:00", "Z")
    fields: dict[str, Any] = {}
    if _FORBIDDEN.search(message.id):
        fields["id"] = message.id
        event["id"] = _short(message.id)
    for field, name in _EXTENSIONS.items():
        value = getattr(message, field)
        if value == _DEFAULTS[field]:
            continue
        if value and not _FORBIDDEN.search(value):
            event[name] = value
        else:
            fields[field] = value
    if message.priority != _DEFAULTS["priority"]:
        event["swarmpriority"] = int(message.priority)
    if message.ttl != _DEFAULTS["ttl"]:
        event["swarmttl"] = repr(float(message.ttl))  # an event has no broken numbers
    if message.version != VERSION:
        if message.version in _INTEGER:
            event["swarmversion"] = message.version
        else:
            fields["version"] = message.version

    binary = _binary(message.payload)
    if not binary:
        event["datacontenttype"] = DEFAULT_TYPE
    rest = {}
    for name, value in message.attributes.items():
        plain = _NAME.fullmatch(name) and name not in _OURS and _fault(name, value) is None and value is not None
        if plain and not (name == "datacontenttype" and value == DEFAULT_TYPE and not binary):
            event[name] = value
        else:
            rest[name] = value
    if rest:
        fields["attributes"] = rest
    if fields:
        event[FIELDS] = _text(fields, "attributes")
    payload = json.loads(_text(message.payload, "payload"))
    event |= payload if binary else {"data": payload}
    return event


def _source(sender: str) -> str:
    if _REFERENCE.fullmatch(sender) or (_URI.fullmatch(sender) and not sender.startswith("swarm:")):
        return sender
    return "swarm:" + quote(sender, safe="")


def _sender(source: str) -> str:
    sender = unquote(source.removeprefix("swarm:"), errors="replace")
    return sender if source.startswith("swarm:") and sender and _source(sender) == source else source


def _binary(payload: Any) -> bool:
    if not isinstance(payload, dict) or payload.keys() != {"data_base64"}:
        return False
    return isinstance(payload["data_base64"], str) and _is_base64(payload["data_base64"])


def _short(text: str) -> str:
    """A digest in place of what does not fit."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: Any, what: str) -> str:
    """*value* as JSON in ASCII, alike for data that are alike."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"event: {what}", found=str(error), needed="JSON data") from error


def _told(message: Message) -> str:
    return _text(message.model_dump(mode="json"), "message")


# --- event → message --------------------------------------------------------------------------------------------------


def _read(event: Mapping[str, Any] | bytes | str) -> Event:
    """The event as data of our own, checked."""
    if not isinstance(event, Mapping):
        if len(event) > MAX_EVENT_BYTES:
            raise InvalidInputError("event", found=f"{len(event):,} bytes", needed=f"at most {MAX_EVENT_BYTES:,}")
        try:
            event = json.loads(event)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError("event", found=f"no JSON ({error})", needed="a CloudEvent in JSON") from error
    if not isinstance(event, Mapping):
        raise InvalidInputError("event", found=event, needed="an object", step="send the events of a batch one by one")
    for name in ("specversion", "id", "source", "type"):
        if event.get(name) is None:
            raise InvalidInputError(f"event: {name}", found=None, needed="a value: every event has one")
    for name, value in event.items():
        if fault := _fault(name, value):
            raise InvalidInputError(f"event: {name}", found=value, needed=fault)
    if event.get("data") is not None and event.get("data_base64") is not None:
        raise InvalidInputError("event: data_base64", found="data as well", needed="one of both")
    own: Event = json.loads(_text(dict(event), "data"))
    return own


def _fault(name: Any, value: Any) -> str | None:
    """What an attribute needs that it has not; None if it is right."""
    if not isinstance(name, str) or not (name == "data_base64" or _NAME.fullmatch(name)):
        return _NAMING
    if name == "data" or value is None:
        return None
    if name == "data_base64":
        return None if isinstance(value, str) and _is_base64(value) else "text in base64"
    if name in ("specversion", "id", "source", "type", "time", "subject", "dataschema", "datacontenttype") and (
        not isinstance(value, str) or not value
    ):
        return "text that is not empty"
    if isinstance(value, str):
        if _FORBIDDEN.search(value):
            return "text without control characters"
        if name == "specversion" and value != "1.0":
            return "1.0"
        if name == "source" and not (_URI.fullmatch(value) or _REFERENCE.fullmatch(value)):
            return "a URI reference, such as /agents/scout_1"
        if name == "dataschema" and not _URI.fullmatch(value):
            return "an absolute URI"
        if name == "time" and _time(value) is None:
            return "a time as in RFC 3339, such as 2026-01-31T12:00:00Z"
        return None
    if isinstance(value, bool) or (isinstance(value, int) and value in _INTEGER):
        return None
    return "text, true, false or a whole number of 32 bits"


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _time(text: str) -> datetime | None:
    """The moment, moved to a year that we can count with; None if it is no time."""
    found = _TIME.fullmatch(text)
    if not found:
        return None
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    if not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year or 4, month)[1]:  # year 0 is a leap year, as 4
        return None
    micros = int((found[7] or "0")[:6].ljust(6, "0"))
    shift = timedelta(hours=int(found[9] or 0), minutes=int(found[10] or 0)) * (-1 if found[8] == "-" else 1)
    try:
        when = datetime(year, month, day, hour, minute, min(second, 59), micros, timezone(shift)).astimezone(UTC)
    except (ValueError, OverflowError):  # year 0, or a year that the zone moves out of our calendar
        when = _EARLIEST if year < 2 else _LATEST
    return min(max(when, _EARLIEST), _LATEST)


def _message_of_checked(event: Event, now: datetime) -> Message:
    """The message, with the difference if it alone would not give this event."""
    wanted = _text(event, "data")
    for trusting in (True, False):
        message = _message_of(event, now, trusting)
        if message is None:
            continue
        alone = _event_of(message)
        if _text(alone, "data") == wanted:
            return message
        if DIFFERENCE not in message.attributes:
            changed = {
                name: value
                for name, value in event.items()
                if name not in alone or _text(alone[name], name) != _text(value, name)
            }
            difference = {"set": changed, "without": sorted(alone.keys() - event.keys())}
            return message.model_copy(update={"attributes": {**message.attributes, DIFFERENCE: difference}})
    raise AssertionError("an event that trusts nobody always gives a message")


def _message_of(event: Event, now: datetime, trusting: bool) -> Message | None:
    """The message; None if our own extensions say what no message can.

    Args:
        event: checked.
        now: when it happened, if it does not say.
        trusting: whether to read our own extensions.
    """
    facts: dict[str, Any] = {
        "id": event["id"] if len(event["id"]) <= 256 else _short(event["id"]),
        "type": _type(event["type"]),
        "sender": _sender(event["source"]),
        "timestamp": _time(event["time"]) if event.get("time") else now,
        "payload": event.get("data"),
    }
    if len(facts["sender"]) > 1024:
        facts["sender"] = _short(facts["sender"])
    if event.get("data_base64") is not None:
        facts["payload"] = {"data_base64": event["data_base64"]}
    hidden = (DIFFERENCE, *_CORE, *(_OURS if trusting else (FIELDS,)))
    attributes = {name: value for name, value in event.items() if name not in hidden and value is not None}
    if attributes.get("datacontenttype") == DEFAULT_TYPE and event.get("data_base64") is None:
        del attributes["datacontenttype"]
    facts["attributes"] = (
        attributes if trusting else {each: attributes[each] for each in attributes if each not in _OURS}
    )
    if trusting and not _read_extensions(event, facts):
        return None
    try:
        return Message.model_validate(facts)
    except ValidationError:
        if trusting:
            return None
        raise


def _type(text: str) -> str:
    word = re.sub(r"[^A-Za-z0-9_.:/-]", "_", text)[:128]
    return word if re.match(r"[A-Za-z0-9_]", word) else "_" + word[:127]


def _read_extensions(event: Event, facts: dict[str, Any]) -> bool:
    """Put what our extensions say into *facts*; whether they could be ours."""
    for field, name in _EXTENSIONS.items():
        if event.get(name) is not None:
            facts[field] = event[name]
    for field in ("priority", "version"):
        value = event.get("swarm" + field)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int):
                return False
            facts[field] = value
    try:
        if event.get("swarmttl") is not None:
            facts["ttl"] = float(event["swarmttl"])
        fields = json.loads(event[FIELDS]) if event.get(FIELDS) is not None else {}
    except (TypeError, ValueError, RecursionError):
        return False
    if not isinstance(fields, dict) or not isinstance(fields.get("attributes", {}), dict):
        return False
    facts["attributes"] |= fields.pop("attributes", {})
    if fields.keys() - {"id", "version", *_EXTENSIONS}:
        return False
    facts.update(fields)
    return True
