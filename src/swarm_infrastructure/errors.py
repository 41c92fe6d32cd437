"""Every error that the package raises, sorted by what the caller can do about it.

::

    SwarmError
    ├── ConfigurationError             fix the settings, the board or the server, start again
    │   ├── BoardError                 a board that contradicts itself
    │   ├── BoardMismatchError         Redis holds another board under this name
    │   ├── TopicMismatchError         Redis holds a topic of this name with other partitions
    │   ├── LibraryMismatchError       the server holds another build of the function library
    │   ├── ServerUnfitError           a Redis that can't carry a board (no functions, evicts keys)
    │   └── MissingExtraError          an optional part that is not installed
    ├── RefusedError                   the swarm said no: decide, do not retry
    │   ├── InvalidInputError          a name, payload or argument that breaks a limit
    │   ├── ItemNotFoundError · UnknownSectionError · WrongStatusError · ItemHeldError
    │   ├── VersionConflictError       somebody changed the item since it was read
    │   ├── ClaimLostError             the lease ran out or the claim was ended: whatever it writes is stale
    │   ├── SectionFullError           a section's cap, or Redis' memory, is reached
    │   ├── LockNotAcquiredError
    │   ├── DebateNotFoundError        no debate of this id: never opened, or forgotten
    │   ├── DebateRefusedError         not invited, has voted otherwise, too many arguments, other facts
    │   ├── TopicNotFoundError · TopicFullError · GroupNotFoundError
    │   ├── DeliveryLostError          the lease on a partition ran out: whatever its holder writes is stale
    │   ├── CircuitOpenError           a backend failed too often; nobody calls it for a while
    │   ├── ReplayError                a replay came to a step that is not on record
    │   ├── BudgetExceededError        a budget has less left than a call would cost
    │   ├── UnknownPriceError          no price is known for a model, so no call is made
    │   ├── RPCFailedError             whoever was called refused or failed
    │   ├── UnknownSchemaError         nobody registered this subject, version or id
    │   ├── IncompatibleSchemaError    a schema with which data would become unreadable
    │   └── ModelError                 a model or its provider said no, or answered what can't be used
    └── UnavailableError               a service did not answer: a retry may help
        ├── StoreUnavailableError
        ├── RPCTimeoutError            nobody answered a call in time
        └── ModelUnavailableError      a provider is overloaded, slow or cut off
            └── RateLimitedError       … or asked us to slow down

Each message names the thing, what was found, what was needed and the next step; the same facts are fields.
Losing a race is a value, not an error: ``claim`` gives no claim, ``submit`` gives the duplicate's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BoardError",
    "BoardMismatchError",
    "BudgetExceededError",
    "CircuitOpenError",
    "ClaimLostError",
    "ConfigurationError",
    "DebateNotFoundError",
    "DebateRefusedError",
    "DeliveryLostError",
    "GroupNotFoundError",
    "IncompatibleSchemaError",
    "InvalidInputError",
    "ItemHeldError",
    "ItemNotFoundError",
    "LibraryMismatchError",
    "LockAcquisitionError",
    "LockNotAcquiredError",
    "MissingExtraError",
    "ModelError",
    "ModelUnavailableError",
    "RPCError",
    "RPCFailedError",
    "RPCTimeoutError",
    "RateLimitedError",
    "RefusedError",
    "ReplayError",
    "SchemaProblem",
    "SectionFullError",
    "ServerUnfitError",
    "StoreUnavailableError",
    "SwarmError",
    "TopicFullError",
    "TopicMismatchError",
    "TopicNotFoundError",
    "UnavailableError",
    "UnknownPriceError",
    "UnknownSchemaError",
    "UnknownSectionError",
    "VersionConflictError",
    "WrongStatusError",
]


class SwarmError(Exception):
    """The root: catch it to catch whatever the package raises on purpose."""


class ConfigurationError(SwarmError):
    """The settings, the board or the server are wrong: fix them and start again."""


class BoardError(ConfigurationError):
    """A board contradicts itself; the message lists every fault found, not only the first."""

    def __init__(self, board: str, faults: list[str]) -> None:
        self.board, self.faults = board, faults
        listed = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(f"board {board!r} can't be built:{listed}")


class BoardMismatchError(ConfigurationError):
    """Redis holds a board of this name with other sections, statuses or limits."""

    def __init__(self, board: str, *, found: str, needed: str, blocking: str = "") -> None:
        self.board, self.found, self.needed, self.blocking = board, found, needed, blocking
        why = f"; it can't be replaced while items stand in {blocking}" if blocking else ""
        step = (
            "move or delete these items first"
            if blocking
            else "replace it with: swarm run TARGET --replace-board (or Blackboard.open(replace=True))"
        )
        super().__init__(f"board {board!r} in Redis is {found[:12]}, this program brings {needed[:12]}{why}; {step}")


class TopicMismatchError(ConfigurationError):
    """Redis holds a topic of this name with another number of partitions."""

    def __init__(self, topic: str, *, found: int, needed: int) -> None:
        self.topic, self.found, self.needed = topic, found, needed
        super().__init__(
            f"topic {topic!r} has {found} partitions, this program opens it with {needed}; the number can't change, because "
            f"keys would lose their order: open it with partitions={found}, or publish to a new topic"
        )


class LibraryMismatchError(ConfigurationError):
    """The server's function library is not the one that this version of the package brings."""

    def __init__(self, function: str, found: object, needed: str = "an answer this version knows") -> None:
        self.function, self.found, self.needed = function, found, needed
        super().__init__(
            f"{function} on this server answered or is {found!r}, needed {needed}; "
            "if no other version of swarm_infrastructure uses this server: swarm redis upgrade"
        )


