"""A stand-in for three providers on a local port, which keeps its own bill and fails when told to.

It speaks OpenAI's chat completions and responses and Anthropic's messages, whole and streamed. Each request takes the
next plan of a queue (``plan``, or ``POST /plan`` with a JSON list); without one it echoes, or makes up an answer that
fits the schema. The bill (``bill``, or ``GET /bill``) is what a provider would charge: also for answers that the
client never saw whole.

On its own, for many processes: ``python tests/llm/model_server.py --port 0`` prints its address.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

PIECE = 5  # characters of a streamed piece
BYTES_PER_TOKEN = 4


@dataclass(kw_only=True)
class Plan:
    """What happens to one request."""

    text: str | None = None  #: the answer; None: an echo, or what fits the schema
    calls: list[dict[str, str]] = field(default_factory=list)  #: tools to call: id, name, arguments
    stop: str = "stop"  #: stop, length, tool_calls, filter
    refusal: str = ""
    usage: dict[str, int] = field(default_factory=dict)  #: prompt, completion, cached, cache_write, reasoning
    no_usage: bool = False  #: do not report it
    status: int = 200
    error: dict[str, Any] = field(default_factory=dict)  #: type, code, message
    error_in_stream: bool = False  #: after the first pieces rather than as a status
    headers: dict[str, str] = field(default_factory=dict)
    billed: bool = False  #: charge it though it fails
    cut_after: int | None = None  #: pieces of a stream; of a whole answer: half of its bytes
    cut_cleanly: bool = False  #: the stream ends in good order, but without its terminal event
    hang_s: float = 0  #: before the answer, which is then not given
    hang_after: int | None = None  #: pieces of a stream before it hangs
    delay_s: float = 0  #: before the answer
    raw: str | None = None  #: this as the body of status 200
    model: str = ""  #: only for requests to it


class ModelServer:
    """The server in a thread; use it in a ``with``."""

    def __init__(self, port: int = 0, *, respond: Callable[[dict[str, Any]], Plan] | None = None) -> None:
        self._lock = threading.Lock()
        self._plans: deque[Plan] = deque()
        self._respond = respond or (lambda _body: Plan())
        self._bill: dict[str, Counter[str]] = {}
        self.seen: list[dict[str, Any]] = []  #: path, headers and body of every request
        self.closing = threading.Event()
        server = self

        class Handler(_Handler):
            model_server = server

        self._http = _Server(("127.0.0.1", port), Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def serve_forever(self) -> None:
        self._http.serve_forever()

    def plan(self, *plans: Plan) -> None:
        with self._lock:
            self._plans.extend(plans)

    def reset(self) -> None:
        with self._lock:
            self._plans.clear()
            self._bill.clear()
            self.seen.clear()

    @property
    def bill(self) -> dict[str, Any]:
        """Requests in all, and per model: calls and tokens that have to be paid."""
        with self._lock:
            return {"requests": len(self.seen), "models": {model: dict(each) for model, each in self._bill.items()}}

    def take(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Plan:
        with self._lock:
            self.seen.append({"path": path, "headers": headers, "body": body})
            for plan in self._plans:
                if plan.model in ("", body.get("model")):
                    self._plans.remove(plan)
                    return plan
        return self._respond(body)

    def charge(self, model: str, usage: dict[str, int]) -> None:
        with self._lock:
            self._bill.setdefault(model, Counter()).update({"calls": 1, **{f"{k}_tokens": v for k, v in usage.items()}})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what many tests want."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    model_server: ModelServer

    def log_message(self, *_args: Any) -> None: ...

    def do_GET(self) -> None:
        server = self.model_server
        pages = {"/bill": lambda: server.bill, "/seen": lambda: server.seen}
        self._json(200, pages[self.path]()) if self.path in pages else self._json(404, {"error": {"message": "no"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        server = self.model_server
        if self.path == "/plan":
            server.plan(*(Plan(**each) for each in body))
            return self._json(200, {"planned": len(body)})
        if self.path == "/reset":
            server.reset()
            return self._json(200, {})
        dialects = {"/v1/chat/completions": Chat, "/v1/responses": Responses, "/v1/messages": Messages}
        if self.path in ("/v1/messages/count_tokens", "/v1/responses/input_tokens"):
            server.take(self.path, dict(self.headers), body)
            return self._json(200, {"input_tokens": _tokens(json.dumps(body)), "object": "response.input_tokens"})
        if self.path not in dialects:
            return self._json(404, {"error": {"message": f"no {self.path}"}})
        self._answer(server.take(self.path, dict(self.headers), body), dialects[self.path](body))

    def _answer(self, plan: Plan, dialect: Dialect) -> None:
        server, model = self.model_server, dialect.body["model"]
        dialect.prepare(plan)
        failed = plan.status != 200 or bool(plan.hang_s)
        if plan.billed or not failed:
            server.charge(model, dialect.usage)
        if plan.delay_s or plan.hang_s:
            server.closing.wait(plan.delay_s + plan.hang_s)
        if plan.hang_s:
            self.close_connection = True
        elif plan.raw is not None:
            self._send(200, plan.raw.encode(), plan.headers)
        elif plan.status != 200:
            self._json(plan.status, dialect.fault(plan.error), plan.headers)
        elif dialect.body.get("stream"):
            self._stream(plan, dialect)
        elif plan.cut_after is not None:
            data = json.dumps(dialect.whole()).encode()
            self._head(200, plan.headers, {"Content-Length": str(len(data))})
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self._json(200, dialect.whole(), plan.headers)

    def _stream(self, plan: Plan, dialect: Dialect) -> None:
        self._head(200, plan.headers, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        events = list(dialect.events())
        ends_after = plan.cut_after if plan.hang_after is None else plan.hang_after
        if plan.error_in_stream:
            events = [*events[:3], dialect.fault_event(plan.error)]
        elif ends_after is not None:
            events = events[: len(dialect.head()) + ends_after]
        for name, data in events:
            lead = f"event: {name}\n" if name else ""
            text = f"{lead}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
            self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
        self.wfile.flush()
        if plan.hang_after is not None:
            self.model_server.closing.wait(30)
        if (ends_after is None and not plan.error_in_stream) or plan.cut_cleanly or plan.error_in_stream:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), headers or {})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self._head(status, headers, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def _head(self, status: int, headers: dict[str, str], more: dict[str, str]) -> None:
        self.send_response(status)
        number = len(self.model_server.seen)
        for name, value in {"x-request-id": f"req_{number}", "request-id": f"req_{number}", **more, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


Event = tuple[str, Any]


class Dialect:
    """One provider's way to write answers."""

    limits: tuple[str, ...]

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body

    def prepare(self, plan: Plan) -> None:
        """Settle what will be said and what it costs."""
        self.plan = plan
        schema = self.schema()
        default = "" if plan.calls or plan.refusal else json.dumps(example(schema)) if schema else self.echo()
        self.text = default if plan.text is None else plan.text
        self.stop = "tool_calls" if plan.calls and plan.stop == "stop" else plan.stop
        limit = next(self.body[name] for name in self.limits if name in self.body)  # required, as our requests are
        if not plan.usage and _tokens(self.text) > limit:
            self.text, self.stop = self.text[: limit * BYTES_PER_TOKEN], "length"
        written = max(1, _tokens(self.text + plan.refusal + json.dumps(plan.calls) * bool(plan.calls)))
        counts = {"prompt": _tokens(json.dumps(self.input())), "completion": written}
        self.usage = {"cached": 0, "cache_write": 0, "reasoning": 0, **counts, **plan.usage}

    def echo(self) -> str:
        last = self.input()[-1]
        content = last.get("content", "") if isinstance(last, dict) else last
        return f"echo: {content if isinstance(content, str) else json.dumps(content)}"

    def pieces(self) -> list[str]:
        return [self.text[start : start + PIECE] for start in range(0, len(self.text), PIECE)]

    def input(self) -> list[Any]:
        raise NotImplementedError

    def schema(self) -> Any:
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def head(self) -> list[Event]:
        """The events before the first piece."""
        raise NotImplementedError

    def events(self) -> Iterator[Event]:
        raise NotImplementedError

    def fault(self, error: dict[str, Any]) -> dict[str, Any]:
        return {"error": {"message": "told to fail", "type": "server_error", "code": None, "param": None, **error}}

    def fault_event(self, error: dict[str, Any]) -> Event:
        return "", self.fault(error)


