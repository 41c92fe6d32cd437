"""Every Redis key, built in one place.

All keys of a board carry the same hash tag, ``{namespace:board}``, so that each function call stays on one cluster slot:
a board is one unit of scale. A *lane* is the line of all items with one section, status and required capability; it
has a name (``section/status/requires``) and three keys of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .errors import InvalidInputError

__all__ = [
    "BoardKeys",
    "BusKeys",
    "DebateKeys",
    "LaneKeys",
    "TopicKeys",
    "check_id",
    "check_name",
    "lane_name",
    "mark_beside",
    "tagged_prefix",
]

_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,63}")
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+~-]{0,127}")


def check_name(what: str, name: str) -> str:
    """Return *name* if it can name a section, a status, a role or a capability.

    Raises:
        InvalidInputError: it is no lower-case word of up to 64 letters, digits, ``_``, ``.`` or ``-``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInputError(what, found=name, needed="1-64 of a-z 0-9 _ . - (no leading . or -)")
    return name


def check_id(what: str, name: str) -> str:
    """Return *name* if it can be the id of an item or an agent.

    Raises:
        InvalidInputError: it holds anything but letters, digits and ``_ . : @ + ~ -``, or is longer than 128.
    """
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise InvalidInputError(
            what, found=name, needed="1-128 of A-Z a-z 0-9 _ . : @ + ~ - (no leading sign)", step="hash or encode it"
        )
    return name


def tagged_prefix(key: str) -> str:
    """What all keys on the slot of *key* begin with: ``swarm:{…}:``; "" if it carries no hash tag."""
    return key[: key.find("}:") + 2] if "{" in key and "}:" in key else ""


def mark_beside(key: str) -> str:
    """String on the slot of *key*, written so that a WAIT has something to wait for."""
    return tagged_prefix(key) + "mark"


@lru_cache(maxsize=65536)
def lane_name(section: str, status: str, requires: str = "") -> str:
    """``section/status/requires``: the name of a lane in keys, counters and events."""
    return f"{section}/{status}/{requires}"


@dataclass(frozen=True, slots=True)
class LaneKeys:
    """The keys of one lane."""

    name: str
    line: str  #: zset of ready or resting items, by priority then order of arrival
    timed: str  #: zset of items claimed from here by the end of their lease, and of delayed ones by their due time (ms)
    bell: str  #: list of at most one token: idle agents block on it


@dataclass(frozen=True, slots=True)
class DebateKeys:
    """The keys of one debate."""

    record: str  #: hash: its facts, tallies and verdict
    arguments: str  #: hash: number → argument; of|agent → those it brought
    votes: str  #: hash: agent → its vote


