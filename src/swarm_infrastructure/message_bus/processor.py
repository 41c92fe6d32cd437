"""Processor: what people subclass to consume a topic, typed, and to publish what comes of it.

.. code-block:: python

    class TopicAnalysis(Processor):
        source, target = "transcriptions.all", "analysis.output"

        async def process(self, message: Transcription, delivery: Delivery) -> Analysis:
            return Analysis(topic=await guess(message.text))

The acknowledgement of a message and the publication of its answer are one step: whatever dies when, each message's answer
is accepted once. Messages of one key are handled in order and one at a time, those of other partitions meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import typing
from collections.abc import Sequence
from datetime import datetime
from random import Random
from typing import Any, ClassVar

import structlog

from ..errors import (
    ConfigurationError,
    DeliveryLostError,
    InvalidInputError,
    RefusedError,
    SwarmError,
    TopicFullError,
    UnavailableError,
)
from ..keys import check_name
from ..service import let_finish
from ..telemetry import traceparent_of_work
from .topics import Deliveries, Delivery, To, TopicMessage, Topics

__all__ = ["Processor"]

log = structlog.get_logger(__name__)

FULL_S = 0.5  # how soon a processor asks again whether its target takes messages
LEAVING_S = 1.0  # of the grace: for giving up what handlers did not finish


class Processor:
    """Consumes a topic as a member of a group.

    Args:
        topics: where from and where to.
        random: source of jitter.
    """

    source: ClassVar[str] = ""  #: the topic that it consumes
    target: ClassVar[str] = ""  #: where what `process` returns is published
    group: ClassVar[str] = ""  #: the class's name in snake case, if ""
    begin: ClassVar[str | datetime] = "earliest"  #: where a new group begins, see `Topic.consume`
    batch: ClassVar[int] = 32  #: messages taken at once
    slots: ClassVar[int] = 0  #: messages in work at once, each of another partition; 0: one of each partition
    lease_s: ClassVar[float] = 30.0  #: after how long others go on where a dead processor stopped
    max_attempts: ClassVar[int] = 5  #: failures or crashes after which a message is a dead letter
    poll_s: ClassVar[float] = 0.5  #: how often an idle processor looks by itself

    def __init__(self, topics: Topics, *, random: Random | None = None) -> None:
        kind = type(self)
        if not kind.source:
            raise ConfigurationError(
                f'{kind.__name__}: found no source, needed a line like: source = "transcriptions.all"'
            )
        self.group = check_name("group", kind.group or _snake(kind.__name__))  # type: ignore[misc]
        self._topics, self._random = topics, random or Random()
        self._as = _wanted(kind)
        self._deliveries: Deliveries | None = None
        self._task: asyncio.Task[None] | None = None
        self._hands: set[asyncio.Task[None]] = set()
        self.status = "idle"  #: idle or working
        self.finished = 0  #: messages that left its hands

    # -- to override ------------------------------------------------------------------------------------------------

    async def process(self, message: Any, delivery: Delivery) -> Any:
        """Work on one message.

        What *message* is follows from its annotation: a `TopicMessage` as it is, else the body validated as that type. A
        body that does not fit is a dead letter at once, and so is one for which this raises `InvalidInputError`; any other
        exception is a failed attempt.

        Returns:
            None, or what is to be published: a model or a dict for ``target``, a `To` for another topic, or a list of them.
            The key is that of *message*.
        """
        raise NotImplementedError(f"{type(self).__name__} must override process")

    def retry_in_s(self, attempt: int) -> float:
        """Seconds until the next attempt, after number *attempt* failed: full jitter, up to 1, 2, 4 … 60 s."""
        return self._random.uniform(0, min(60.0, 2.0 ** min(attempt - 1, 10)))

    async def setup(self) -> None:
        """Called once before the first message."""

    async def teardown(self) -> None:
        """Called once after the last message."""

    # -- running ----------------------------------------------------------------------------------------------------

    @property
    def in_hand(self) -> int:
        """Messages in work now."""
        return len(self._hands)

    async def start(self) -> None:
        """Begin to work, in the background, until `stop`.

        Raises:
            ConfigurationError, RefusedError: the class asks for what can't be.
        """
        if self._task is not None:
            return
        topic = await self._topics.get(self.source)
        if self.target:
            await self._topics.get(self.target)
        deliveries = topic.consume(
            self.group, begin=self.begin, batch=self.batch, slots=self.slots, lease_s=self.lease_s,
            max_attempts=self.max_attempts, poll_s=self.poll_s,
        )  # fmt: skip
        await self.setup()
        self._deliveries = await deliveries.__aenter__()
        self._task = asyncio.create_task(self._run(self._deliveries), name=f"processor {self.group}")

    async def stop(self, *, grace_s: float = 10.0, hurry: asyncio.Event | None = None) -> None:
        """Take no more, let handlers finish within *grace_s* (or until *hurry*), give the rest up so that others go on."""
        task, deliveries = self._task, self._deliveries
        self._task = self._deliveries = None
        if task is None or deliveries is None:
            return
        deliveries.stop_taking()
        await asyncio.wait({task})
        await let_finish(set(self._hands), grace_s - min(LEAVING_S, grace_s / 5), hurry)
        for hand in list(self._hands):
            hand.cancel()
        await asyncio.gather(*self._hands, return_exceptions=True)
        await deliveries.close()
        await self.teardown()

    async def wait(self) -> None:
        """Wait until it ends by itself: it does so only if something is wrong that a retry can't mend."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self, deliveries: Deliveries) -> None:
        async for delivery in deliveries:
            task = asyncio.create_task(self._handle(delivery), name=f"{self.group} {delivery.message.entry}")
            delivery.on_lost = task.cancel
            self._hands.add(task)
            self.status = "working"
            task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._hands.discard(task)
        self.finished += 1
        if not self._hands:
            self.status = "idle"
        if not task.cancelled() and task.exception() is not None:
            log.error("an ending went wrong", processor=self.group, error=repr(task.exception()))

    async def _handle(self, delivery: Delivery) -> None:
        message = delivery.message
        traceparent_of_work.set(message.traceparent)  # of this task alone
        try:
            body = message if self._as is TopicMessage else await delivery.decode(self._as)
            outputs = self._outputs(await self.process(body, delivery))
        except asyncio.CancelledError:
            return  # lost, or stopping: others go on with it
        except InvalidInputError as error:  # the same message fails the same way
            log.warning("a message can't be processed", processor=self.group, message=message.id, why=str(error))
            await self._end(delivery, error=error, bury=True)
        except Exception as error:  # the rim: a handler may raise anything
            known = isinstance(error, SwarmError)
            log.warning(
                "attempt failed", processor=self.group, message=message.id, attempt=delivery.attempt,
                error=str(error) or repr(error), exc_info=not known,
            )  # fmt: skip
            await self._end(delivery, error=error)
        else:
            await self._end(delivery, outputs)

    def _outputs(self, answer: Any) -> list[To]:
        if answer is None:
            return []
        answers = answer if isinstance(answer, list | tuple) else [answer]
        outputs = [each if isinstance(each, To) else To(self.target, each) for each in answers]
        if not all(each.topic for each in outputs):
            raise InvalidInputError(
                f"{type(self).__name__}.process", found=answer, needed="None, as it has no target",
                step='give the class a line like: target = "analysis.output", or return To("topic", body)',
            )  # fmt: skip
        return outputs

    async def _end(
        self, delivery: Delivery, outputs: Sequence[To] = (), *, error: Exception | None = None, bury: bool = False
    ) -> None:
        told = False
        while not (delivery.ended or delivery.lost):
            try:
                if error is None:
                    await delivery.done(*outputs)
                elif bury:
                    await delivery.bury(error)
                else:
                    await delivery.fail(error, retry_in_s=self.retry_in_s(delivery.attempt))
            except DeliveryLostError as lost:
                log.warning("dropped", processor=self.group, message=delivery.message.id, why=lost.why)
            except TopicFullError as full:  # its readers will make room; the lease is kept meanwhile
                if not told:
                    log.warning("waiting for room", processor=self.group, message=delivery.message.id, why=str(full))
                told = True
                await asyncio.sleep(FULL_S)
            except UnavailableError:
                await asyncio.sleep(0.2 + self._random.random())  # the lease decides how long this makes sense
            except RefusedError as refused:
                if error is not None:
                    raise
                log.error("an answer was refused", processor=self.group, message=delivery.message.id, why=str(refused))
                error, bury = refused, isinstance(refused, InvalidInputError)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _wanted(kind: type[Processor]) -> Any:
    """What `process` takes, read from its annotation; Any without one."""
    try:
        hints = typing.get_type_hints(kind.process)
    except NameError as error:
        raise InvalidInputError(
            f"{kind.__name__}.process", found=str(error), needed="annotations that resolve"
        ) from error
    names = list(inspect.signature(kind.process).parameters)
    return hints.get(names[1], Any) if len(names) > 1 else Any
