"""Topics: durable streams of messages with keys, groups, replay and dead letters."""

from __future__ import annotations

from .deliveries import Deliveries, Delivery
from .topics import Listen, Topic, Topics
from .values import DeadLetter, GroupLag, PartitionLag, Published, To, TopicMessage, TopicSettings

__all__ = [
    "DeadLetter",
    "Deliveries",
    "Delivery",
    "GroupLag",
    "Listen",
    "PartitionLag",
    "Published",
    "To",
    "Topic",
    "TopicMessage",
    "TopicSettings",
    "Topics",
]
