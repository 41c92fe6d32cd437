"""BaseAgent: what people subclass.

Most agents say what they claim and override `process`:

.. code-block:: python

    class Summariser(BaseAgent):
        claims = Claims("articles", batch=4)

        async def process(self, item: Item, work: Work) -> Outcome:
            return work.done({"summary": item.payload["text"][:200]})

An agent that wants to find its work by itself overrides `_process_cycle`, and is called again and again.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ValidationError

from ..blackboard import Item
from ..errors import InvalidInputError, SwarmError
from ..failure_recovery import RetryPolicy
from ..keys import check_id, check_name
from .work import Outcome, Work

if TYPE_CHECKING:
    from ..message_bus import MessageBus
    from ..swarm_infrastructure import SwarmInfrastructure
    from .runner import Runner

__all__ = ["BaseAgent", "Claims"]


@dataclass(frozen=True, slots=True, init=False)
class Claims:
    """What an agent claims.

    Args:
        sections: where from; priority, then the order of arrival decide between them.
        statuses: only these ready statuses; all of the section's by default.
        batch: items taken in one call. They are worked on at the same time, each in a call of `process`.
    """

    sections: tuple[str, ...]
    statuses: tuple[str, ...]
    batch: int

    def __init__(self, *sections: str, statuses: Sequence[str] = (), batch: int = 1) -> None:
        if not sections:
            raise InvalidInputError("Claims", found="no section", needed="at least one", step='write Claims("section")')
        if not 1 <= batch <= 500:
            raise InvalidInputError("Claims(batch=)", found=batch, needed="1 to 500")
        object.__setattr__(self, "sections", tuple(str(section) for section in sections))
        object.__setattr__(self, "statuses", tuple(str(status) for status in statuses))
        object.__setattr__(self, "batch", batch)


class BaseAgent:
    """An agent: claims items, processes them, completes them.

    Args:
        agent_id: unique among all agents of the swarm.
        role: what it is; the class's ``role``, else its name in lower case.
        swarm: the swarm that it works in; a `Swarm` gives it to the agents that it makes.
        capabilities: the ``requires`` tags of items that it can take, beside items without one.
    """

    role: ClassVar[str] = ""
    claims: ClassVar[Claims | None] = None
    capabilities: ClassVar[Sequence[str]] = ()
    slots: ClassVar[int] = 0  #: items in work at once; ``claims.batch``, if 0
    retry: ClassVar[RetryPolicy] = RetryPolicy()  #: how long a failed item waits for its next attempt
    budget: ClassVar[Mapping[str, Any] | None] = (
        None  #: limits of all agents of its role together, as `Budget` takes them
    )
    cycle_s: ClassVar[float] = 1.0  #: pause between two `_process_cycle`; twice as long after one that raised

    def __init__(
        self,
        agent_id: str = "",
        role: str = "",
        swarm: SwarmInfrastructure | None = None,
        capabilities: Sequence[str] | None = None,
    ) -> None:
        kind = type(self)
        # the class's words are kept where none are given; an instance may differ from its class
        self.role = check_name("role", str(role or kind.role or kind.__name__.lower()))  # type: ignore[misc]
        self.agent_id = check_id("agent id", agent_id or f"{self.role}-1")
        if capabilities is not None:
            self.capabilities = tuple(str(tag) for tag in capabilities)  # type: ignore[misc]
        self._swarm = swarm
        self._runner: Runner | None = None
        self._bus: MessageBus | None = None
        self.background: set[asyncio.Task[None]] = set()  #: tasks of its own, which are let finish when it leaves

    @property
    def swarm(self) -> SwarmInfrastructure:
        """The swarm that it works in."""
        if self._swarm is None:
            raise SwarmError(f"agent {self.agent_id!r} is in no swarm; pass swarm=, or run it in a Swarm")
        return self._swarm

    @property
    def bus(self) -> MessageBus:
        """The bus as this agent has it: it hears broadcasts, its tier and what is told to it. Register handlers in `setup`."""
        if self._bus is None:
            self._bus = self.swarm.bus_of(self.agent_id, self.role)
        return self._bus

    # -- to override ------------------------------------------------------------------------------------------------

    async def process(self, item: Any, work: Work) -> Outcome | None:
        """Work on one item. None means done: the item goes where its section leads.

        What *item* is follows from its annotation: an `Item` as it is, a pydantic model validated from the payload, or
        a class with ``from_dict``. An exception is a failed attempt.
        """
        raise NotImplementedError(f"{type(self).__name__} must override process or _process_cycle")

    async def _process_cycle(self) -> None:
        """Find work and do it, once. Override it instead of `process` to claim by hand."""
        raise NotImplementedError(f"{type(self).__name__} must override process or _process_cycle")

    async def setup(self) -> None:
        """Called once before the first item."""

    async def teardown(self) -> None:
        """Called once after the last item."""

    # -- running one agent by hand ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to work, in the background, until `stop`."""
        from .runner import Runner

        if self._runner is None:
            self._runner = Runner(self, self.swarm)
            await self._runner.start()

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Stop claiming, finish what is in hand within *grace_s*, hand back the rest."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.stop(grace_s=self.swarm.settings.shutdown_grace_s if grace_s is None else grace_s)

    # -- for the runner -----------------------------------------------------------------------------------------------

    @classmethod
    def cycles_by_hand(cls) -> bool:
        """Whether this agent overrides `_process_cycle`."""
        return cls._process_cycle is not BaseAgent._process_cycle

    @classmethod
    def parser(cls) -> Callable[[Item], Any]:
        """How an item becomes what `process` takes, read from its annotation.

        Raises:
            InvalidInputError: the annotation is no `Item`, model or class with ``from_dict``.
        """
        try:
            hints = typing.get_type_hints(cls.process)
        except NameError as error:
            raise InvalidInputError(
                f"{cls.__name__}.process", found=str(error), needed="annotations that resolve"
            ) from error
        names = list(inspect.signature(cls.process).parameters)
        wanted = hints.get(names[1]) if len(names) > 1 else None
        if wanted in (None, Any, Item):
            return lambda item: item
        if isinstance(wanted, type) and issubclass(wanted, BaseModel):
            return lambda item: _validated(wanted, item)
        if isinstance(wanted, type) and hasattr(wanted, "from_dict"):
            return lambda item: _from_dict(wanted, item)
        if wanted is dict or typing.get_origin(wanted) is dict:
            return lambda item: item.as_dict()
        raise InvalidInputError(
            f"{cls.__name__}.process",
            found=f"item: {wanted}",
            needed="Item, dict, a pydantic model or a class with from_dict",
        )


def _validated(model: type[BaseModel], item: Item) -> BaseModel:
    try:
        return model.model_validate(item.payload)
    except ValidationError as error:
        raise InvalidInputError(
            f"payload of item {item.id!r}", found=str(error), needed=f"a {model.__name__}"
        ) from error


def _from_dict(kind: Any, item: Item) -> Any:
    try:
        return kind.from_dict(item.payload | {"id": item.id})
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidInputError(
            f"payload of item {item.id!r}", found=repr(error), needed=f"a {kind.__name__}"
        ) from error
