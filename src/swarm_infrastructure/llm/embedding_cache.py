"""Embeddings that were computed, so that no text is embedded twice.

Owns where vectors are kept and how they are packed. Leaves the computing to whoever brings ``embed``, and its price to
whoever books that.

A vector is kept as its numbers in 32 bits, with a checksum before them. What does not fit it, or is of another length than
the vectors beside it, is computed anew.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import structlog

from ..errors import InvalidInputError, SwarmError

if TYPE_CHECKING:
    from ..keys import BoardKeys
    from ..store import Store

__all__ = ["EmbeddingCache"]

log = structlog.get_logger(__name__)
Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
KEEP_S = 30 * 86400.0  # news is seldom read again after a month; without an end the board would only grow


class EmbeddingCache:
    """The vectors of one model.

    Args:
        store: the Redis that holds the board.
        keys: of the board.
        embed: computes one vector per text, in the order given.
        model: names what computes them: vectors of different models don't mix.
        keep_s: how long a vector is kept after it was computed.
    """

    def __init__(self, store: Store, keys: BoardKeys, embed: Embed, *, model: str, keep_s: float = KEEP_S) -> None:
        self._store, self._keys, self._embed = store, keys, embed
        self._model, self._keep_ms = model, max(1, round(keep_s * 1000))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text, in the order given; shape (len(texts), dimensions), rounded to 32 bits.

        What is missing is computed in one call. (A second one is made only if the model gives vectors of another length
        than before: then those that were kept are of no use.)

        Raises:
            InvalidInputError: ``embed`` gave another number of vectors than texts, or vectors that don't match.
        """
        keys = {text: self._key(text) for text in texts}  # each distinct text once
        if not keys:
            return []
        vectors = await self._kept(keys)
        fresh = await self._computed([text for text in keys if text not in vectors])
        vectors |= fresh
        length = len(next(iter((fresh or vectors).values())))
        stale = [text for text, vector in vectors.items() if len(vector) != length]
        if stale:
            log.warning("the model's vectors have another length now", model=self._model, length=length)
            again = await self._computed(stale)
            vectors, fresh = vectors | again, fresh | again
            _same_length(fresh)
        await self._keep({keys[text]: vector for text, vector in fresh.items()})
        return [list(vectors[text]) for text in texts]

    async def _kept(self, keys: dict[str, str]) -> dict[str, tuple[float, ...]]:
        entries = await self._store.command("MGET", *keys.values())
        vectors = {}
        for (text, key), entry in zip(keys.items(), entries, strict=True):
            if entry is None:
                continue
            vector = _unpacked(entry)
            if vector is None:
                log.warning("a cached vector can't be read", key=key, bytes=len(entry))
            else:
                vectors[text] = vector
        lengths = Counter(map(len, vectors.values())).most_common(2)
        if len(lengths) < 2:
            return vectors
        log.warning("cached vectors differ in length", model=self._model, lengths=dict(lengths))
        (usual, most), (_, second) = lengths
        # as many of the one as of the other: nobody knows which are right
        return {text: vector for text, vector in vectors.items() if len(vector) == usual and most > second}

    async def _computed(self, texts: list[str]) -> dict[str, tuple[float, ...]]:
        if not texts:
            return {}
        computed = await self._embed(texts)
        if len(computed) != len(texts):
            raise InvalidInputError(
                "embed", found=f"{len(computed)} vectors", needed=f"one for each of {len(texts)} texts"
            )
        vectors = {text: _rounded(vector) for text, vector in zip(texts, computed, strict=True)}
        _same_length(vectors)
        return vectors

    async def _keep(self, vectors: dict[str, tuple[float, ...]]) -> None:
        if not vectors:
            return
        try:
            await self._store.commands(
                *(("SET", key, _packed(vector), "PX", self._keep_ms) for key, vector in vectors.items())
            )
        except SwarmError as error:  # they were computed all the same
            log.warning("vectors could not be cached", model=self._model, vectors=len(vectors), why=str(error))

    def _key(self, text: str) -> str:
        named = f"{len(self._model)}:{self._model}{text}".encode("utf-8", "surrogatepass")
        return self._keys.vector(hashlib.sha256(named).hexdigest())


def _same_length(vectors: dict[str, tuple[float, ...]]) -> None:
    lengths = {len(vector) for vector in vectors.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise InvalidInputError("embed", found=f"vectors of {sorted(lengths)} numbers", needed="one length above 0")


def _rounded(vector: Sequence[float]) -> tuple[float, ...]:
    form = f"<{len(vector)}f"
    try:
        return struct.unpack(form, struct.pack(form, *vector))
    except (struct.error, OverflowError, TypeError) as error:
        raise InvalidInputError("embed", found=str(error), needed="numbers that fit 32 bits") from error


def _packed(vector: Sequence[float]) -> bytes:
    numbers = struct.pack(f"<{len(vector)}f", *vector)
    return crc32(numbers).to_bytes(4, "little") + numbers


def _unpacked(entry: bytes) -> tuple[float, ...] | None:
    """The vector, or None if the entry is torn or something else."""
    mark, numbers = entry[:4], entry[4:]
    if not numbers or len(numbers) % 4 or crc32(numbers).to_bytes(4, "little") != mark:
        return None
    return struct.unpack(f"<{len(numbers) // 4}f", numbers)
