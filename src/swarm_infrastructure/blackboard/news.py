"""The news board: a preset, built from the same parts as any other board.

::

    raw_feed            debate_queue      consensus              production_floor   review_queue          published
    pending→processing → debating       → consensus_reached    → producing        → reviewing → approved → published
       ↑ failed             ↑ failed       →producing  ↑ failed     ↑ failed          ↓            ↓
                                                                                  rejected      archived   (archive)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from .lifecycle import Board, Section
from .similarity import content_hash

__all__ = ["NEWS", "BlackboardSection", "ContentStatus", "NewsItem"]


class BlackboardSection(StrEnum):
    """The sections of the news board."""

    RAW_FEED = "raw_feed"  #: incoming news items
    DEBATE_QUEUE = "debate_queue"  #: items awaiting debate
    CONSENSUS = "consensus"  #: stories agreed upon
    PRODUCTION_FLOOR = "production_floor"  #: scripts, visuals and edits being made
    REVIEW_QUEUE = "review_queue"  #: finished pieces before and after review
    PUBLISHED = "published"  #: published content
    ARCHIVE = "archive"  #: duplicates, rejected and old content
    AGENT_STATE = "agent_state"  #: what agents want to keep about themselves


class ContentStatus(StrEnum):
    """The statuses of the news board."""

    PENDING = "pending"
    PROCESSING = "processing"
    DEBATING = "debating"
    CONSENSUS_REACHED = "consensus_reached"
    PRODUCING = "producing"
    REVIEWING = "reviewing"
    APPROVED = "approved"
    REJECTED = "rejected"
    PUBLISHED = "published"
    FAILED = "failed"  #: an attempt failed; the item waits for the next one
    ARCHIVED = "archived"
    QUARANTINED = "quarantined"  #: it failed or crashed too often; a person decides
    RECORDED = "recorded"  #: of notes in AGENT_STATE


_S, _B = ContentStatus, BlackboardSection

NEWS = Board(
    name="news",
    sections={
        _B.RAW_FEED: Section(
            ready={_S.PENDING: _S.PROCESSING, _S.FAILED: _S.PROCESSING},
            retry=_S.FAILED,
            then={_S.PROCESSING: f"{_B.DEBATE_QUEUE}/{_S.DEBATING}"},
        ),
        _B.DEBATE_QUEUE: Section(
            ready={_S.DEBATING: _S.DEBATING, _S.FAILED: _S.DEBATING},
            retry=_S.FAILED,
            then={_S.DEBATING: f"{_B.CONSENSUS}/{_S.CONSENSUS_REACHED}"},
        ),
        _B.CONSENSUS: Section(
            ready={_S.CONSENSUS_REACHED: _S.PRODUCING, _S.FAILED: _S.PRODUCING},
            retry=_S.FAILED,
            then={_S.PRODUCING: f"{_B.PRODUCTION_FLOOR}/{_S.PRODUCING}"},
        ),
        _B.PRODUCTION_FLOOR: Section(
            ready={_S.PRODUCING: _S.PRODUCING, _S.FAILED: _S.PRODUCING},
            retry=_S.FAILED,
            then={_S.PRODUCING: f"{_B.REVIEW_QUEUE}/{_S.REVIEWING}"},
        ),
        _B.REVIEW_QUEUE: Section(
            ready={_S.REVIEWING: _S.REVIEWING, _S.APPROVED: _S.APPROVED, _S.FAILED: _S.REVIEWING},
            resting=(_S.REJECTED,),
            retry=_S.FAILED,
            then={
                _S.REVIEWING: f"{_B.REVIEW_QUEUE}/{_S.APPROVED}",
                _S.APPROVED: f"{_B.PUBLISHED}/{_S.PUBLISHED}",
            },
        ),
        _B.PUBLISHED: Section(resting=(_S.PUBLISHED,)),
        _B.ARCHIVE: Section(resting=(_S.ARCHIVED, _S.REJECTED)),
        _B.AGENT_STATE: Section(resting=(_S.RECORDED,)),
    },
    steps={
        _S.PENDING: frozenset({_S.PROCESSING, _S.FAILED}),
        _S.PROCESSING: frozenset({_S.DEBATING, _S.FAILED, _S.ARCHIVED}),
        _S.DEBATING: frozenset({_S.CONSENSUS_REACHED, _S.FAILED, _S.ARCHIVED}),
        _S.CONSENSUS_REACHED: frozenset({_S.PRODUCING, _S.FAILED}),
        _S.PRODUCING: frozenset({_S.PRODUCING, _S.REVIEWING, _S.FAILED}),
        _S.REVIEWING: frozenset({_S.APPROVED, _S.REJECTED, _S.FAILED}),
        _S.APPROVED: frozenset({_S.PUBLISHED, _S.ARCHIVED}),
        _S.REJECTED: frozenset({_S.ARCHIVED}),
        _S.FAILED: frozenset({_S.PENDING, _S.PROCESSING, _S.ARCHIVED}),
        _S.PUBLISHED: frozenset({_S.ARCHIVED}),
    },
    final=frozenset({_S.PUBLISHED, _S.REJECTED, _S.ARCHIVED, _S.RECORDED}),
    quarantine=_S.QUARANTINED,
    archive=f"{_B.ARCHIVE}/{_S.ARCHIVED}",
)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(kw_only=True)
class NewsItem:
    """One piece of news.

    ``content_hash`` is computed from title, content and source if it is not given: the same text from the same outlet
    has the same hash, whatever its case, punctuation and spacing.
    """

    id: str
    title: str
    content: str
    source: str
    url: str = ""
    published_at: str = ""  #: ISO 8601, or "" if the source does not say
    topics: list[str] = field(default_factory=list)
    sentiment_score: float = 0.0  #: -1 (bad news) to 1 (good news)
    credibility_score: float = 0.5  #: 0 to 1
    content_hash: str = ""
    status: ContentStatus = ContentStatus.PENDING
    created_at: str = field(default_factory=_now)  #: ISO 8601
    updated_at: str = ""  #: ISO 8601

    def __post_init__(self) -> None:
        self.status = ContentStatus(self.status)
        if not self.content_hash:
            self.content_hash = content_hash(self.title, self.content, self.source)
        if not self.updated_at:
            self.updated_at = self.created_at

    def to_dict(self) -> dict[str, Any]:
        """The item as JSON data."""
        return asdict(self) | {"status": self.status.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The item that `to_dict` described; fields that it does not know are left out."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})
