"""RPC: calls of a service, wherever it runs.

A call waits in the service's list until a handler takes it, so exactly one does, and one that starts late still may. The
answer comes through a channel of the caller's. A call is executed at most once; whoever gets no answer in time can't know
whether it was.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any
from uuid import uuid4

import structlog

from ..errors import InvalidInputError, RPCFailedError, RPCTimeoutError, SwarmError, UnavailableError
from ..telemetry import traceparent_of_work
from .channels import check_channel
from .hub import Heard, Hub
from .messages import Message, MessageType

__all__ = ["Rpc", "RpcHandler"]

log = structlog.get_logger(__name__)
AT_ONCE = 32  # calls that one process works on; more wait in the list, for others too
LISTEN_S = 5.0

RpcHandler = Callable[[Any], Awaitable[Any] | Any]  #: gets the params, gives JSON data


class Rpc:
    """Calls and answers for one agent.

    Args:
        hub: of this process.
        agent_id: who calls.
        default_timeout_s: how long a call waits for its answer.
    """

    def __init__(self, hub: Hub, agent_id: str, *, default_timeout_s: float) -> None:
        self._hub, self._agent_id, self._timeout_s = hub, agent_id, default_timeout_s
        self._reply_to = f"swarm.rpc.reply.{agent_id}.{uuid4().hex[:12]}"
        self._awaited: dict[str, asyncio.Future[Message]] = {}
        self._unlisten: Callable[[], Any] | None = None
        self._handlers: dict[str, dict[str, RpcHandler]] = {}
        self._servers: dict[str, asyncio.Task[None]] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._listening = asyncio.Lock()
        self._random = Random()

    async def call(self, service: str, method: str, params: Any = None, timeout_s: float | None = None) -> Any:
        """See `MessageBus.call`."""
        check_channel(service)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if timeout_s <= 0:
            raise InvalidInputError("timeout", found=timeout_s, needed="seconds, above 0")
        request = Message.create(
            MessageType.RPC_REQUEST, self._agent_id, service, {"method": method, "params": params}, ttl=timeout_s,
            reply_to=self._reply_to,
        )  # fmt: skip
        answer = self._awaited[request.id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                async with self._listening:
                    if self._unlisten is None:
                        self._unlisten = await self._hub.listen([self._reply_to], self._answered)
                await self._hub.request(service, request)
                told = await answer
        except TimeoutError as error:
            await self._hub.withdraw(service, request)
            raise RPCTimeoutError(service, method, timeout_s) from error
        finally:
            self._awaited.pop(request.id, None)
        match told.payload:
            case {"result": result}:
                return result
            case {"error": str(why)}:
                raise RPCFailedError(service, method, why)
            case other:
                raise RPCFailedError(service, method, f"it answered {other!r}")

    async def register(self, service: str, method: str, handler: RpcHandler) -> None:
        """See `MessageBus.register_rpc_handler`."""
        self._handlers.setdefault(check_channel(service), {})[method] = handler
        if service not in self._servers:
            self._servers[service] = asyncio.create_task(self._serve(service), name=f"{service} of {self._agent_id}")

    async def stop(self) -> None:
        """Answer no more calls; those in work are cancelled."""
        tasks = [*self._servers.values(), *self._working]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._servers.clear()
        if self._unlisten is not None:
            await self._unlisten()
            self._unlisten = None
            await self._hub.forget(self._reply_to)

    def _answered(self, heard: Heard) -> None:
        try:
            message = heard.message
        except InvalidInputError as error:
            log.warning("an answer can't be read", why=str(error))
            return
        waiting = self._awaited.get(message.correlation_id or "")
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    async def _serve(self, service: str) -> None:
        while True:
            await self._slots.acquire()  # take no call that would only wait here
            taken = None
            try:
                taken = await self._hub.next_request(service, LISTEN_S)
            except UnavailableError as error:
                log.warning("can't listen for calls", why=str(error))
                await asyncio.sleep(self._random.random())
            finally:
                if taken is None:
                    self._slots.release()
            if taken is not None:
                task = asyncio.create_task(self._work(service, taken), name=f"call of {service}")
                self._working.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._slots.release()

    async def _work(self, service: str, body: bytes) -> None:
        try:
            request = Message.from_json(body)
            if request.is_expired() or not request.reply_to:
                return
            method = str((request.payload or {}).get("method"))
        except (InvalidInputError, AttributeError) as error:
            log.warning("a call can't be read", service=service, why=str(error))
            return
        handler = self._handlers.get(service, {}).get(method)
        if handler is None:
            known = ", ".join(sorted(self._handlers.get(service, {})))
            told: dict[str, Any] = {"error": f"there is no method {method!r}; needed one of {known}"}
        else:
            told = await self._outcome(handler, request)
        reply = request.reply(MessageType.RPC_RESPONSE, self._agent_id, told, correlation_id=request.id)
        try:
            await self._hub.publish(request.reply_to, reply, history=False)
        except InvalidInputError as error:  # what the handler gave is no JSON, or too large
            reply = request.reply(
                MessageType.RPC_RESPONSE, self._agent_id, {"error": str(error)}, correlation_id=request.id
            )
            await self._hub.publish(request.reply_to, reply, history=False)
        except UnavailableError as error:
            log.warning("an answer was lost", service=service, method=method, why=str(error))

    async def _outcome(self, handler: RpcHandler, request: Message) -> dict[str, Any]:
        traceparent_of_work.set(request.traceparent)
        try:
            result = handler(request.payload.get("params"))
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:  # the rim: a handler may raise anything, and its caller is told
            log.warning(
                "a call failed", call=request.name, error=repr(error), exc_info=not isinstance(error, SwarmError)
            )
            return {"error": f"{type(error).__name__}: {error}"}
        return {"result": result}
