"""What the adapters share: one call to a provider, its time limit, and its errors in our words.

Owns the switch ``SWARM_ALLOW_LLM_REQUESTS``, the table of errors and the answer as it grows. An adapter adds how its
provider writes requests, answers and events.

The SDKs' own retries are off, for each attempt has to be booked. Answers are read as plain JSON rather than as the
SDK's types: those describe the official API, while endpoints that imitate it leave fields out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from types import ModuleType
from typing import Any

from ..errors import InvalidInputError, ModelError, ModelUnavailableError, RateLimitedError, SwarmError
from ..usage import TokenUsage
from .client import parse_answer
from .types import LLMChunk, LLMRequest, LLMResult, ToolCall, estimated_tokens

__all__ = ["Answer", "ProviderClient", "provider_fault", "requests_allowed"]

TIMEOUT_S = 120.0  # a long answer of a slow model; the SDKs would wait 600 s
WHY_CHARS = 300  # of a provider's message

# An error within a stream, or within an answer of status 200, has a type instead of a status.
STATUS_OF_TYPE = {
    "invalid_request_error": 400, "invalid_prompt": 400, "authentication_error": 401, "billing_error": 402,
    "permission_error": 403, "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429,
    "rate_limit_exceeded": 429, "insufficient_quota": 429, "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
QUOTA_CODE = re.compile(r"insufficient_quota|billing|spend_limit_reached|credit_balance|payment_required")
# Not "billing" and not "quota": OpenAI's plain rate limits link to the billing page, Gemini's speak of a quota.
QUOTA_TEXT = re.compile(r"credit balance|spend(ing)? limit", re.IGNORECASE)
STEPS = {
    "auth": "check the API key and what it may use",
    "quota": "top up the provider's account or raise its limit",
    "request": "change the request",
}


def requests_allowed() -> bool:
    """May real providers be called? ``SWARM_ALLOW_LLM_REQUESTS=0`` forbids it, as the pytest plugin does."""
    return os.environ.get("SWARM_ALLOW_LLM_REQUESTS", "1").strip().lower() not in ("0", "false", "no", "off")


@dataclass(slots=True)
class Answer:
    """An answer as it grows from a provider's JSON."""

    text: list[str] = field(default_factory=list)
    calls: dict[Any, list[str]] = field(default_factory=dict)  #: id, name and arguments, by the provider's index
    refusal: str = ""
    stop_reason: str = ""
    model: str = ""
    request_id: str = ""
    usage: TokenUsage | None = None
    counts: dict[str, Any] = field(default_factory=dict)  #: Anthropic's, of which each event brings some
    begun: bool = False  #: something came
    complete: bool = False  #: the terminal event came

    def add_text(self, text: Any) -> None:
        """A further piece of the text."""
        if not isinstance(text, str):
            raise TypeError(f"found {type(text).__name__} where text was needed")
        self.text.append(text)

    def add_call(self, index: Any, id: str | None, name: str | None, arguments: Any) -> None:
        """A tool call, or a further part of one."""
        call = self.calls.setdefault(index, ["", "", ""])
        written = arguments if isinstance(arguments, str) else "" if arguments is None else json.dumps(arguments)
        call[0], call[1], call[2] = call[0] or id or "", call[1] or name or "", call[2] + written

    def usage_so_far(self, request: LLMRequest) -> TokenUsage:
        """What it has used at least; estimated where the provider has not said yet."""
        written = estimated_tokens("".join(self.text) + "".join(call[2] for call in self.calls.values()))
        known = self.usage or TokenUsage(prompt_tokens=request.estimated_input_tokens())
        return TokenUsage(
            prompt_tokens=known.prompt_tokens,
            # Anthropic opens a stream with an output of one token or so, and says no more before its end.
            completion_tokens=max(known.completion_tokens, written),
            cached_tokens=known.cached_tokens,
            cache_write_tokens=known.cache_write_tokens,
            reasoning_tokens=known.reasoning_tokens,
        )

    def result(self, request: LLMRequest, started: float) -> LLMResult:
        """The finished answer.

        Raises:
            ModelError: kind ``refusal``: the model declined.
        """
        usage = self.usage or self.usage_so_far(request)
        if self.refusal:
            raise ModelError(request.model, "refusal", self.refusal[:WHY_CHARS], usage=usage)
        return LLMResult(
            text="".join(self.text),
            usage=usage,
            model=self.model or request.model,
            tool_calls=tuple(ToolCall(id=id, name=name, arguments=text) for id, name, text in self.calls.values()),
            stop_reason=self.stop_reason or "stop",
            request_id=self.request_id,
            duration_ms=round((time.monotonic() - started) * 1000),
            usage_estimated=self.usage is None,
        )


