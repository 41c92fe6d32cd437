"""Values of an Avro schema: from Python or JSON to what fastavro writes, and back.

Owns the values. Every fault names the field, which fastavro's own errors do not: on the way in each value is checked
here before fastavro sees it; on the way out, bytes that it could not read are read again, slowly, to find the place.
"""

from __future__ import annotations

import base64
import binascii
import copy
import io
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, InvalidOperation
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
from pydantic import BaseModel

from ...errors import InvalidInputError
from .avro import fastavro, kind_of
from .avro_rules import named_types

__all__ = ["AvroType"]

_INT, _LONG = range(-(2**31), 2**31), range(-(2**63), 2**63)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Misfit(Exception):
    """A value that is not of its type."""

    def __init__(self, path: str, found: object, needed: str) -> None:
        self.path, self.found, self.needed = path, found, needed


class AvroType:
    """A parsed schema, ready to write and read values.

    Args:
        schema: as `avro.parse` gives it.
        what: how errors call a message: its subject and version.
    """

    def __init__(self, schema: Any, what: str) -> None:
        self.schema, self.what = schema, what
        self._names = named_types(schema)
        parse = fastavro().schema.parse_schema
        self._writes, self._reads = parse(schema), parse(copy.deepcopy(schema))
        self._has_lists = _live_defaults(self._reads, self._names)

    def write(self, value: Any) -> bytes:
        """*value* in Avro's binary encoding.

        Args:
            value: plain data, or a model; times with a zone.

        Raises:
            InvalidInputError: it is not of this type; the message names the field.
        """
        out = io.BytesIO()
        datum = self._datum(value, tagged=True)
        try:
            fastavro().schemaless_writer(out, self._writes, datum)
        except Exception as error:  # what our own check has missed
            raise InvalidInputError(
                self.what, found=f"{type(error).__name__}: {error}", needed="data of its schema"
            ) from error
        return out.getvalue()

    def write_json(self, value: Any) -> bytes:
        """*value* as JSON: bytes in base64, times in ISO 8601, decimals as strings."""
        return orjson.dumps(self._datum(value, tagged=False), default=_plain)

    def read(self, data: bytes, reader: AvroType | None = None) -> Any:
        """What `write` wrote with this schema, as *reader* sees it.

        Raises:
            InvalidInputError: it is no such data; the message names the field.
        """
        stream = io.BytesIO(data)
        try:
            value = fastavro().schemaless_reader(stream, self._writes, reader._reads if reader else None)
        except Exception as error:  # fastavro raises what it happens to run into
            place = _Finder(data, self._names).fault(self.schema) or (
                "/",
                f"{type(error).__name__}: {error}",
                "data of its schema",
            )
            raise InvalidInputError(f"{self.what}: {place[0]}", found=place[1], needed=place[2]) from error
        if left := len(data) - stream.tell():
            raise InvalidInputError(self.what, found=f"{left:,} bytes after its end", needed="one message and no more")
        return copy.deepcopy(value) if reader and reader._has_lists else value

    def read_json(self, data: bytes) -> Any:
        """What `write_json` wrote with this schema."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(self.what, found=f"no JSON ({error})", needed="JSON") from error
        return self._datum(value, tagged=False)

    def seen_by(self, reader: AvroType, value: Any) -> Any:
        """A value of this type as *reader* sees it: renamed fields, defaults, wider numbers."""
        return self.read(self.write(value), reader)

    def _datum(self, value: Any, *, tagged: bool) -> Any:
        try:
            return _Conversion(self._names, tagged).convert(self.schema, value, "", lenient=True)
        except _Misfit as error:
            raise InvalidInputError(
                f"{self.what}: {error.path or '/'}", found=error.found, needed=error.needed
            ) from error
        except RecursionError as error:
            raise InvalidInputError(
                self.what, found="data that contains itself", needed="data of its schema"
            ) from error


class _Conversion:
    """One value and all within it.

    Lenient takes what JSON has instead (text for times, decimals, ids and bytes) and whole numbers for broken ones.
    """

    def __init__(self, names: Mapping[str, Any], tagged: bool) -> None:
        self.names, self.tagged = names, tagged

    def convert(self, schema: Any, value: Any, path: str, *, lenient: bool) -> Any:
        schema = self.names.get(schema, schema) if isinstance(schema, str) else schema
        kind = kind_of(schema)
        if kind == "union":
            return self._union(schema, value, path)
        if kind == "record":
            return self._record(schema, value, path, lenient)
        if kind == "array":
            if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
                raise _Misfit(path, value, "a list")
            return [self.convert(schema["items"], each, f"{path}/{i}", lenient=lenient) for i, each in enumerate(value)]
        if kind == "map":
            if not isinstance(value, Mapping):
                raise _Misfit(path, value, "an object")
            return {
                _text(name, path): self.convert(schema["values"], each, f"{path}/{name}", lenient=lenient)
                for name, each in value.items()
            }
        if kind == "enum":
            word = value.value if isinstance(value, Enum) else value
            if not isinstance(word, str) or word not in schema["symbols"]:
                raise _Misfit(path, word, f"one of {', '.join(schema['symbols'])}")
            return word
        return _scalar(schema, kind, value, path, lenient)

    def _union(self, choices: list[Any], value: Any, path: str) -> Any:
        misfits = []
        for lenient in (False, True):  # first what it is, then what it could be meant to be
            for each in choices:
                try:
                    chosen = self.convert(each, value, path, lenient=lenient)
                except _Misfit as error:
                    if kind_of(each) != "null":
                        misfits.append(error)
                    continue
                return (
                    (each["name"] if isinstance(each, dict) and "name" in each else kind_of(each), chosen)
                    if self.tagged
                    else chosen
                )
        if len(choices) - ("null" in choices) == 1:
            raise misfits[-1]
        raise _Misfit(path, value, "one of " + ", ".join(kind_of(each) for each in choices))

    def _record(self, schema: Mapping[str, Any], value: Any, path: str, lenient: bool) -> dict[str, Any]:
        if isinstance(value, BaseModel):
            value = value.model_dump(by_alias=True)
        if not isinstance(value, Mapping):
            raise _Misfit(path, value, f"an object ({schema['name']})")
        record: dict[str, Any] = {}
        for each in schema["fields"]:
            name = each["name"]
            if name in value:
                record[name] = self.convert(each["type"], value[name], f"{path}/{name}", lenient=lenient)
            elif "default" in each:
                live = _live(each["type"], each["default"], self.names)
                record[name] = self.convert(each["type"], live, f"{path}/{name}", lenient=True)
            else:
                raise _Misfit(f"{path}/{name}", None, "a value: the field has no default")
        for name in value:
            if name not in record:
                raise _Misfit(f"{path}/{name}", value[name], "no such field: it is not in the schema")
        return record


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _Misfit(path, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Misfit(path, value, "text that can be written as UTF-8") from None
    return str(value)


def _scalar(schema: Any, kind: str, value: Any, path: str, lenient: bool) -> Any:
    logical = schema.get("logicalType") if isinstance(schema, dict) else None
    if logical:
        return _logical(schema, logical, value, path, lenient)
    match kind:
        case "null":
            if value is None:
                return None
        case "boolean":
            if isinstance(value, bool):
                return value
        case "int" | "long":
            limits = _INT if kind == "int" else _LONG
            if isinstance(value, int) and not isinstance(value, bool):
                if value not in limits:
                    raise _Misfit(path, value, f"a whole number of {32 if kind == 'int' else 64} bits")
                return int(value)
        case "float" | "double":
            if isinstance(value, float) or (lenient and isinstance(value, int) and not isinstance(value, bool)):
                return _number(value, kind, path)
        case "string":
            if isinstance(value, str):
                return _text(value.value if isinstance(value, Enum) else value, path)
        case "bytes" | "fixed":
            data = _bytes(value, path) if lenient else value
            if isinstance(data, bytes | bytearray):
                if kind == "fixed" and len(data) != schema["size"]:
                    raise _Misfit(path, value, f"{schema['size']} bytes")
                return bytes(data)
    raise _Misfit(
        path, value, {"null": "null", "int": "a whole number", "long": "a whole number"}.get(kind, f"a {kind}")
    )


def _number(value: float, kind: str, path: str) -> float:
    try:
        if kind == "float":
            struct.pack("<f", value)
        return float(value)
    except OverflowError:
        raise _Misfit(path, value, f"a number that a {kind} can hold") from None


def _bytes(value: Any, path: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _Misfit(path, value, "bytes, as base64 in JSON") from None


_TIMES: dict[str, tuple[type, str, Callable[[str], Any]]] = {
    "date": (date, "a date, such as 2026-01-31", date.fromisoformat),
    "time": (time, "a time of day, such as 12:00:00", time.fromisoformat),
    "timestamp": (datetime, "a time with a zone, such as 2026-01-31T12:00:00Z", datetime.fromisoformat),
    "uuid": (UUID, "a UUID", UUID),
}


def _logical(schema: Mapping[str, Any], logical: str, value: Any, path: str, lenient: bool) -> Any:
    if logical == "decimal":
        return _decimal(schema, value, path, lenient)
    cls, needed, parse = _TIMES[logical.partition("-")[0]]
    if lenient and isinstance(value, str):
        try:
            value = parse(value)
        except ValueError:
            raise _Misfit(path, value, needed) from None
    if not isinstance(value, cls) or (cls is date and isinstance(value, datetime)):
        raise _Misfit(path, value, needed)
    if isinstance(value, time) and value.tzinfo is not None:
        raise _Misfit(path, value.isoformat(), needed + ", without a zone")
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise _Misfit(path, value.isoformat(), needed)
        value = value.astimezone(UTC)
    if logical.endswith("-millis"):  # what the wire can't hold is cut here, so that both encodings hold the same
        value = value.replace(microsecond=value.microsecond // 1000 * 1000)
    return value


def _decimal(schema: Mapping[str, Any], value: Any, path: str, lenient: bool) -> Decimal:
    scale, precision = schema.get("scale", 0), schema["precision"]
    needed = f"a decimal of up to {precision} digits, {scale} of them after the point"
    if lenient and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            value = Decimal(value)
        except InvalidOperation:
            raise _Misfit(path, value, needed) from None
    if not isinstance(value, Decimal) or not value.is_finite():
        raise _Misfit(path, value, needed)
    try:
        exact = value.quantize(Decimal(1).scaleb(-scale), context=Context(prec=precision, traps=[InvalidOperation]))
    except InvalidOperation:
        raise _Misfit(path, str(value), needed) from None
    if exact != value:
        raise _Misfit(path, str(value), needed)
    return exact


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value).__name__)


def _live_defaults(schema: Any, names: Mapping[str, Any]) -> bool:
    """Put Python's values in place of a reader's defaults, which fastavro hands out as they stand in the schema.

    Returns:
        whether some are lists or objects, which must not be shared between messages.
    """
    shared, seen = False, set()
    todo = [schema, *(schema.get("__named_schemas", {}).values() if isinstance(schema, dict) else ())]
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            todo += each
        if not isinstance(each, dict) or id(each) in seen:
            continue
        seen.add(id(each))
        todo += [each[word] for word in ("items", "values", "type") if isinstance(each.get(word), dict | list)]
        for field in each.get("fields", ()):
            if id(field) not in seen:
                seen.add(id(field))
                todo.append(field["type"])
                if "default" in field:
                    field["default"] = _live(field["type"], field["default"], names)
                    shared = shared or isinstance(field["default"], list | dict)
    return shared


def _live(schema: Any, default: Any, names: Mapping[str, Any]) -> Any:
    """A default as the value that a reader of it gets."""
    schema = names.get(schema, schema) if isinstance(schema, str) else schema
    kind = kind_of(schema)
    if kind == "union":
        return _live(schema[0], default, names)
    if kind == "array":
        return [_live(schema["items"], each, names) for each in default]
    if kind == "map":
        return {name: _live(schema["values"], each, names) for name, each in default.items()}
    if kind == "record":
        return {
            each["name"]: _live(each["type"], default.get(each["name"], each.get("default")), names)
            for each in schema["fields"]
        }
    raw = default.encode("latin-1") if kind in ("bytes", "fixed") else default
    match schema.get("logicalType") if isinstance(schema, dict) else None:
        case "decimal":
            return Decimal(int.from_bytes(raw, "big", signed=True)).scaleb(-schema.get("scale", 0))
        case "uuid":
            return UUID(raw)
        case "date":
            return date(1970, 1, 1) + timedelta(days=raw)
        case "time-millis" | "time-micros" as unit:
            return (_EPOCH + timedelta(microseconds=raw * (1000 if unit == "time-millis" else 1))).time()
        case "timestamp-millis" | "timestamp-micros" as unit:
            return _EPOCH + timedelta(microseconds=raw * (1000 if unit == "timestamp-millis" else 1))
    return raw


class _Finder:
    """Reads bytes that fastavro could not, only to say where they are wrong."""

    def __init__(self, data: bytes, names: Mapping[str, Any]) -> None:
        self.data, self.names, self.at = data, names, 0

    def fault(self, schema: Any) -> tuple[str, str, str] | None:
        """Path, what was found, what was needed; None if it finds nothing wrong."""
        try:
            self.walk(schema, "")
        except _Misfit as error:
            return error.path or "/", str(error.found), error.needed
        return None

    def take(self, count: int, path: str) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise _Misfit(
                path,
                f"{len(self.data) - self.at} bytes left",
                f"{count} bytes" if count >= 0 else "a length of 0 or more",
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def whole(self, path: str) -> int:
        value = shift = 0
        while True:
            byte = self.take(1, path)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
            if shift >= 70:
                raise _Misfit(path, "a number of more than ten bytes", "one of 64 bits")

    def walk(self, schema: Any, path: str) -> None:
        schema = self.names.get(schema, schema) if isinstance(schema, str) else schema
        kind = kind_of(schema)
        match kind:
            case "boolean":
                self.take(1, path)
            case "int" | "long":
                self.whole(path)
            case "float" | "double":
                self.take(4 if kind == "float" else 8, path)
            case "bytes" | "string":
                data = self.take(self.whole(path), path)
                try:
                    data.decode() if kind == "string" else None
                except UnicodeDecodeError as error:
                    raise _Misfit(path, str(error), "text in UTF-8") from error
            case "fixed":
                self.take(schema["size"], path)
            case "enum" | "union":
                most = len(schema["symbols"] if kind == "enum" else schema)
                index = self.whole(path)
                if not 0 <= index < most:
                    raise _Misfit(
                        path,
                        f"number {index}",
                        f"0 to {most - 1}: the number of a {'symbol' if kind == 'enum' else 'type'}",
                    )
                if kind == "union":
                    self.walk(schema[index], path)
            case "record":
                for each in schema["fields"]:
                    self.walk(each["type"], f"{path}/{each['name']}")
            case "array" | "map":
                self._blocks(schema, kind, path)

    def _blocks(self, schema: Any, kind: str, path: str) -> None:
        place = 0
        while count := self.whole(path):
            if count < 0:
                self.whole(path)  # the block's size
            for _ in range(abs(count)):
                name: Any = place
                if kind == "map":
                    name = self.take(self.whole(path), path).decode("utf-8", "replace")
                self.walk(schema["values" if kind == "map" else "items"], f"{path}/{name}")
                place += 1