class Chat(Dialect):
    limits = ("max_tokens", "max_completion_tokens")
    reasons: ClassVar = {"filter": "content_filter"}

    def input(self) -> list[Any]:
        return self.body["messages"]  # type: ignore[no-any-return]

    def schema(self) -> Any:
        return self.body.get("response_format", {}).get("json_schema", {}).get("schema")

    def _usage(self) -> dict[str, Any]:
        usage = self.usage
        return {
            "prompt_tokens": usage["prompt"],
            "completion_tokens": usage["completion"],
            "total_tokens": usage["prompt"] + usage["completion"],
            "prompt_tokens_details": {"cached_tokens": usage["cached"], "cache_write_tokens": usage["cache_write"]},
            "completion_tokens_details": {"reasoning_tokens": usage["reasoning"]},
        }

    def _frame(self, choices: list[Any], kind: str, **more: Any) -> dict[str, Any]:
        return {
            "id": "chatcmpl_1",
            "object": kind,
            "created": 1,
            "model": self.body["model"],
            "choices": choices,
            **more,
        }

    def _calls(self) -> list[dict[str, Any]]:
        return [
            {"id": each["id"], "type": "function", "function": {"name": each["name"], "arguments": each["arguments"]}}
            for each in self.plan.calls
        ]

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text or None, "refusal": self.plan.refusal or None}
        if self.plan.calls:
            message["tool_calls"] = self._calls()
        choice = {"index": 0, "message": message, "finish_reason": self.reasons.get(self.stop, self.stop)}
        usage = {} if self.plan.no_usage else {"usage": self._usage()}
        return self._frame([choice], "chat.completion", **usage)

    def _delta(self, reason: str | None = None, **delta: Any) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return "", self._frame([choice], "chat.completion.chunk")

    def head(self) -> list[Event]:
        return [self._delta(role="assistant", content="")]

    def events(self) -> Iterator[Event]:
        yield from self.head()
        for piece in self.pieces():
            yield self._delta(content=piece)
        if self.plan.refusal:
            yield self._delta(refusal=self.plan.refusal)
        for index, call in enumerate(self._calls()):
            function = call["function"]
            yield self._delta(tool_calls=[{**call, "index": index, "function": {**function, "arguments": ""}}])
            for piece in (function["arguments"][:4], function["arguments"][4:]):
                yield self._delta(tool_calls=[{"index": index, "function": {"arguments": piece}}])
        yield self._delta(self.reasons.get(self.stop, self.stop))
        if self.body.get("stream_options", {}).get("include_usage") and not self.plan.no_usage:
            yield "", self._frame([], "chat.completion.chunk", usage=self._usage())
        yield "", "[DONE]"