class ServerUnfitError(ConfigurationError):
    """The Redis server can't carry a board."""

    def __init__(self, server: str, *, found: str, needed: str, step: str) -> None:
        self.server, self.found, self.needed, self.step = server, found, needed, step
        super().__init__(f"Redis at {server}: found {found}, needed {needed}; {step}")


class MissingExtraError(ConfigurationError):
    """A part of the package needs a library that is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        self.library, self.extra = library, extra
        super().__init__(f"{library} is not installed; install it with: pip install 'swarm-infrastructure[{extra}]'")


class RefusedError(SwarmError):
    """The swarm said no. Doing the same again gives the same answer."""


class InvalidInputError(RefusedError, ValueError):
    """An argument breaks a rule that can be checked before anything is written."""

    def __init__(self, what: str, *, found: object, needed: str, step: str = "") -> None:
        self.what, self.found, self.needed = what, found, needed
        shown = repr(found)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(f"{what}: found {shown}, needed {needed}" + (f"; {step}" if step else ""))


class ItemNotFoundError(RefusedError, KeyError):
    """No item of this id is on the board."""

    def __init__(self, item_id: str, board: str = "", section: str = "") -> None:
        self.item_id, self.board, self.section = item_id, board, section
        where = f" in section {section!r}" if section else ""
        super().__init__(f"no item {item_id!r}{where} on board {board!r}; list them with: swarm items list")

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class UnknownSectionError(RefusedError):
    """The board has no such section."""

    def __init__(self, section: str, board: str, known: list[str]) -> None:
        self.section, self.board, self.known = section, board, known
        super().__init__(f"board {board!r} has no section {section!r}; it has: {', '.join(known)}")


class WrongStatusError(RefusedError):
    """The board does not allow this step, or the item is not where the call needs it."""

    def __init__(self, item_id: str, *, found: str, needed: str, step: str = "") -> None:
        self.item_id, self.found, self.needed = item_id, found, needed
        super().__init__(f"item {item_id!r} is {found}, needed {needed}" + (f"; {step}" if step else ""))


class ItemHeldError(RefusedError):
    """An agent holds a claim on the item, so that only it may change it."""

    def __init__(self, item_id: str, holder: str) -> None:
        self.item_id, self.holder = item_id, holder
        super().__init__(
            f"item {item_id!r} is claimed by {holder!r}, needed no claim; "
            f"wait for it to end, or take it away with: swarm agents revoke {holder}"
        )


class VersionConflictError(RefusedError):
    """Somebody changed the item since it was read; nothing was written."""

    def __init__(self, item_id: str, *, found: int, needed: int) -> None:
        self.item_id, self.found, self.needed = item_id, found, needed
        super().__init__(f"item {item_id!r} is at version {found}, needed {needed}; read it again and repeat")


class ClaimLostError(RefusedError):
    """The claim no longer holds: nothing was written, and somebody else may be working on the item."""

    def __init__(self, item_id: str, agent_id: str, token: int, why: str) -> None:
        self.item_id, self.agent_id, self.token, self.why = item_id, agent_id, token, why
        super().__init__(
            f"{agent_id!r} no longer holds item {item_id!r} (token {token}): {why}; "
            "nothing was written, drop the work and claim again"
        )


class SectionFullError(RefusedError):
    """A section is at its cap, or Redis at its memory limit; nothing was written."""

    def __init__(self, section: str, *, found: str, needed: str) -> None:
        self.section, self.found, self.needed = section, found, needed
        super().__init__(
            f"section {section!r} takes no more items: found {found}, needed {needed}; "
            "submit again when agents have worked some off"
        )


class TopicNotFoundError(RefusedError):
    """A topic was never opened, or was opened anew with other partitions."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(
            f"topic {topic!r}: found none that is open as this program knows it; open it again: topics.open()"
        )


