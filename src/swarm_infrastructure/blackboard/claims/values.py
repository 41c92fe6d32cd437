"""What a claim is, what an agent asks for, and how a claim ends."""

from __future__ import annotations

import binascii
import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from ...errors import InvalidInputError
from ...keys import check_id, check_name
from ..items import Item, check_seconds

__all__ = [
    "LEAST_LEASE_S", "MOST_PER_CALL", "Claim", "ClaimRequest", "Claimed", "Ending", "Hands", "Kind", "current_claim",
    "new_request", "work_under",
]  # fmt: skip

LEAST_LEASE_S = 0.05  # shorter ones end on the way to the agent
MOST_PER_CALL = 500  # a call of 500 items keeps Redis busy for 5-10 ms, as long as others should have to wait
Kind = Literal["complete", "fail", "give_up", "hand_back", "revoke"]


# What is made for every item is no frozen dataclass: to make one of those takes two to three times as long.
@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Claim:
    """One agent's sole right to work on one item, until its lease ends. Don't change it."""

    item_id: str
    agent_id: str
    token: int  #: grows with every claim of the item; a write that carries an older one is refused
    ends_at_ms: int  #: milliseconds since the epoch, on Redis' clock
    lease_s: float
    lane: str  #: the lane it was claimed from: section/status/requires
    taken_at: float  #: this process' monotonic clock when the claim was asked for: never later than on Redis


@dataclass(slots=True, kw_only=True)
class Claimed:
    """A claim and the item it holds, as it was when claimed."""

    claim: Claim
    item: Item


@dataclass(frozen=True, slots=True)
class Hands:
    """What came of claims for several requests."""

    dealt: list[list[Claimed] | str]  #: for each what it got (possibly nothing), or the gate that is shut for its agent
    due_s: (
        float | None
    )  #: when the next lease or delay of these lanes ends, in seconds from then; None if there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRequest:
    """What an agent would take."""

    agent_id: str
    role: str
    lanes: tuple[str, ...]  #: in no order: priority, then order of arrival decide
    most: int = 1
    most_held: int = 0  #: claims that the agent may hold at once; 0: any number
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        check_id("agent id", self.agent_id)
        if self.role:
            check_name("role", self.role)
        check_seconds("lease_s", self.lease_s, least=LEAST_LEASE_S)
        for what, number, least in (
            ("most", self.most, 1),
            ("most_held", self.most_held, 0),
            ("lanes", len(self.lanes), 1),
        ):
            if type(number) is not int or number < least:
                raise InvalidInputError(what, found=number, needed=f"a whole number of at least {least}")


@dataclass(slots=True, kw_only=True)
class Ending:
    """How a claim ends."""

    claim: Claim
    kind: Kind
    to: str  #: lane it goes to
    quarantine: str  #: lane it goes to if it wore out
    delay_s: float = 0.0
    reason: str = ""
    trace: str = ""
    error: bytes = b""  #: a line of JSON for the item's error list
    version: int = 0  #: the version that the payload was made from
    payload: bytes = b""  #: the whole new payload, if it changed
    result: bytes = b""

    def __post_init__(self) -> None:
        if self.delay_s or type(self.delay_s) is not float:
            check_seconds(f"delay_s of item {self.claim.item_id!r}", self.delay_s)


_NO_SIGNS = bytes.maketrans(b"+/", b"-_")
_CLAIM: ContextVar[Claim | None] = ContextVar("claim", default=None)


def current_claim() -> Claim | None:
    """The claim that the running task works under, also after it was lost: a write with it is refused then."""
    return _CLAIM.get()


def work_under(claim: Claim) -> None:
    """What the running task does from here on is done under *claim*."""
    _CLAIM.set(claim)


def new_request() -> str:
    """An id for one call: a repeat carries the same one and gets the first answer."""
    return binascii.b2a_base64(os.urandom(6), newline=False).translate(_NO_SIGNS).decode()
