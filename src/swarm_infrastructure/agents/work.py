"""Work: one claimed item in an agent's hands, and the ways in which that can end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..blackboard import Claim, Claimed, Item, Lease, Place, Submission, Submitted
from ..blackboard.blackboard import Patch
from ..errors import ClaimLostError, ReplayError
from ..failure_recovery import Checkpoint, FailureType
from ..failure_recovery.steps import step_key
from .asking import Answered, ask
from .stepping import run_step

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..llm.types import ChatMessage
    from ..swarm_infrastructure import SwarmInfrastructure

__all__ = ["Complete", "Fail", "HandBack", "Outcome", "Work"]


@dataclass(slots=True, kw_only=True)
class Complete:
    """The work is done; the item goes on."""

    to: Place | str | None = None  #: where; None: where its section leads
    requires: str = ""
    patch: Patch | None = None
    result: Any = None
    reason: str = ""
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """The work did not succeed; it is tried again, or given up."""

    error: str
    retry_in_s: float | None = None  #: None: by the agent's retry policy
    give_up: bool = False
    type: FailureType = FailureType.UNKNOWN  #: for the record of failures


@dataclass(frozen=True, slots=True, kw_only=True)
class HandBack:
    """The item goes back as if it had not been taken."""

    reason: str = ""
    delay_s: float = 0.0


Outcome = Complete | Fail | HandBack


class Work:
    """One claimed item in an agent's hands. Handlers get it beside the item; most need `move` and `done` only."""

    __slots__ = ("_lease", "_swarm", "claim", "item", "role")

    def __init__(self, claimed: Claimed, lease: Lease, swarm: SwarmInfrastructure, *, role: str = "") -> None:
        self.claim: Claim = claimed.claim
        self.item: Item = claimed.item  #: as it was when claimed
        self.role = role  #: of the agent
        self._lease, self._swarm = lease, swarm

    @property
    def swarm(self) -> SwarmInfrastructure:
        """The swarm that this agent works in."""
        return self._swarm

    @property
    def agent_id(self) -> str:
        """Who works."""
        return self.claim.agent_id

    @property
    def item_id(self) -> str:
        """On which item."""
        return self.item.id

    @property
    def attempt(self) -> int:
        """1 for the first attempt in this section."""
        return self.item.attempts

    @property
    def key(self) -> str:
        """Names this stage of the item's life: the same in every attempt, so that outside systems can tell repeats."""
        return f"{self.item.id}:{self.item.section}:{self.claim.lane.split('/')[1]}"

    @property
    def stage(self) -> str:
        """The lane that the item was claimed from: ``section/status/requires``."""
        return self.claim.lane

    @property
    def token(self) -> int:
        """Of the claim; outside systems can fence with it."""
        return self.claim.token

    @property
    def lost(self) -> str:
        """Why the claim is lost, or "" while it holds."""
        return self._lease.lost

    def check(self) -> None:
        """Raise `ClaimLostError` if the claim is lost: call it before an effect that can't be taken back."""
        if self._lease.lost:
            raise ClaimLostError(self.claim.item_id, self.claim.agent_id, self.claim.token, self._lease.lost)

    async def submit(self, *items: Submission) -> list[Submitted]:
        """Put new items on the board, in this agent's name.

        Raises:
            ReplayError: the item is a replay: what it brought forth is there, and would be worked on and paid for again.
        """
        self.check()
        original = await self._swarm.failure_recovery.steps.original(self.item.id)
        if original is not None:
            raise ReplayError(self.item.id, f"submit of {', '.join(each.id for each in items)}")
        return await self._swarm.blackboard.submit(*items, agent=self.claim.agent_id)

    async def ask(
        self,
        task_type: str,
        prompt: str | Sequence[ChatMessage | Mapping[str, Any]],
        *,
        schema: type[BaseModel] | None = None,
        system: str | None = None,
        max_output_tokens: int = 1024,
        step: str | None = None,
        model: str | None = None,
        tier: str | None = None,
        tags: Sequence[str] = (),
        cache_s: float = 0.0,
        **more: Any,
    ) -> Answered:
        """Ask a model about this item, under every budget that it falls under, and pay at most once.

        The answer is recorded for the item before it is returned: asked again with the same arguments, also by another
        worker after a crash or by the same one at the same time, it comes from the record and costs nothing.

        Args:
            task_type: decides the tier (``TASK_TIER_MAPPING``) and stands in the ledger.
            prompt: a text, or messages.
            schema: the answer must be JSON of this model; one repair is asked for, then it is an error.
            system: instructions.
            max_output_tokens: bounds what the call can cost.
            step: names it in the record, if one item asks alike twice and wants two answers.
            model: this one and no other.
            tier: instead of the task type's.
            tags: further budgets, ``tag:NAME``.
            cache_s: take the answer to the same question, whatever its *step*, that any item of this board paid for less
                than so many seconds ago, asking with a *cache_s* that keeps it for as long. 0: ask anew.
            more: ``temperature``, ``tools``, ``service_tier``, … as `LLMRequest` takes them.

        Raises:
            BudgetExceededError: nothing was sent. Let it pass: the item goes back unharmed and the agent pauses.
            UnknownPriceError: no price is known for the model.
            ModelError, ModelUnavailableError: see `LLMClient.generate`; the latter after its retries, and after those of the
                tier's other models.
            CircuitOpenError: they failed too often lately, so nobody calls them for a while. Let it pass: the item goes back
                unharmed.
            ReplayError: the item is a replay, and this is not on record.
            ClaimLostError: the item is somebody else's by now.
        """
        return await ask(
            self, task_type, prompt, schema=schema, system=system, max_output_tokens=max_output_tokens, step=step,
            model=model, tier=tier, tags=tags, cache_s=cache_s, **more,
        )  # fmt: skip

    async def step(
        self, name: str, function: Callable[..., Any], *args: Any, schema: type[BaseModel] | None = None, **kwargs: Any
    ) -> Any:
        """What ``function(*args, **kwargs)`` gives for this item, done once: after a crash it comes from the record.

        It is recorded under its name and the digest of its arguments, with the claim's token, before it is returned. If
        *function* takes an ``idempotency_key`` that is not given, it gets `step_key`, to pass to the outside world: between
        its effect and the record a crash can still make it run twice. Of two calls of the same step at once, one waits for
        the other's record.

        Args:
            name: of the step.
            function: a function or a coroutine function.
            args: JSON data, pydantic models or dataclasses; so are *kwargs*.
            schema: the answer becomes an object of this model.

        Returns:
            Always what is on record, as JSON data or an object of *schema*: the same in the first run and in a later one.

        Raises:
            ClaimLostError: the item is somebody else's by now; nothing was recorded.
            ReplayError: the item is a replay, and the step is not on record; the function was not called.
            InvalidInputError: arguments or answer are no JSON data, or too large.
        """
        return await run_step(self, name, function, args, kwargs, schema)

    def step_key(self, name: str, *args: Any, **kwargs: Any) -> str:
        """Names a step of this item for the outside world: the same in every attempt."""
        return f"{self.key}:{step_key(name, args, kwargs)}"

    async def checkpoint(
        self,
        stage: str,
        data: Mapping[str, Any],
        agent_states: Mapping[str, Any] | None = None,
        *,
        ttl_hours: float = 24,
    ) -> Checkpoint:
        """Keep how far the work on this item has come; see `Checkpoints.create`."""
        return await self._swarm.failure_recovery.checkpoints.create(
            self.item.id, stage, data, agent_states, ttl_hours, claim=self.claim
        )

    async def resume(self, stage: str | None = None) -> Checkpoint | None:
        """Where an earlier attempt got to, or None."""
        return await self._swarm.failure_recovery.checkpoints.find(self.item.id, stage)

    # -- outcomes: return one of them from `process` --------------------------------------------------------------------

    def done(self, result: Any = None, *, patch: Patch | None = None, reason: str = "") -> Complete:
        """Finished; the item goes where its section leads."""
        return Complete(result=result, patch=patch, reason=reason)

    def move(
        self,
        section: str,
        status: str | None = None,
        *,
        requires: str = "",
        patch: Mapping[str, Any] | Patch | None = None,
        result: Any = None,
        reason: str = "",
        delay_s: float = 0.0,
    ) -> Complete:
        """Finished; the item goes to *section*, with its entry status unless one is named."""
        place = self._swarm.board.place(str(section), status)
        return Complete(to=place, requires=requires, patch=patch, result=result, reason=reason, delay_s=delay_s)

    def fail(
        self, error: str, *, retry_in_s: float | None = None, give_up: bool = False,
        type: FailureType | str = FailureType.UNKNOWN,
    ) -> Fail:  # fmt: skip
        """Not finished, and that counts: try again later, or give up."""
        return Fail(error=error, retry_in_s=retry_in_s, give_up=give_up, type=FailureType(type))

    def hand_back(self, reason: str = "", *, delay_s: float = 0.0) -> HandBack:
        """Not begun, in effect: somebody else should have it, and no attempt is counted."""
        return HandBack(reason=reason, delay_s=delay_s)
