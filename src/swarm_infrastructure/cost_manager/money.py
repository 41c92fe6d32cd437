"""Money: dollars at the doors, whole nano-dollars inside.

Owns the two conversions and how an amount is shown. A nano-dollar is a billionth of a dollar: one cached token of a small
model costs ten of them, where a micro-dollar would round it to nothing. Redis counts them as 64-bit integers, and Lua as
doubles, which are exact up to 2**53: that is where ``MOST_USD`` comes from.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation

from ..errors import InvalidInputError

__all__ = ["MOST_USD", "NANO", "shown", "to_dollars", "to_nano"]

NANO = 10**9  # nano-dollars in a dollar
MOST_USD = 9_000_000  # 9e15 nano-dollars; above 2**53 (9.007e15) Lua would lose the last digit


def to_nano(amount: Decimal | float | int | str, field: str = "amount") -> int:
    """*amount* dollars in whole nano-dollars; a fraction of one is rounded up, so that nothing is counted too low.

    A float counts as the number that Python shows for it: 0.1 is ten cents, not 0.1000000000000000055.

    Raises:
        InvalidInputError: naming *field*; no number, not finite, negative, or more than ``MOST_USD``.
    """
    needed = f"dollars, a number from 0 to {MOST_USD:,}"
    if isinstance(amount, bool) or not isinstance(amount, (Decimal, float, int, str)):
        raise InvalidInputError(field, found=amount, needed=needed)
    try:
        dollars = Decimal(repr(amount) if isinstance(amount, float) else amount)
    except (InvalidOperation, ValueError) as error:
        raise InvalidInputError(field, found=amount, needed=needed) from error
    if not dollars.is_finite() or not 0 <= dollars <= MOST_USD:
        raise InvalidInputError(field, found=amount, needed=needed)
    sign, digits, exponent = dollars.as_tuple()
    assert isinstance(exponent, int)  # it is a letter only for what is not finite
    return math.ceil(Decimal((sign, digits, exponent + 9)))  # not "* NANO": that would round to 28 digits first


def to_dollars(nano: int) -> Decimal:
    """*nano* nano-dollars in dollars, exactly; may be negative, for a correction."""
    return Decimal(nano).scaleb(-9)


def shown(nano: int) -> str:
    """*nano* nano-dollars for people: ``$12.00``, ``$0.012345``, ``-$0.50``; two decimals or as many as it has."""
    whole, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}${whole:,}.{decimals}"
