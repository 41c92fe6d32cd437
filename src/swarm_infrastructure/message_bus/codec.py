"""Codecs: how the body of a message is written. Plain JSON is the default; those of ``schemas`` have the same two methods.

They are coroutines, for a schema that somebody else wrote with may have to be looked up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..errors import InvalidInputError

__all__ = ["JSON", "Codec", "PlainCodec"]


class Codec(Protocol):
    """Writes bodies and reads them."""

    async def encode(self, body: Any, /) -> tuple[str, bytes]:
        """The content type and the bytes of *body*.

        Raises:
            InvalidInputError: it can't be written.
        """
        ...

    async def decode(self, content_type: str, body: bytes, as_: Any, /) -> Any:
        """*body* as *as_*, a type; ``Any`` is whatever stands there.

        Raises:
            InvalidInputError: it does not fit; the message names the field.
        """
        ...


class PlainCodec:
    """JSON without a schema, checked by pydantic when it is read."""

    content_type = "json"

    async def encode(self, body: Any, /) -> tuple[str, bytes]:
        """See `Codec`."""
        try:
            text = (
                body.model_dump_json().encode() if isinstance(body, BaseModel) else orjson.dumps(body, default=_plain)
            )
        except (TypeError, ValueError) as error:
            raise InvalidInputError("the body of a message", found=str(error), needed="a model or JSON data") from error
        return self.content_type, text

    async def decode(self, content_type: str, body: bytes, as_: Any, /) -> Any:
        """See `Codec`."""
        if content_type != self.content_type:
            raise InvalidInputError(
                "the content type of a message",
                found=content_type,
                needed=self.content_type,
                step="give it the codec it needs",
            )
        try:
            return orjson.loads(body) if as_ is Any else _adapter(as_).validate_json(body)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError("the body of a message", found=str(error), needed="JSON") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            name = getattr(as_, "__name__", str(as_))
            raise InvalidInputError(f"{name}: {where}", found=first.get("input"), needed=first["msg"]) from error


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no JSON data")


@lru_cache(maxsize=512)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


JSON = PlainCodec()
