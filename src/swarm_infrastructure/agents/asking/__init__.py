"""Asking a model for an item, or for several in one call: tier, budget, pace, retry and the record of the answer, joined.

::

    model of the task's tier → recorded? turn? money? reserve → call → settle + record the answer

which are two round trips: one function asks for the record, the turn and the money, and sets it aside; one settles. From
then on the call counts as sent, so a caller that dies before its first byte is booked at the estimate too.
The record is written by the call that settles, so an answer that was paid for is never paid for again: after a crash the
step returns it, at no cost. What can't be known (a cut connection) is booked at the estimate.

Every call is paid by *parts*, one for each item that it is made for; an item that asks alone is a call of one part. Parts
reserve and settle for themselves, in the budgets of their own item, and together to the nano-dollar what the call costs.
"""

from __future__ import annotations

from .alone import ask
from .answers import Answered
from .together import ask_together

__all__ = ["Answered", "ask", "ask_together"]
