"""Near-duplicates by their words: how alike two texts are, and short signatures that let a board find candidates.

Owns the normal form of a text, its content hash, its shingles, the similarity of two texts and the sketch under which a
board files a text. Leaves storing sketches, and what happens to a duplicate, to the board. Pure functions, standard
library only; the same text gives the same answer in every process.

How the parts belong together: ``content_hash`` finds texts that are the same but for case, punctuation and spacing.
``sketch`` gives BANDS short strings; two texts whose similarity is at least FLAG have one of them in common with a
probability of 98 % or more, two unrelated ones hardly ever. So a board that lays down all of a text's bands in one
step learns whom to compare it with, and two near-copies written at the same moment can't miss each other.
``similarity`` then decides: REJECT and above is a duplicate, from FLAG up to REJECT it is kept and linked, below FLAG
it is new.

This is lexical. It knows copies, with edits; it does not know that two texts say the same in other words (see
``benchmarks/near_duplicates.py`` for figures on both).

Sketches and hashes are stored: whoever changes how they come about must let the boards that hold old ones expire.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_left
from functools import lru_cache
from random import Random
from zlib import crc32

__all__ = ["BANDS", "FLAG", "REJECT", "content_hash", "normalise", "shingles", "similarity", "sketch"]

# Measured by benchmarks/near_duplicates.py on 509 news texts, 4,072 edited copies and 129,286 pairs of different texts.
# REJECT finds half of the copies (nine in ten of the lightly edited ones) and took no pair for a copy; FLAG finds 95 %
# and linked nine pairs, four of which were copies indeed.
REJECT = 0.85  #: similarity from which on a text is a duplicate
FLAG = 0.58  #: similarity from which on a text is kept, and linked to the likely original

BANDS = 24  #: strings in a sketch
_ROWS = 2  # minima in a band. At FLAG the shingle sets have Jaccard j = 0.58 / 1.42; 1 - (1 - j**2)**24 = 0.987


# --- the normal form -----------------------------------------------------------------------------------------------


class _Fold(dict[int, str]):
    """What ``str.translate`` puts for each character: punctuation and white space become a space, the invisible goes.

    Filled as characters turn up, so that each is looked up once in a process.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if char in "'’ʼ`" or category == "Cf":  # don't and dont are one word; soft hyphens and joiners are not seen
            folded = ""
        elif category[0] in "PZC":  # C: control characters, line breaks and tabs among them
            folded = " "
        else:
            folded = char  # letters, marks, digits; symbols too: $5 is not £5
        self[code] = folded
        return folded


_FOLD = _Fold()
_MINUS = re.compile(r"(?<!\w)[-−‐‑–](?=\d)")
_DASH = re.compile(r"(?<=\w)−|−(?!\d)")  # a minus sign that makes no number negative


def normalise(text: str) -> str:
    """*text* as it counts for comparing: NFKC, case folded, without punctuation, single spaces.

    A minus before a number stays, as do currency and mathematical signs. Normalising twice changes nothing.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_DASH.sub(" ", _MINUS.sub("−", folded)).translate(_FOLD).split())


def content_hash(*fields: str) -> str:
    """The key under which exact duplicates meet: 32 hex digits, equal where all normalised fields are equal.

    Order and borders count: ("ab", "c") is not ("a", "bc"). A field of nothing but punctuation counts as it stands.
    """
    digest = hashlib.sha256()
    for field in fields:
        data = (normalise(field) or field.strip()).encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:32]


# --- shingles and similarity ---------------------------------------------------------------------------------------

_LONG = 5  # letters from which a word counts alone: shorter ones are mostly the little words that all texts share
_HASH_BITS = 30  # as far as CPython multiplies and sorts integers fastest; two of 500 shingles meet once in 8,600 texts
_MASK = (1 << _HASH_BITS) - 1
# Thai, Lao, Burmese, Khmer, kana and Chinese put no space between words: there each character counts as one.
_UNSPACED = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


def shingles(text: str) -> frozenset[int]:
    """What *text* is compared by, as hashes of 30 bits: pairs of neighbouring words, and long words and numbers alone.

    Pairs tell a copy from a text on the same subject; the words alone let a text with every tenth word changed still be
    recognised. That beat pairs alone, triples and runs of characters (``benchmarks/near_duplicates.py``). A text of a
    few short words falls back on all its words; one without a letter or digit has no shingles.
    """
    return _profile(text)[0]


@lru_cache(maxsize=64)  # a new text is held against one old text after another
def _profile(text: str) -> tuple[frozenset[int], frozenset[str]]:
    """A text's shingles and its numbers."""
    normal = normalise(text)
    if not normal.isascii():
        normal = _UNSPACED.sub(r" \1 ", normal)
    words = normal.split()
    data = [word.encode("utf-8", "surrogatepass") for word in words]
    alone = [crc32(word) for word in data]
    found = {crc32(b" " + after, before) for before, after in zip(alone, data[1:], strict=False)}
    numbers = frozenset(word for word in words if any(char.isdigit() for char in word))
    found.update(each for word, each in zip(words, alone, strict=True) if len(word) >= _LONG or word in numbers)
    return frozenset(each & _MASK for each in found or alone), numbers