class TopicFullError(RefusedError):
    """A topic is at its bound, and some group has not yet acknowledged what stands in it; nothing was published."""

    def __init__(self, topic: str, *, found: int, needed: int, group: str) -> None:
        self.topic, self.found, self.needed, self.group = topic, found, needed, group
        who = f"group {group!r} lags most" if group else "no group reads it"
        super().__init__(
            f"topic {topic!r} takes no more messages: found {found}, needed fewer than {needed}; {who}: start more of its "
            "consumers, drop it if nobody needs it (topic.drop_group), or open the topic with a higher most="
        )


class GroupNotFoundError(RefusedError):
    """A topic has no group of this name: it never began, or it was dropped."""

    def __init__(self, topic: str, group: str) -> None:
        self.topic, self.group = topic, group
        super().__init__(
            f"topic {topic!r} has no group {group!r}; it begins when somebody consumes: topic.consume({group!r})"
        )


class DeliveryLostError(RefusedError):
    """A consumer's lease on a partition ran out, or was taken away: nothing was written, somebody else goes on."""

    def __init__(self, topic: str, group: str, partition: int, entry: str, why: str) -> None:
        self.topic, self.group, self.partition, self.entry, self.why = topic, group, partition, entry, why
        super().__init__(
            f"message {entry} of topic {topic!r}, partition {partition}, is not in the hands of this consumer of group "
            f"{group!r} any more: {why}; nothing was written, drop the work: it is delivered again"
        )


class LockNotAcquiredError(RefusedError):
    """Somebody else held the lock for as long as the caller was ready to wait."""

    def __init__(self, resource: str, agent_id: str, *, holder: str, waited_s: float) -> None:
        self.resource, self.agent_id, self.holder, self.waited_s = resource, agent_id, holder, waited_s
        super().__init__(
            f"{agent_id!r} did not get the lock on {resource!r} within {waited_s:g} s: {holder!r} holds it; "
            "wait longer (timeout=...) or try later"
        )


LockAcquisitionError = LockNotAcquiredError  #: the name in the product document


class DebateNotFoundError(RefusedError, KeyError):
    """There is no debate of this id: it was never opened, or it is over and forgotten."""

    def __init__(self, debate_id: str) -> None:
        self.debate_id = debate_id
        super().__init__(
            f"no debate {debate_id!r}: found nothing, needed one that was opened and is kept; open it again"
        )

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class DebateRefusedError(RefusedError):
    """A debate does not take this from this agent; nothing was written.

    Args:
        debate_id: which one.
        who: the agent; "" if it is about the debate itself.
        kind: ``uninvited``, ``voted`` (otherwise, before), ``arguments`` (too many), ``differs`` (opened with other facts),
            ``open`` (can't be forgotten yet).
        why: what was found and needed.
        standing: the ``Vote`` that stands, of ``voted``.
    """

    def __init__(self, debate_id: str, who: str, kind: str, why: str, *, standing: Any = None) -> None:
        self.debate_id, self.who, self.kind, self.why, self.standing = debate_id, who, kind, why, standing
        super().__init__(f"debate {debate_id!r}" + (f" refuses {who!r}" if who else "") + f": {why}")


