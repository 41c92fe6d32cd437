"""Whether data written with one JSON Schema can be read with another: the rules for JSON.

Owns the comparison. Leaves the form of a schema to ``json_schema``, which has refused whatever is not understood here.

What a schema *writes*: the fields that it names, those of ``required`` always. Fields that it does not name are written only
where it says so (``additionalProperties: true`` or a schema: pydantic's ``extra="allow"`` and ``dict``); a program does
not write fields that its model does not have.
What a schema *reads*: fields that it does not name are passed over, unless it forbids them (``additionalProperties: false``:
pydantic's ``extra="forbid"``) or says what they must be.

====================  ==================================================================================================
reader and writer     the reader takes what the writer writes if …
====================  ==================================================================================================
types                 the reader has the type; ``number`` takes ``integer``
enum, const           the reader takes each value
anyOf, oneOf          each choice of the writer is taken by one of the reader (oneOf: and surely by no other)
bounds, lengths       the reader's are the same or wider; its multipleOf divides the writer's
pattern, format       the reader has none, or the same
array                 each element, by its place; the lengths; uniqueItems if the reader asks for it
object                what the reader requires, the writer always writes; each field that both name; a field that only
                      one names, by what the other says of fields that it does not name
====================  ==================================================================================================

Where the rules can't tell (an object that only two of the reader's choices together take), the answer is no.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import SchemaProblem
from .json_schema import BOUNDS, TYPES, defined

__all__ = ["unreadable"]

MAX_STEPS = 50_000  # comparisons of two places: a schema that needs more refers to itself in too many ways
# word → whether the reader's number is as wide as the writer's
LOWER = ("minimum", "exclusiveMinimum")
UPPER = ("maximum", "exclusiveMaximum")
SAME = ("pattern", "format", "contentEncoding", "contentMediaType")


def unreadable(reader: Mapping[str, Any], writer: Mapping[str, Any], *, reads: int, writes: int) -> list[SchemaProblem]:
    """Where data written with *writer* could not be read with *reader*; empty if all of it can.

    Args:
        reader: a schema without `faults`.
        writer: another one.
        reads: the reader's version; the larger one is the schema that can still be changed.
        writes: the writer's version.
    """
    try:
        return list(_Comparison(reader, writer, reads, writes).differences(reader, writer, ""))
    except RecursionError as error:  # ours, or Python's for references that lead too deep
        return [SchemaProblem(path="/", found=str(error), needed="a simpler schema", reader=reads, writer=writes)]


@dataclass(slots=True)
class _Comparison:
    reader_root: Mapping[str, Any]
    writer_root: Mapping[str, Any]
    reads: int
    writes: int
    under_way: set[tuple[int, int]] = field(
        default_factory=set
    )  # what refers to itself is compared once on its way down
    steps: int = 0

    def problem(self, path: str, reader: str, writer: str, *, fix: str, keep: str) -> SchemaProblem:
        """What the two say of a place.

        Args:
            path: of the field.
            reader: what the reader asks for.
            writer: what the writer writes.
            fix: what to do if the reader is the one to be changed.
            keep: what to do if it is the writer.
        """
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

    def differences(self, reader: Any, writer: Any, path: str) -> Iterator[SchemaProblem]:
        reader, writer = defined(reader, self.reader_root), defined(writer, self.writer_root)
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise RecursionError(f"more than {MAX_STEPS:,} pairs of places to compare")
        pair = (id(reader), id(writer))
        if pair in self.under_way:
            return
        self.under_way.add(pair)
        try:
            for choice in _choices(writer, self.writer_root):
                yield from self._choice(reader, choice, path)
        finally:
            self.under_way.discard(pair)

    def _choice(self, reader: Any, writer: Any, path: str) -> Iterator[SchemaProblem]:
        """One of the forms in which the writer writes a value."""
        if writer is False:  # nothing is ever written here
            return
        offers = _choices(reader, self.reader_root)
        taker, best = None, None
        for place, offer in enumerate(offers):
            found = list(self._form(offer, writer, path))
            if not found:
                taker = place
                break
            if best is None or (_alike(offer, writer) and not _alike(best[0], writer)):
                best = (offer, found)
        if taker is not None:
            others = [*offers[:taker], *offers[taker + 1 :]]
            if _one_of(reader, self.reader_root) and not all(self._apart(writer, offer) for offer in others):
                yield self.problem(
                    path, "oneOf with choices that overlap", _shown(writer),
                    fix="anyOf, or choices told apart by a field with one value each", keep="what one choice takes",
                )  # fmt: skip
        elif best is not None and (len(offers) == 1 or _alike(best[0], writer)):
            yield from best[1]
        else:
            yield self._types(path, offers, writer)

    def _types(self, path: str, offers: list[Any], writer: Any) -> SchemaProblem:
        wanted = " or ".join(dict.fromkeys(_shown(offer) for offer in offers)) or "nothing at all"
        given = _shown(writer)
        return self.problem(
            path, wanted, given, fix=f"a field that takes {given} too", keep=f"only {wanted} to be written"
        )

    def _form(self, reader: Any, writer: Any, path: str) -> Iterator[SchemaProblem]:
        """Two forms without choices."""
        if _anything(reader):
            return
        if reader is False or _anything(writer):
            yield self._types(path, [reader], writer)
        elif "const" in writer:
            if not _takes(reader, writer["const"]):
                yield self._types(path, [reader], writer)
        elif "const" in reader or not (
            reader["type"] == writer["type"] or (reader["type"], writer["type"]) == ("number", "integer")
        ):
            yield self._types(path, [reader], writer)
        else:
            yield from self._words(reader, writer, path)
            if writer["type"] == "array":
                yield from self._array(reader, writer, path)
            elif writer["type"] == "object":
                yield from self._object(reader, writer, path)

    def _words(self, reader: Mapping[str, Any], writer: Mapping[str, Any], path: str) -> Iterator[SchemaProblem]:
        kind = writer["type"]

        def differ(word: str) -> SchemaProblem:
            ours, theirs = f"{word} {reader[word]!r}", f"{word} {writer[word]!r}" if word in writer else f"no {word}"
            return self.problem(path, ours, theirs, fix=f"no {word}, or one that takes all of it", keep=ours)

        if kind in ("integer", "number"):
            for words, sign in ((LOWER, 1), (UPPER, -1)):
                for word in words:
                    if word in reader and not _bounded(reader[word], word, writer, words, sign):
                        yield differ(word)
            step = reader.get("multipleOf")
            if step is not None and not _divides(step, writer.get("multipleOf", 1 if kind == "integer" else None)):
                yield differ("multipleOf")
        if kind == "string":
            for word in SAME:
                if word in reader and reader[word] != writer.get(word):
                    yield differ(word)
        for shape, unit in (("string", "Length"), ("array", "Items"), ("object", "Properties")):
            low, high = "min" + unit, "max" + unit
            least = writer.get(low, len(writer.get("required", ())) if shape == "object" else 0)
            if kind == shape and reader.get(low, 0) > least:
                yield differ(low)
            if kind == shape and high in reader and not reader[high] >= writer.get(high, float("inf")):
                yield differ(high)

    def _array(self, reader: Mapping[str, Any], writer: Mapping[str, Any], path: str) -> Iterator[SchemaProblem]:
        if reader.get("uniqueItems") and not writer.get("uniqueItems"):
            yield self.problem(
                path,
                "each element once",
                "a list that may repeat one",
                fix="a list, not a set",
                keep="a set, not a list",
            )
        ours, theirs = reader.get("prefixItems", []), writer.get("prefixItems", [])
        longest, named = writer.get("maxItems", float("inf")), max(len(ours), len(theirs))
        for i in range(named + 1):  # the last one stands for all that follow
            if i >= longest:
                return
            mine = ours[i] if i < len(ours) else reader.get("items", True)
            other = theirs[i] if i < len(theirs) else writer.get("items", True)
            yield from self.differences(mine, other, f"{path}/{i}" if i < named else f"{path}/*")

    def _object(self, reader: Mapping[str, Any], writer: Mapping[str, Any], path: str) -> Iterator[SchemaProblem]:
        ours, theirs = reader.get("properties", {}), writer.get("properties", {})
        rest, others = reader.get("additionalProperties", True), writer.get("additionalProperties", False)
        always = set(writer.get("required", ()))
        # what it requires and does not describe may be anything
        theirs = dict.fromkeys(always, True if others is False else others) | theirs
        for name in reader.get("required", ()):
            if name not in always:
                yield self._missing(f"{path}/{name}", name in theirs)
        for name, each in ours.items():
            if name in theirs or others is not False:
                yield from self.differences(each, theirs.get(name, others), f"{path}/{name}")
        for name, each in theirs.items():
            if name not in ours:
                yield from self._unnamed(rest, each, f"{path}/{name}")
        if others is not False:
            yield from self._unnamed(rest, others, f"{path}/*")
        if "propertyNames" in reader:
            for name in theirs:
                yield from self.differences(reader["propertyNames"], {"const": name}, f"{path}/(names)")
            if others is not False:
                names = writer.get("propertyNames", True)
                text = {"type": "string"} if _anything(defined(names, self.writer_root)) else names
                yield from self.differences(reader["propertyNames"], text, f"{path}/(names)")

    def _missing(self, path: str, optional: bool) -> SchemaProblem:
        if optional:
            return self.problem(
                path, "a required field", "it only sometimes",
                fix="give it a default", keep="keep it required, without a default",
            )  # fmt: skip
        return self.problem(path, "a required field", "no such field", fix="give it a default", keep="keep the field")

    def _unnamed(self, rest: Any, writer: Any, path: str) -> Iterator[SchemaProblem]:
        """A field that the reader does not name."""
        if defined(rest, self.reader_root) is False:
            if defined(writer, self.writer_root) is not False:
                yield self.problem(
                    path, "no field beside those it names (additionalProperties: false)", "this field",
                    fix="keep the field, or let others pass (extra='ignore')", keep="leave the field out",
                )  # fmt: skip
        else:
            yield from self.differences(rest, writer, path)

    def _apart(self, writer: Any, offer: Any) -> bool:
        """Whether no value that *writer* writes is taken by *offer* as well: surely, not perhaps."""
        if offer is False:
            return True
        if _anything(writer) or _anything(offer):
            return False
        if "const" in writer or "const" in offer:
            value, other = (writer["const"], offer) if "const" in writer else (offer["const"], writer)
            return _refuses(other, value)
        if writer["type"] != offer["type"]:
            return {writer["type"], offer["type"]} != {"integer", "number"}
        if writer["type"] != "object":
            return False
        ours, theirs = offer.get("properties", {}), writer.get("properties", {})
        for name in set(offer.get("required", ())) & set(writer.get("required", ())) & ours.keys() & theirs.keys():
            mine, other = _choices(ours[name], self.reader_root), _choices(theirs[name], self.writer_root)
            if all(isinstance(each, Mapping) and "const" in each for each in (*mine, *other)) and not (
                {_key(each["const"]) for each in mine} & {_key(each["const"]) for each in other}
            ):
                return True
        return False


def _choices(schema: Any, root: Mapping[str, Any]) -> list[Any]:
    """The forms of which a value has one: no anyOf, no list of types, no enum is left in them."""
    schema = defined(schema, root)
    if not isinstance(schema, Mapping):
        return [schema]
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return [form for each in schema[word] for form in _choices(each, root)]
    types = schema.get("type")
    types = types if isinstance(types, list) else [types] if types else None
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        values = [each for each in values if "const" not in schema or _key(each) == _key(schema["const"])]
        return [{"const": each} for each in values if types is None or any(_is(each, kind) for kind in types)]
    return [schema] if types is None else [{**schema, "type": kind} for kind in types]


def _one_of(schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a value that two of the forms take would be refused."""
    schema = defined(schema, root)
    if not isinstance(schema, Mapping):
        return False
    return "oneOf" in schema or any(_one_of(each, root) for each in schema.get("anyOf", ()))


