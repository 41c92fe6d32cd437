"""Models: one request and one result for every provider, answers checked against a schema, fakes for tests.

The SDKs are imported when a client is made, not here.
"""

from __future__ import annotations

from .answer_cache import AnswerCache
from .anthropic_client import AnthropicClient
from .client import LLMClient, SchemaMismatch, ask, parse_answer, repaired
from .embedding_cache import EmbeddingCache
from .openai_client import OpenAIClient
from .provider import requests_allowed
from .types import ChatMessage, LLMChunk, LLMRequest, LLMResult, ToolCall, estimated_tokens, summed

__all__ = [
    "AnswerCache",
    "AnthropicClient",
    "ChatMessage",
    "EmbeddingCache",
    "LLMChunk",
    "LLMClient",
    "LLMRequest",
    "LLMResult",
    "OpenAIClient",
    "SchemaMismatch",
    "ToolCall",
    "ask",
    "estimated_tokens",
    "parse_answer",
    "repaired",
    "requests_allowed",
    "summed",
]
