"""Which schemas fit which: JSON Schema's rules against a real validator, Avro's against what fastavro really reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field

from swarm_infrastructure.errors import InvalidInputError, SchemaProblem
from swarm_infrastructure.message_bus.schemas import Compatibility, Kind, avro, avro_data, json_schema
from swarm_infrastructure.message_bus.schemas.compatibility import problems


def found(old: Any, new: Any, mode: str = "backward", kind: str = "json") -> list[SchemaProblem]:
    if kind == "avro":
        old, new = avro.parse(old), avro.parse(new)
    elif isinstance(old, type):
        old, new = json_schema.from_model(old), json_schema.from_model(new)
    for each in (old, new):
        assert kind == "avro" or json_schema.faults(each) == []
    return problems(Kind(kind), Compatibility(mode), new, 2, [(1, old)])[1]


def record(**fields: Any) -> dict[str, Any]:
    """An Avro record; a value ``(type, default)`` gives a default."""
    rows = [
        {"name": name, "type": each[0], "default": each[1]} if isinstance(each, tuple) else {"name": name, "type": each}
        for name, each in fields.items()
    ]
    return {"type": "record", "name": "R", "fields": rows}


# --- JSON: by example -------------------------------------------------------------------------------------------------


class Session(BaseModel):
    id: int


class Old(BaseModel):
    text: str
    session: Session
    tags: list[str] = []


class StartedSession(Session):
    started_at: str


class Required(Old):
    session: StartedSession


def test_a_new_required_field_is_not_backward_compatible_and_the_message_says_why() -> None:
    [problem] = found(Old, Required)

    assert problem.path == "/session/started_at"
    assert str(problem) == (
        "/session/started_at: found a required field, while version 1 writes no such field; needed give it a default"
    )
    assert (problem.reader, problem.writer) == (2, 1)
    assert found(Old, Required, "forward") == []


def test_a_required_field_that_goes_is_not_forward_compatible() -> None:
    [problem] = found(Required, Old, "forward")

    assert (problem.path, problem.needed) == ("/session/started_at", "keep the field")
    assert found(Required, Old) == []
    assert found(Required, Old, "full") == [problem]


def obj(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


INT, TEXT, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}
TREE = {
    "$ref": "#/$defs/T",
    "$defs": {"T": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/T"}, NULL]}}}},
}
CAT = obj(("kind",), kind={"const": "cat"}, lives=INT)
DOG = obj(("kind",), kind={"const": "dog"}, name=TEXT)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [  # path: of the problem when the new one reads what the old one wrote, or None
        (INT, {"type": "number"}, None),
        ({"type": "number"}, INT, "/"),
        (INT, {"type": ["integer", "null"]}, None),
        ({"anyOf": [INT, NULL]}, INT, "/"),
        (INT, TEXT, "/"),
        (obj(a=INT), obj(a=TEXT), "/a"),
        (obj(a=INT), obj(("a",), a=INT), "/a"),
        (obj(("a",), a=INT), obj(a=INT), None),
        (obj(a=INT), obj(a=INT, b=TEXT), None),
        (obj(a=INT, b=TEXT), obj(a=INT), None),
        (obj(a=INT, b=TEXT), {**obj(a=INT), "additionalProperties": False}, "/b"),
        ({**obj(), "additionalProperties": TEXT}, obj(a=INT), "/a"),
        ({**obj(), "additionalProperties": True}, obj(a=INT), "/a"),
        ({**obj(), "additionalProperties": INT}, {**obj(), "additionalProperties": TEXT}, "/*"),
        ({**obj(), "additionalProperties": INT}, {**obj(), "additionalProperties": {"type": "number"}}, None),
        ({**obj(), "additionalProperties": INT}, {**obj(), "additionalProperties": False}, "/*"),
        (obj(a=INT), {**obj(), "additionalProperties": TEXT}, "/a"),
        ({"enum": ["a", "b"]}, {"enum": ["b", "c", "a"]}, None),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, "/"),
        ({"const": "a"}, TEXT, None),
        (TEXT, {"const": "a"}, "/"),
        ({"enum": [1]}, {"enum": [True]}, "/"),
        ({"enum": [5]}, {"type": "integer", "minimum": 5}, None),
        ({"enum": [5]}, {"type": "integer", "exclusiveMinimum": 5}, "/"),
        ({"type": "integer", "minimum": 3}, {"type": "integer", "minimum": 2}, None),
        ({"type": "integer", "minimum": 3}, {"type": "integer", "minimum": 4}, "/"),
        ({"type": "integer", "maximum": 3}, {"type": "integer", "exclusiveMaximum": 3}, "/"),
        ({"type": "integer", "exclusiveMaximum": 3}, {"type": "integer", "maximum": 3}, None),
        ({"type": "integer", "multipleOf": 6}, {"type": "integer", "multipleOf": 3}, None),
        ({"type": "integer", "multipleOf": 3}, {"type": "integer", "multipleOf": 6}, "/"),
        (TEXT, {"type": "string", "maxLength": 9}, "/"),
        ({"type": "string", "maxLength": 8}, {"type": "string", "maxLength": 9}, None),
        (TEXT, {"type": "string", "pattern": "^a"}, "/"),
        ({"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^a"}, None),
        (TEXT, {"type": "string", "format": "date-time"}, "/"),
        ({"type": "string", "format": "date-time"}, TEXT, None),
        ({"type": "array", "items": INT}, {"type": "array", "items": TEXT}, "/*"),
        ({"type": "array"}, {"type": "array", "items": TEXT}, "/*"),
        ({"type": "array", "items": INT}, {"type": "array", "items": INT, "uniqueItems": True}, "/"),
        ({"type": "array", "items": INT}, {"type": "array", "items": INT, "maxItems": 3}, "/"),
        ({"type": "array", "prefixItems": [INT], "items": False}, {"type": "array", "prefixItems": [TEXT]}, "/0"),
        ({"type": "array", "prefixItems": [INT], "maxItems": 1}, {"type": "array", "items": INT}, None),
        ({**obj(), "additionalProperties": INT}, {**obj(), "additionalProperties": INT, "propertyNames": {"enum": ["a"]}},
        "/(names)"),
        (obj(a=INT), {"type": "object", "maxProperties": 1}, "/"),
        (TREE, TREE, None),
        ({"oneOf": [CAT, DOG]}, {"oneOf": [DOG, CAT]}, None),
        ({"oneOf": [CAT, DOG]}, {"oneOf": [CAT]}, "/kind"),
        ({"type": "object", "required": ["a"]}, obj(a=INT), "/a"),
        ({"type": "object", "required": ["a"]}, {"type": "object", "propertyNames": {"const": "b"}}, "/(names)"),
        (INT, {"oneOf": [INT, {"type": "number"}]}, "/"),
        (INT, {"oneOf": [True, True]}, "/"),
        ({"const": [1]}, {"oneOf": [{"const": [1]}, {"type": "array"}]}, "/"),
        ({"const": "a"}, {"oneOf": [{"const": "a"}, {"type": "string", "pattern": "b"}]}, "/"),
        (INT, {"anyOf": [{"oneOf": [INT, {"type": "number"}]}, TEXT]}, "/"),
        (INT, {}, None),
        ({}, INT, "/"),
        ({}, {}, None),
        (False, INT, None),
        (INT, False, "/"),
    ],
)  # fmt: skip
def test_json_schemas_fit_by_the_rules(old: Any, new: Any, path: str | None) -> None:
    wrapped = found(obj(f=old), obj(f=new)) if not isinstance(old, Mapping) or "$defs" not in old else found(old, new)
    prefix = "/f" if not isinstance(old, Mapping) or "$defs" not in old else ""
    assert [each.path for each in wrapped][:1] == (
        [] if path is None else [prefix + path if path != "/" else prefix or "/"]
    )
    if path is not None:
        assert all(each.found and each.needed for each in wrapped)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"not": INT}, "'not'"), ({"type": "object", "patternProperties": {}}, "'patternProperties'"), ({"if": {}}, "'if'"),
        ({"allOf": [INT, INT]}, "allOf"), ({"anyOf": [INT], "type": "integer"}, "anyOf beside type"),
        ({"$ref": "#/$defs/Nowhere"}, "Nowhere"), ({"$ref": "https://x.y/z"}, "https://x.y/z"),
        ({"$ref": "#"}, "back to itself"),
        ({"type": "record", "name": "R"}, "kind='avro'"), ({"properties": {}}, "without a type"),
        ({"type": "integer", "minimum": "1"}, "minimum"),
        ({"type": "integer", "multipleOf": 0}, "multipleOf"), ({"enum": 3}, "enum"), ({"type": "array", "items": 3}, "3"),
        ({"enum": [1], "minimum": 1}, "enum beside minimum"), ({"$dynamicRef": "#a"}, "$dynamicRef"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_a_word(schema: dict[str, Any], word: str) -> None:
    faults = json_schema.faults(schema)

    assert any(word in str(each) for each in faults), faults


def test_a_field_that_is_not_understood_is_named() -> None:
    [fault] = json_schema.faults(obj(session=obj(start={"not": INT})))

    assert fault.path == "/session/start"


def test_a_schema_that_would_take_for_ever_to_compare_is_refused() -> None:
    defs = {f"A{i}": obj(x={"$ref": f"#/$defs/A{i + 1}"}, y={"$ref": f"#/$defs/A{i + 1}"}) for i in range(60)}
    schema = {"$ref": "#/$defs/A0", "$defs": defs | {"A60": INT}}

    [problem] = found(schema, schema)

    assert "simpler" in problem.needed


def test_a_title_is_no_difference_and_a_field_called_title_is_one() -> None:
    plain = json_schema.without_docs
    assert plain({"title": "A", "type": "object", "required": ["b", "a"]}) == plain(
        {"type": "object", "required": ["a", "b"]}
    )
    assert plain(obj(title=INT)) != plain(obj())


# --- JSON: pydantic ---------------------------------------------------------------------------------------------------


class Mood(StrEnum):
    GOOD = "good"
    BAD = "bad"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Rich(BaseModel):
    mood: Mood
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    scores: dict[str, float] = {}
    by_mood: dict[Mood, int] = {}
    pair: tuple[int, str] = (1, "a")
    note: str | None = Field(None, max_length=10)
    friends: list[Rich] = []


def test_what_pydantic_says_of_a_rich_model_is_understood_and_fits_itself() -> None:
    assert found(Rich, Rich, "full") == []


def test_a_model_that_forbids_other_fields_does_not_read_what_lost_one() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(extra="forbid")
        text: str
        session: Session

    [problem] = found(Old, Strict)
    assert problem.path == "/tags"


def test_a_model_that_writes_a_field_under_another_name_is_refused() -> None:
    class Odd(BaseModel):
        a: int = Field(validation_alias="b")

    with pytest.raises(InvalidInputError, match=r"Odd: b: .*alias="):
        json_schema.from_model(Odd)


# --- JSON: against jsonschema -----------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c"])
small = st.integers(-2, 4)


@st.composite
def bounded(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    words = {
        "minimum": small,
        "maximum": small,
        "exclusiveMinimum": small,
        "exclusiveMaximum": small,
        "multipleOf": st.integers(1, 4),
    }
    return {"type": kind} | {word: draw(each) for word, each in words.items() if draw(st.integers(0, 3)) == 0}


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    properties = draw(st.dictionaries(names, inner, max_size=3))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": draw(st.lists(names, max_size=2, unique=True)),
    }
    if draw(st.integers(0, 2)) == 0:
        schema["additionalProperties"] = draw(st.booleans() | inner)
    for word in ("minProperties", "maxProperties"):
        if draw(st.integers(0, 5)) == 0:
            schema[word] = draw(st.integers(0, 3))
    if draw(st.integers(0, 5)) == 0:
        schema["propertyNames"] = draw(
            st.sampled_from([{"enum": ["a", "b"]}, {"type": "string", "maxLength": 1}, {"enum": ["a"]}])
        )
    return schema


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    words = {"items": st.just(False) | inner, "prefixItems": st.lists(inner, min_size=1, max_size=2),
    "minItems": st.integers(0, 2),
             "maxItems": st.integers(0, 3), "uniqueItems": st.booleans()}  # fmt: skip
    return schema | {word: draw(each) for word, each in words.items() if draw(st.booleans())}


simple = (
    bounded("integer") | bounded("number") | st.sampled_from([
        {"type": "string"}, {"type": "null"}, {"type": "boolean"}, {}, {"type": ["string", "null"]}, {"type": "string",
        "minLength": 2},
        {"type": "string", "maxLength": 1}, {"type": "string", "pattern": "^x"}, {"type": ["integer", "boolean"]},
    ])
    | st.lists(st.sampled_from(["x",
    "xx", 1, 2, 1.0, 0.5, True, None]), min_size=1, max_size=3).map(lambda each: {"enum": each})
    | st.sampled_from(["x", 1, None, False, [1], {"a": 1}]).map(lambda each: {"const": each})
)  # fmt: skip
schemas = st.recursive(
    simple,
    lambda inner: objects(inner) | arrays(inner)
    | st.builds(lambda word, each: {word: each}, st.sampled_from(["anyOf", "oneOf"]), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=6,
)  # fmt: skip


def data_of(schema: Any) -> st.SearchStrategy[Any]:
    """Data that a program with this schema may write; what does not fit it is thrown away later."""
    if schema is False:
        return st.nothing()
    if schema is True or not schema.keys() - {"title"}:
        return (
            st.none()
            | st.integers(-3, 5)
            | st.sampled_from(["x", "yy", 0.5, True, [], {}, [1, "x"], {"a": 1, "z": None}])
        )
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return st.one_of([data_of(each) for each in choices])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([_data_of_type(kind, schema) for kind in kinds])


def _data_of_type(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind == "object":
        named = schema.get("properties", {})
        required, rest = set(schema.get("required", ())), schema.get("additionalProperties", False)
        others = data_of(rest)
        always = {
            name: data_of(named.get(name, rest)) if name in named or rest is not False else st.integers()
            for name in required
        }
        fixed = st.fixed_dictionaries(
            always, optional={name: data_of(each) for name, each in named.items() if name not in required}
        )
        return (
            fixed
            if rest is False
            else st.builds(
                lambda one, two: {**two, **one}, fixed, st.dictionaries(st.sampled_from("abcz"), others, max_size=2)
            )
        )
    if kind == "array":
        prefix, rest = schema.get("prefixItems", []), schema.get("items", True)
        tail = st.lists(data_of(rest), max_size=3) if rest is not False else st.just([])
        return st.builds(
            lambda one, two, n: ([*one, *two])[:n], st.tuples(*map(data_of, prefix)), tail, st.integers(0, 5)
        )
    return {
        "integer": st.integers(-4, 13), "number": st.integers(-4, 13) | st.sampled_from([0.5, 1.0, 2.5, -1.5]),
        "string": st.sampled_from(["", "x", "xx", "y", "xyz"]), "null": st.none(), "boolean": st.booleans(),
    }[kind]  # fmt: skip


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data(), schemas, schemas, st.booleans())
def test_data_of_a_schema_is_valid_under_each_that_we_call_backward_compatible(
    data: st.DataObject, old: Any, other: Any, alike: bool
) -> None:
    new = data.draw(variations(old)) if alike else other
    assume(not json_schema.faults(old) and not json_schema.faults(new))
    assume(problems(Kind.JSON, Compatibility.BACKWARD, new, 2, [(1, old)])[1] == [])
    drawn = data.draw(st.lists(data_of(old), max_size=4))
    for each in drawn:
        if Draft202012Validator(old).is_valid(each):
            Draft202012Validator(new).validate(each)


@st.composite
def variations(draw: st.DrawFn, schema: Any) -> Any:
    """Another schema, near enough that the rules have something to say yes to."""
    if not isinstance(schema, dict) or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from([schema, True, {"anyOf": [schema, {"type": "null"}]}, {"type": "number"}]))
    changed = dict(schema)
    if "properties" in schema:
        changed["properties"] = {name: draw(variations(each)) for name, each in schema["properties"].items()}
        if draw(st.booleans()):
            changed["properties"] = dict(list(changed["properties"].items())[1:]) | {"c": {"type": "integer"}}
    for word in ("items", "additionalProperties"):
        if isinstance(schema.get(word), dict):
            changed[word] = draw(variations(schema[word]))
    for word in ("anyOf", "oneOf", "prefixItems"):
        if word in schema:
            changed[word] = [draw(variations(each)) for each in schema[word]]
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "multipleOf"):
        if word in schema:
            change = draw(st.sampled_from([0, 0, 1, -1, None]))
            if change is None:
                del changed[word]
            else:
                changed[word] = max(schema[word] + change, 1 if word == "multipleOf" else -9)
    for word in ("required", "uniqueItems", "pattern", "minLength"):
        if word in schema and draw(st.booleans()):
            del changed[word]
    if draw(st.integers(0, 5)) == 0 and "additionalProperties" in schema:
        del changed["additionalProperties"]
    return changed


# --- Avro: by example -------------------------------------------------------------------------------------------------

COLOURS = {"type": "enum", "name": "C", "symbols": ["RED", "BLUE"]}
MOMENT = {"type": "long", "logicalType": "timestamp-micros"}


def decimal(precision: int, scale: int) -> dict[str, Any]:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (record(a="int"), record(a="int", b="string"), "/b"),
        (record(a="int"), record(a="int", b=("string", "x")), None),
        (record(a="int", b="string"), record(a="int"), None),
        (record(a="int"), record(a="long"), None),
        (record(a="long"), record(a="int"), "/a"),
        (record(a="string"), record(a="bytes"), None),
        (record(a="int"), record(a=["null", "int"]), None),
        (record(a=["null", "int"]), record(a="int"), "/a"),
        (record(a=["null", "int"]), record(a=["int", "null"]), None),
        (record(a="long"), record(a=MOMENT), "/a"),
        (record(a=MOMENT), record(a="long"), "/a"),
        (record(a=decimal(5, 2)), record(a=decimal(6, 2)), None),
        (record(a=decimal(5, 2)), record(a=decimal(5, 1)), "/a"),
        (record(a=decimal(5, 2)), record(a=decimal(4, 2)), "/a"),
        (record(a=COLOURS), record(a={**COLOURS, "symbols": ["RED", "BLUE", "GREEN"]}), None),
        (record(a=COLOURS), record(a={**COLOURS, "symbols": ["RED"]}), "/a"),
        (record(a=COLOURS), record(a={**COLOURS, "symbols": ["RED"], "default": "RED"}), None),
        (record(a=COLOURS), record(a={**COLOURS, "name": "D"}), "/a"),
        (record(a=COLOURS), record(a={**COLOURS, "name": "D", "aliases": ["C"]}), None),
        (record(a={"type": "array", "items": "int"}), record(a={"type": "array", "items": "string"}), "/a/*"),
        (record(a={"type": "map", "values": "int"}), record(a={"type": "map", "values": "long"}), None),
        (record(a={"type": "fixed", "name": "F", "size": 2}), record(a={"type": "fixed", "name": "F", "size": 3}), "/a"),
        (record(a={**record(x="int"), "name": "S"}), record(a={**record(x="int", y="int"), "name": "S"}), "/a/y"),
        (record(a="int"), {"type": "record", "name": "R", "fields": [{"name": "b", "type": "int", "aliases": ["a"]}]}, None),
    ],
)  # fmt: skip
def test_avro_schemas_fit_by_the_rules(old: Any, new: Any, path: str | None) -> None:
    assert [each.path for each in found(old, new, kind="avro")] == ([] if path is None else [path])


def test_a_new_avro_field_without_a_default_is_refused_and_the_message_says_why() -> None:
    [problem] = found(record(a="int"), record(a="int", b="string"), kind="avro")

    assert str(problem) == (
        "/b: found a field without a default, while version 1 writes no such field; "
        "needed give it a default (or an alias, if it was renamed)"
    )


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        (record(a="int") | {"fields": [{"name": "a", "type": "int"}] * 2}, "/a.*twice"),
        (record(a=("int", "no")), "(?i)default"),
        (record(a=(["null", "int"], 3)), "/a.*default 3"), (record(a=["int", "int"]), "/a.*twice"),
        (record(a={"type": "array", "items": "null"}), "/a.*no bytes"), (record(next=["null", "R"]), "/next.*within itself"),
        (record(a="nope"), "nope"), (record(a=[]), "/a.*nothing"),
        (record(a={"type": "int", "logicalType": "decimal"}), "/a.*decimal"),
        (record(a={"type": "bytes", "logicalType": "decimal", "precision": 1, "scale": 2}), "(?i)scale"), (3, "Avro"),
        (record(a={"type": "int", "logicalType": "time-ever"}), "/a.*time-ever"),
        ({"type": "record", "name": "1R", "fields": []}, "1R"),
        (record(a={"type": "array"}), "items"), ({"type": "array", "items": "int"}, "a record"),
        (record(a={"type": "enum", "name": "E", "symbols": []}), "/a.*at least one"),
    ],
)  # fmt: skip
def test_what_is_no_avro_or_would_do_harm_is_refused(schema: Any, word: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        avro.parse(schema, "s")
    assert re.search(word, str(refused.value)), refused.value


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: Any = "int"
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidInputError, match="levels"):
        avro.parse(schema)


# --- Avro: against fastavro -------------------------------------------------------------------------------------------

logical = st.sampled_from(
    [MOMENT, {"type": "int", "logicalType": "date"}, {"type": "string", "logicalType": "uuid"}, decimal(4, 2)]
)
scalars = st.sampled_from(["null", "boolean", "int", "long", "float", "double", "string", "bytes"])


@st.composite
def avro_schemas(draw: st.DrawFn, depth: int = 2, name: str = "R") -> Any:
    kind = draw(
        st.sampled_from(
            ["scalar"] * 3 + ["logical", "enum", "fixed"] + ["record", "array", "map", "union"] * (depth > 0)
        )
    )
    inner = avro_schemas(depth - 1, name + "x")
    match kind:
        case "scalar":
            return draw(scalars)
        case "logical":
            return draw(logical)
        case "enum":
            symbols = draw(st.lists(st.sampled_from("ABC"), min_size=1, unique=True))
            return {"type": "enum", "name": name + "E", "symbols": symbols} | (
                {"default": symbols[0]} if draw(st.booleans()) else {}
            )
        case "fixed":
            return {"type": "fixed", "name": name + "F", "size": draw(st.integers(1, 2))}
        case "array" | "map":
            return {"type": kind, "items" if kind == "array" else "values": draw(inner)}
        case "union":
            return draw(st.lists(avro_schemas(depth - 1, name + draw(st.sampled_from("uv"))), min_size=1, max_size=3))
    fields = []
    for label in draw(st.lists(st.sampled_from("abcd"), max_size=3, unique=True)):
        field = {"name": label, "type": draw(avro_schemas(depth - 1, name + label))}
        aliases = draw(st.lists(st.sampled_from("abcdef"), max_size=1))
        fields.append(field | draw(defaults(field["type"])) | ({"aliases": aliases} if aliases else {}))
    return {"type": "record", "name": name, "fields": fields}


@st.composite
def defaults(draw: st.DrawFn, schema: Any) -> dict[str, Any]:
    easy = {"null": None, "boolean": True, "int": 3, "long": 4, "double": 0.5, "string": "x", "bytes": "\xff"}
    first = schema[0] if isinstance(schema, list) else schema
    if draw(st.booleans()):
        return {}
    if isinstance(first, str):
        return {"default": easy[first]} if first in easy else {}
    kind = first.get("logicalType", first["type"])
    return {"default": {"array": [], "map": {}, "timestamp-micros": 5, "date": 6, "decimal": "\x01"}[kind]} if kind in (
        "array", "map", "timestamp-micros", "date", "decimal") else {}  # fmt: skip


def values_of(schema: Any, names: dict[str, Any]) -> st.SearchStrategy[Any]:
    schema = names.get(schema, schema) if isinstance(schema, str) else schema
    if isinstance(schema, list):
        return st.one_of([values_of(each, names) for each in schema])
    if isinstance(schema, str):
        return {
            "null": st.none(), "boolean": st.booleans(), "int": st.integers(-(2**31), 2**31 - 1),
            "long": st.integers(-(2**63), 2**63 - 1),
            "float": st.sampled_from([0.5, 1.0]), "double": st.floats(allow_nan=False), "string": st.text(max_size=4),
            "bytes": st.text(max_size=4).map(str.encode),
        }[schema]  # fmt: skip
    match schema.get("logicalType", schema["type"]):
        case "timestamp-micros":
            return (
                st.datetimes()
                .map(lambda when: when.isoformat() + "Z")
                .filter(lambda when: when > "0002" and when < "9998")
            )
        case "date":
            return st.dates()
        case "uuid":
            return st.uuids()
        case "decimal":
            return st.decimals(-9, 9, places=schema["scale"])
        case "enum":
            return st.sampled_from(schema["symbols"])
        case "fixed":
            return st.binary(min_size=schema["size"], max_size=schema["size"])
        case "array":
            return st.lists(values_of(schema["items"], names), max_size=2)
        case "map":
            return st.dictionaries(st.text(max_size=2), values_of(schema["values"], names), max_size=2)
    return st.fixed_dictionaries({each["name"]: values_of(each["type"], names) for each in schema["fields"]})


def parsed(schema: Any) -> Any:
    """As the schema of a message; a record as it is, anything else as the field of one."""
    record = isinstance(schema, dict) and schema["type"] == "record"
    try:
        return avro.parse(
            schema if record else {"type": "record", "name": "Top", "fields": [{"name": "f", "type": schema}]}
        )
    except InvalidInputError:
        assume(False)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data(), avro_schemas(), avro_schemas(), st.booleans())
def test_avro_data_can_be_read_with_each_schema_that_we_call_compatible(
    data: st.DataObject, old: Any, other: Any, alike: bool
) -> None:
    new = json.loads(json.dumps(old)) if alike else other
    if alike and isinstance(new, dict) and new["type"] == "record":
        kept = new["fields"][data.draw(st.integers(0, 1)) :]
        used = {name for each in kept for name in (each["name"], *each.get("aliases", ()))}
        new["fields"] = kept + (
            [{"name": "z", "type": {"type": "array", "items": "int"}, "default": [1]}] if "z" not in used else []
        )
    writer, reader = parsed(old), parsed(new)
    assume(problems(Kind.AVRO, Compatibility.BACKWARD, reader, 2, [(1, writer)])[1] == [])
    wrote, reads = avro_data.AvroType(writer, "old"), avro_data.AvroType(reader, "new")
    value = data.draw(values_of(writer, wrote._names))

    seen = wrote.read(wrote.write(value), reads)

    reads.write(seen)  # what was read is data of the reader's schema


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data(), avro_schemas())
def test_avro_values_survive_both_encodings_alike(data: st.DataObject, schema: Any) -> None:
    kind = avro_data.AvroType(parsed(schema), "message")
    value = data.draw(values_of(kind.schema, kind._names))

    binary = kind.read(kind.write(value))

    assert kind.write(binary) == kind.write(value)
    assert kind.read(kind.write(binary)) == binary


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.data(), avro_schemas(), st.binary(max_size=40))
def test_bytes_that_are_no_such_data_are_refused_and_never_do_harm(
    data: st.DataObject, schema: Any, raw: bytes
) -> None:
    kind = avro_data.AvroType(parsed(schema), "message")
    with suppress(InvalidInputError):  # any other error is one that a reader would not expect
        assert kind.read(raw) is not None
