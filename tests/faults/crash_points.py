"""Crash points: where in its work a worker is hurt, chosen by ``SWARM_CRASH_AT`` in its environment.

``WHEN:WHAT[:N][:HOW]``, such as ``after:claim``, ``before:end_claims:3:stop``:

- WHEN: ``before`` the call leaves, or ``after`` it was executed, while its reply is still unknown to the caller;
- WHAT: a function of the library (``claim``, ``reserve``, ``settle``, ``end_claims``, ``renew``, …), ``hand_back`` for an
  ``end_claims`` that hands back, or ``model`` for a call to the model;
- N: at the N-th such call of the process, 1 if it is left out. Only a call of weight counts: a claim that got something;
- HOW: ``kill`` (SIGKILL, the default), ``stop`` (SIGSTOP), ``term`` (SIGTERM), ``cancel`` (the worker's task).

The library under test knows nothing of this: `install` wraps `Store.call` and the model.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ledger import Ledger

from swarm_infrastructure.agents import Worker
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing.fake_llm import FunctionLLM

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


@dataclass
class CrashPoint:
    """One point, and how often it was passed."""

    when: str
    what: str
    at: int = 1
    how: str = "kill"
    passed: int = 0

    @classmethod
    def read(cls, text: str) -> Self:
        when, what, *rest = text.split(":")
        point = cls(when, what)
        for word in rest:
            if word.isdigit():
                point.at = int(word)
            else:
                point.how = word
        assert point.when in ("before", "after"), text
        assert point.how in ("cancel", *SIGNALS), text
        return point

    def is_passed(self, when: str, what: str) -> bool:
        """Whether this is the moment."""
        if (when, what) != (self.when, self.what):
            return False
        self.passed += 1
        return self.passed == self.at


def install(ledger: Ledger) -> None:
    """Hurt this process where its environment says so."""
    text = os.environ.get("SWARM_CRASH_AT", "")
    if not text:
        return
    point = CrashPoint.read(text)
    working: list[asyncio.Task[Any]] = []

    def pass_by(when: str, what: str) -> None:
        if not point.is_passed(when, what):
            return
        ledger.write("crash", point=text)
        if point.how == "cancel":
            for task in working:
                task.cancel()
        else:
            os.kill(os.getpid(), SIGNALS[point.how])

    run = Worker.run

    async def remembered(worker: Worker, **options: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        working.append(task)
        await run(worker, **options)

    call = Store.call

    async def called(store: Store, function: str, keys: Sequence[str], args: Sequence[Any] = (), **how: Any) -> Any:
        what = "hand_back" if function == "end_claims" and args and args[0] == "hand_back" else function
        pass_by("before", what)
        answer = await call(store, function, keys, args, **how)
        if function != "claim" or any(isinstance(hand, list) and hand for hand in answer[5:]):
            pass_by("after", what)
        return answer

    generate = FunctionLLM.generate

    async def generated(model: FunctionLLM, request: Any) -> Any:
        pass_by("before", "model")
        answer = await generate(model, request)
        pass_by("after", "model")
        return answer

    Worker.run = remembered  # type: ignore[method-assign]
    Store.call = called  # type: ignore[method-assign]
    FunctionLLM.generate = generated  # type: ignore[method-assign]
