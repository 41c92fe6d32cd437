"""The schema registry on a real Redis: versions, races, upcasters, and both encodings in one topic."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

import orjson
import pytest
from given import Connect
from pydantic import BaseModel, Field

from swarm_infrastructure.errors import (
    IncompatibleSchemaError,
    InvalidInputError,
    LibraryMismatchError,
    UnknownSchemaError,
)
from swarm_infrastructure.message_bus.schemas import AvroCodec, Compatibility, JsonCodec, SchemaRegistry, registry
from swarm_infrastructure.store import Store


class Transcription(BaseModel):
    text: str
    user: str


class WithLanguage(Transcription):
    language: str = "en"


class WithSession(Transcription):
    session: int


SEGMENT = """{"type": "record", "name": "TranscriptionSegment", "namespace": "sts.transcription", "fields": [
    {"name": "timestamp", "type": "string"}, {"name": "text", "type": "string"}, {"name": "user", "type": "string"}]}"""


@pytest.fixture
def schemas(store: Store) -> SchemaRegistry:
    return SchemaRegistry(store, "test")


# --- versions ---------------------------------------------------------------------------------------------------------


async def test_versions_count_from_one_and_the_same_schema_has_the_version_it_had(schemas: SchemaRegistry) -> None:
    first = await schemas.register("transcription", Transcription)
    second = await schemas.register("transcription", WithLanguage)
    other = await schemas.register("action", Transcription)

    again = await schemas.register("transcription", Transcription)

    assert (first.version, second.version, other.version) == (1, 2, 1)
    assert len({first.id, second.id, other.id}) == 3
    assert again == first
    assert await schemas.latest("transcription") == second
    assert await schemas.subjects() == ["action", "transcription"]
    assert await schemas.versions("transcription") == [first, second]


async def test_another_process_finds_what_was_registered(schemas: SchemaRegistry, store: Store) -> None:
    ours = await schemas.register("transcription", SEGMENT)

    theirs = SchemaRegistry(store, "test")

    assert await theirs.get("transcription", 1) == ours
    assert await theirs.by_id(ours.id) == ours
    with pytest.raises(UnknownSchemaError):
        await SchemaRegistry(store, "other").latest("transcription")


async def test_adding_a_required_field_is_refused_under_backward_and_the_message_says_why(
    schemas: SchemaRegistry,
) -> None:
    await schemas.register("transcription", Transcription, compatibility="backward")

    with pytest.raises(IncompatibleSchemaError) as refused:
        await schemas.register("transcription", WithSession)

    error = refused.value
    assert (error.subject, error.version, error.against, error.compatibility) == ("transcription", 2, 1, "backward")
    assert [each.path for each in error.problems] == ["/session"]
    assert str(error).splitlines()[:2] == [
        "schema 'transcription': version 2 is not backward compatible with version 1:",
        "  - /session: found a required field, while version 1 writes no such field; needed give it a default",
    ]
    assert (await schemas.latest("transcription")).version == 1


async def test_a_new_version_must_fit_all_versions_not_only_the_last(schemas: SchemaRegistry) -> None:
    class Three(Transcription):
        language: int = 0

    await schemas.register("transcription", WithLanguage)
    await schemas.register("transcription", Transcription)

    with pytest.raises(IncompatibleSchemaError, match="with version 1") as refused:
        await schemas.register("transcription", Three)

    assert refused.value.problems[0].path == "/language"


async def test_the_direction_is_the_subjects(schemas: SchemaRegistry) -> None:
    await schemas.register("f", WithSession, "forward")
    with pytest.raises(IncompatibleSchemaError, match=r"not forward .*\n.*/session.*keep the field"):
        await schemas.register("f", Transcription)
    await schemas.register("full", Transcription, Compatibility.FULL)
    with pytest.raises(IncompatibleSchemaError, match="not full"):
        await schemas.register("full", WithSession)
    with pytest.raises(InvalidInputError, match=r"set_compatibility\('full', 'none'\)"):
        await schemas.register("full", WithSession, "none")
    with pytest.raises(InvalidInputError, match="backward or forward or full or none"):
        await schemas.register("full", WithSession, "sideways")


async def test_a_break_on_purpose_is_the_new_ground_that_versions_must_fit(schemas: SchemaRegistry) -> None:
    class Broken(BaseModel):
        speaker: str

    class Later(Broken):
        language: str = "en"

    await schemas.register("transcription", Transcription)
    await schemas.set_compatibility("transcription", "none")
    broken = await schemas.register("transcription", Broken)
    await schemas.set_compatibility("transcription", "backward")

    later = await schemas.register("transcription", Later)

    assert (broken.since, later.since, await schemas.compatibility("transcription")) == (2, 2, "backward")
    with pytest.raises(IncompatibleSchemaError):
        await schemas.register("transcription", WithSession)


async def test_what_is_not_understood_is_refused_unless_nothing_is_asked(schemas: SchemaRegistry) -> None:
    odd = {"type": "object", "properties": {"a": {"not": {}}}}

    with pytest.raises(IncompatibleSchemaError, match=r"can't be checked.*\n.*/a: found the word 'not'"):
        await schemas.register("odd", odd)

    assert (await schemas.register("odd", odd, "none")).schema == odd


async def test_a_subject_is_of_one_kind(schemas: SchemaRegistry) -> None:
    await schemas.register("transcription", Transcription)
    with pytest.raises(InvalidInputError, match=r"kind avro.*kind json"):
        await AvroCodec.open(schemas, "transcription", Transcription)


async def test_unknown_subjects_versions_and_ids_say_what_there_is(schemas: SchemaRegistry) -> None:
    await schemas.register("transcription", Transcription)

    with pytest.raises(UnknownSchemaError, match="'action'; there are: transcription"):
        await schemas.latest("action")
    with pytest.raises(UnknownSchemaError, match="version 7; there are: versions 1 to 1"):
        await schemas.get("transcription", 7)
    with pytest.raises(UnknownSchemaError, match="id 99"):
        await schemas.by_id(99)
    with pytest.raises(UnknownSchemaError, match="'action'"):
        await schemas.set_compatibility("action", "full")
    assert await schemas.subjects() == ["transcription"]


@pytest.mark.parametrize("subject", ["", "a|b", "a#1", "@1", "x" * 129, "ä", None])
async def test_a_subject_that_is_no_type_of_a_message_is_refused(schemas: SchemaRegistry, subject: Any) -> None:
    with pytest.raises(InvalidInputError, match="subject"):
        await schemas.register(subject, Transcription)


async def test_sizes_are_limited(schemas: SchemaRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="needed at most 65,536"):
        await schemas.register("large", {"type": "object", "description": "x" * 70_000})
    monkeypatch.setattr(registry, "MAX_VERSIONS", 2)
    await schemas.register("s", Transcription)
    await schemas.register("s", WithLanguage)
    with pytest.raises(InvalidInputError, match="as many versions"):
        await schemas.register("s", {"type": "object"})
    assert (await schemas.register("s", Transcription)).version == 1
    monkeypatch.setattr(registry, "MAX_SUBJECTS", 1)
    with pytest.raises(InvalidInputError, match="as many subjects"):
        await schemas.register("t", Transcription)


# --- races ------------------------------------------------------------------------------------------------------------


async def test_two_that_register_at_once_never_stand_side_by_side_uncompared(
    schemas: SchemaRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fits version 1, but not the other: the slower one must hear of the quicker one."""
    quick, slow = SchemaRegistry(store, "test"), schemas
    number = {"type": "object", "properties": {"a": {"type": "integer"}}}
    text = {"type": "object", "properties": {"a": {"type": "string"}}}
    await quick.register("s", {"type": "object"})
    compare, beaten = slow._compare, []

    async def beaten_to_it(*args: Any) -> None:
        await compare(*args)
        if not beaten:
            beaten.append(await quick.register("s", number))

    monkeypatch.setattr(slow, "_compare", beaten_to_it)

    with pytest.raises(IncompatibleSchemaError) as refused:
        await slow.register("s", text)

    assert (refused.value.version, refused.value.against) == (3, 2)
    assert [each.schema for each in await quick.versions("s")] == [{"type": "object"}, number]


