"""What every fault test needs: a server, a board, worker processes that may be hurt, and the account at the end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from job_swarm import BOARD
from ledger import Ledger

from swarm_infrastructure.blackboard import Blackboard, Board, Claimed, ClaimRequest, Event, Submission
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import RedisServer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATIENCE_S = 45.0  # for what must happen; a machine that runs other tests too is slow, and a failure may take its time
SLACK_S = 1.0  # what the design allows between the end of a lease and the next offer
ENDS = frozenset({"completed", "failed", "quarantined", "handed_back", "lease_ended"})
OPEN: Any = object()


async def until[Found](
    condition: Callable[[], Found | Awaitable[Found]], what: str, *, within_s: float = PATIENCE_S, every_s: float = 0.005
) -> Found:
    """The first answer of *condition* that is true."""
    gives_up_at = time.monotonic() + within_s
    while True:
        answer = condition()
        found = await answer if inspect.isawaitable(answer) else answer
        if found:
            return found
        assert time.monotonic() < gives_up_at, f"after {within_s:g} s still waiting for: {what}"
        await asyncio.sleep(every_s)
