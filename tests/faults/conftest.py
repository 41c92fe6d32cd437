"""The arena of the fault tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from arena import LONG, Arena


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the long form what takes longest begins first, so that of two processes neither waits for the other at the end."""
    if LONG:
        items.sort(key=lambda item: item.path.name != "test_news.py")


@pytest.fixture
async def arena(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Arena]:
    """With an append-only file, synced each second, and leases of a second."""
    async with Arena(request.config.getoption("--redis-kind"), tmp_path) as arena:
        yield arena
