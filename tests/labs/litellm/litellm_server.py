"""LiteLLM's proxy as a model server that is none of ours, with models that answer, count or fail as their names say.

A mock of its own answers whole only, and not in every dialect: Anthropic's stream of one is plain JSON, the Responses
API knows neither a mock's stream nor its faults. So each model stands twice in the configuration: behind, as the mock,
and in front, as a deployment of vLLM at the same proxy's address. What a client sees has gone through LiteLLM's own
translation of a real answer, whole or streamed.

Without a database the proxy answers a wrong key with 400 "No connected db.", so its hook for keys is used: then it is 401.

The proxy's access log counts the requests that arrived: ours come to ``/v1/...``, its own to ``/chat/completions``.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from genai_prices import extract_usage
from genai_prices.types import ExtractedUsage

KEY = "sk-the-tests-own"
STARTS_WITHIN_S = 90.0  # it imports for some 10 s, on a busy machine for longer
ENDS_WITHIN_S = 10.0

TEXT = "It is news, for nobody has told it before."
JSON_TEXT = '{"score": 7, "why": "new"}'
# Real names, for only these have a price; by what the model does, then OpenAI's and Anthropic's.
MODELS = {
    "plain": ("gpt-6-luna", "claude-opus-5-5"),
    "counted": ("gpt-6.1-terra", "claude-sonnet-5-5"),
    "long": ("gpt-6.1-sol", "claude-haiku-5-5"),  # both have a dearer step
    "busy": ("gpt-6-sol", "claude-sonnet-5"),
    "broken": ("gpt-5.6-terra", "claude-opus-5"),
}
NOT_SERVED = ("gpt-5-mini", "claude-fable-5-2")  # they have a price too


def _answer(text: str, prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        },
    }  # fmt: skip


MOCKS: dict[str, Any] = {
    "plain": TEXT,  # whole: always 10 and 20 tokens; streamed: as its tokenizer counts
    "counted": _answer(JSON_TEXT, prompt=3001, cached=2048, completion=77, reasoning=41),
    "long": _answer(TEXT, prompt=300_001, cached=120_003, completion=777, reasoning=0),
    "busy": "litellm.RateLimitError",
    "broken": "litellm.InternalServerError",
}
AUTH = """
from fastapi import HTTPException
from litellm.proxy._types import UserAPIKeyAuth


async def known(request, api_key):
    if api_key != KEY:
        raise HTTPException(401, "no such key")  # of another kind it would be taken for a database's and end in 500
    return UserAPIKeyAuth(api_key=api_key)
"""
PATHS = {
    "openai-chat": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "anthropic": "/v1/messages",
}


def model_for(dialect: str, kind: str) -> str:
    """The name of the model that does what *kind* says."""
    names = NOT_SERVED if kind == "not served" else MODELS[kind]
    return names[dialect == "anthropic"]


class LitellmServer:
    """The proxy as a process; use it in a ``with``.

    Args:
        binary: its command, of an environment of its own.
        folder: for its configuration and its log.
    """

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary, self._folder, self._log = binary, folder, folder / "litellm.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._seen = 0

    def __enter__(self) -> Self:
        config = self._folder / "litellm.yaml"
        config.write_text(json.dumps(self._config()), encoding="utf-8")  # JSON is YAML
        (self._folder / "auth.py").write_text(AUTH.replace("KEY", repr(KEY)), encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self._binary, "--config", str(config), "--host", "127.0.0.1", "--port", str(self.port),
                    # Its 5 s end, on a busy machine, just as the next request comes over the same connection.
                    "--keepalive_timeout", "600",
                ],
                env=kept | {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        gives_up_at = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                if self._get("/health/readiness") == 200:
                    return
            except OSError:
                pass
            ended = self._process.poll()
            if ended is not None or time.monotonic() > gives_up_at:
                told = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise AssertionError(f"{self._binary} {'is not ready' if ended is None else f'ended: {ended}'}\n{told}")
            time.sleep(0.1)

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def _config(self) -> dict[str, Any]:
        behind = [
            {
                "model_name": f"behind-{kind}",
                "litellm_params": {"model": f"openai/{kind}", "api_key": "none", "mock_response": mock},
            }
            for kind, mock in MOCKS.items()
        ]
        front = [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"hosted_vllm/behind-{kind}", "api_base": self.url, "api_key": KEY, "max_retries": 0,
                    "use_chat_completions_api": True,  # for the Responses API: vLLM has one, a mock behind it has not
                },
            }
            for kind, names in MODELS.items() for name in names
        ]  # fmt: skip
        return {
            "model_list": behind + front,
            "general_settings": {"custom_auth": "auth.known"},
            "litellm_settings": {"num_retries": 0, "telemetry": False},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},  # else one fault takes a model away
        }

    # -- what it has seen and what it says ------------------------------------------------------------------------------

    def reset(self) -> None:
        """Count from here."""
        self._seen = len(self._requests())

    @property
    def calls(self) -> int:
        """Requests that arrived since ``reset``. Each is logged before its answer leaves."""
        return len(self._requests()) - self._seen

    def _requests(self) -> list[str]:
        return re.findall(r'"POST /v1/\S+ HTTP', self._log.read_text(encoding="utf-8", errors="replace"))

    def reported(self, dialect: str, kind: str, prompt: str, *, stream: bool = False) -> ExtractedUsage:
        """The usage in its own words, asked for without our clients or an SDK, and read by genai-prices."""
        asked: dict[str, Any] = {"model": model_for(dialect, kind), "stream": stream}
        if dialect == "openai-responses":
            asked |= {"input": [{"role": "user", "content": prompt}], "max_output_tokens": 200}
        else:
            asked |= {"messages": [{"role": "user", "content": prompt}], "max_tokens": 200}
        if stream and dialect == "openai-chat":
            asked["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            connection.request("POST", PATHS[dialect], json.dumps(asked), headers)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, text
        finally:
            connection.close()
        told = _ending(text) if stream else json.loads(text)
        provider, _, flavor = dialect.partition("-")
        return extract_usage({"model": asked["model"], **told}, provider_id=provider, api_flavor=flavor or "default")


def _ending(text: str) -> dict[str, Any]:
    """The usage that a stream ends with."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    told = [event.get("response", event).get("usage") for event in events]
    return {"usage": [usage for usage in told if usage][-1]}
