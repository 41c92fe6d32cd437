"""Anthropic's Messages API, which vLLM and gateways offer too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError, InvalidInputError, MissingExtraError
from .provider import TIMEOUT_S, Answer, ProviderClient
from .types import ChatMessage, LLMRequest, usage_of

__all__ = ["AnthropicClient"]

STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
}


class AnthropicClient(ProviderClient):
    """A client of Anthropic or of an endpoint like it; close it with ``aclose``.

    Args:
        api_key: None: ``ANTHROPIC_API_KEY``, or whatever else the SDK finds. An endpoint of one's own may need none.
        base_url: None: ``ANTHROPIC_BASE_URL``, else Anthropic.
        timeout_s: for a whole answer, where the request does not say.

    Raises:
        MissingExtraError: anthropic is not installed.
        ConfigurationError: Anthropic needs a key and there is none.
    """

    def __init__(self, api_key: str | None = None, base_url: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        try:
            import anthropic
        except ImportError as error:
            raise MissingExtraError("anthropic", "anthropic") from error
        self._sdk, self._timeout_s = anthropic, timeout_s
        options: dict[str, Any] = {"base_url": base_url, "timeout": timeout_s, "max_retries": 0}
        try:
            self._api = anthropic.AsyncAnthropic(api_key=api_key, **options)
            if not (self._api.api_key or self._api.auth_token or self._api.credentials):
                raise anthropic.AnthropicError("there is no API key")
        except anthropic.AnthropicError as error:
            if base_url is None:
                raise ConfigurationError(f"Anthropic: {error}; set ANTHROPIC_API_KEY, or pass api_key") from error
            self._api = anthropic.AsyncAnthropic(api_key="none", **options)
        self._counts = self._api.base_url.host == "api.anthropic.com"

    async def count_tokens(self, request: LLMRequest) -> int:
        """See ``LLMClient.count_tokens``: Anthropic counts, endpoints like it may not, so there it is estimated."""
        if not self._counts:
            return request.estimated_input_tokens()
        self._check_allowed(request)
        body = self._body(request)
        names = ("model", "messages", "system", "tools", "tool_choice", "output_config")
        counted = {key: body[key] for key in names if key in body}
        with self._errors(request, Answer()):
            answer = await self._api.messages.count_tokens(**counted, timeout=self._limit(request))
        return int(answer.input_tokens)

    async def _send(self, request: LLMRequest) -> Any:
        raw = await self._api.messages.with_raw_response.create(**self._options(request, self._body(request)))
        return raw.http_response

    async def _open(self, request: LLMRequest) -> Any:
        return await self._api.messages.create(**self._options(request, self._body(request)), stream=True)

    def _options(self, request: LLMRequest, body: dict[str, Any]) -> dict[str, Any]:
        options = super()._options(request, body)
        if request.temperature is not None:  # the SDK has no such argument any more; older models still take it
            options["extra_body"] = {"temperature": request.temperature} | (options["extra_body"] or {})
        return options

    def _body(self, request: LLMRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_output_tokens,
            "messages": [
                {"role": turn.role, "content": turn.content} if isinstance(turn, ChatMessage) else turn
                for turn in request.turns
            ],
        }
        if request.system and request.cache_control:  # a mark behind the system text covers the tools too
            body["system"] = [{"type": "text", "text": request.system, "cache_control": request.cache_control}]
        elif request.system:
            body["system"] = request.system
        elif request.cache_control:
            body["cache_control"] = request.cache_control
        if request.schema:
            try:
                schema = self._sdk.transform_schema(request.schema)
            except ValueError as error:
                raise InvalidInputError("LLMRequest.schema", found=request.schema, needed=str(error)) from error
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        if request.stop:
            body["stop_sequences"] = list(request.stop)
        if request.tools:
            body["tools"] = list(request.tools)
        if request.tool_choice is not None:
            choice = request.tool_choice
            body["tool_choice"] = {"type": choice} if isinstance(choice, str) else choice
        if request.service_tier is not None:
            body["service_tier"] = request.service_tier
        return body

    def _read(self, answer: Answer, payload: Mapping[str, Any]) -> None:
        answer.model = payload.get("model") or ""
        for index, block in enumerate(payload["content"]):
            if block.get("type") == "text":
                answer.add_text(block["text"])
            elif block.get("type") == "tool_use":
                answer.add_call(index, block.get("id"), block.get("name"), block.get("input") or {})
        _count(answer, payload.get("usage"))
        _stop(answer, payload)

    def _fold(self, answer: Answer, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                answer.model = event["message"].get("model") or ""
                _count(answer, event["message"].get("usage"))
            case "content_block_start" if event["content_block"].get("type") == "tool_use":
                block = event["content_block"]
                answer.add_call(event["index"], block.get("id"), block.get("name"), "")
            case "content_block_start" if event["content_block"].get("type") == "text":
                answer.add_text(event["content_block"].get("text") or "")
            case "content_block_delta" if event["delta"].get("type") == "text_delta":
                answer.add_text(event["delta"]["text"])
            case "content_block_delta" if event["delta"].get("type") == "input_json_delta":
                answer.add_call(event["index"], None, None, event["delta"].get("partial_json"))
            case "message_delta":
                _count(answer, event.get("usage"))
                _stop(answer, event["delta"])
            case "message_stop":
                answer.complete = True


def _stop(answer: Answer, ending: Mapping[str, Any]) -> None:
    reason = ending.get("stop_reason") or ""
    answer.stop_reason = STOP_REASONS.get(reason, reason)
    if reason == "refusal":
        details = ending.get("stop_details") or {}
        answer.refusal = details.get("explanation") or details.get("category") or "the model declined"


def _count(answer: Answer, usage: Mapping[str, Any] | None) -> None:
    """Take over what is reported. A later event replaces what an earlier one said: its counts are cumulative."""
    if not usage:
        return
    answer.counts.update({name: count for name, count in usage.items() if count is not None})
    counts = answer.counts
    cached, written = counts.get("cache_read_input_tokens", 0), counts.get("cache_creation_input_tokens", 0)
    answer.usage = usage_of(
        counts.get("input_tokens", 0) + cached + written,  # input_tokens leaves out what the cache took
        counts.get("output_tokens", 0),
        cached=cached,
        cache_write=written,
        reasoning=(counts.get("output_tokens_details") or {}).get("thinking_tokens", 0),
    )
