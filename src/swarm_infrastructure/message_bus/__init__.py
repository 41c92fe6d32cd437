"""The bus: quick messages where loss is harmless (`MessageBus`), durable ones where it is not (topics, work queues)."""

from __future__ import annotations

from .bus import MessageBus
from .channels import Channels
from .controls import Controls
from .hub import Gap, Heard, Hub
from .messages import MAX_MESSAGE_BYTES, Message, MessageType, TaskMessage
from .task_queues import TaskQueues

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Channels",
    "Controls",
    "Gap",
    "Heard",
    "Hub",
    "Message",
    "MessageBus",
    "MessageType",
    "TaskMessage",
    "TaskQueues",
]
