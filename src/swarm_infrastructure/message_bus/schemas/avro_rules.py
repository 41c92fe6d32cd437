"""Whether data written with one Avro schema can be read with another: the rules of Avro's schema resolution.

Owns the comparison; fastavro does the reading. Follows "Schema Resolution" of the Avro 1.12 specification, with three
limits, each on the safe side of what fastavro does:

- a logical type must stay what it is: the specification lets ``long`` be read as ``timestamp-micros`` and the other way
  round, which turns a number into a time without a word; a decimal keeps its scale;
- of a reader's union, the choice is the first that matches at a glance, as in fastavro; it must fit in depth too;
- a default of an enum serves for unknown symbols only, not for a missing field.

Apache's own ``avro.compatibility`` was looked at: it passes over logical types, and gives messages and places as two unordered
sets, so that it can't say what is wrong where.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import SchemaProblem
from .avro import PRIMITIVES, kind_of

__all__ = ["named_types", "unreadable"]

PROMOTED = {
    "int": {"long", "float", "double"}, "long": {"float", "double"}, "float": {"double"},
    "string": {"bytes"}, "bytes": {"string"},
}  # fmt: skip


def unreadable(reader: Any, writer: Any, *, reads: int, writes: int) -> list[SchemaProblem]:
    """Where data written with *writer* could not be read with *reader*; empty if all of it can.

    Args:
        reader: a parsed schema.
        writer: another one.
        reads: the reader's version; the larger one is the schema that can still be changed.
        writes: the writer's version.
    """
    return list(_Comparison(reader, writer, reads, writes).differences(reader, writer, ""))


def named_types(schema: Any) -> dict[str, Any]:
    """Each named type of a parsed schema by its full name."""
    found: dict[str, Any] = {}
    todo = [schema]
    while todo:
        each = todo.pop()
        if isinstance(each, list):
            todo += each
        elif isinstance(each, dict):
            if "name" in each:
                found[each["name"]] = each
            todo += [each[word] for word in ("items", "values") if word in each]
            todo += [inner["type"] for inner in each.get("fields", ())]
    return found


class _Comparison:
    def __init__(self, reader: Any, writer: Any, reads: int, writes: int) -> None:
        self.readers, self.writers = named_types(reader), named_types(writer)
        self.reads, self.writes = reads, writes

    def problem(self, path: str, reader: str, writer: str, *, fix: str, keep: str) -> SchemaProblem:
        newer = self.reads > self.writes
        return SchemaProblem(
            path=path or "/",
            found=f"{reader}, while version {self.writes} writes {writer}"
            if newer
            else f"{writer}, while version {self.reads} needs {reader}",
            needed=fix if newer else keep,
            reader=self.reads,
            writer=self.writes,
        )

    def _mismatch(self, path: str, reader: Any, writer: Any) -> SchemaProblem:
        ours, theirs = _shown(reader), _shown(writer)
        return self.problem(path, ours, theirs, fix=f"a type that takes {theirs}", keep=f"{ours} to be written")

    def differences(self, reader: Any, writer: Any, path: str) -> Iterator[SchemaProblem]:
        reader = self.readers.get(reader, reader) if isinstance(reader, str) else reader
        writer = self.writers.get(writer, writer) if isinstance(writer, str) else writer
        theirs = kind_of(writer)
        if theirs == "union":
            for each in writer:
                yield from self.differences(reader, each, path)
            return
        if kind_of(reader) == "union":
            chosen = next((each for each in reader if self._glance(each, writer)), None)
            if chosen is None:
                yield self._mismatch(path, reader, writer)
            else:
                yield from self.differences(chosen, writer, path)
            return
        ours = kind_of(reader)
        promoted = ours == theirs or ours in PROMOTED.get(theirs, ())
        if not promoted or _logical(reader) != _logical(writer):
            yield self._mismatch(path, reader, writer)
        elif _precision(reader) < _precision(writer):
            yield self.problem(
                path, f"precision {_precision(reader)}", f"precision {_precision(writer)}",
                fix="no smaller precision", keep="no larger precision",
            )  # fmt: skip
        elif ours in ("record", "enum", "fixed") and not _same_name(reader, writer):
            yield self.problem(
                path, f"{ours} {reader['name']}", f"{theirs} {writer['name']}",
                fix=f"the old name, or an alias {writer['name']!r}", keep=f"the name {reader['name']!r}",
            )  # fmt: skip
        elif ours == "fixed" and reader["size"] != writer["size"]:
            yield self._mismatch(path, reader, writer)
        elif ours == "enum":
            yield from self._enum(reader, writer, path)
        elif ours == "array":
            yield from self.differences(reader["items"], writer["items"], path + "/*")
        elif ours == "map":
            yield from self.differences(reader["values"], writer["values"], path + "/*")
        elif ours == "record":
            yield from self._record(reader, writer, path)

    def _enum(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> Iterator[SchemaProblem]:
        lost = [each for each in writer["symbols"] if each not in reader["symbols"]]
        if lost and not reader.get("default"):
            words = ", ".join(lost)
            yield self.problem(
                path, "other symbols and no default", words,
                fix=f"{words} among the symbols, or a default of the enum", keep=f"no {words}",
            )  # fmt: skip

    def _record(self, reader: dict[str, Any], writer: dict[str, Any], path: str) -> Iterator[SchemaProblem]:
        written = {each["name"]: each for each in writer["fields"]}
        for each in reader["fields"]:
            here = f"{path}/{each['name']}"
            names = [name for name in (each["name"], *each.get("aliases", ())) if name in written]
            if len(names) > 1:
                yield self.problem(
                    here, f"one field for {' and '.join(names)}", "both of them",
                    fix="an alias of what is not written beside it", keep="one of them",
                )  # fmt: skip
            elif names:
                yield from self.differences(each["type"], written[names[0]]["type"], here)
            elif "default" not in each:
                yield self.problem(
                    here, "a field without a default", "no such field",
                    fix="give it a default (or an alias, if it was renamed)", keep="keep the field",
                )  # fmt: skip

    def _glance(self, reader: Any, writer: Any) -> bool:
        """fastavro's test for a choice of a union, which looks at types and names only."""
        if isinstance(reader, list) or isinstance(writer, list):
            return True
        reader = self.readers.get(reader, reader) if isinstance(reader, str) else reader
        writer = self.writers.get(writer, writer) if isinstance(writer, str) else writer
        ours, theirs = kind_of(reader), kind_of(writer)
        if ours == theirs == "array":
            return self._glance(reader["items"], writer["items"])
        if ours == theirs == "map":
            return self._glance(reader["values"], writer["values"])
        if ours not in PRIMITIVES and theirs not in PRIMITIVES:
            named = "name" in reader and "name" in writer
            return (
                named
                and _same_name(reader, writer)
                and (ours, theirs, reader.get("size")) == (ours, theirs, writer.get("size"))
            )
        return ours == theirs or ours in PROMOTED.get(theirs, ())


def _same_name(reader: dict[str, Any], writer: dict[str, Any]) -> bool:
    short = writer["name"].rpartition(".")[2]
    return short == reader["name"].rpartition(".")[2] or bool({writer["name"], short} & set(reader.get("aliases", ())))


def _logical(schema: Any) -> tuple[Any, ...]:
    if not isinstance(schema, dict) or "logicalType" not in schema:
        return ()
    return (schema["logicalType"], schema.get("scale", 0))


def _precision(schema: Any) -> int:
    return int(schema.get("precision", 0)) if isinstance(schema, dict) else 0


def _shown(schema: Any) -> str:
    if isinstance(schema, list):
        return " or ".join(_shown(each) for each in schema)
    if isinstance(schema, dict) and "logicalType" in schema:
        scale = f" of scale {schema.get('scale', 0)}" if schema["logicalType"] == "decimal" else ""
        return f"{schema['type']} as {schema['logicalType']}{scale}"
    if isinstance(schema, dict) and "name" in schema:
        return f"{schema['type']} {schema['name']}" + (f" of {schema['size']} bytes" if "size" in schema else "")
    return kind_of(schema)