class BoardKeys:
    """The keys of one board: ``swarm:{namespace:board}:…``."""

    def __init__(self, namespace: str, board: str) -> None:
        prefix = self.prefix = f"swarm:{{{namespace}:{board}}}:"
        self.rules = prefix + "board"  #: hash: digest, definition and rules of the board
        self.items = prefix + "items"  #: hash: id → record
        self.payloads = prefix + "payloads"  #: hash: id → JSON
        self.results = prefix + "results"  #: hash: id → JSON that the last completion gave
        self.errors = prefix + "errors"  #: hash: id → JSON lines, newest last
        self.events = prefix + "events"  #: stream: one entry for a change, or for items that changed alike
        self.base = prefix + "base"  #: hash: id → its state after the last of its events that was trimmed
        self.counts = prefix + "counts"  #: hash: lane → items standing in it; section → items in it
        self.seq = prefix + "seq"  #: string: items ever submitted, which is their order of arrival
        self.fence = prefix + "fence"  #: string: the newest token
        self.dedup = prefix + "dedup"  #: hash: content hash → id|expires_ms
        self.gates = prefix + "gates"  #: hash: *, role:ROLE or agent:ID → why claims are stopped
        self.held = prefix + "held"  #: hash: agent → claims it holds
        self.receipts = prefix + "receipts"  #: hash: agent → its last claim call and what it got
        self.tallies = prefix + "tallies"  #: hash: agent|ending → how many claims ended so
        self.agents = prefix + "agents"  #: hash: agent → its description (JSON)
        self.orders = prefix + "orders"  #: hash: agent → what it was told to do (drain, shutdown) and has not done yet
        self.beats = prefix + "beats"  #: zset: agents by their last heartbeat (ms)
        self.bands = prefix + "bands"  #: hash: signature band → ids of texts that show it
        self.sketched = prefix + "sketched"  #: hash: id → its place among the texts laid down
        self.waits = prefix + "waits"  #: hash: id → who waits for which lock or debate, since and until when (JSON)
        self.limits = prefix + "limits"  #: hash: limit name → its limits, what a breach does, alert thresholds
        self.spend = prefix + "spend"  #: hash: window|scope → settled and held dollars (nano), tokens, requests
        self.reservations = prefix + "reservations"  #: hash: id → what is held for a model call, or how that ended
        self.reservations_due = prefix + "reservations_due"  #: zset: reservations by when they must be looked at (ms)
        self.ledger = prefix + "ledger"  #: stream: one entry per settled call or correction
        self.ledger_base = prefix + "ledger_base"  #: hash: window|scope → what the trimmed lines of the ledger booked
        self.declared = prefix + "declared"  #: hash: scope → the limits that code or settings declared last
        self.rates = prefix + "rates"  #: hash: model:NAME, agent:ID → calls and tokens of a window, until when to wait
        self.breakers = prefix + "breakers"  #: hash: backend → its breaker, if it is not well
        self.checkpoints = prefix + "checkpoints"  #: zset: task|stage by when its checkpoint ends (ms)
        self.failures = prefix + "failures"  #: stream: what failed lately, and what of it is well again
        self.escalations = prefix + "escalations"  #: hash: task → why a person has to look at it (JSON)
        self.tending = prefix + "tending"  #: string, for a while: somebody looks after what is kept
        self.debates = prefix + "debates"  #: zset: open debates by their deadline (ms)
        self.debates_closed = prefix + "debates_closed"  #: zset: closed debates by when they may be forgotten (ms)
        self._lanes: dict[str, LaneKeys] = {}

    @property
    def whole_items(self) -> list[str]:
        """What a whole item is read from."""
        return [self.items, self.payloads, self.results]

    def answers(self, item_id: str) -> str:
        """Hash: step → what was paid for or done for this item; see ``lua/shared/65_answers.lua``."""
        return f"{self.prefix}answers:{item_id}"

    def checkpoints_of(self, task_id: str) -> str:
        """Hash: stage → the task's checkpoint (JSON), which replaces the one before it as a whole."""
        return f"{self.prefix}checkpoints:{task_id}"

    def own(self, item_id: str) -> tuple[str, ...]:
        """The keys that one item alone has, and that go with it."""
        return (self.answers(item_id), self.checkpoints_of(item_id))

    def wake(self, waiting: str) -> str:
        """List: the bell of one process' waiting agents, which ends a claim of theirs that waits."""
        return f"{self.prefix}wake:{waiting}"

    def cached_answer(self, digest: str) -> str:
        """String: the answer to the request of this digest, for as long as it may be taken for new."""
        return f"{self.prefix}cache:answer:{digest}"

    def vector(self, digest: str) -> str:
        """String: the embedding of a text, by the digest of model and text."""
        return f"{self.prefix}cache:vector:{digest}"

    def debate(self, debate_id: str) -> DebateKeys:
        """The keys of one debate."""
        prefix = self.prefix
        return DebateKeys(f"{prefix}debate:{debate_id}", f"{prefix}arguments:{debate_id}", f"{prefix}votes:{debate_id}")

    def lane(self, name: str) -> LaneKeys:
        """The keys of the lane called *name* (see `lane_name`)."""
        keys = self._lanes.get(name)
        if keys is None:
            prefix = self.prefix
            keys = LaneKeys(name, f"{prefix}lane:{name}", f"{prefix}timed:{name}", f"{prefix}bell:{name}")
            self._lanes[name] = keys
        return keys


class BusKeys:
    """The keys of a namespace's bus: ``swarm:{namespace:bus}:…``, on one slot, so that one function can end a message and
    publish what came of it."""

    def __init__(self, namespace: str) -> None:
        prefix = self.prefix = f"swarm:{{{namespace}:bus}}:"
        self.rules = prefix + "bus"  #: hash: what holds for the whole bus; a test's clock offset
        self.numbers = prefix + "numbers"  #: hash: Redis channel → number of its newest message
        self.types = prefix + "types"  #: set: types that have a history
        self.topics = prefix + "topics"  #: hash: topic → partitions|keep_ms|keep_entries|most
        self.timers = prefix + "timers"  #: hash: timer → its last tick (ms)|what it is (JSON)
        self.schemas = prefix + "schemas"  #: hash: subject → its latest version, and what the next one must fit
        self.schema_versions = prefix + "versions"  #: hash: subject|version → schema; its digest and id → version

    def channel(self, name: str) -> str:
        """The Redis channel behind a channel of ours."""
        return f"{self.prefix}channel:{name}"

    def history(self, msg_type: str) -> str:
        """Stream: the newest messages of a type."""
        return f"{self.prefix}history:{msg_type}"

    def requests(self, service: str) -> str:
        """List: calls of a service that nobody has taken yet."""
        return f"{self.prefix}rpc:{service}"

    def topic(self, name: str) -> TopicKeys:
        """The keys of a topic."""
        return TopicKeys(f"{self.prefix}topic:{name}")


@dataclass(frozen=True, slots=True)
class TopicKeys:
    """The keys of one topic."""

    prefix: str

    def partition(self, number: int) -> str:
        """Stream: the messages of a partition, oldest first."""
        return f"{self.prefix}:{number}"

    def group(self, name: str) -> str:
        """Hash: who holds which partition for a group, and how it stands there."""
        return f"{self.prefix}:group:{name}"

    def recent(self, generation: int) -> str:
        """Hash: id of a message published lately → its partition/entry; two generations, 0 and 1, take turns."""
        return f"{self.prefix}:recent:{generation}"

    @property
    def dead(self) -> str:
        """Stream: messages that could not be processed, with the reason."""
        return f"{self.prefix}:dead"
