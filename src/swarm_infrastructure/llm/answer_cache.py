"""Answers that were paid for, for whoever asks the same again.

Owns what is kept and for how long. Leaves the decision to whoever asks, for a cached answer is an old one: nothing here
is used unless a call says for how long an answer may be taken for new.

"The same" means the same digest: model, conversation, schema and every knob that shapes the answer. Ages are counted by
Redis alone, so that clocks that differ don't make an answer younger than it is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import orjson
import structlog

from ..errors import InvalidInputError, LibraryMismatchError, SwarmError
from .types import LLMRequest, LLMResult

if TYPE_CHECKING:
    from ..keys import BoardKeys
    from ..store import Store

__all__ = ["AnswerCache"]

log = structlog.get_logger(__name__)


class AnswerCache:
    """The answers of one board.

    Args:
        store: the Redis that holds the board.
        keys: of the board; its namespace is part of them, so that swarms share no answers.
    """

    def __init__(self, store: Store, keys: BoardKeys) -> None:
        self._store, self._keys = store, keys

    async def get(self, request: LLMRequest, *, max_age_s: float = math.inf) -> LLMResult | None:
        """The answer to *request* if one is kept that is younger than *max_age_s*, else None.

        What is there but can't be read counts as absent, and is logged.
        """
        key = self._keys.cached_answer(request.digest())
        try:
            entry, left_ms = await self._store.commands(("GET", key), ("PTTL", key))
            if entry is None:
                return None
            age_ms, result = _read(entry, left_ms, request)
        except (LibraryMismatchError, InvalidInputError, KeyError, TypeError, ValueError) as error:
            log.warning("a cached answer can't be read", key=key, why=str(error) or repr(error))
            return None
        return result if age_ms < max_age_s * 1000 else None

    async def put(self, request: LLMRequest, result: LLMResult, ttl_s: float) -> bool:
        """Keep *result* for *ttl_s* seconds, in place of an older one.

        An answer that was cut short, calls tools or lacks the object of its schema is not kept.

        Returns:
            Whether it is kept. False also if Redis would not take it: the answer itself is none the worse for that.

        Raises:
            InvalidInputError: *ttl_s* is no time that can pass.
        """
        if not 0.001 <= ttl_s < math.inf:
            raise InvalidInputError("ttl_s", found=ttl_s, needed="seconds, 0.001 or more")
        if result.stop_reason != "stop" or result.tool_calls or (request.schema and result.parsed is None):
            return False
        key, ttl_ms = self._keys.cached_answer(request.digest()), round(ttl_s * 1000)
        entry = orjson.dumps({"ttl_ms": ttl_ms, "result": result.as_dict()})
        try:
            await self._store.command("SET", key, entry, "PX", ttl_ms, once=True)
        except SwarmError as error:
            log.warning("an answer could not be cached", key=key, why=str(error))
            return False
        return True


def _read(entry: bytes, left_ms: int, request: LLMRequest) -> tuple[int, LLMResult]:
    """How old an entry is, in milliseconds, and what it holds."""
    record = orjson.loads(entry)
    ttl_ms = record["ttl_ms"]
    if not isinstance(ttl_ms, int) or not 0 <= left_ms <= ttl_ms:
        raise ValueError(f"it has {left_ms} ms of {ttl_ms!r} left")
    result = LLMResult.from_dict(record["result"], request.schema)
    if not isinstance(result.text, str):
        raise ValueError(f"its text is a {type(result.text).__name__}")
    return ttl_ms - left_ms, result
