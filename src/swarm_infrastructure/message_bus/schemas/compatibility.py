"""Compatibility: what a new schema must be able to do with the messages of the old ones, or they with its messages.

Owns the modes and their directions; ``json_rules`` and ``avro_rules`` compare one pair of schemas.

A mode always holds against *all* versions since the last break, not only the latest: a topic keeps messages for as long as it
likes, so that a reader meets each of them. (What Confluent's registry calls ``BACKWARD_TRANSITIVE``.) A version that was
registered under ``none`` is such a break: what follows must fit it, and no longer what was before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from ...errors import SchemaProblem
from . import avro_rules, json_rules

__all__ = ["Compatibility", "Kind", "problems"]


class Compatibility(StrEnum):
    """What the next version of a subject must fit."""

    BACKWARD = "backward"  #: the new schema reads what the old ones wrote: update the readers first
    FORWARD = "forward"  #: the old schemas read what the new one writes: update the writers first
    FULL = "full"  #: both: update in any order
    NONE = "none"  #: nothing: a break, upcasters must bridge it


class Kind(StrEnum):
    """The language of a schema."""

    JSON = "json"  #: JSON Schema; messages are JSON
    AVRO = "avro"  #: messages are Avro or JSON


def problems(
    kind: Kind, compatibility: Compatibility, schema: Any, version: int, older: Sequence[tuple[int, Any]]
) -> tuple[int, list[SchemaProblem]]:
    """The newest of the *older* versions that *schema* does not fit, and why; ``(0, [])`` if it fits all.

    Args:
        kind: of all the schemas.
        compatibility: what is asked for.
        schema: the new one, without faults.
        version: the one that it would become.
        older: versions and their schemas.
    """
    unreadable = avro_rules.unreadable if kind is Kind.AVRO else json_rules.unreadable
    for number, old in sorted(older, key=lambda each: each[0], reverse=True):
        found: list[SchemaProblem] = []
        if compatibility in (Compatibility.BACKWARD, Compatibility.FULL):
            found += unreadable(schema, old, reads=version, writes=number)
        if compatibility in (Compatibility.FORWARD, Compatibility.FULL):
            found += unreadable(old, schema, reads=number, writes=version)
        if found:
            return number, list(dict.fromkeys(found))
    return 0, []