async def test_a_mode_that_changes_meanwhile_is_obeyed(
    schemas: SchemaRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await schemas.register("s", Transcription)
    compare, changed = schemas._compare, []

    async def changed_meanwhile(*args: Any) -> None:
        await compare(*args)
        if not changed:
            changed.append(True)
            await schemas.set_compatibility("s", "full")

    monkeypatch.setattr(schemas, "_compare", changed_meanwhile)

    with pytest.raises(IncompatibleSchemaError, match="not full"):
        await schemas.register("s", {"type": "object", "properties": {"text": {"type": ["string", "null"]}}})


async def test_many_processes_that_register_the_same_get_one_version(connect: Connect, store: Store) -> None:
    registries = [SchemaRegistry(await connect(store.url), "test") for _ in range(6)]

    found = await asyncio.gather(*(each.register("s", Transcription) for each in registries))

    assert {(each.version, each.id) for each in found} == {(1, 1)}


async def test_a_reply_that_was_lost_does_not_register_twice(
    schemas: SchemaRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = schemas.store.call

    async def call_twice(*args: Any, **options: Any) -> Any:
        await call(*args, **options)
        return await call(*args, **options)

    monkeypatch.setattr(schemas.store, "call", call_twice)

    assert (await schemas.register("s", Transcription)).version == 1
    assert len(await schemas.versions("s")) == 1


async def test_a_version_is_read_from_redis_once(schemas: SchemaRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    version = await schemas.register("s", Transcription)

    async def gone(*_: Any) -> Any:
        raise AssertionError("asked Redis again")

    monkeypatch.setattr(schemas.store, "command", gone)

    assert await schemas.get("s", 1) is version
    assert await schemas.by_id(version.id) is version


async def test_an_answer_that_is_not_known_is_not_passed_over(
    schemas: SchemaRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(*_: Any) -> Any:
        return [b"perhaps"]

    monkeypatch.setattr(schemas.store, "call", answer)
    with pytest.raises(LibraryMismatchError, match="register_schema"):
        await schemas.register("s", Transcription)
    with pytest.raises(LibraryMismatchError, match="set_compatibility"):
        await schemas.set_compatibility("s", "none")


# --- old and new ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [JsonCodec, AvroCodec])
async def test_an_old_consumer_reads_new_messages_and_the_other_way_round(schemas: SchemaRegistry, codec: Any) -> None:
    old = await codec.open(schemas, "transcription", Transcription)
    new = await codec.open(schemas, "transcription", WithLanguage)

    from_new = await old.decode(*await new.encode(WithLanguage(text="a", user="b", language="de")))
    from_old = await new.decode(*await old.encode(Transcription(text="a", user="b")))

    assert from_new == Transcription(text="a", user="b")
    assert from_old == WithLanguage(text="a", user="b", language="en")


@pytest.mark.parametrize("codec", [JsonCodec, AvroCodec])
async def test_upcasters_bring_an_old_message_up_step_by_step(schemas: SchemaRegistry, codec: Any) -> None:
    class Second(BaseModel):
        words: list[str]

    class Third(Second):
        language: str = "en"

    class Fourth(BaseModel):
        words: list[str]
        count: int
        language: str

    first = await codec.open(schemas, "t", Transcription)
    await schemas.set_compatibility("t", "none")
    await codec.open(schemas, "t", Second)
    await codec.open(schemas, "t", Third)
    fourth = await codec.open(schemas, "t", Fourth)
    sent = await first.encode(Transcription(text="lights off", user="ada"))

    with pytest.raises(InvalidInputError):
        await fourth.decode(*sent)
    schemas.upcaster("t", 1)(lambda old: {"words": old["text"].split()})

    @schemas.upcaster("t", 3)
    def counted(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "language": old.get("language", "en"), "count": len(old["words"])}

    assert await fourth.decode(*sent) == Fourth(words=["lights", "off"], count=2, language="en")
    with pytest.raises(InvalidInputError, match="a second one"):
        schemas.upcaster("t", 1)(lambda old: old)


async def test_an_upcaster_that_fails_is_named(schemas: SchemaRegistry) -> None:
    old = await JsonCodec.open(schemas, "t", Transcription)
    new = await JsonCodec.open(schemas, "t", WithLanguage)
    schemas.upcaster("t", 1)(lambda message: {"x": message["nothing"]})

    with pytest.raises(InvalidInputError, match=r"upcaster of 't' from version 1 to 2: found .*KeyError"):
        await new.decode(*await old.encode(Transcription(text="a", user="b")))


# --- the wire ---------------------------------------------------------------------------------------------------------


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    name: str
    weight: float | None = None


class Everything(BaseModel):
    text: str
    number: int
    share: float
    yes: bool
    raw: bytes
    at: datetime
    on: date
    price: Decimal = Field(max_digits=8, decimal_places=2)
    key: UUID
    colour: Colour
    word: Literal["a", "b"]
    parts: list[Part]
    by_name: dict[str, int]
    either: int | str
    tags: set[str] = Field(default_factory=set)
    since: date = date(2020, 2, 3)
    fee: Decimal = Field(Decimal("-1.50"), max_digits=6, decimal_places=2)
    best: Part | None = None


EVERYTHING = Everything(
    text="ü", number=-(2**40), share=0.1, yes=True, raw=b"\x00\xff", at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    on=date(1969, 7, 20), price=Decimal("-12.5"), key=UUID(int=7), colour=Colour.BLUE, word="b",
    parts=[Part(name="x"), Part(name="y", weight=2)],
    by_name={"a": 1}, either="seven", tags={"t"}, best=Part(name="z"),
)  # fmt: skip


async def test_a_topic_may_hold_both_encodings_and_the_content_type_says_which(schemas: SchemaRegistry) -> None:
    avro = await AvroCodec.open(schemas, "everything", Everything)
    json = await JsonCodec.open(schemas, "everything", Everything)

    topic = [await avro.encode(EVERYTHING), await json.encode(EVERYTHING)]

    assert [each[0] for each in topic] == ["application/avro", "application/json; schema=everything; version=1"]
    for reader in (avro, json):
        for sent in topic:
            assert await reader.decode(*sent) == EVERYTHING
    assert len(topic[0][1]) < len(topic[1][1]) / 2
    assert topic[0][1][:5] == b"\0" + avro.version.id.to_bytes(4, "big")


async def test_json_of_a_model_is_what_others_expect(schemas: SchemaRegistry) -> None:
    codec = await JsonCodec.open(schemas, "task.done/v:1", WithLanguage)

    content_type, data = await codec.encode({"text": "a", "user": "b"})

    assert content_type == 'application/json; schema="task.done/v:1"; version=1'
    assert orjson.loads(data) == {"text": "a", "user": "b", "language": "en"}
    assert await codec.decode(content_type, data) == WithLanguage(text="a", user="b")


async def test_the_voice_projects_own_avsc_is_registered_and_carries_plain_data(schemas: SchemaRegistry) -> None:
    codec = await AvroCodec.open(schemas, "transcriptions.all", SEGMENT)
    message = {"timestamp": "2026-01-01", "text": "lights off", "user": "ada"}

    assert await codec.decode(*await codec.encode(message)) == message
    assert await codec.decode(*await codec.encode(message), as_=Transcription) == Transcription(
        text="lights off", user="ada"
    )


async def test_defaults_of_avro_come_as_values_and_are_not_shared(schemas: SchemaRegistry) -> None:
    old = await AvroCodec.open(schemas, "s", {"type": "record", "name": "R", "fields": []})
    moment = {"type": "long", "logicalType": "timestamp-micros"}
    fields = [
        {"name": "at", "type": moment, "default": 1_000_000}, {"name": "raw", "type": "bytes", "default": "\xff"},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": ["a"]},
    ]  # fmt: skip
    new = await AvroCodec.open(schemas, "s", {"type": "record", "name": "R", "fields": fields})
    sent = await old.encode({})

    first = await new.decode(*sent)
    first["tags"].append("b")

    assert await new.decode(*sent) == {"at": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), "raw": b"\xff", "tags": ["a"]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"number": 2**63}, "/number"), ({"at": datetime(2026, 1, 1)}, "/at"), ({"price": Decimal("1.005")}, "/price"),
        ({"parts": [{"name": "x"}, {"name": 3}]}, "/parts/1/name"), ({"by_name": {"a": None}}, "/by_name/a"),
        ({"colour": "green"}, "/colour"),
        ({"other": 1}, "/other"), ({"text": None}, "/text"), ({"best": {"weight": 1}}, "/best/name"),
        ({"text": "\ud800"}, "/text"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_an_avro_schema_is_refused_by_field(
    schemas: SchemaRegistry, change: dict[str, Any], field: str
) -> None:
    version = await schemas.register("everything", Everything, kind="avro")
    codec: AvroCodec[Any] = AvroCodec(schemas, version)

    with pytest.raises(InvalidInputError, match=f"message of everything version 1: {field}: found "):
        await codec.encode(EVERYTHING.model_dump() | change)


@pytest.mark.parametrize(
    ("content_type", "data", "field"),
    [
        ("application/avro", b"\0\0\0\0\1\x02a", "message of s version 1: /user: found '0 bytes left'"),
        ("application/avro", b"\0\0\0\0\1\x02\xff\x02b", "/text: found .*utf-8"),
        ("application/avro", b"\0\0\0\0\1\x02a\x02bc", "found '1 bytes after its end'"),
        ("application/avro", b"\0\0\0\0\1\x01a\x02bc", "/text: found .*a length of 0 or more"),
        ("application/avro", b"\1\0\0\0\1", "header"),
        ("application/avro", b"", "header"),
        ("application/json; schema=s; version=1", b'{"text": "a"}', "/user: "),
        ("application/json; schema=s; version=1", b"{", "no JSON"),
        ("application/json; schema=other; version=1", b"{}", "one of other"),
        ("application/json", b"{}", "content type"),
        ("text/plain", b"{}", "content type"),
        ("application/json; schema=s; version=1", b" " * 300_000, "300,000 bytes"),
    ],
)
async def test_what_can_not_be_read_is_refused_by_field(
    schemas: SchemaRegistry, content_type: str, data: bytes, field: str
) -> None:
    codec = await AvroCodec.open(schemas, "s", Transcription)

    with pytest.raises(InvalidInputError, match=field):
        await codec.decode(content_type, data)


async def test_a_json_field_that_does_not_fit_is_named(schemas: SchemaRegistry) -> None:
    codec = await JsonCodec.open(
        schemas, "s", Old := type("Old", (BaseModel,), {"__annotations__": {"parts": list[Part]}})
    )
    with pytest.raises(InvalidInputError, match="message of s version 1 as Old: /parts/0/weight: "):
        await codec.decode("application/json; schema=s; version=1", b'{"parts": [{"name": "a", "weight": "heavy"}]}')
    with pytest.raises(InvalidInputError, match="/parts: "):
        await codec.encode({})
    assert Old


async def test_a_message_of_another_subject_is_refused(schemas: SchemaRegistry) -> None:
    ours = await AvroCodec.open(schemas, "ours", Transcription)
    theirs = await AvroCodec.open(schemas, "theirs", Transcription)

    with pytest.raises(InvalidInputError, match="found 'one of theirs', needed one of ours"):
        await ours.decode(*await theirs.encode(Transcription(text="a", user="b")))
    with pytest.raises(UnknownSchemaError, match="id 77"):
        await ours.decode("application/avro", b"\0\0\0\0\x4d")


async def test_a_message_that_is_too_large_is_refused(schemas: SchemaRegistry) -> None:
    for codec in (JsonCodec, AvroCodec):
        opened = await codec.open(schemas, codec.__name__, Transcription)
        with pytest.raises(InvalidInputError, match="at most 262,144"):
            await opened.encode(Transcription(text="x" * 300_000, user="b"))


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (Any, "Any"), (Decimal, "max_digits"), (dict[int, str], "dict"), (Literal["not a word"], "not a word"),
        (Literal[1, 2], "1"),
        (list[Any], "Any"), (tuple[int, str], "tuple"), (int | Literal["a"] | Literal["b"], "two types|differ|union"),
    ],
)  # fmt: skip
async def test_a_model_that_avro_can_not_tell_is_refused_by_field(
    schemas: SchemaRegistry, annotation: Any, why: str
) -> None:
    model = type("Odd", (BaseModel,), {"__annotations__": {"field": annotation}})
    with pytest.raises(InvalidInputError, match=f"Avro schema of Odd: /field.*({why})"):
        await schemas.register("odd", model, kind="avro")


def test_nothing_of_avro_is_loaded_before_it_is_used_and_its_absence_names_the_extra() -> None:
    program = (
        "import sys, asyncio; sys.modules['fastavro'] = None\n"
        "from swarm_infrastructure.message_bus.schemas import avro\n"
        "try: avro.parse({})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == (
        "MissingExtraError fastavro is not installed; install it with: pip install 'swarm-infrastructure[avro]'"
    ), done.stderr
