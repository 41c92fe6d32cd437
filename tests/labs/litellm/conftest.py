"""Runs where ``SWARM_TEST_LITELLM`` names LiteLLM's command (``make litellm``); elsewhere nothing here is a test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from litellm_server import LitellmServer

BINARY = os.environ.get("SWARM_TEST_LITELLM", "")
collect_ignore = [] if BINARY else ["test_litellm.py"]


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LitellmServer]:
    with LitellmServer(os.path.abspath(BINARY), tmp_path_factory.mktemp("litellm")) as server:
        yield server


@pytest.fixture
def server(one_server: LitellmServer) -> LitellmServer:
    one_server.reset()
    return one_server
