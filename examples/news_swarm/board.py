"""The board of the news swarm: the news preset, and a section for the sources that are read."""

from __future__ import annotations

from swarm_infrastructure import NEWS, Section

__all__ = ["BOARD", "SOURCES"]

SOURCES = "sources"

BOARD = NEWS.with_sections(
    "news_swarm",
    sources=Section(
        ready={"waiting": "reading"}, resting=("read",), then={"reading": f"{SOURCES}/read"}, max_attempts=3
    ),
    steps={"reading": {"read"}},
    final={"read"},
)
