"""OpenAI, and every endpoint that speaks as it does (vLLM, Ollama, llama.cpp, gateways).

Owns both of its dialects: the Responses API, which only OpenAI has in full, and chat completions, which all have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import ConfigurationError, InvalidInputError, MissingExtraError
from ..usage import TokenUsage
from .provider import TIMEOUT_S, Answer, ProviderClient, provider_fault
from .types import ChatMessage, LLMRequest, usage_of

__all__ = ["OpenAIClient"]

STOP_REASONS = {"function_call": "tool_calls", "max_output_tokens": "length"}


class OpenAIClient(ProviderClient):
    """A client of OpenAI or of an endpoint like it; close it with ``aclose``.

    Args:
        api_key: None: ``OPENAI_API_KEY``. An endpoint of one's own may need none.
        base_url: None: ``OPENAI_BASE_URL``, else OpenAI.
        timeout_s: for a whole answer, where the request does not say.
        api: "responses", "chat", or "auto": responses for api.openai.com, chat for everything else.
        limit_field: how chat names ``max_output_tokens``. None: "max_completion_tokens" for OpenAI, whose newer models
            refuse the other one, and "max_tokens" for everything else: Ollama takes the newer name and ignores it
            (ollama/ollama#7125), so that an answer would be bounded by nothing.

    Raises:
        MissingExtraError: openai is not installed.
        ConfigurationError: OpenAI needs a key and there is none.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout_s: float = TIMEOUT_S,
        *,
        api: Literal["auto", "chat", "responses"] = "auto",
        limit_field: Literal["max_tokens", "max_completion_tokens"] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("openai", "openai") from error
        if api not in ("auto", "chat", "responses"):
            raise InvalidInputError("OpenAIClient.api", found=api, needed="auto, chat or responses")
        self._sdk, self._timeout_s = openai, timeout_s
        options: dict[str, Any] = {"base_url": base_url, "timeout": timeout_s, "max_retries": 0}
        try:
            self._api = openai.AsyncOpenAI(api_key=api_key, **options)
        except openai.OpenAIError as error:
            if base_url is None:
                raise ConfigurationError(f"OpenAI: {error}; set OPENAI_API_KEY, or pass api_key") from error
            self._api = openai.AsyncOpenAI(api_key="none", **options)
        official = f".{self._api.base_url.host}".endswith(".api.openai.com")  # eu.api.openai.com too
        self._responses = api == "responses" or (api == "auto" and official)
        self._limit_field = limit_field or ("max_completion_tokens" if official else "max_tokens")
        self._counts = official

    async def count_tokens(self, request: LLMRequest) -> int:
        """See ``LLMClient.count_tokens``: OpenAI counts for the Responses API, all else is estimated."""
        if not (self._responses and self._counts):
            return request.estimated_input_tokens()
        self._check_allowed(request)
        body = self._responses_body(request)
        counted = {key: body[key] for key in ("model", "input", "instructions", "tools", "text") if key in body}
        with self._errors(request, Answer()):
            answer = await self._api.responses.input_tokens.count(**counted, timeout=self._limit(request))
        return int(answer.input_tokens)

    async def _send(self, request: LLMRequest) -> Any:
        if self._responses:
            create, body = self._api.responses.with_raw_response.create, self._responses_body(request)
        else:
            create, body = self._api.chat.completions.with_raw_response.create, self._chat_body(request)
        return (await create(**self._options(request, body))).http_response

    async def _open(self, request: LLMRequest) -> Any:
        if self._responses:
            create, body = self._api.responses.create, self._responses_body(request)
        else:
            create, body = self._api.chat.completions.create, self._chat_body(request)
            body["stream_options"] = {"include_usage": True}
        return await create(**self._options(request, body), stream=True)

    def _read(self, answer: Answer, payload: Mapping[str, Any]) -> None:
        if self._responses:
            return _read_response(answer, payload)
        _read_chat(answer, payload, payload["choices"][0]["message"])

    def _fold(self, answer: Answer, event: Mapping[str, Any]) -> None:
        if self._responses:
            return _fold_response(answer, event)
        choices = event.get("choices") or [{}]  # the last chunk has the usage and no choice
        _read_chat(answer, event, choices[0].get("delta") or {})

    def _chat_body(self, request: LLMRequest) -> dict[str, Any]:
        system = [{"role": "system", "content": request.system}] if request.system else []
        body = _shared_body(request) | {
            "messages": system + [_turn(turn) for turn in request.turns],
            self._limit_field: request.max_output_tokens,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if request.schema:
            body["response_format"] = {"type": "json_schema", "json_schema": self._schema(request.schema)}
        return body

    def _responses_body(self, request: LLMRequest) -> dict[str, Any]:
        if request.stop:
            raise InvalidInputError(
                "LLMRequest.stop", found=request.stop, needed="none: the Responses API has no stop sequences",
                step='use OpenAIClient(api="chat")',
            )  # fmt: skip
        body = _shared_body(request) | {
            "input": [_turn(turn) for turn in request.turns],
            "max_output_tokens": request.max_output_tokens,
            "store": False,  # OpenAI would keep each answer for 30 days
        }
        if request.system:
            body["instructions"] = request.system
        if request.schema:
            body["text"] = {"format": {"type": "json_schema"} | self._schema(request.schema)}
        return body

    def _schema(self, schema: Any) -> dict[str, Any]:
        plain = schema.model_json_schema()
        strict = not _is_open(plain)
        if strict:
            plain = self._sdk.pydantic_function_tool(schema)["function"]["parameters"]
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", schema.__name__)[:64]  # Page[Story] would be refused
        return {"name": name, "schema": plain, "strict": strict}


def _shared_body(request: LLMRequest) -> dict[str, Any]:
    body: dict[str, Any] = {"model": request.model}
    if request.tools:
        body["tools"] = list(request.tools)
    for name in ("temperature", "tool_choice", "prompt_cache_key", "service_tier"):
        if (value := getattr(request, name)) is not None:
            body[name] = value
    return body


def _turn(turn: ChatMessage | Mapping[str, Any]) -> Mapping[str, Any]:
    return {"role": turn.role, "content": turn.content} if isinstance(turn, ChatMessage) else turn


def _is_open(schema: Any) -> bool:
    """Has it objects of any keys (``dict[str, int]``)? OpenAI's strict mode refuses them."""
    if isinstance(schema, list):
        return any(map(_is_open, schema))
    if not isinstance(schema, dict):
        return False
    return bool(schema.get("additionalProperties")) or any(map(_is_open, schema.values()))


def _read_chat(answer: Answer, event: Mapping[str, Any], message: Mapping[str, Any]) -> None:
    """A whole answer, or a chunk: they have the same fields, so that the parts only have to be put together."""
    answer.model = event.get("model") or answer.model
    if message.get("content"):
        answer.add_text(message["content"])
    answer.refusal += message.get("refusal") or ""
    for position, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") or {}
        index = call.get("index")  # Gemini leaves it out, also in streams
        index = (call.get("id") or position) if index is None else index
        answer.add_call(index, call.get("id"), function.get("name"), function.get("arguments"))
    for choice in event.get("choices") or []:
        if reason := choice.get("finish_reason"):
            answer.complete = True
            answer.stop_reason = STOP_REASONS.get(reason, reason)
            if reason == "content_filter" and not answer.refusal:
                answer.refusal = "the provider's content filter stopped the answer"
    if usage := event.get("usage"):
        details, written = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
        answer.usage = usage_of(
            usage.get("prompt_tokens"), usage.get("completion_tokens"), total=usage.get("total_tokens"),
            cached=details.get("cached_tokens"), cache_write=details.get("cache_write_tokens"),
            reasoning=written.get("reasoning_tokens"),
        )  # fmt: skip


def _read_response(answer: Answer, response: Mapping[str, Any], *, with_text: bool = True) -> None:
    """A whole response; at the end of a stream *with_text* is False, for the text has come in pieces."""
    answer.model = response.get("model") or answer.model
    answer.usage = _response_usage(response.get("usage")) or answer.usage
    status = response.get("status")
    if status == "failed":
        raise provider_fault(answer.model, 200, response.get("error") or "the response failed", {})
    answer.complete = True
    for position, item in enumerate(response.get("output") or []):
        if item.get("type") == "function_call":
            answer.add_call(position, item.get("call_id"), item.get("name"), item.get("arguments"))
        for part in item.get("content") or [] if item.get("type") == "message" else []:
            answer.refusal += part.get("refusal") or ""
            if with_text and part.get("type") == "output_text":
                answer.add_text(part["text"])
    why = (response.get("incomplete_details") or {}).get("reason") or ""
    if why == "content_filter" and not answer.refusal:
        answer.refusal = "the provider's content filter stopped the answer"
    answer.stop_reason = STOP_REASONS.get(why, why) or ("tool_calls" if answer.calls else "stop")


def _fold_response(answer: Answer, event: Mapping[str, Any]) -> None:
    match event.get("type"):
        case "response.output_text.delta":
            answer.add_text(event["delta"])
        case "response.completed" | "response.incomplete" | "response.failed":
            _read_response(answer, event["response"], with_text=False)
        case "error":
            raise provider_fault(answer.model, 200, event, {})


def _response_usage(usage: Mapping[str, Any] | None) -> TokenUsage | None:
    if not usage:
        return None
    details, written = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    return usage_of(
        usage.get("input_tokens"), usage.get("output_tokens"), total=usage.get("total_tokens"),
        cached=details.get("cached_tokens"), cache_write=details.get("cache_write_tokens"),
        reasoning=written.get("reasoning_tokens"),
    )  # fmt: skip