def similarity(a: str, b: str) -> float:
    """How alike two texts are, from 0 (no shingle in common) to 1 (the same but for punctuation, case and spacing).

    The share of their shingles that they have in common, Dice's coefficient 2|A∩B| / (|A|+|B|): half of a text against
    the whole gives 0.67, one word in ten changed about 0.8. Where each text has a number that the other lacks it stays
    just below REJECT, however alike the words: two earthquakes, two match reports or two days' prices from one template
    are two stories, and a new number is news.

    Source: L. Dice, "Measures of the amount of ecologic association between species", Ecology 26(3), 1945.
    """
    if a == b:
        return 1.0
    (in_a, numbers_a), (in_b, numbers_b) = _profile(a), _profile(b)
    if not in_a or not in_b:
        return 0.0
    alike = 2 * len(in_a & in_b) / (len(in_a) + len(in_b))
    if numbers_a - numbers_b and numbers_b - numbers_a:
        return min(alike, REJECT - 0.001)
    return alike


# --- sketches ------------------------------------------------------------------------------------------------------

_RINGS = 8
_RANDOM = Random(20_240_229)  # any seed would do, as long as it is this one in every process
_TURNS = [_RANDOM.getrandbits(_HASH_BITS) | 1 for _ in range(_RINGS)]
_STARTS = [[_RANDOM.getrandbits(_HASH_BITS) for _ in range(BANDS * _ROWS // _RINGS)] for _ in range(_RINGS)]


def sketch(text: str) -> tuple[str, ...]:
    """BANDS strings like ``07:1f9a03c2``, one of which alike texts have in common; none for a text without words.

    Two texts with similarity FLAG share at least one with a probability of 0.987, with 0.7 of 0.9997; with 0.1, which
    is more than most texts on different matters have, of 0.06, with 0.05 of 0.016.

    A MinHash: lay the shingles' hashes out on a ring, start at a fixed point and take the first that comes. Two sets
    meet there with the probability of their Jaccard index, |A∩B| / |A∪B|. Two such meetings make a band. Each of the
    rings shuffles the hashes by another multiplier and serves six starting points, so that a text costs eight sorts
    instead of 48 passes.

    Source: A. Broder, "On the resemblance and containment of documents", 1997; the ring after A. Shrivastava, P. Li,
    "Densifying one permutation hashing via rotation for fast near neighbor search", ICML 2014.
    """
    found = shingles(text)
    if not found:
        return ()
    minima: list[int] = []
    for turn, starts in zip(_TURNS, _STARTS, strict=True):
        ring = sorted([each * turn & _MASK for each in found])
        minima += [ring[bisect_left(ring, start) % len(ring)] for start in starts]
    bands = (minima[index : index + _ROWS] for index in range(0, len(minima), _ROWS))
    return tuple(f"{number:02d}:{crc32(repr(band).encode()):08x}" for number, band in enumerate(bands))
