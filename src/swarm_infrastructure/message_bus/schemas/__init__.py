"""Typed messages that may change: a schema registry in Redis, compatibility, upcasters, JSON and Avro on the wire.

.. code-block:: python

    registry = SchemaRegistry(store, "voice")
    codec = await AvroCodec.open(registry, "transcription", Transcription)
    content_type, data = await codec.encode(Transcription(text="lights off", user="ada"))
    again = await codec.decode(content_type, data)

A change of the model that would leave messages unreadable is refused when it is registered, and the error says which field and
what to do. What is compatible with what: ``compatibility``, ``json_rules``, ``avro_rules``.
"""

from __future__ import annotations

from ...errors import IncompatibleSchemaError, SchemaProblem, UnknownSchemaError
from .codecs import AvroCodec, JsonCodec
from .compatibility import Compatibility, Kind
from .registry import SchemaRegistry, SchemaVersion

__all__ = [
    "AvroCodec",
    "Compatibility",
    "IncompatibleSchemaError",
    "JsonCodec",
    "Kind",
    "SchemaProblem",
    "SchemaRegistry",
    "SchemaVersion",
    "UnknownSchemaError",
]
