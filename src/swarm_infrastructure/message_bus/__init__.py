"""The bus: quick messages where loss is harmless (`MessageBus`), durable ones where it is not (topics, work queues)."""

from __future__ import annotations

from .bus import MessageBus
from .channels import Channels
from .cloud_events import from_cloud_event, to_cloud_event
from .controls import Controls
from .hub import Gap, Heard, Hub
from .messages import MAX_MESSAGE_BYTES, Message, MessageType, TaskMessage
from .processor import Processor
from .schemas import Compatibility, SchemaRegistry, SchemaVersion
from .task_queues import TaskQueues
from .timers import Tick, Timer, Timers
from .topics import Delivery, To, Topic, TopicMessage, Topics

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Channels",
    "Compatibility",
    "Controls",
    "Delivery",
    "Gap",
    "Heard",
    "Hub",
    "Message",
    "MessageBus",
    "MessageType",
    "Processor",
    "SchemaRegistry",
    "SchemaVersion",
    "TaskMessage",
    "TaskQueues",
    "Tick",
    "Timer",
    "Timers",
    "To",
    "Topic",
    "TopicMessage",
    "Topics",
    "from_cloud_event",
    "to_cloud_event",
]
