"""The bus: quick messages where loss is harmless (`MessageBus`), durable ones where it is not (topics, work queues)."""

from __future__ import annotations

from .bus import MessageBus
from .channels import Channels
from .controls import Controls
from .hub import Gap, Heard, Hub
from .messages import MAX_MESSAGE_BYTES, Message, MessageType, TaskMessage
from .processor import Processor
from .task_queues import TaskQueues
from .timers import Tick, Timer, Timers
from .topics import Delivery, To, Topic, TopicMessage, Topics

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Channels",
    "Controls",
    "Delivery",
    "Gap",
    "Heard",
    "Hub",
    "Message",
    "MessageBus",
    "MessageType",
    "Processor",
    "TaskMessage",
    "TaskQueues",
    "Tick",
    "Timer",
    "Timers",
    "To",
    "Topic",
    "TopicMessage",
    "Topics",
]
