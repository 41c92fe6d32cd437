"""JSON Schemas: where they come from, which of their words are understood, and what makes two of them the same.

Owns the form of a schema. Leaves to ``json_rules`` whether data written with one can be read with another.

The words understood are those that pydantic uses for fields, and a few more: whatever says which data is valid must be
understood, or a comparison would promise what does not hold. So any other word is refused, by name and place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from ...errors import InvalidInputError, SchemaProblem

__all__ = ["TYPES", "defined", "faults", "from_model", "without_docs"]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
#: words that say nothing about which data is valid
DOCS = frozenset(
    {"title", "description", "examples", "$comment", "deprecated", "readOnly", "writeOnly", "discriminator"}
)
NOTES = DOCS | {"default", "$schema", "$id", "$defs", "definitions"}
CHOICES = ("anyOf", "oneOf", "allOf")
BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
LENGTHS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
TEXTS = frozenset({"pattern", "format", "contentEncoding", "contentMediaType"})
PLACES = frozenset({"items", "prefixItems", "properties", "additionalProperties", "propertyNames"})
UNDERSTOOD = (
    NOTES | BOUNDS | LENGTHS | TEXTS | PLACES | {*CHOICES, "$ref", "type", "enum", "const", "required", "uniqueItems"}
)
MAX_DEPTH = 64  # levels of a schema, not of the data: a model that refers to itself stays shallow


def from_model(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of what a model reads.

    Raises:
        InvalidInputError: the model has a field that JSON Schema can't describe, or writes a field under another name
            than it reads it.
    """
    try:
        reads = model.model_json_schema(mode="validation")
        writes = model.model_json_schema(mode="serialization")
    except PydanticInvalidForJsonSchema as error:
        raise InvalidInputError(
            f"schema of {model.__name__}", found=error.message, needed="fields that JSON Schema can describe"
        ) from error
    if "$ref" not in writes:
        for name in reads.get("required", ()):
            if name not in writes.get("properties", {}):
                raise InvalidInputError(
                    f"{model.__name__}: {name}", found="a field that is written under another name, or not at all",
                    needed="one name for both ways", step="use alias= in place of validation_alias=",
                )  # fmt: skip
    _require_tags(reads, reads)
    return reads


def _require_tags(schema: Any, root: Mapping[str, Any]) -> None:
    """pydantic can't read a tagged union without its tag, though a tag with a default is not listed as required."""
    if isinstance(schema, list):
        for each in schema:
            _require_tags(each, root)
    if not isinstance(schema, Mapping):
        return
    tag = schema.get("discriminator", {}).get("propertyName") if isinstance(schema.get("oneOf"), list) else None
    for choice in schema["oneOf"] if tag else ():
        model = defined(choice, root)
        if tag not in model.setdefault("required", []):
            model["required"].append(tag)
    for each in schema.values():
        _require_tags(each, root)


def defined(schema: Any, root: Mapping[str, Any]) -> Any:
    """*schema*, or what it refers to."""
    seen = 0
    while isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if reference is None and len(schema.get("allOf", ())) == 1:  # pydantic's way to put notes beside a reference
            schema = schema["allOf"][0]
        elif reference is None:
            return schema
        else:
            schema = _at(reference, root)
        if (seen := seen + 1) > MAX_DEPTH:
            raise LookupError(f"{reference!r}, which leads back to itself")
    return schema


def _at(reference: Any, root: Mapping[str, Any]) -> Any:
    if reference == "#":
        return root
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise LookupError(f"{reference!r}, which is not in this schema")
    place: Any = root
    for part in reference[2:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, Mapping) or part not in place:
            raise LookupError(f"{reference!r}, which is not in this schema")
        place = place[part]
    return place