class ProviderClient:
    """An adapter's common part. One ``generate`` or ``stream`` is one HTTP request."""

    _sdk: ModuleType  #: openai or anthropic: both name their errors alike
    _api: Any  #: the SDK's client
    _timeout_s: float

    async def aclose(self) -> None:
        """Close its connections."""
        await self._api.close()

    async def generate(self, request: LLMRequest) -> LLMResult:
        """See ``LLMClient.generate``."""
        self._check_allowed(request)
        started, answer = time.monotonic(), Answer()
        with self._errors(request, answer):
            async with asyncio.timeout(self._limit(request)):
                response = await self._send(request)
            answer.request_id = self._request_id(response.headers)
            payload = response.json()
            with _reading(request.model):
                if payload.get("error"):  # some gateways answer a fault with status 200
                    raise provider_fault(request.model, 200, payload["error"], {})
                self._read(answer, payload)
        return parse_answer(request, answer.result(request, started))

    async def stream(self, request: LLMRequest) -> AsyncIterator[LLMChunk]:
        """See ``LLMClient.stream``."""
        self._check_allowed(request)
        started, answer = time.monotonic(), Answer()
        ends_at = asyncio.get_running_loop().time() + self._limit(request)
        with self._errors(request, answer):
            async with asyncio.timeout_at(ends_at):
                events = await self._open(request)
            answer.request_id, answer.begun = self._request_id(events.response.headers), True
            try:
                pieces = aiter(events)
                while True:
                    # Not around the yield: it would cancel the reader while it is busy with a piece.
                    async with asyncio.timeout_at(ends_at):
                        event = await anext(pieces, None)
                    if event is None:
                        break
                    plain = event if isinstance(event, dict) else event.to_dict(warnings=False)
                    before = len(answer.text)
                    with _reading(request.model):
                        self._fold(answer, plain)
                    if text := "".join(answer.text[before:]):
                        yield LLMChunk(text=text)
            finally:
                await events.close()
            if not answer.complete:
                raise ModelUnavailableError(request.model, "the stream ended before the answer did")
        yield LLMChunk(result=parse_answer(request, answer.result(request, started)))

    async def _send(self, request: LLMRequest) -> Any:
        """The HTTP response to the request."""
        raise NotImplementedError

    async def _open(self, request: LLMRequest) -> Any:
        """The SDK's stream of events."""
        raise NotImplementedError

    def _read(self, answer: Answer, payload: Mapping[str, Any]) -> None:
        """Take over a whole answer."""
        raise NotImplementedError

    def _fold(self, answer: Answer, event: Mapping[str, Any]) -> None:
        """Take over an event of a stream."""
        raise NotImplementedError

    def _limit(self, request: LLMRequest) -> float:
        return request.timeout_s or self._timeout_s

    def _request_id(self, headers: Mapping[str, str]) -> str:
        return headers.get("x-request-id") or headers.get("request-id") or ""

    def _options(self, request: LLMRequest, body: dict[str, Any]) -> dict[str, Any]:
        """The SDK's arguments for *body*, with the caller's own knobs within it."""
        extra = dict(request.extra)
        for key in body.keys() & extra.keys():
            ours, theirs = body[key], extra.pop(key)
            body[key] = {**theirs, **ours} if isinstance(ours, Mapping) and isinstance(theirs, Mapping) else theirs
        headers = {"Idempotency-Key": request.idempotency_key} if request.idempotency_key else None
        # With no retries, the SDK's own limit only has to be there in case ours can't be heard.
        return {**body, "extra_body": extra or None, "extra_headers": headers, "timeout": self._limit(request) + 1}

    def _check_allowed(self, request: LLMRequest) -> None:
        host = self._api.base_url.host  # as resolved: the SDKs also read it from the environment
        if not requests_allowed() and not _is_loopback(host):
            raise ModelError(
                request.model, "forbidden", f"SWARM_ALLOW_LLM_REQUESTS=0 forbids to call {host}",
                step="use FakeLLM or a local endpoint, or set SWARM_ALLOW_LLM_REQUESTS=1",
            )  # fmt: skip

    @contextmanager
    def _errors(self, request: LLMRequest, answer: Answer) -> Iterator[None]:
        """The SDK's errors as ours, with what a cut stream has brought and used."""
        import httpx2  # of both SDKs

        try:
            try:
                yield
            except SwarmError:
                raise
            except self._sdk.APIStatusError as error:
                body = error.body if error.body is not None else error.message
                raise provider_fault(request.model, error.status_code, body, error.response.headers) from error
            except (TimeoutError, self._sdk.APITimeoutError, httpx2.TimeoutException) as error:
                raise ModelUnavailableError(
                    request.model, f"no whole answer within {self._limit(request):g} s",
                    may_be_paid=not _never_sent(error),
                ) from error  # fmt: skip
            except (self._sdk.APIConnectionError, httpx2.RequestError) as error:
                why = f"the connection failed ({_cause(error)})"
                raise ModelUnavailableError(request.model, why, may_be_paid=not _never_sent(error)) from error
            except self._sdk.APIError as error:  # within a stream
                raise provider_fault(request.model, 200, error.body or str(error), {}) from error
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ModelUnavailableError(request.model, f"an answer that is no JSON ({error})") from error
        except ModelUnavailableError as error:
            if answer.begun or answer.usage:
                error.usage_so_far, error.text_so_far = answer.usage_so_far(request), "".join(answer.text)
                error.may_be_paid = True
            raise
        except ModelError as error:
            if answer.text or answer.usage:
                error.usage = answer.usage_so_far(request)
            raise


