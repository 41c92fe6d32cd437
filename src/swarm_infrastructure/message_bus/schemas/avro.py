"""Avro schemas: parsed, checked and made comparable.

Owns the form of a schema. Leaves to ``avro_rules`` what can be read with another one, to ``avro_models`` how a pydantic model
becomes one, and to ``avro_data`` the values. fastavro is imported when it is first used.

fastavro accepts much that is no Avro (two fields of one name, a record without fields, a default of another type) and
its decoder trusts the schema, so what it lets through is checked here. Two kinds of valid schema are refused, because a
few bytes of a hostile message would do harm with them: a type that contains itself (some thousand bytes end the process:
the decoder recurses in C), and a list of elements that take no bytes (three bytes can claim a billion of them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import orjson

from ...errors import InvalidInputError, MissingExtraError, SchemaProblem

__all__ = ["LOGICAL", "PRIMITIVES", "fastavro", "faults", "kind_of", "parse", "read_avsc", "without_docs"]

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
#: logical type → the types that may carry it
LOGICAL = {
    "decimal": {"bytes", "fixed"}, "uuid": {"string"}, "date": {"int"}, "time-millis": {"int"}, "time-micros": {"long"},
    "timestamp-millis": {"long"}, "timestamp-micros": {"long"},
}  # fmt: skip
MAX_DEPTH = 64
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def fastavro() -> ModuleType:
    """The library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import fastavro as library
        import fastavro.schema
    except ImportError as error:
        raise MissingExtraError("fastavro", "avro") from error
    return library


def read_avsc(text: str) -> Any:
    """An ``.avsc`` file's text as data."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(
            "Avro schema", found=f"no JSON ({error})", needed="the text of an .avsc file"
        ) from error


def parse(schema: Any, subject: str = "") -> Any:
    """*schema* with each name in full and each named type where it is first used, later ones by name.

    Raises:
        InvalidInputError: it is no Avro schema, or one of the two kinds that we refuse.
    """
    what = f"Avro schema {subject!r}" if subject else "Avro schema"
    _check_depth(schema, what)
    try:
        parsed = fastavro().schema.parse_schema(schema)
    except MissingExtraError:
        raise
    except Exception as error:
        raise InvalidInputError(what, found=str(error) or type(error).__name__, needed="a valid Avro schema") from error
    plain = _plain(parsed)
    if kind_of(plain) != "record":
        raise InvalidInputError(what, found=kind_of(plain), needed="a record: a message has fields")
    if wrong := faults(plain):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InvalidInputError(f"{what}: {wrong[0].path}{more}", found=wrong[0].found, needed=wrong[0].needed)
    return plain


def _check_depth(schema: Any, what: str) -> None:
    todo = [(schema, 0)]
    while todo:
        each, depth = todo.pop()
        if depth > 4 * MAX_DEPTH:  # a level of the schema is up to four of JSON
            raise InvalidInputError(what, found=f"more than {MAX_DEPTH} levels", needed="a schema that is less deep")
        if isinstance(each, Mapping):
            todo += [(value, depth + 1) for value in each.values()]
        elif isinstance(each, list):
            todo += [(value, depth + 1) for value in each]


def _plain(schema: Any) -> Any:
    """Without fastavro's own marks; a primitive type without more to say as its name."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {word: value for word, value in schema.items() if not word.startswith("__")}
    if kept.keys() == {"type"} and isinstance(kept["type"], str):
        return kept["type"]
    for word in ("type", "items", "values"):
        if word in kept:
            kept[word] = _plain(kept[word])
    if "fields" in kept:
        kept["fields"] = [{**each, "type": _plain(each["type"])} for each in kept["fields"]]
    return kept


