"""What goes to a model and what comes back, in one form for every provider.

Owns the request with its size and its digest, the result as it is recorded and cached, and the pieces of a stream.
Leaves the wire to the adapters and prices to whoever books the call: sizes here are tokens, never money.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..errors import InvalidInputError
from ..usage import TokenUsage

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["ChatMessage", "LLMChunk", "LLMRequest", "LLMResult", "ToolCall", "estimated_tokens", "summed", "usage_of"]

BYTES_PER_TOKEN = 3  # English has 4 and more, other scripts and code less: an estimate should rather be too high
MESSAGE_TOKENS = 8  # what a provider adds to mark a turn; 3 or 4 are documented (OpenAI cookbook), some add more

# Each would undo what was reserved for the call: another price, another length, or several answers for one.
RESERVED = frozenset(
    {"model", "messages", "input", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of", "stream"}
    | {"stream_options", "background", "service_tier"}
)

Model = TypeVar("Model", bound="BaseModel")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str  #: user or assistant
    content: str | Sequence[Mapping[str, Any]]  #: text, or the provider's own content blocks (images, documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMRequest:
    """One call to a model.

    Raises:
        InvalidInputError: no model, no limit, neither or both of prompt and messages, or a knob in ``extra`` that
            would change the price of the call.
    """

    model: str
    max_output_tokens: int  #: required: it bounds what the call can cost; reasoning counts as output
    prompt: str | None = None  #: short for one user message
    messages: Sequence[ChatMessage | Mapping[str, Any]] = ()  #: a mapping is sent as it is, such as a tool's result
    system: str | None = None
    schema: type[BaseModel] | None = None  #: the answer must be JSON of this model
    repair: bool = True  #: an answer that does not fit the schema may be asked for once more, in a second paid call
    temperature: float | None = None  #: not every model takes one
    stop: Sequence[str] = ()
    tools: Sequence[Mapping[str, Any]] = ()  #: in the provider's own form, sent as they are
    tool_choice: str | Mapping[str, Any] | None = None
    cache_control: Mapping[str, Any] | None = None  #: Anthropic: marks tools and system as cacheable
    prompt_cache_key: str | None = None  #: OpenAI: calls with the same beginning share it
    service_tier: str | None = None  #: it changes the price
    timeout_s: float | None = None  #: for the whole answer, streamed or not; None: the client's
    idempotency_key: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  #: the provider's own knobs, sent in the body

    def __post_init__(self) -> None:
        if not self.model:
            raise InvalidInputError("LLMRequest.model", found=self.model, needed="the name of a model")
        limit = self.max_output_tokens
        if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
            raise InvalidInputError("LLMRequest.max_output_tokens", found=limit, needed="a whole number above 0")
        if (self.prompt is None) == (not self.messages):
            raise InvalidInputError(
                "LLMRequest", found=f"prompt={self.prompt!r} and {len(self.messages)} messages", needed="one of the two"
            )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InvalidInputError("LLMRequest.timeout_s", found=self.timeout_s, needed="seconds above 0")
        if clash := sorted(RESERVED & self.extra.keys()):
            raise InvalidInputError(
                "LLMRequest.extra", found=clash, needed="no knob that changes what was reserved for the call",
                step="use the fields of LLMRequest",
            )  # fmt: skip

    @property
    def turns(self) -> tuple[ChatMessage | Mapping[str, Any], ...]:
        """The conversation, with ``prompt`` as a message."""
        return (ChatMessage("user", self.prompt),) if self.prompt is not None else tuple(self.messages)

    def digest(self) -> str:
        """SHA-256 in hex of all that shapes the answer, the same in every process; the key of an exact-match cache.

        Left out is what only decides how the call is made: time limits, keys, tiers and cache hints.
        """
        shape = {
            "model": self.model,
            "turns": [_wire(turn) for turn in self.turns],
            "system": self.system,
            "schema": _schema_text(self.schema),
            "max_output_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "stop": list(self.stop),
            "tools": list(self.tools),
            "tool_choice": self.tool_choice,
            "extra": self.extra,
        }
        return hashlib.sha256(_json(shape).encode("utf-8", "surrogatepass")).hexdigest()

    def input_bytes(self) -> int:
        """What the model may read, in bytes of UTF-8: the conversation, system, tools, schema and the provider's knobs."""
        texts = [self.system or "", _schema_text(self.schema)]
        texts += [_json(each) for each in (self.tools, self.extra) if each]
        texts += [
            turn.content if isinstance(turn, ChatMessage) and isinstance(turn.content, str) else _json(_wire(turn))
            for turn in self.turns
        ]
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)

    def estimated_input_tokens(self) -> int:
        """The input in tokens without asking anybody; rather too high, but no strict bound."""
        marks = len(self.turns) + (1 if self.system else 0)
        return -(-self.input_bytes() // BYTES_PER_TOKEN) + MESSAGE_TOKENS * marks


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool that the model wants called."""

    id: str
    name: str
    arguments: str  #: JSON as the model wrote it; nobody has checked it


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMResult:
    """One answer, and what it took to get it."""

    text: str
    usage: TokenUsage  #: of all attempts
    model: str  #: as the provider names it
    parsed: BaseModel | None = None  #: the answer as an object of the request's schema
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reason: str = "stop"  #: stop, length, tool_calls, pause, or a provider's own word
    request_id: str = ""  #: the provider's, for its support; of the last attempt
    attempts: int = 1  #: 2 after a repair
    duration_ms: int = 0  #: of all attempts
    usage_estimated: bool = False  #: the provider did not say; counted from the bytes sent and received

    def parsed_as(self, model: type[Model]) -> Model:
        """``parsed``, for a type checker.

        Raises:
            InvalidInputError: it is of another type, or there is none.
        """
        if not isinstance(self.parsed, model):
            raise InvalidInputError("LLMResult.parsed", found=self.parsed, needed=f"a {model.__name__}")
        return self.parsed

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON's types. The parsed object is not in it: it is in the text."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "parsed"}
        return known | {"usage": asdict(self.usage), "tool_calls": [asdict(call) for call in self.tool_calls]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], schema: type[BaseModel] | None = None) -> Self:
        """A result from ``as_dict``; with *schema* the object is made anew from the text, unless tools were called.

        Raises:
            InvalidInputError: the text does not fit *schema*, or the record is not one of ``as_dict``.
        """
        try:
            result = cls(
                **{
                    **record,
                    "usage": TokenUsage(**record["usage"]),
                    "tool_calls": tuple(ToolCall(**call) for call in record["tool_calls"]),
                    "parsed": schema.model_validate_json(json_of(record["text"]))
                    if schema and (record["text"].strip() or not record["tool_calls"])
                    else None,
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError("a recorded LLMResult", found=dict(record), needed=f"no {error}") from error
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMChunk:
    """A piece of a streamed answer."""

    text: str = ""  #: what came since the last piece
    result: LLMResult | None = None  #: with the last piece only: the whole answer


def estimated_tokens(text: str) -> int:
    """Tokens of *text*; rather too high."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def usage_of(
    prompt: int | None, completion: int | None, *, total: int | None = 0, cached: int | None = 0,
    cache_write: int | None = 0, reasoning: int | None = 0,
) -> TokenUsage:  # fmt: skip
    """A usage from what a provider reported, which may leave parts out or count reasoning beside the completion.

    Where its numbers contradict each other the greater wins, so that a call is never booked too low.
    """
    cached, cache_write, reasoning = cached or 0, cache_write or 0, reasoning or 0
    prompt = max(prompt or 0, cached + cache_write)
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=max(completion or 0, reasoning, (total or 0) - prompt),
        cached_tokens=cached,
        cache_write_tokens=cache_write,
        reasoning_tokens=reasoning,
    )


def summed(first: TokenUsage, second: TokenUsage | None) -> TokenUsage:
    """The usage of two calls together."""
    if second is None:
        return first
    return TokenUsage(**{each.name: getattr(first, each.name) + getattr(second, each.name) for each in fields(first)})


def json_of(text: str) -> str:
    """The JSON within an answer: small models like to put it in a fence of backticks."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.split("\n", 1)[1].removesuffix("```")
    return text


@lru_cache(maxsize=256)  # pydantic makes a schema anew each time, in a good part of a millisecond
def _schema_text(schema: type[BaseModel] | None) -> str:
    return _json(schema.model_json_schema()) if schema else ""


def _wire(turn: ChatMessage | Mapping[str, Any]) -> Any:
    return {"role": turn.role, "content": turn.content} if isinstance(turn, ChatMessage) else turn


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            "LLMRequest", found=str(error), needed="messages, tools and extra that fit JSON"
        ) from error


def _plain(value: Any) -> Any:
    """Mappings and sequences of any make as JSON's own."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"found a {type(value).__name__}")
