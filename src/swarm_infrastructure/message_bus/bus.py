"""MessageBus: what one agent says and hears.

::

    hub (one per process) → mailbox: urgent ─→ handlers, at once
                                     normal ─→ handlers, one message after the other; see ``mailbox``

Messages are hints: quick, and lost where nobody listens. What must arrive goes to a topic or a work queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ..blackboard import Priority
from ..errors import InvalidInputError
from .channels import Channels
from .hub import Gap, Heard, Hub
from .mailbox import Handler, Mailbox
from .messages import Message, MessageType, TaskMessage
from .rpc import Rpc, RpcHandler
from .task_queues import TaskQueues

__all__ = ["MessageBus"]

MAILBOX = 10_000  # messages that wait for their handlers; the oldest gives way
EVERY = "*"


class MessageBus:
    """The bus as one agent has it. Use it as ``async with``, or `start` and `stop` it.

    Args:
        hub: of this process.
        queues: the work queues of the namespace.
        agent_id: who speaks and listens.
        role: hears what is told to its tier.
        default_timeout: seconds that `call` waits for an answer.
        mailbox: messages that wait for their handlers; when it is full the oldest normal one is dropped, and counted.
    """

    def __init__(
        self,
        hub: Hub,
        queues: TaskQueues,
        agent_id: str,
        *,
        role: str = "",
        default_timeout: float = 30.0,
        mailbox: int = MAILBOX,
    ) -> None:
        if mailbox < 1:
            raise InvalidInputError("mailbox", found=mailbox, needed="1 or more")
        self.agent_id, self.role = agent_id, role
        self._hub, self._queues = hub, queues
        self._rpc = Rpc(hub, agent_id, default_timeout_s=default_timeout)
        self._handlers: dict[str, tuple[Handler, ...]] = {}
        self._urgent = Mailbox(agent_id, self._handlers_of)
        self._normal = Mailbox(agent_id, self._handlers_of, room=mailbox)
        self._is_open = False
        self._unlisten: list[Callable[[], Any]] = []

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self, *channels: str) -> None:
        """Listen: to broadcasts, to the tiers of the role, to what is said to this agent, and to *channels*."""
        if self._is_open:
            return
        own = [Channels.BROADCAST_CONTROL, Channels.BROADCAST_EMERGENCY, Channels.BROADCAST_ALL, *channels]
        own.append(Channels.agent_channel(self.agent_id))
        own += [Channels.tier_channel(tier) for tier in (Channels.tiers_of(self.role) if self.role else ())]
        self._is_open = True
        self._urgent.open()
        self._normal.open()
        try:
            self._unlisten.append(await self._hub.listen(own, self._post))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop listening; what is in the mailbox is dropped."""
        listened, self._unlisten = self._unlisten, []
        self._is_open = False
        await asyncio.gather(self._urgent.close(), self._normal.close())
        for unlisten in listened:
            await unlisten()
        await self._rpc.stop()
        if listened:
            await self._hub.forget(Channels.agent_channel(self.agent_id))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- saying -----------------------------------------------------------------------------------------------------

    async def publish(self, channel: str, message: Message) -> int:
        """Tell *message* to whoever listens to *channel*. Returns how many processes do.

        Raises:
            InvalidInputError: the channel's name, or the message is too large.
            StoreUnavailableError: Redis does not answer.
        """
        return await self._hub.publish(channel, message)

    async def broadcast(self, message: Message, priority: int | None = None) -> int:
        """Tell *message* to everybody; control and emergency on the channels that overtake all others."""
        if priority is not None:
            message = message.model_copy(update={"priority": priority})
        if message.type == MessageType.EMERGENCY:
            channel = Channels.BROADCAST_EMERGENCY
        elif message.type.startswith("control.") or message.priority == Priority.CRITICAL:
            channel = Channels.BROADCAST_CONTROL
        else:
            channel = Channels.BROADCAST_ALL
        return await self._hub.publish(channel, message)

    async def send_to_agent(self, agent_id: str, message: Message) -> bool:
        """Tell *message* to one agent; False if no process listens for it."""
        channel = Channels.agent_channel(agent_id)
        return await self._hub.publish(channel, message.model_copy(update={"recipient": agent_id})) > 0

    async def send_to_tier(self, tier: str, message: Message) -> int:
        """Tell *message* to the agents of a tier or role. Returns how many processes listen."""
        return await self._hub.publish(Channels.tier_channel(tier), message)

    # -- hearing ----------------------------------------------------------------------------------------------------

    def on(self, msg_type: MessageType | str, handler: Handler) -> Handler:
        """Have *handler* called with each message of a type (``*``: of any). One that raises is logged, and stays."""
        self._handlers[str(msg_type)] = (*self._handlers.get(str(msg_type), ()), handler)
        return handler

    def off(self, msg_type: MessageType | str, handler: Handler | None = None) -> bool:
        """Call *handler*, or any handler of this type, no more. False if there was none."""
        handlers = list(self._handlers.pop(str(msg_type), ()))
        if handler is None:
            return bool(handlers)
        found = handler in handlers
        if found:
            handlers.remove(handler)
        if handlers:
            self._handlers[str(msg_type)] = tuple(handlers)
        return found

    @property
    def dropped(self) -> int:
        """Messages for which the mailbox had no room."""
        return self._normal.dropped

    @property
    def expired(self) -> int:
        """Messages that came to their turn too late."""
        return self._normal.expired + self._urgent.expired

    def on_gap(self, handler: Callable[[Gap], Any]) -> None:
        """Have *handler* called when messages of this process were missed while its connection was down."""
        self._hub.on_gap(handler)

    async def get_message_history(self, msg_type: MessageType | str | None = None, count: int = 100) -> list[Message]:
        """The newest messages of a type, or of all, newest first; a thousand of each type are kept."""
        return await self._hub.history(str(msg_type) if msg_type else None, count)

    # -- calling ----------------------------------------------------------------------------------------------------

    async def call(self, service: str, method: str, params: Any = None, timeout: float | None = None) -> Any:
        """Call *method* of a service, wherever it runs; one of its handlers answers.

        Raises:
            RPCTimeoutError: nobody answered in time; it may have been executed.
            RPCFailedError: the handler refused or failed.
            StoreUnavailableError: Redis does not answer; it may have been executed.
        """
        return await self._rpc.call(service, method, params, timeout)

    async def register_rpc_handler(self, service: str, method: str, handler: RpcHandler) -> None:
        """Answer calls of *method* with what *handler(params)* returns, as JSON data."""
        await self._rpc.register(service, method, handler)

    # -- work queues ------------------------------------------------------------------------------------------------

    async def enqueue_task(self, queue: str, task: TaskMessage, priority: int | None = None) -> bool:
        """Put a task into a work queue; False if its id is there already. See `TaskQueues`."""
        return await self._queues.enqueue(queue, task, priority=priority)

    async def dequeue_task(
        self, queue: str, timeout: float = 5.0, *, lease_s: float | None = None
    ) -> TaskMessage | None:
        """Take the next task, or None if there is none within *timeout* seconds. End it with `complete_task` or
        `fail_task`; left alone it comes back when its lease has ended."""
        return await self._queues.dequeue(queue, self.agent_id, timeout_s=timeout, lease_s=lease_s)

    async def complete_task(self, task: TaskMessage, result: Any = None) -> None:
        """The task is done."""
        await self._queues.complete(task, result)

    async def fail_task(self, task: TaskMessage, error: str, *, retry_in_s: float | None = None) -> bool:
        """The task failed: it is tried again (True), or was tried often enough and is set aside (False)."""
        return await self._queues.fail(task, error, retry_in_s=retry_in_s)

    async def extend_task(self, task: TaskMessage) -> None:
        """Keep a task for another lease."""
        await self._queues.extend(task)

    async def get_queue_length(self, queue: str) -> int:
        """Tasks that wait in a queue, with those that are delayed."""
        return await self._queues.length(queue)

    async def peek_queue(self, queue: str, count: int = 10) -> list[TaskMessage]:
        """The next tasks of a queue, without taking them."""
        return await self._queues.peek(queue, count)

    # -- the mailboxes ----------------------------------------------------------------------------------------------

    def _post(self, heard: Heard) -> None:
        (self._urgent if heard.urgent else self._normal).post(heard)

    def _handlers_of(self, msg_type: str) -> tuple[Handler, ...]:
        return self._handlers.get(msg_type, ()) + self._handlers.get(EVERY, ())