def without_docs(schema: Any) -> Any:
    """A parsed schema without what says nothing about data: alike for schemas that mean the same."""
    if isinstance(schema, list):
        return [without_docs(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        word: value if word in ("default", "symbols", "aliases") else without_docs(value)
        for word, value in schema.items()
        if word not in ("doc", "order")
    }


def kind_of(schema: Any) -> str:
    """``union``, a primitive type, ``record``, …; the name of a type that was defined before."""
    if isinstance(schema, list):
        return "union"
    return str(schema["type"]) if isinstance(schema, dict) else str(schema)


def faults(schema: Any) -> list[SchemaProblem]:
    """What is wrong with a parsed schema, one entry for each place."""
    return [
        SchemaProblem(path=path or "/", found=found, needed=needed) for path, found, needed in _Check().walk(schema, "")
    ]


class _Check:
    def __init__(self) -> None:
        self.named: dict[str, Any] = {}
        self.open: list[str] = []  # records that we stand in

    def walk(self, schema: Any, path: str) -> Iterator[tuple[str, str, str]]:
        kind = kind_of(schema)
        if kind == "union":
            yield from self._union(schema, path)
        elif kind == "record":
            yield from self._record(schema, path)
        elif kind == "enum":
            yield from self._name(schema, path)
            symbols = schema.get("symbols", [])
            if not symbols or len(set(symbols)) < len(symbols):
                yield path, f"symbols {symbols}", "at least one, each once"
            elif schema.get("default", symbols[0]) not in symbols:
                yield path, f"default {schema['default']!r}", f"one of {', '.join(symbols)}"
        elif kind == "fixed":
            yield from self._name(schema, path)
            if not isinstance(schema.get("size"), int) or schema["size"] < 1:
                yield path, f"size {schema.get('size')!r}", "a number of bytes"
        elif kind in ("array", "map"):
            word = "items" if kind == "array" else "values"
            if word not in schema:
                yield path, f"{kind} without {word}", f"{word}: the type of its elements"
                return
            yield from self.walk(schema[word], path + "/*")
            if kind == "array" and self.least_bytes(schema[word]) == 0:
                yield (
                    path,
                    "a list of elements that take no bytes",
                    "elements that take some: three bytes could claim a billion",
                )
        elif kind in PRIMITIVES:
            pass
        elif kind in self.open:
            yield (
                path,
                f"{kind} within itself",
                "a type that does not contain itself: a deep message would end the process",
            )
        elif kind not in self.named:
            yield path, f"type {kind!r}", "a type of Avro, or one named before"
        if isinstance(schema, dict) and "logicalType" in schema:
            yield from self._logical(schema, kind, path)

    def _name(self, schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
        name = schema.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            yield path, f"name {name!r}", "letters, digits and _, no digit first"
        else:
            self.named[name] = schema

    def _union(self, schema: list[Any], path: str) -> Iterator[tuple[str, str, str]]:
        seen: set[str] = set()
        for each in schema:
            kind = kind_of(each)
            label = each["name"] if isinstance(each, dict) and "name" in each else kind
            if kind == "union":
                yield path, "a union within a union", "one union"
            elif label in seen:
                yield path, f"{label} twice in a union", "each type once"
            else:
                seen.add(label)
                yield from self.walk(each, path)
        if not schema:
            yield path, "a union of nothing", "at least one type"

    def _record(self, schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
        yield from self._name(schema, path)
        name, fields = str(schema.get("name")), schema.get("fields")
        if not isinstance(fields, list):
            yield path, f"a record with fields {fields!r}", "a list of fields"
            return
        self.open.append(name)
        names: set[str] = set()
        for each in fields:
            here = f"{path}/{each.get('name')}"
            if not isinstance(each.get("name"), str) or not _WORD.fullmatch(each["name"]):
                yield here, f"name {each.get('name')!r}", "letters, digits and _, no digit first"
            for alias in (each.get("name"), *each.get("aliases", ())):
                if alias in names:
                    yield here, f"the name {alias!r} twice", "each name or alias once"
                names.add(alias)
            before = len(self.open)
            found = list(self.walk(each["type"], here))
            del self.open[before:]
            yield from found
            if "default" in each and not found and not self.holds(each["type"], each["default"]):
                yield here, f"default {each['default']!r}", f"one of type {_first(each['type'])}"
        self.open.remove(name)

    def _logical(self, schema: Mapping[str, Any], kind: str, path: str) -> Iterator[tuple[str, str, str]]:
        logical = schema["logicalType"]
        if logical not in LOGICAL:
            yield path, f"logicalType {logical!r}", f"one of {', '.join(LOGICAL)}"
        elif kind not in LOGICAL[logical]:
            yield path, f"logicalType {logical!r} of {kind}", f"{logical} of {' or '.join(sorted(LOGICAL[logical]))}"
        elif logical == "decimal":
            precision, scale = schema.get("precision"), schema.get("scale", 0)
            if not (
                isinstance(precision, int) and isinstance(scale, int) and 0 <= scale <= precision and precision > 0
            ):
                yield path, f"decimal with precision {precision!r} and scale {scale!r}", "precision > 0, scale up to it"

    def least_bytes(self, schema: Any) -> int:
        """Fewest bytes that a value takes: 0 or not."""
        kind = kind_of(schema)
        if kind in self.named:
            schema, kind = self.named[kind], kind_of(self.named[kind])
        if kind == "record":
            return max((self.least_bytes(each["type"]) for each in schema.get("fields", ())), default=0)
        return 0 if kind == "null" else 1

    def holds(self, schema: Any, default: Any) -> bool:
        """Whether a default in JSON is of the type; of a union, it is of the first."""
        kind = kind_of(schema)
        if kind in self.named:
            schema, kind = self.named[kind], kind_of(self.named[kind])
        match kind:
            case "union":
                return self.holds(schema[0], default)
            case "null":
                return default is None
            case "boolean":
                return isinstance(default, bool)
            case "int" | "long":
                bits = 31 if kind == "int" else 63
                return isinstance(default, int) and not isinstance(default, bool) and -(2**bits) <= default < 2**bits
            case "float" | "double":
                return isinstance(default, int | float) and not isinstance(default, bool)
            case "bytes" | "fixed":
                fits = isinstance(default, str) and all(ord(each) < 256 for each in default)
                return fits and (kind == "bytes" or len(default) == schema["size"])
            case "string":
                return isinstance(default, str)
            case "enum":
                return default in schema["symbols"]
            case "array":
                return isinstance(default, list) and all(self.holds(schema["items"], each) for each in default)
            case "map":
                return isinstance(default, dict) and all(
                    self.holds(schema["values"], each) for each in default.values()
                )
            case _:
                return isinstance(default, dict) and all(
                    self.holds(each["type"], default[each["name"]]) if each["name"] in default else "default" in each
                    for each in schema["fields"]
                )


def _first(schema: Any) -> str:
    return kind_of(schema[0]) + ", the first of the union" if isinstance(schema, list) and schema else kind_of(schema)