class BudgetExceededError(RefusedError):
    """A budget has less left than the call may cost. Nothing was booked and nothing sent."""

    def __init__(
        self,
        scope: str,
        *,
        window: str = "",
        unit: str = "usd",
        needed: float = 0,
        left: float = 0,
        limit: float = 0,
        on_breach: str = "pause",
        resumes_at_ms: int = 0,
    ) -> None:
        self.scope, self.window, self.unit = scope, window, unit  #: what ran out: ``agent:writer_1``, ``day``, ``usd``
        self.needed, self.left, self.limit = needed, left, limit  #: in dollars, tokens or requests
        self.on_breach = on_breach  #: pause, downgrade or fail
        self.resumes_at_ms = resumes_at_ms  #: when a new window begins, 0 if never
        self.held = 0.0  #: what is held for calls under way, if it would be enough once they cost less; else 0
        sign, digits = ("$", ".6f") if unit == "usd" else ("", ".0f")
        tail = "" if unit == "usd" else f" {unit}"

        def shown(amount: float) -> str:
            return f"{sign}{amount:{digits}}{tail}"

        super().__init__(
            f"the budget of {scope} per {window} has {shown(left)} of {shown(limit)} left, {shown(needed)} needed; "
            f"raise it: swarm budget raise {scope} --{window} AMOUNT"
        )


class CircuitOpenError(RefusedError):
    """A backend failed too often in a row, so nobody in the fleet calls it for a while. Nothing was sent."""

    def __init__(self, name: str, retry_after_s: float) -> None:
        self.name, self.retry_after_s = name, retry_after_s  #: the breaker; seconds until it lets a probe pass
        super().__init__(
            f"breaker {name!r} is open: its backend failed too often, it is tried again in {retry_after_s:.1f} s; "
            f"use a fallback, or close it by hand: swarm breakers close {name}"
        )


class ReplayError(RefusedError):
    """A replay came to a step that is not on record. Nothing was called: a replay costs nothing."""

    def __init__(self, item_id: str, step: str) -> None:
        self.item_id, self.step = item_id, step
        super().__init__(
            f"item {item_id!r} is a replay, and its step {step!r} is not on record: its code, its prompt or its arguments "
            f"have changed; see what is: swarm items steps {item_id}"
        )


class UnknownPriceError(RefusedError):
    """No price is known for a model: what it would cost can't be reserved, so it is not called."""

    def __init__(self, model: str, *, known: str = "") -> None:
        self.model = model
        near = f" (did you mean {known}?)" if known else ""
        super().__init__(
            f"no price is known for model {model!r}{near}; needed one in genai-prices or in SWARM_PRICES; "
            "list them: swarm models"
        )


class UnknownSchemaError(RefusedError, KeyError):
    """Nobody registered this schema."""

    def __init__(self, what: str, *, known: str = "none") -> None:
        self.what, self.known = what, known
        super().__init__(f"no schema is registered as {what}; there are: {known}; register it, or check the namespace")

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaProblem:
    """One place where what a schema writes could not be read with another one."""

    path: str  #: of the field: ``/session/started_at``; ``/tags/*`` for the elements of a list; ``/`` for the whole
    found: str
    needed: str
    reader: int = 0  #: the version that could not read; 0 if the schema itself is the problem
    writer: int = 0  #: … what this version writes

    def __str__(self) -> str:
        return f"{self.path}: found {self.found}; needed {self.needed}"


