"""The arena of the fault tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from arena import Arena


@pytest.fixture
async def arena(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Arena]:
    """With an append-only file, synced each second, and leases of a second."""
    async with Arena(request.config.getoption("--redis-kind"), tmp_path) as arena:
        yield arena
