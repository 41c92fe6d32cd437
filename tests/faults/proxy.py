"""A TCP proxy in front of a server, with a will of its own: slow, narrow, silent, cut, or losing replies it chooses.

It runs in a thread with an event loop of its own, so it works while the test's loop is busy. It reads what passes as Redis'
protocol, far enough to know which function of the library a request calls.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

from swarm_infrastructure.store import PREFIX

READ_BYTES = 1 << 16
BEFORE, MIDDLE = "before the reply", "in mid-reply"  # when a connection is cut
NEVER = "never"  # the reply is lost and the connection stays, as if the server had said nothing
Fate = str | None


class Requests:
    """Splits what a client sends into commands, of which it gives the first two words."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left, self._words = 0, list[bytes]()

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The commands that are whole now."""
        self._buffer += data
        found: list[list[bytes]] = []
        while (end := self._buffer.find(b"\r\n")) >= 0:
            if self._left == 0:
                self._left, self._words = int(self._buffer[1:end]), []
                del self._buffer[: end + 2]
                continue
            length = int(self._buffer[1:end])
            if len(self._buffer) < end + 2 + length + 2:
                break
            if len(self._words) < 2:
                self._words.append(bytes(self._buffer[end + 2 : end + 2 + length]))
            del self._buffer[: end + 2 + length + 2]
            self._left -= 1
            if self._left == 0:
                found.append(self._words)
        return found


class _Link:
    """One client's connection and the server's end of it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.fate: Fate = None

    def cut(self) -> None:
        for writer in (self.client, self.server):
            if (transport := writer.transport) is not None:
                transport.abort()


class Proxy:
    """A proxy on a loopback port. Use it as ``with Proxy(server.socket) as proxy``; what it does follows its attributes.

    Attributes:
        delay_s: for each piece of data, to the server and to the client.
        bytes_per_s: how much passes in a second in each of these directions; 0: any amount.
        silent: it accepts, reads, and says nothing: a half-open connection. What it read passes when it speaks again, as
            what waits in a network does.
        closed: it takes no connection.
        fate: called with each function that is called through it: `BEFORE` or `MIDDLE` cuts the connection when the reply
            comes, that is, when the call was executed; `NEVER` drops the reply.
        deaf: who waits for a doorbell is made to wait for another one, which nobody rings.
        calls: how often each function was called; a plain command by its name in capitals.
    """

    def __init__(self, upstream: Path) -> None:
        self.delay_s = (0.0, 0.0)
        self.bytes_per_s = (0, 0)
        self.closed = self.deaf = False
        self.fate: Callable[[str], Fate] = lambda _function: None
        self.calls: Counter[str] = Counter()
        self.cuts = 0
        self._upstream = upstream
        self._links: set[_Link] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._speaking = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._ready = threading.Event()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_error: object) -> None:
        self.cut()
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        with warnings.catch_warnings():  # of a socket that was accepted and that the loop had not taken over yet
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def silent(self) -> bool:
        return not self._speaking.is_set()

    @silent.setter
    def silent(self, silent: bool) -> None:
        self._loop.call_soon_threadsafe(self._speaking.clear if silent else self._speaking.set)

    def cut(self) -> None:
        """Cut every connection that there is."""

        async def cut() -> None:
            for link in list(self._links):
                link.cut()
                self.cuts += 1

        self._do(cut())

    def close(self) -> None:
        """Cut every connection and take no new one, until `open`."""
        self.closed = True
        self.cut()

    def open(self) -> None:
        self.closed = False

    # -- in its own thread ------------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._speaking.set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _end(self) -> None:
        self._server.close()
        await self._leave_clients()
        me = asyncio.current_task()
        if accepting := {task for task in asyncio.all_tasks() if task is not me}:
            await asyncio.wait(accepting, timeout=5)  # until what was just accepted is in our hands
            await self._leave_clients()

    async def _leave_clients(self) -> None:
        await asyncio.sleep(0.02)
        clients, serving = set(self._clients), set(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for client in clients:
            client.transport.abort()
        await asyncio.sleep(0.02)  # until what was aborted is closed

    def _accept(self, reading: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._clients.add(client)
        task = self._loop.create_task(self._serve(reading, client))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        task.add_done_callback(lambda _task: self._clients.discard(client))

    async def _serve(self, reading: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self.closed:
            client.transport.abort()
            return
        try:
            from_server, server = await asyncio.open_unix_connection(str(self._upstream))
        except (OSError, asyncio.CancelledError):  # also if the proxy ends just now
            client.transport.abort()
            return
        link = _Link(client, server)
        self._links.add(link)
        try:
            await asyncio.gather(self._ask(link, reading), self._answer(link, from_server))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            link.cut()

    async def _ask(self, link: _Link, reading: asyncio.StreamReader) -> None:
        requests = Requests()
        while data := await reading.read(READ_BYTES):
            await self._hold_up(0, len(data))
            for words in requests.feed(data):
                name = words[0].decode(errors="replace").upper()
                if name == "FCALL" and len(words) > 1:
                    name = words[1].decode(errors="replace").removeprefix(PREFIX)
                self.calls[name] += 1
                link.fate = self.fate(name) or link.fate
            if self.deaf and b"BLPOP" in data:
                waits, call, rest = data.partition(b"FCALL")  # a claim may stand behind it, which knows its own bells
                data = waits.replace(b":bell:", b":deaf:") + call + rest
            link.server.write(data)
            await link.server.drain()
        raise ConnectionResetError

    async def _answer(self, link: _Link, reading: asyncio.StreamReader) -> None:
        while data := await reading.read(READ_BYTES):
            await self._hold_up(1, len(data))
            if link.fate is not None:
                fate, link.fate = link.fate, None
                if fate == NEVER:
                    continue
                self.cuts += 1
                if fate == MIDDLE:
                    link.client.write(data[: max(1, len(data) // 2)])
                    await link.client.drain()
                    link.client.close()
                raise ConnectionResetError
            link.client.write(data)
            await link.client.drain()
        raise ConnectionResetError

    async def _hold_up(self, direction: int, size: int) -> None:
        if self.delay_s[direction]:
            await asyncio.sleep(self.delay_s[direction])
        if self.bytes_per_s[direction]:
            await asyncio.sleep(size / self.bytes_per_s[direction])
        await self._speaking.wait()