def without_docs(schema: Any) -> Any:
    """*schema* without titles and descriptions, ``required`` sorted: alike for schemas that mean the same."""
    if isinstance(schema, list):
        return [without_docs(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    plain: dict[str, Any] = {}
    for word, value in schema.items():
        if word in DOCS:
            continue
        if word in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
            plain[word] = {name: without_docs(each) for name, each in value.items()}
        elif word == "required" and isinstance(value, list):
            plain[word] = sorted(value, key=str)
        elif word in ("default", "enum", "const"):
            plain[word] = value
        else:
            plain[word] = without_docs(value)
    return plain


def faults(schema: Mapping[str, Any]) -> list[SchemaProblem]:
    """What in *schema* is no JSON Schema, or is a word that we do not understand; one entry for each place."""
    return [SchemaProblem(path=path or "/", found=found, needed=needed) for path, found, needed in _faults(schema)]


def _faults(root: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if not isinstance(root, Mapping):
        yield "", repr(root)[:80], "a JSON Schema as an object"
        return
    todo: list[tuple[str, Any, int]] = [("", root, 0)]
    for word in ("$defs", "definitions"):
        named = root.get(word, {})
        if isinstance(named, Mapping):
            todo += [(f"/{word}/{name}", each, 1) for name, each in named.items()]
        else:
            yield f"/{word}", repr(named)[:80], "an object of schemas"
    while todo:
        path, schema, depth = todo.pop()
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, Mapping):
            yield path, repr(schema)[:80], "a schema: an object, true or false"
            continue
        if depth > MAX_DEPTH:
            yield path, f"more than {MAX_DEPTH} levels", "a schema that is less deep"
            continue
        wrong = list(_wrong_words(schema, root))
        yield from ((path, found, needed) for found, needed in wrong)
        if not wrong:
            todo += [(path + step, each, depth + 1) for step, each in _parts(schema)]


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, each in schema.get("properties", {}).items():
        yield f"/{name}", each
    for word in ("items", "additionalProperties"):
        if word in schema:
            yield "/*", schema[word]
    if "propertyNames" in schema:
        yield "/(names)", schema["propertyNames"]
    for i, each in enumerate(schema.get("prefixItems", ())):
        yield f"/{i}", each
    for word in CHOICES:
        for each in schema.get(word, ()):
            yield "", each


def _wrong_words(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for word in schema.keys() - UNDERSTOOD:
        yield f"the word {word!r}, which is not understood", "a schema without it, or compatibility 'none'"
    yield from _wrong_neighbours(schema)
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    for each in types:
        if each not in TYPES:
            hint = " (of Avro? then say kind='avro')" if each in ("record", "fixed", "map", "long", "double") else ""
            yield f"type {each!r}", f"one of {', '.join(TYPES)}{hint}"
    for word in (*BOUNDS, *LENGTHS):
        if word in schema and (isinstance(schema[word], bool) or not isinstance(schema[word], int | float)):
            yield f"{word} {schema[word]!r}", "a number"
    if isinstance(schema.get("multipleOf"), int | float) and schema["multipleOf"] <= 0:
        yield f"multipleOf {schema['multipleOf']!r}", "a number above 0"
    for word in TEXTS:
        if word in schema and not isinstance(schema[word], str):
            yield f"{word} {schema[word]!r}", "a string"
    if not isinstance(schema.get("properties", {}), Mapping):
        yield f"properties {schema['properties']!r}"[:80], "an object of schemas"
    for word in (*CHOICES, "enum", "required", "prefixItems"):
        if word in schema and not isinstance(schema[word], list):
            yield f"{word} {schema[word]!r}"[:80], "a list"
    if not isinstance(schema.get("uniqueItems", False), bool):
        yield f"uniqueItems {schema['uniqueItems']!r}", "true or false"
    try:
        defined(schema, root)
    except LookupError as error:
        yield str(error.args[0]), "a reference to a part of this schema, such as #/$defs/Name"


def _wrong_neighbours(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Words that bind together with others: each on its own is understood, both at once are not."""
    strict = schema.keys() & UNDERSTOOD - NOTES
    for word in ("$ref", *CHOICES):
        if word in strict and len(strict) > 1:
            yield f"{word} beside {', '.join(sorted(strict - {word}))}", f"{word} alone"
            return
    if isinstance(schema.get("allOf"), list) and len(schema["allOf"]) != 1:
        yield f"allOf of {len(schema['allOf'])}", "one schema that says it all"
    for word in ("enum", "const"):
        if word in strict and strict - {word, "type"}:
            yield f"{word} beside {', '.join(sorted(strict - {word, 'type'}))}", f"{word} with at most a type"
            return
    if strict and not strict & {"$ref", *CHOICES, "enum", "const", "type"}:
        yield f"{', '.join(sorted(strict))} without a type", "a type beside it"
