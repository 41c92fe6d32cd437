"""The process of a peer: ``python -m peers.process ORDER``, where ORDER is an `Order` as JSON.

It prints one line, ``PEER`` and an answer as JSON, and ends; a worker prints nothing and is ended from outside.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import time
from typing import Any

from . import probe
from .adapters import Order, Peer, peer_called

WARM_UP = 20  # samples that nobody counts: connections are made and scripts are loaded meanwhile
PAUSE_S = 0.002  # between two samples: the worker waits again
BULK = 1_000  # tasks a bulk call


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    peer = peer_called(order.peer)
    peer.order = order
    if order.probe:
        probe.tick_with(order.probe, order.slot)
    prefer_uvloop()
    if order.verb == "work":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        working = peer.work()
        if inspect.isawaitable(working):
            asyncio.run(_finish(working))
        return
    answer = asyncio.run({"submit": submit, "latency": latency}[order.verb](peer, order))
    print("\nPEER " + json.dumps(answer), flush=True)
    os._exit(0)  # some peers leave threads behind that nobody ends


def prefer_uvloop() -> None:
    """The quicker event loop, in every environment."""
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


async def submit(peer: Peer, order: Order) -> dict[str, Any]:
    """Submit so many tasks; the clock runs while they are submitted."""
    await _finish(peer.open())
    payloads = [probe.make_payload(order.first + n) for n in range(order.n)]
    began = time.perf_counter()
    if order.bulk:
        for start in range(0, order.n, BULK):
            await _finish(peer.submit_many(payloads[start : start + BULK]))
    else:
        for payload in payloads:
            await _finish(peer.submit(payload))
    return {"seconds": time.perf_counter() - began}


async def latency(peer: Peer, order: Order) -> dict[str, Any]:
    """Submit one task, wait for its result, and again: µs until the body began, and until the result was here."""
    counted = probe.Probe(order.probe)
    starts: list[float] = []
    results: list[float] = []
    await _finish(peer.open())
    ends = 0.0
    for n in range(-WARM_UP, order.n):
        if n == 0:
            ends = time.monotonic() + order.most_s
        payload = probe.make_payload(order.first + n + WARM_UP)
        asked_ns = time.monotonic_ns()
        await _finish(peer.submit_and_wait(payload))
        seen_ns = time.monotonic_ns()
        if n >= 0:
            starts.append((counted.read().last_ns - asked_ns) / 1000)
            results.append((seen_ns - asked_ns) / 1000)
        if ends and time.monotonic() > ends:
            break
        await asyncio.sleep(PAUSE_S)
    return {"start_us": starts, "result_us": results}


async def _finish(doing: Any) -> Any:
    return await doing if inspect.isawaitable(doing) else doing


if __name__ == "__main__":
    main()