def provider_fault(model: str, status: int, body: Any, headers: Mapping[str, str]) -> SwarmError:
    """The error for a provider's answer.

    Args:
        model: the one asked.
        status: of HTTP; 200 for an error that came within an answer.
        body: the provider's error object, or a text.
        headers: of the response.
    """
    inner = body.get("error", body) if isinstance(body, Mapping) else {"message": body}
    inner = inner if isinstance(inner, Mapping) else {"message": inner}
    details = inner.get("details")
    codes = [inner.get("code"), inner.get("type"), details.get("error_code") if isinstance(details, Mapping) else None]
    words = [str(code).lower() for code in codes if code]
    if status < 400:
        status = next((STATUS_OF_TYPE[word] for word in words if word in STATUS_OF_TYPE), 500)
        status = next((int(word) for word in words if re.fullmatch(r"[45]\d\d", word)), status)
    message = " ".join(str(inner.get("message") or "").split())[:WHY_CHARS]
    why = f"status {status}" + (f" {words[0]}" if words else "") + (f": {message}" if message else "")
    broke = any(QUOTA_CODE.search(word) for word in words) or bool(QUOTA_TEXT.search(message))
    if status == 402 or (broke and status in (400, 403, 429)):
        return ModelError(model, "quota", why, step=STEPS["quota"])
    if status == 429:
        return RateLimitedError(model, why, retry_after_s=_retry_after_s(headers), may_be_paid=False)
    if status in (401, 403):
        return ModelError(model, "auth", f"status {status}", step=STEPS["auth"])  # its message may quote the key
    if status in (408, 409) or status >= 500:
        overloaded = status == 529  # turned away at the door
        return ModelUnavailableError(model, why, retry_after_s=_retry_after_s(headers), may_be_paid=not overloaded)
    return ModelError(model, "request", why, step=STEPS["request"])


@contextmanager
def _reading(model: str) -> Iterator[None]:
    """JSON of another shape than a provider's, as an endpoint that is none may send it."""
    try:
        yield
    except SwarmError as error:
        if not isinstance(error, InvalidInputError):  # of TokenUsage: numbers below zero
            raise
        raise ModelUnavailableError(model, f"an answer that can't be read ({error})") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelUnavailableError(model, f"an answer that can't be read ({error!r})") from error


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from ``retry-after-ms`` or ``retry-after``, which holds seconds or a date."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) / unit)
    with suppress(KeyError, ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(headers["retry-after"]) - datetime.now(UTC)).total_seconds())
    return None


def _never_sent(error: BaseException) -> bool:
    """No connection came about, so that nothing can have been done."""
    import httpx2

    unsent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
    return isinstance(error, unsent) or isinstance(error.__cause__, unsent)


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"[:WHY_CHARS]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