class Responses(Dialect):
    limits = ("max_output_tokens",)

    def input(self) -> list[Any]:
        return self.body["input"]  # type: ignore[no-any-return]

    def schema(self) -> Any:
        return self.body.get("text", {}).get("format", {}).get("schema")

    def _response(self, status: str, output: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": "resp_1", "object": "response", "created_at": 1, "model": self.body["model"], "status": status,
            "output": output, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], **more,
        }  # fmt: skip

    def whole(self) -> dict[str, Any]:
        usage = self.usage
        parts: list[dict[str, Any]] = (
            [{"type": "output_text", "text": self.text, "annotations": []}] if self.text else []
        )
        parts += [{"type": "refusal", "refusal": self.plan.refusal}] if self.plan.refusal else []
        output: list[dict[str, Any]] = [{"type": "reasoning", "id": "rs_1", "summary": []}]
        if parts:
            output.append(
                {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": parts}
            )
        output += [
            {"type": "function_call", "id": f"fc_{each['id']}", "call_id": each["id"], "name": each["name"],
             "arguments": each["arguments"], "status": "completed"}
            for each in self.plan.calls
        ]  # fmt: skip
        counted = {
            "input_tokens": usage["prompt"],
            "output_tokens": usage["completion"],
            "total_tokens": usage["prompt"] + usage["completion"],
            "input_tokens_details": {"cached_tokens": usage["cached"], "cache_write_tokens": usage["cache_write"]},
            "output_tokens_details": {"reasoning_tokens": usage["reasoning"]},
        }
        why = {"length": "max_output_tokens", "filter": "content_filter"}.get(self.stop)
        status, details = ("incomplete", {"reason": why}) if why else ("completed", None)
        return self._response(
            status, output, incomplete_details=details, usage=None if self.plan.no_usage else counted
        )  # fmt: skip

    def head(self) -> list[Event]:
        return [
            ("response.created", {"type": "response.created", "response": self._response("in_progress", [])}),
            ("response.in_progress", {"type": "response.in_progress", "response": self._response("in_progress", [])}),
        ]

    def events(self) -> Iterator[Event]:
        numbered = [*self.head()]
        for piece in self.pieces():
            name = "response.output_text.delta"
            delta = {
                "type": name,
                "delta": piece,
                "item_id": "msg_1",
                "output_index": 0,
                "content_index": 0,
                "logprobs": [],
            }
            numbered.append((name, delta))
        whole = self.whole()
        name = f"response.{whole['status']}"
        numbered.append((name, {"type": name, "response": whole}))
        for number, (name, data) in enumerate(numbered):
            yield name, {**data, "sequence_number": number}

    def fault_event(self, error: dict[str, Any]) -> Event:
        failed = {"code": error.get("code") or "server_error", "message": error.get("message", "told to fail")}
        return "response.failed", {
            "type": "response.failed", "sequence_number": 9, "response": self._response("failed", [], error=failed),
        }  # fmt: skip


class Messages(Dialect):
    limits = ("max_tokens",)
    reasons: ClassVar = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "filter": "refusal"}

    def input(self) -> list[Any]:
        return self.body["messages"]  # type: ignore[no-any-return]

    def schema(self) -> Any:
        return self.body.get("output_config", {}).get("format", {}).get("schema")

    def _counts(self, *, first: bool = False) -> dict[str, Any]:
        usage = self.usage
        return {
            "input_tokens": usage["prompt"] - usage["cached"] - usage["cache_write"],
            "cache_read_input_tokens": usage["cached"],
            "cache_creation_input_tokens": usage["cache_write"],
            "output_tokens": 1 if first else usage["completion"],
        }

    def _message(self, content: list[Any], reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        details = {"type": "refusal", "category": None, "explanation": self.plan.refusal}
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": self.body["model"], "content": content,
            "stop_reason": reason, "stop_sequence": None, "stop_details": details if reason == "refusal" else None,
            "usage": usage,
        }  # fmt: skip

    def _reason(self) -> str:
        return "refusal" if self.plan.refusal else self.reasons.get(self.stop, self.stop)

    def _final(self) -> dict[str, Any]:
        return self._counts() | {"output_tokens_details": {"thinking_tokens": self.usage["reasoning"]}}

    def whole(self) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
        content += [{"type": "text", "text": self.text}] if self.text else []
        content += [
            {"type": "tool_use", "id": each["id"], "name": each["name"], "input": json.loads(each["arguments"])}
            for each in self.plan.calls
        ]
        return self._message(content, self._reason(), self._final())

    def head(self) -> list[Event]:
        message = self._message([], None, self._counts(first=True))
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        ping = {"type": "ping"}
        return [
            ("message_start", {"type": "message_start", "message": message}),
            ("ping", ping),
            ("content_block_start", block),
        ]

    def events(self) -> Iterator[Event]:
        yield from self.head()
        for piece in self.pieces():
            delta = {"type": "text_delta", "text": piece}
            yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": 0}
        for index, call in enumerate(self.plan.calls, start=1):
            block = {"type": "tool_use", "id": call["id"], "name": call["name"], "input": {}}
            yield "content_block_start", {"type": "content_block_start", "index": index, "content_block": block}
            for piece in (call["arguments"][:4], call["arguments"][4:]):
                delta = {"type": "input_json_delta", "partial_json": piece}
                yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
            yield "content_block_stop", {"type": "content_block_stop", "index": index}
        ending = {"stop_reason": self._reason(), "stop_sequence": None}
        if self.plan.refusal:
            ending["stop_details"] = {"type": "refusal", "category": None, "explanation": self.plan.refusal}
        # Two of them, and both with totals: whoever adds them up books too much.
        half = {**self._final(), "output_tokens": self.usage["completion"] // 2, "output_tokens_details": None}
        for usage, delta in ((half, {"stop_reason": None, "stop_sequence": None}), (self._final(), ending)):
            yield "message_delta", {"type": "message_delta", "delta": delta, "usage": usage}
        yield "message_stop", {"type": "message_stop"}

    def fault(self, error: dict[str, Any]) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "api_error", "message": "told to fail", **error}}

    def fault_event(self, error: dict[str, Any]) -> Event:
        return "error", self.fault(error)


def example(schema: Any, root: Any = None) -> Any:
    """The least that fits a JSON schema as pydantic makes it."""
    root = root or schema
    if "$ref" in schema:
        return example(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return example(schema[key][0], root)
    if "const" in schema or "enum" in schema:
        return schema.get("const", (schema.get("enum") or [None])[0])
    match schema.get("type"):
        case "object":
            return {name: example(each, root) for name, each in schema.get("properties", {}).items()}
        case "array":
            return [example(schema["items"], root) for _ in range(schema.get("minItems", 0))]
        case "string":
            return "x" * max(1, schema.get("minLength", 1))
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1 if "exclusiveMinimum" in schema else 0)
        case "boolean":
            return True
    return None


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--delay-s", type=float, default=0, help="before each answer")
    given = parser.parse_args()
    server = ModelServer(given.port, respond=lambda _body: Plan(delay_s=given.delay_s))
    print(server.url, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