class IncompatibleSchemaError(RefusedError):
    """A schema with which messages would become unreadable; nothing was registered."""

    def __init__(
        self, subject: str, *, version: int, against: int, compatibility: str, problems: Sequence[SchemaProblem]
    ) -> None:
        self.subject, self.version = subject, version  #: the version that it would have become
        self.against = against  #: the version that it does not fit; 0 if it can't be compared with any
        self.compatibility, self.problems = compatibility, tuple(problems)
        listed = "".join(f"\n  - {problem}" for problem in self.problems)
        what = (
            f"version {version} is not {compatibility} compatible with version {against}"
            if against
            else f"version {version} can't be checked for {compatibility} compatibility"
        )
        super().__init__(
            f"schema {subject!r}: {what}:{listed}\n"
            "Change these fields; or break with the old versions on purpose: set_compatibility(subject, 'none'), "
            "register, and give an upcaster"
        )


class ModelError(RefusedError):
    """A model or its provider said no, or gave an answer that can't be used. Asking the same again will not help.

    Args:
        model: which one.
        kind: ``auth`` (wrong key), ``quota`` (the account is empty), ``request`` (it refuses the request), ``refusal``
            (the model declined), ``truncated`` (the answer hit max_output_tokens), ``schema`` (it does not fit the
            schema, after one repair), ``forbidden`` (real requests are switched off).
        why: what was found.
        step: what to do next.
        usage: the ``TokenUsage`` of an answer that has to be paid though it can't be used; None: there was no answer.
    """

    def __init__(self, model: str, kind: str, why: str, *, step: str = "", usage: Any = None) -> None:
        self.model, self.kind, self.why, self.usage = model, kind, why, usage
        super().__init__(f"model {model!r}: {kind}: {why}" + (f"; {step}" if step else ""))


class UnavailableError(SwarmError):
    """A service did not answer. A retry may help."""


class StoreUnavailableError(UnavailableError):
    """Redis did not answer; whether the last call was executed is unknown, repeating it is safe."""

    def __init__(self, server: str, why: str) -> None:
        self.server, self.why = server, why
        super().__init__(f"Redis at {server} does not answer ({why}); start it, or set REDIS_URL; check: swarm doctor")


class ModelUnavailableError(UnavailableError):
    """A provider did not answer, answered with a fault of its own, or was cut off in the middle of an answer.

    Args:
        model: which one.
        why: what was found.
        retry_after_s: seconds that the provider asks to wait.
        may_be_paid: the provider may bill the call all the same; False if it surely did no work.
        usage_so_far: the ``TokenUsage`` that surely has to be paid: of a stream that was cut, of an earlier attempt.
        text_so_far: what had come of the answer.
    """

    def __init__(
        self, model: str, why: str, *, retry_after_s: float | None = None, may_be_paid: bool = True,
        usage_so_far: Any = None, text_so_far: str = "",
    ) -> None:  # fmt: skip
        self.model, self.why, self.retry_after_s, self.may_be_paid = model, why, retry_after_s, may_be_paid
        self.usage_so_far, self.text_so_far = usage_so_far, text_so_far
        wait = f" (it asks to wait {retry_after_s:g} s)" if retry_after_s is not None else ""
        super().__init__(f"model {model!r} is not available: {why}{wait}; it is asked again later")


class RateLimitedError(ModelUnavailableError):
    """The provider, or our own limiter, asks to slow down.

    Args:
        by_provider: False: it was our own limiter, and the call has waited as long as it is worth.
    """

    def __init__(self, *args: Any, by_provider: bool = True, **facts: Any) -> None:
        self.by_provider = by_provider
        super().__init__(*args, **facts)


class RPCError(SwarmError):
    """A call of a service brought no result: see its two kinds."""


class RPCFailedError(RPCError, RefusedError):
    """Whoever was called refused, or failed."""

    def __init__(self, service: str, method: str, why: str) -> None:
        self.service, self.method, self.why = service, method, why
        super().__init__(f"call of {service} {method!r}: {why}")


class RPCTimeoutError(RPCError, UnavailableError):
    """Nobody answered a call in time. It may have been executed."""

    def __init__(self, service: str, method: str, timeout_s: float) -> None:
        self.service, self.method, self.timeout_s = service, method, timeout_s
        super().__init__(
            f"call of {service} {method!r}: no answer within {timeout_s:g} s; is a process running that serves {service}?"
        )
