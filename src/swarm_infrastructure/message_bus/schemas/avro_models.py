"""An Avro schema from a pydantic model.

========================  ==========================================================
field                     Avro
========================  ==========================================================
str, bool, bytes          string, boolean, bytes
int, float                long, double
datetime, date, time      timestamp-micros, date, time-micros
Decimal                   decimal; needs ``Field(max_digits=…, decimal_places=…)``
UUID                      uuid
Enum, Literal of words    enum
list, set, tuple[X, ...]  array
dict[str, X]              map
Optional, X | Y           union, the type of the default first
a model                   record
========================  ==========================================================

Anything else is refused by name. What Avro can't say (bounds, lengths, patterns) is not part of the schema: the model
checks it when it reads, but no comparison of schemas will.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ...errors import InvalidInputError

__all__ = ["from_model"]

_PLAIN: dict[Any, Any] = {
    str: "string", bool: "boolean", int: "long", float: "double", bytes: "bytes", type(None): "null", None: "null",
    datetime: {"type": "long", "logicalType": "timestamp-micros"}, date: {"type": "int", "logicalType": "date"},
    time: {"type": "long", "logicalType": "time-micros"}, UUID: {"type": "string", "logicalType": "uuid"},
}  # fmt: skip
_LISTS = (list, set, frozenset, Sequence)
_MAPS = (dict, Mapping)
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def from_model(model: type[BaseModel], subject: str) -> dict[str, Any]:
    """The Avro schema of *model*, as a record named after *subject*: what the class is called makes no difference.

    Raises:
        InvalidInputError: a field can't be told in Avro; the message names it.
    """
    schema: dict[str, Any] = _Derivation(model, subject).record(model, "")
    return schema


class _Derivation:
    def __init__(self, model: type[BaseModel], subject: str) -> None:
        self.model = model
        self.name = re.sub(r"^(?=[0-9])|[^A-Za-z0-9_]", "_", subject)
        self.named: dict[str, Any] = {}  # name → the class or symbols that it was given to

    def refuse(self, path: str, found: str, needed: str, step: str = "") -> InvalidInputError:
        return InvalidInputError(
            f"Avro schema of {self.model.__name__}: {path or '/'}", found=found, needed=needed, step=step
        )

    def record(self, model: type[BaseModel], path: str) -> Any:
        name = self.name if model is self.model else re.sub(r"\W", "_", model.__name__)
        if name in self.named:
            return self._again(name, model, path)
        self.named[name] = model
        fields = []
        for attribute, info in model.model_fields.items():
            label = info.alias or attribute
            here = f"{path}/{label}"
            if (
                info.exclude
                or info.serialization_alias not in (None, label)
                or info.validation_alias not in (None, label)
            ):
                raise self.refuse(
                    here, "a field that is written under another name, or not at all", "one name", "use alias="
                )
            if not _WORD.fullmatch(label):
                raise self.refuse(here, label, "a name of letters, digits and _", "give it another alias")
            fields.append({"name": label, **self._field(info, here, name)})
        return {"type": "record", "name": name, "fields": fields}

    def _again(self, name: str, meaning: Any, path: str) -> str:
        if self.named[name] != meaning:
            raise self.refuse(path, f"two types called {name}", "a name for each")
        return name

    def _field(self, info: FieldInfo, path: str, owner: str) -> dict[str, Any]:
        schema = self.type(info.annotation, info.metadata, path, f"{owner}_{path.rpartition('/')[2]}")
        if info.default_factory in (list, dict, set, frozenset):
            return {"type": schema, "default": {} if info.default_factory is dict else []}
        if (
            info.is_required() or info.default_factory is not None
        ):  # a factory makes another value each time: no default
            return {"type": schema}
        default = info.default
        if isinstance(schema, list):  # a union's default is of its first type
            schema = sorted(schema, key=lambda each: not _is_of(each, default))
        value = self._default(schema[0] if isinstance(schema, list) else schema, default, path)
        return {"type": schema, "default": value}

    def _default(self, schema: Any, value: Any, path: str) -> Any:
        value = value.value if isinstance(value, Enum) else value
        if isinstance(value, bytes):
            return value.decode("latin-1")
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        if logical == "decimal" and isinstance(value, Decimal):
            unscaled = int(value.scaleb(schema["scale"]))
            return unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True).decode("latin-1")
        if isinstance(value, UUID):
            return str(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            return value.toordinal() - date(1970, 1, 1).toordinal()
        if isinstance(value, str | bool | int | float) or value is None:
            return value
        if isinstance(value, list | set | frozenset | tuple | dict) and not value:
            return {} if isinstance(value, dict) else []
        raise self.refuse(
            path, f"a default {value!r}", "a default that is a word, a number or empty", "use None or no default"
        )

    def type(self, hint: Any, metadata: Sequence[Any], path: str, name: str) -> Any:
        """The type of a field.

        Args:
            hint: its annotation.
            metadata: what stands beside it (``max_digits``).
            path: of the field.
            name: for an enum that has none of its own.
        """
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self.type(args[0], [*metadata, *args[1:]], path, name)
        if isinstance(hint, type) and origin is None:
            if issubclass(hint, BaseModel):
                return self.record(hint, path)
            if issubclass(hint, Enum):
                return self._enum(re.sub(r"\W", "_", hint.__name__), [each.value for each in hint], path)
        if hint is Decimal:
            return self._decimal(metadata, path)
        if hint in _PLAIN:
            return _PLAIN[hint]
        if origin is Literal:
            return self._enum(name, list(args), path)
        if origin in (Union, types.UnionType):
            return self._union(args, metadata, path, name)
        if origin in _LISTS or (origin is tuple and len(args) == 2 and args[1] is Ellipsis):
            return {"type": "array", "items": self.type(args[0], (), path + "/*", name)}
        if origin in _MAPS and args[0] is str:
            return {"type": "map", "values": self.type(args[1], (), path + "/*", name)}
        raise self.refuse(
            path,
            str(hint),
            "str, int, float, bool, bytes, a time, Decimal, UUID, an enum, a list, dict[str, …] or a model",
        )

    def _union(self, args: Sequence[Any], metadata: Sequence[Any], path: str, name: str) -> list[Any]:
        union: list[Any] = []
        for each in sorted(args, key=lambda each: each is not type(None)):
            schema = self.type(each, metadata, path, name)
            union += schema if isinstance(schema, list) else [schema]
        labels = [each if isinstance(each, str) else each.get("name", each["type"]) for each in union]
        if len(set(labels)) < len(labels):
            raise self.refuse(path, f"a union of {', '.join(map(str, args))}", "types that differ in Avro")
        return union

    def _enum(self, name: str, values: list[Any], path: str) -> Any:
        if wrong := [each for each in values if not isinstance(each, str) or not _WORD.fullmatch(each)]:
            raise self.refuse(
                path, f"the value {wrong[0]!r}", "words of letters, digits and _", "use str or int for the field"
            )
        if name in self.named:
            return self._again(name, values, path)
        self.named[name] = values
        return {"type": "enum", "name": name, "symbols": [str(getattr(each, "value", each)) for each in values]}

    def _decimal(self, metadata: Sequence[Any], path: str) -> dict[str, Any]:
        facts = {word: value for each in metadata for word, value in _constraints(each).items()}
        digits, places = facts.get("max_digits"), facts.get("decimal_places")
        if digits is None or places is None:
            raise self.refuse(path, "a Decimal of any size", "its digits", "Field(max_digits=…, decimal_places=…)")
        return {"type": "bytes", "logicalType": "decimal", "precision": digits, "scale": places}


def _constraints(metadata: Any) -> dict[str, Any]:
    if isinstance(metadata, FieldInfo):
        return {word: value for each in metadata.metadata for word, value in _constraints(each).items()}
    return {word: getattr(metadata, word) for word in ("max_digits", "decimal_places") if hasattr(metadata, word)}


def _is_of(schema: Any, value: Any) -> bool:
    """Whether a default is of a type of a union, at a glance."""
    value = value.value if isinstance(value, Enum) else value
    kind = schema if isinstance(schema, str) else schema.get("logicalType", schema["type"])
    kinds: list[tuple[Any, set[str]]] = [
        (type(None), {"null"}), (bool, {"boolean"}), (int, {"long"}), (float, {"double"}), (bytes, {"bytes"}),
        (datetime, {"timestamp-micros"}), (date, {"date"}), (Decimal, {"decimal"}), (UUID, {"uuid"}),
        (list | set | frozenset | tuple, {"array"}), (dict, {"map"}),
    ]  # fmt: skip
    if isinstance(value, str):
        return kind == "string" or (isinstance(schema, dict) and value in schema.get("symbols", ()))
    return next((kind in names for cls, names in kinds if isinstance(value, cls)), False)
