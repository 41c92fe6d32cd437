"""Codecs: messages to bytes and back, each with the word of which schema wrote it.

Owns the wire. Two encodings may stand side by side in a topic; a reader picks by the content type:

``application/json; schema=transcription; version=3``
    JSON. The parameters say who wrote it.
``application/avro``
    Avro binary after five bytes: 0, then the id of the version, big-endian. Confluent's registry frames messages in the same way,
    so its tools can take them apart. Avro's own single-object encoding was the other choice: ten bytes, and its fingerprint
    leaves defaults and logical types out, so that two versions may share one and a reader can't tell which upcasters to run.

A subject of JSON Schemas is written as JSON only; a subject of Avro schemas in both encodings, with the same meaning: what a
schema says of defaults, aliases and wider numbers holds for its JSON too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from ...errors import InvalidInputError
from ..messages import MAX_MESSAGE_BYTES
from .avro_data import AvroType
from .compatibility import Kind
from .registry import Schema, SchemaRegistry, SchemaVersion

__all__ = ["AVRO", "JSON", "AvroCodec", "JsonCodec", "content_type_of"]

JSON, AVRO = "application/json", "application/avro"
_TOKEN = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_PARAMETER = re.compile(r';\s*([A-Za-z0-9-]+)=(?:"([^"\\]*)"|([^\s;"]+))\s*')
Model = TypeVar("Model", bound=BaseModel)


def content_type_of(version: SchemaVersion) -> str:
    """The content type of JSON that a version wrote."""
    subject = version.subject if _TOKEN.fullmatch(version.subject) else f'"{version.subject}"'
    return f"{JSON}; schema={subject}; version={version.version}"


class _Codec(Generic[Model]):
    """What both codecs share: they read either encoding.

    Args:
        registry: where versions of others are looked up.
        version: what this side writes, and reads as.
        model: what `decode` gives by default; None for plain data.
    """

    def __init__(self, registry: SchemaRegistry, version: SchemaVersion, model: type[Model] | None = None) -> None:
        self.registry, self.version, self.model = registry, version, model
        self._types: dict[int, AvroType] = {}

    @classmethod
    def _new_kind(cls) -> Kind | None:
        """Of a subject that is new."""
        return None

    @classmethod
    async def open(
        cls, registry: SchemaRegistry, subject: str, schema: type[Model] | Schema, kind: Kind | str | None = None
    ) -> Self:
        """A codec for messages of *subject* as *schema* has them; it is registered if it is new.

        Args:
            registry: where.
            subject: the type of the messages.
            schema: what this side writes, and reads as. A model is what `decode` gives.
            kind: of a subject that is new: ``json``, or ``avro`` to have both encodings.

        Raises:
            IncompatibleSchemaError: it does not fit the versions that there are.
        """
        model: Any = schema if isinstance(schema, type) and issubclass(schema, BaseModel) else None
        return cls(registry, await registry.register(subject, schema, kind=kind or cls._new_kind()), model)

    async def decode(self, content_type: str, data: bytes, as_: Any = Any) -> Any:
        """A message as a model, whichever version and encoding it was written in.

        Args:
            content_type: as `encode` gave it.
            data: as `encode` gave it.
            as_: the model to give; this codec's by default (``Any``). Without any: plain data.

        Raises:
            InvalidInputError: it can't be read; the message names the field.
            UnknownSchemaError: nobody registered what it says it was written with.
        """
        if len(data) > MAX_MESSAGE_BYTES:
            raise InvalidInputError(
                f"message of {self.version.subject}",
                found=f"{len(data):,} bytes",
                needed=f"at most {MAX_MESSAGE_BYTES:,}",
            )
        writer, body, binary = await self._writer(content_type, data)
        model = as_ if isinstance(as_, type) and issubclass(as_, BaseModel) else self.model
        if writer.kind is Kind.AVRO:
            value = await self._read_avro(writer, body, binary)
            return value if model is None else self._validated(model, value, writer)
        value = self._read_json(writer, body)
        upcasters, mine = self.registry.upcasters, self.version.version
        if upcasters.last(writer.subject, writer.version, mine) > writer.version:
            value = upcasters.run(writer.subject, value, writer.version, mine)
            body = orjson.dumps(value, default=str)  # an upcaster may have put in what JSON has as text
        return value if model is None else self._validated(model, body, writer)

    async def _writer(self, content_type: str, data: bytes) -> tuple[SchemaVersion, bytes, bool]:
        """The version that wrote it, the body, and whether that is binary."""
        name, subject = content_type.partition(";")[0].strip().lower(), self.version.subject
        if name == AVRO:
            if len(data) < 5 or data[0] != 0:
                raise InvalidInputError(
                    f"message of {subject}: header",
                    found=data[:5].hex(" "),
                    needed="0 and the four bytes of a schema's id",
                )
            writer, body, binary = await self.registry.by_id(int.from_bytes(data[1:5], "big")), data[5:], True
        elif name == JSON:
            facts = {each[0].lower(): each[1] or each[2] for each in _PARAMETER.findall(content_type)}
            if "schema" not in facts or not re.fullmatch(r"[1-9][0-9]{0,8}", facts.get("version", "")):
                raise InvalidInputError(
                    f"message of {subject}: content type", found=content_type, needed=f"{JSON}; schema=…; version=…"
                )
            if facts["schema"] != subject:
                raise self._stranger(facts["schema"])
            writer, body, binary = await self.registry.get(subject, int(facts["version"])), data, False
        else:
            raise InvalidInputError(
                f"message of {subject}: content type", found=content_type, needed=f"{JSON} or {AVRO}"
            )
        if writer.subject != subject:
            raise self._stranger(writer.subject)
        if binary and writer.kind is not Kind.AVRO:
            raise InvalidInputError(f"message of {subject}: header", found=writer.name, needed="a version of kind avro")
        return writer, body, binary

    def _stranger(self, found: str) -> InvalidInputError:
        return InvalidInputError(
            "message",
            found=f"one of {found}",
            needed=f"one of {self.version.subject}",
            step="read it with the codec of its subject",
        )

    def _read_json(self, writer: SchemaVersion, body: bytes) -> Any:
        try:
            value: Any = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(f"message of {writer.name}", found=f"no JSON ({error})", needed="JSON") from error
        return value

    async def _read_avro(self, writer: SchemaVersion, body: bytes, binary: bool) -> Any:
        wrote, reads = self._type(writer), self._type(self.version)
        upcasters, subject, mine = self.registry.upcasters, writer.subject, self.version.version
        last = upcasters.last(subject, writer.version, mine)
        if last == writer.version and binary:
            return wrote.read(body, reads)
        value = wrote.read(body) if binary else wrote.read_json(body)
        if last == writer.version:
            return wrote.seen_by(reads, value)
        value = upcasters.run(subject, value, writer.version, last)
        return self._type(await self.registry.get(subject, last)).seen_by(reads, value)

    def _type(self, version: SchemaVersion) -> AvroType:
        if version.version not in self._types:
            self._types[version.version] = AvroType(version.schema, f"message of {version.name}")
        return self._types[version.version]

    def _validated(self, model: type[BaseModel], value: Any, writer: SchemaVersion) -> BaseModel:
        try:
            if isinstance(value, bytes):
                return model.model_validate_json(value, by_alias=True)
            return model.model_validate(value, by_alias=True)
        except ValidationError as error:
            first = error.errors()[0]
            field = "/" + "/".join(str(part) for part in first["loc"])
            old = writer.version < self.version.version
            raise InvalidInputError(
                f"message of {writer.name} as {model.__name__}: {field}", found=first.get("input"), needed=first["msg"],
                step=f"give an upcaster from version {writer.version}" if old else "",
            ) from error  # fmt: skip

    def _limited(self, data: bytes) -> bytes:
        if len(data) > MAX_MESSAGE_BYTES:
            raise InvalidInputError(
                f"message of {self.version.name}", found=f"{len(data):,} bytes", needed=f"at most {MAX_MESSAGE_BYTES:,}",
                step="put the data on the board or into a file and send where it is",
            )  # fmt: skip
        return data

    def _checked(self, obj: Any) -> Any:
        """What is to be written: of a codec with a model, one of it."""
        if self.model is None or isinstance(obj, self.model):
            return obj
        if isinstance(obj, BaseModel):
            obj = obj.model_dump(by_alias=True)
        return self._validated(self.model, obj, self.version)


class JsonCodec(_Codec[Model]):
    """Writes JSON; reads JSON and Avro."""

    async def encode(self, obj: Model | Mapping[str, Any]) -> tuple[str, bytes]:
        """A message as its content type and bytes.

        Raises:
            InvalidInputError: it is not of the schema, or too large.
        """
        obj = self._checked(obj)
        if self.version.kind is Kind.AVRO:
            data = self._type(self.version).write_json(obj)
        else:
            try:
                data = orjson.dumps(obj.model_dump(mode="json", by_alias=True) if isinstance(obj, BaseModel) else obj)
            except (TypeError, ValueError) as error:
                raise InvalidInputError(
                    f"message of {self.version.name}", found=str(error), needed="JSON data"
                ) from error
        return content_type_of(self.version), self._limited(data)


class AvroCodec(_Codec[Model]):
    """Writes Avro; reads Avro and JSON.

    Raises:
        MissingExtraError: fastavro is not installed.
        InvalidInputError: the subject has JSON Schemas.
    """

    @classmethod
    def _new_kind(cls) -> Kind | None:
        return Kind.AVRO

    async def encode(self, obj: Model | Mapping[str, Any]) -> tuple[str, bytes]:
        """A message as its content type and bytes.

        Raises:
            InvalidInputError: it is not of the schema, or too large; the message names the field.
        """
        body = self._type(self.version).write(self._checked(obj))
        return AVRO, self._limited(b"\0" + self.version.id.to_bytes(4, "big") + body)
