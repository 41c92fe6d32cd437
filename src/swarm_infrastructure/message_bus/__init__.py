"""The bus: quick messages where loss is harmless (`MessageBus`), durable ones where it is not (topics, work queues)."""

from __future__ import annotations

from .messages import Message, MessageType, TaskMessage

__all__ = ["Message", "MessageType", "TaskMessage"]