def _anything(form: Any) -> bool:
    return form is True or (isinstance(form, Mapping) and "type" not in form and "const" not in form)


def _alike(offer: Any, writer: Any) -> bool:
    """Whether a reader's form was meant for what the writer writes, so that its problems are worth telling."""
    return (
        isinstance(offer, Mapping) and isinstance(writer, Mapping)
        and "type" in offer and offer.get("type") == writer.get("type")
    )  # fmt: skip


def _shown(form: Any) -> str:
    if _anything(form):
        return "anything"
    if form is False:
        return "nothing"
    return repr(form["const"]) if "const" in form else str(form["type"])


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of one of `TYPES`."""
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == int(value))
    names = {type(None): "null", str: "string", list: "array", dict: "object"}
    assert kind in TYPES
    return names.get(type(value)) == kind


def _key(value: Any) -> Any:
    """Alike for values that JSON Schema calls equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, list):
        return ("list", *(_key(each) for each in value))
    if isinstance(value, dict):
        return ("dict", *sorted((name, _key(each)) for name, each in value.items()))
    return (isinstance(value, bool), value)


def _takes(form: Mapping[str, Any], value: Any) -> bool:
    """Whether a form takes one value; no for lists and objects, and where a pattern or format would have to be tried."""
    if "const" in form:
        return bool(_key(form["const"]) == _key(value))
    if isinstance(value, list | dict) or not _is(value, form["type"]) or any(word in form for word in SAME):
        return False
    if isinstance(value, str):
        return bool(form.get("minLength", 0) <= len(value) <= form.get("maxLength", float("inf")))
    if isinstance(value, bool) or value is None or not form.keys() & BOUNDS:
        return True
    only = {"minimum": value, "maximum": value}
    bounded = all(
        _bounded(form[word], word, only, words, sign)
        for words, sign in ((LOWER, 1), (UPPER, -1)) for word in words if word in form
    )  # fmt: skip
    return bounded and ("multipleOf" not in form or _divides(form["multipleOf"], value))


def _refuses(form: Mapping[str, Any], value: Any) -> bool:
    """Whether a form surely does not take one value: not the same as `_takes` being unsure."""
    if "const" not in form and _is(value, form["type"]):
        unsure = isinstance(value, list | dict) or any(word in form for word in SAME)
        return not unsure and not _takes(form, value)
    return not _takes(form, value)


def _bounded(limit: float, word: str, writer: Mapping[str, Any], words: tuple[str, str], sign: int) -> bool:
    """Whether all that *writer* writes lies within the reader's *limit*."""
    plain, exclusive = words
    if plain in writer and (sign * writer[plain] > sign * limit or (writer[plain] == limit and word == plain)):
        return True
    return bool(exclusive in writer and sign * writer[exclusive] >= sign * limit)


def _divides(step: float, value: float | None) -> bool:
    """Whether each multiple of *value* is one of *step*; only for whole numbers, where it is certain."""
    return bool(value is not None and float(step).is_integer() and float(value).is_integer() and value % step == 0)
