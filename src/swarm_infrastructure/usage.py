"""Token usage: what a model call used, in one form for every provider."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .errors import InvalidInputError

__all__ = ["TokenUsage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of one model call. The parts are within the wholes, as genai-prices and OpenTelemetry count them.

    Anthropic reports input without what came from its cache; adapters add it, so that ``prompt_tokens`` is always all.
    Where only a total is known, it counts as completion, the dearer side: a usage is never priced too low.

    Raises:
        InvalidInputError: a negative number, or a part greater than its whole.
    """

    prompt_tokens: int = 0  #: all input, cached or not
    completion_tokens: int = 0  #: all output, reasoning included
    total_tokens: int = 0  #: their sum; needed only where nothing else is known
    cached_tokens: int = 0  #: of the input: read from the provider's cache
    cache_write_tokens: int = 0  #: of the input: written to the provider's cache
    reasoning_tokens: int = 0  #: of the output

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InvalidInputError(f"TokenUsage.{field.name}", found=value, needed="a whole number, 0 or more")
        if not self.prompt_tokens and not self.completion_tokens:
            object.__setattr__(self, "completion_tokens", self.total_tokens)
        object.__setattr__(self, "total_tokens", self.prompt_tokens + self.completion_tokens)
        if self.cached_tokens + self.cache_write_tokens > self.prompt_tokens:
            raise InvalidInputError(
                "TokenUsage.cached_tokens", found=self, needed="cached and cache_write within prompt_tokens",
                step="add them to prompt_tokens: it counts all input",
            )  # fmt: skip
        if self.reasoning_tokens > self.completion_tokens:
            raise InvalidInputError(
                "TokenUsage.reasoning_tokens", found=self, needed="at most completion_tokens",
                step="add them to completion_tokens: it counts all output",
            )  # fmt: skip
