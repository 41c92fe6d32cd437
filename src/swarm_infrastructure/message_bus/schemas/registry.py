"""The schema registry: which schemas a subject has had, kept in Redis for the whole fleet.

Owns subjects, versions and ids. Leaves what fits to ``compatibility`` and the wire to ``codecs``.

A *subject* is the type of a message. Its versions are numbered from 1 and never change, so they are read once per process.
An *id* is the number of a version among all of the namespace: the five bytes before an Avro message hold it.

Registering compares the schema here, in Python, and then asks Redis to append it if the subject stands as it did when it
was compared. Of two processes that register at once, one is told that it was too late, and compares again with what the other
one brought: no two versions can come to stand side by side that were never compared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel

from ...errors import IncompatibleSchemaError, InvalidInputError, LibraryMismatchError, UnknownSchemaError
from ...keys import BusKeys
from ...store import Store
from . import avro, avro_models, json_schema
from .compatibility import Compatibility, Kind, problems
from .upcasting import Function, Upcasters

__all__ = ["MAX_SCHEMA_BYTES", "MAX_SUBJECTS", "MAX_VERSIONS", "Schema", "SchemaRegistry", "SchemaVersion"]

MAX_SCHEMA_BYTES = 64 * 1024  # a quarter of the largest message
MAX_VERSIONS = 256  # of a subject; each registration is compared with all since the last break
MAX_SUBJECTS = 10_000
_SUBJECT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")  # as a message's type

Schema = (
    type[BaseModel] | Mapping[str, Any] | list[Any] | str
)  #: a model, a schema as data, or the text of an .avsc file


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVersion:
    """One version of a subject. It never changes."""

    subject: str
    version: int  #: 1 for the first
    id: int  #: its number among all versions of the namespace
    kind: Kind
    compatibility: Compatibility  #: what was asked of it when it was registered
    since: int  #: the oldest version that it was compared with; its own number if it broke with all
    schema: Any = field(repr=False)  #: as data; of Avro, with names in full
    text: str = field(repr=False)  #: the same as JSON

    @property
    def name(self) -> str:
        """What errors call a message of this version."""
        return f"{self.subject} version {self.version}"


@dataclass(frozen=True, slots=True)
class _Head:
    """How a subject stands."""

    text: str  # as it is in Redis; "" if there is no such subject
    latest: int = 0
    since: int = 1
    compatibility: Compatibility = Compatibility.BACKWARD
    kind: Kind | None = None

    @classmethod
    def read(cls, text: bytes | None) -> _Head:
        if not text:
            return cls("")
        latest, since, compatibility, kind = text.decode().split("|")
        return cls(text.decode(), int(latest), int(since), Compatibility(compatibility), Kind(kind))


class SchemaRegistry:
    """The schemas of a namespace.

    Args:
        store: an open `Store`.
        namespace: as of the bus; other namespaces have other schemas.
    """

    def __init__(self, store: Store, namespace: str = "default") -> None:
        self.store, self.namespace, self.keys = store, namespace, BusKeys(namespace)
        self.upcasters = Upcasters()
        self._versions: dict[tuple[str, int], SchemaVersion] = {}
        self._names: dict[int, tuple[str, int]] = {}

    # -- writing ----------------------------------------------------------------------------------------------------

    async def register(
        self,
        subject: str,
        schema: Schema,
        compatibility: Compatibility | str | None = None,
        kind: Kind | str | None = None,
    ) -> SchemaVersion:
        """The version of *subject* with this schema: a new one if it has none.

        Args:
            subject: the type of a message.
            schema: a pydantic model, a JSON Schema, or an Avro schema as data or as the text of an .avsc file.
            compatibility: what each version of the subject must fit; ``backward`` by default. Of a subject that exists, only
                `set_compatibility` changes it.
            kind: ``json`` or ``avro``; by default the subject's, ``json`` for a new one.

        Raises:
            IncompatibleSchemaError: it does not fit the versions that there are; each problem names its field.
            InvalidInputError: it is no schema, is too large, or of another kind than the subject.
            MissingExtraError: it is of Avro, and fastavro is not installed.
        """
        _check_subject(subject)
        asked = None if compatibility is None else _member(Compatibility, "compatibility", compatibility)
        while True:
            head = _Head.read(await self.store.command("HGET", self.keys.schemas, subject))
            wanted = self._kind(subject, head, kind, schema)
            data = _data(schema, wanted, subject)
            text, digest = _canonical(data, wanted, subject)
            if head.text and (known := await self._find_digest(subject, digest)):
                return known
            mode = self._mode(subject, head, asked)
            version = head.latest + 1
            since = version if mode is Compatibility.NONE or not head.text else head.since
            await self._compare(subject, wanted, mode, data, version, range(since, version))
            answer = await self.store.call(
                "register_schema",
                [self.keys.schemas, self.keys.schema_versions],
                [subject, head.text, since, mode.value, wanted.value, digest, text, MAX_VERSIONS, MAX_SUBJECTS],
            )
            match answer:
                case [b"registered", number, _]:
                    return await self.get(subject, int(number))
                case [b"changed"]:
                    continue
                case [b"full", what]:
                    raise InvalidInputError(
                        f"schema {subject!r}", found=f"as many {what.decode()} as there may be",
                        needed=f"at most {MAX_VERSIONS} versions of a subject and {MAX_SUBJECTS:,} subjects",
                        step="is a schema registered that differs each time?",
                    )  # fmt: skip
                case _:
                    raise LibraryMismatchError("register_schema", answer)

    async def set_compatibility(self, subject: str, compatibility: Compatibility | str) -> None:
        """Say what the next versions of *subject* must fit. Those that there are stay as they are.

        Raises:
            UnknownSchemaError: there is no such subject.
        """
        mode = _member(Compatibility, "compatibility", compatibility)
        answer = await self.store.call("set_compatibility", [self.keys.schemas], [subject, mode.value])
        match answer:
            case [b"set"]:
                return
            case [b"missing"]:
                raise UnknownSchemaError(repr(subject), known=await self._known())
            case _:
                raise LibraryMismatchError("set_compatibility", answer)

    def upcaster(self, subject: str, version: int) -> Callable[[Function], Function]:
        """Decorates the function that makes a message of *version* one of the next version.

        .. code-block:: python

            @registry.upcaster("transcription", 1)
            def with_a_speaker(old: dict[str, Any]) -> dict[str, Any]:
                return {**old, "speaker": old["user"]}
        """
        return self.upcasters.add(subject, version)

    # -- reading ----------------------------------------------------------------------------------------------------

    async def latest(self, subject: str) -> SchemaVersion:
        """The newest version.

        Raises:
            UnknownSchemaError: there is none.
        """
        return await self.get(subject, (await self._head(subject)).latest)

    async def get(self, subject: str, version: int) -> SchemaVersion:
        """A version; read from Redis once.

        Raises:
            UnknownSchemaError: there is none of this number.
        """
        known = self._versions.get((subject, version))
        if known is None:
            row = await self.store.command("HGET", self.keys.schema_versions, f"{subject}|{version}")
            if row is None:
                latest = (await self._head(subject)).latest
                raise UnknownSchemaError(f"{subject!r} version {version}", known=f"versions 1 to {latest}")
            known = self._remember(subject, version, row)
        return known

    async def by_id(self, id: int) -> SchemaVersion:
        """The version with this id.

        Raises:
            UnknownSchemaError: there is none.
        """
        if id not in self._names:
            name = await self.store.command("HGET", self.keys.schema_versions, f"@{id}")
            if name is None:
                raise UnknownSchemaError(f"id {id} in namespace {self.namespace!r}", known=await self._known())
            subject, _, version = name.decode().rpartition("|")
            self._names[id] = (subject, int(version))
        return await self.get(*self._names[id])

    async def versions(self, subject: str) -> list[SchemaVersion]:
        """Every version, oldest first."""
        return [await self.get(subject, each + 1) for each in range((await self._head(subject)).latest)]

    async def compatibility(self, subject: str) -> Compatibility:
        """What the next version of *subject* must fit."""
        return (await self._head(subject)).compatibility

    async def subjects(self) -> list[str]:
        """Every subject, by name."""
        return sorted(each.decode() for each in await self.store.command("HKEYS", self.keys.schemas))

    # -- steps ------------------------------------------------------------------------------------------------------

    async def _head(self, subject: str) -> _Head:
        head = _Head.read(await self.store.command("HGET", self.keys.schemas, subject))
        if not head.text:
            raise UnknownSchemaError(repr(subject), known=await self._known())
        return head

    async def _known(self) -> str:
        subjects = await self.subjects()
        return ", ".join(subjects[:10]) + (f" and {len(subjects) - 10} more" if len(subjects) > 10 else "") or "none"

    async def _find_digest(self, subject: str, digest: str) -> SchemaVersion | None:
        version = await self.store.command("HGET", self.keys.schema_versions, f"{subject}#{digest}")
        return None if version is None else await self.get(subject, int(version))

    def _remember(self, subject: str, version: int, row: bytes) -> SchemaVersion:
        facts, _, text = row.decode().partition("\n")
        id, _, since, compatibility, kind = facts.split("|")
        found = SchemaVersion(
            subject=subject, version=version, id=int(id), kind=Kind(kind), compatibility=Compatibility(compatibility),
            since=int(since), schema=orjson.loads(text), text=text,
        )  # fmt: skip
        self._versions[subject, version] = found
        self._names[found.id] = (subject, version)
        return found

    def _kind(self, subject: str, head: _Head, kind: Kind | str | None, schema: Schema) -> Kind:
        if kind is None:
            return head.kind or (Kind.AVRO if isinstance(schema, str) else Kind.JSON)
        wanted: Kind = _member(Kind, "kind", kind)
        if head.kind not in (None, wanted):
            raise InvalidInputError(
                f"schema {subject!r}", found=f"a schema of kind {wanted}", needed=f"one of kind {head.kind}, as its versions are",
                step="register it as another subject",
            )  # fmt: skip
        return wanted

    def _mode(self, subject: str, head: _Head, asked: Compatibility | None) -> Compatibility:
        if not head.text:
            return asked or Compatibility.BACKWARD
        if asked not in (None, head.compatibility):
            raise InvalidInputError(
                f"compatibility of {subject!r}", found=str(asked), needed=f"{head.compatibility}, as it was set for all",
                step=f"change it for all: set_compatibility({subject!r}, {str(asked)!r})",
            )  # fmt: skip
        return head.compatibility

    async def _compare(
        self, subject: str, kind: Kind, mode: Compatibility, data: Any, version: int, older: range
    ) -> None:
        if mode is Compatibility.NONE:
            return
        wrong = json_schema.faults(data) if kind is Kind.JSON else []
        against = 0
        if not wrong:
            schemas = [(each, (await self.get(subject, each)).schema) for each in older]
            against, wrong = problems(kind, mode, data, version, schemas)
        if wrong:
            raise IncompatibleSchemaError(
                subject, version=version, against=against, compatibility=mode.value, problems=wrong
            )


def _check_subject(subject: str) -> None:
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise InvalidInputError("subject", found=subject, needed="1-128 of A-Z a-z 0-9 _ . : / - (no leading sign)")


def _member(words: Any, what: str, word: Any) -> Any:
    try:
        return words(word)
    except ValueError:
        raise InvalidInputError(what, found=word, needed=" or ".join(words)) from None


def _data(schema: Schema, kind: Kind, subject: str) -> Any:
    """The schema as data, whatever it came as."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        if kind is Kind.JSON:
            return json_schema.from_model(schema)
        return avro.parse(avro_models.from_model(schema, subject), subject)
    if isinstance(schema, str):
        schema = avro.read_avsc(schema)
    if kind is Kind.AVRO:
        return avro.parse(schema, subject)
    if not isinstance(schema, Mapping):
        raise InvalidInputError(
            f"schema {subject!r}", found=schema, needed="a pydantic model or a JSON Schema as an object"
        )
    return schema


def _canonical(data: Any, kind: Kind, subject: str) -> tuple[str, str]:
    """Its text, and the digest of what it means."""
    bare = json_schema.without_docs(data) if kind is Kind.JSON else avro.without_docs(data)
    try:
        text, meaning = orjson.dumps(data), orjson.dumps(bare, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"schema {subject!r}", found=str(error), needed="JSON data") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidInputError(
            f"schema {subject!r}", found=f"{len(text):,} bytes", needed=f"at most {MAX_SCHEMA_BYTES:,}",
            step="make it several subjects",
        )  # fmt: skip
    return text.decode(), hashlib.sha256(meaning).hexdigest()
