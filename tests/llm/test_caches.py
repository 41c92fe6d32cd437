"""Caches: the same question is paid for once by whoever wants that, and a text is embedded once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from clients import Verdict, request
from structlog.testing import capture_logs

from swarm_infrastructure import (
    ModelError,
    Prices,
    RetryPolicy,
    Settings,
    Submission,
    SwarmInfrastructure,
    TierTable,
    TokenUsage,
    Work,
    job_board,
)
from swarm_infrastructure.agents.asking import ask
from swarm_infrastructure.cost_manager import audit_money
from swarm_infrastructure.cost_manager.ledger import ANSWER_S
from swarm_infrastructure.errors import ClaimLostError, InvalidInputError
from swarm_infrastructure.keys import BoardKeys
from swarm_infrastructure.llm import AnswerCache, EmbeddingCache, LLMRequest, LLMResult, ToolCall
from swarm_infrastructure.store import Store
from swarm_infrastructure.testing import FakeLLM, FunctionLLM

JOBS = job_board("jobs", lease_s=30.0)
TIERS = TierTable({"fast": ["gpt-6-luna"], "balanced": ["gpt-6.1-terra"], "premium": ["gpt-6.1-sol"]})
HUNDRED = TokenUsage(prompt_tokens=100, completion_tokens=100)
PRICE = Prices().cost("gpt-6.1-terra", HUNDRED)
ASKED = request()
ANSWER = LLMResult(text="yes", usage=HUNDRED, model="model-1", request_id="r-1", duration_ms=7)
HOUR_S = 3600.0


@pytest.fixture
async def store(redis_server: Any) -> AsyncIterator[Store]:
    async with Store(redis_server.url) as store:
        yield store


@pytest.fixture
def keys() -> BoardKeys:
    return BoardKeys("t" + secrets.token_hex(6), "jobs")


@pytest.fixture
def cache(store: Store, keys: BoardKeys) -> AnswerCache:
    return AnswerCache(store, keys)


# -- answers ------------------------------------------------------------------------------------------------------------


async def test_a_kept_answer_is_found_again_whole(cache: AnswerCache) -> None:
    assert await cache.get(ASKED) is None
    assert await cache.put(ASKED, ANSWER, HOUR_S)
    assert await cache.get(ASKED) == ANSWER


async def test_the_object_of_a_kept_answer_is_made_anew(cache: AnswerCache) -> None:
    asked, verdict = request(schema=Verdict), Verdict(score=7, why="new")
    await cache.put(asked, replace(ANSWER, text=verdict.model_dump_json(), parsed=verdict), HOUR_S)
    found = await cache.get(asked)
    assert found is not None
    assert found.parsed == verdict


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "Judge that."},
        {"model": "model-2"},
        {"system": "Be brief."},
        {"temperature": 0.5},
        {"schema": Verdict},
    ],
)
async def test_another_question_finds_nothing(cache: AnswerCache, other: dict[str, Any]) -> None:
    await cache.put(ASKED, ANSWER, HOUR_S)
    assert await cache.get(request(**other)) is None


async def test_other_namespaces_and_boards_find_nothing(store: Store, cache: AnswerCache, keys: BoardKeys) -> None:
    await cache.put(ASKED, ANSWER, HOUR_S)
    namespace = keys.prefix.split("{")[1].split(":")[0]
    for other in (BoardKeys(namespace + "x", "jobs"), BoardKeys(namespace, "news")):
        assert await AnswerCache(store, other).get(ASKED) is None


async def test_an_answer_goes_when_its_time_is_over(store: Store, cache: AnswerCache, keys: BoardKeys) -> None:
    await cache.put(ASKED, ANSWER, 60.0)
    key = keys.cached_answer(ASKED.digest())
    assert 0 < await store.command("PTTL", key) <= 60_000
    await store.command("PEXPIRE", key, 0)
    assert await cache.get(ASKED) is None


async def test_whoever_wants_a_younger_answer_does_not_get_the_kept_one(
    store: Store, cache: AnswerCache, keys: BoardKeys
) -> None:
    await cache.put(ASKED, ANSWER, HOUR_S)
    await store.command("PEXPIRE", keys.cached_answer(ASKED.digest()), 3_000_000)  # ten minutes later
    assert await cache.get(ASKED, max_age_s=599) is None
    assert await cache.get(ASKED, max_age_s=700) == ANSWER


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"ttl_ms": 3600000, "result": {}}',
        b'{"ttl_ms": null, "result": null}',
        orjson.dumps({"ttl_ms": 3_600_000, "result": ANSWER.as_dict()})[:-9],
        orjson.dumps({"ttl_ms": 3_600_000, "result": ANSWER.as_dict() | {"text": 7}}),
        orjson.dumps({"ttl_ms": 3_600_000, "result": ANSWER.as_dict() | {"new": 1}}),
        orjson.dumps({"ttl_ms": 1, "result": ANSWER.as_dict()}),
    ],
)
async def test_a_torn_or_foreign_entry_counts_as_absent_and_is_replaced(
    store: Store, cache: AnswerCache, keys: BoardKeys, entry: bytes
) -> None:
    await store.command("SET", keys.cached_answer(ASKED.digest()), entry, "PX", 3_600_000)
    with capture_logs() as logs:
        assert await cache.get(ASKED) is None
    assert [(each["event"], each["log_level"]) for each in logs] == [("a cached answer can't be read", "warning")]
    await cache.put(ASKED, ANSWER, HOUR_S)
    assert await cache.get(ASKED) == ANSWER


async def test_an_entry_of_another_type_or_without_an_end_counts_as_absent(
    store: Store, cache: AnswerCache, keys: BoardKeys
) -> None:
    key = keys.cached_answer(ASKED.digest())
    await store.command("HSET", key, "a", "b")
    assert await cache.get(ASKED) is None
    await store.command("SET", key, orjson.dumps({"ttl_ms": 3_600_000, "result": ANSWER.as_dict()}))
    assert await cache.get(ASKED) is None


async def test_an_answer_that_does_not_fit_the_schema_any_more_counts_as_absent(
    store: Store, cache: AnswerCache, keys: BoardKeys
) -> None:
    asked = request(schema=Verdict)
    entry = orjson.dumps({"ttl_ms": 3_600_000, "result": replace(ANSWER, text='{"score": 11}').as_dict()})
    await store.command("SET", keys.cached_answer(asked.digest()), entry, "PX", 3_600_000)
    assert await cache.get(asked) is None


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (ASKED, replace(ANSWER, stop_reason="length")),
        (ASKED, replace(ANSWER, stop_reason="pause")),
        (ASKED, replace(ANSWER, stop_reason="tool_calls", tool_calls=(ToolCall(id="1", name="look", arguments="{}"),))),
        (ASKED, replace(ANSWER, tool_calls=(ToolCall(id="1", name="look", arguments="{}"),))),
        (request(schema=Verdict), ANSWER),
    ],
)
async def test_an_answer_that_is_none_or_half_of_one_is_not_kept(
    cache: AnswerCache, asked: LLMRequest, answer: LLMResult
) -> None:
    assert not await cache.put(asked, answer, HOUR_S)
    assert await cache.get(asked) is None


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
async def test_a_time_that_can_not_pass_is_refused(cache: AnswerCache, ttl_s: float) -> None:
    with pytest.raises(InvalidInputError, match="ttl_s"):
        await cache.put(ASKED, ANSWER, ttl_s)


# -- Work.ask -----------------------------------------------------------------------------------------------------------


class Desk:
    """A swarm, and items claimed in it."""

    def __init__(self, swarm: SwarmInfrastructure) -> None:
        self.swarm = swarm

    async def works(self, *ids: str, agent: str = "ada") -> list[Work]:
        await self.swarm.blackboard.submit(*(Submission(id=each, section="jobs", payload={}) for each in ids))
        claimed = await self.swarm.blackboard.claim("jobs", agent, most=len(ids))
        return [
            Work(each, self.swarm.blackboard.leases.keep(each.claim), self.swarm, role="reader") for each in claimed
        ]

    async def spent(self, scope: str = "swarm") -> int:
        return (await self.swarm.cost_manager.ledger.accounts(scope))["total"].settled


@pytest.fixture
async def open_desk(redis_server: Any) -> AsyncIterator[Any]:
    settings = Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6))
    opened: list[SwarmInfrastructure] = []

    async def connect(llm: Any) -> Desk:
        swarm = SwarmInfrastructure(JOBS, settings, llm=llm, tiers=TIERS)
        opened.append(await swarm.connect())
        return Desk(swarm)

    yield connect
    for swarm in opened:
        assert await audit_money(swarm.cost_manager.ledger) == []
        await swarm.disconnect()


async def test_an_answer_that_another_item_paid_for_is_taken_at_no_cost_and_recorded(open_desk: Any) -> None:
    model = FakeLLM([Verdict(score=7, why="new")], usage=HUNDRED)
    desk = await open_desk(model)
    first, second = await desk.works("a", "b")
    paid = await first.ask("content_analysis", "Judge.", schema=Verdict, cache_s=HOUR_S)
    taken = await second.ask("content_analysis", "Judge.", schema=Verdict, cache_s=HOUR_S)
    again = await second.ask("content_analysis", "Judge.", schema=Verdict)

    assert (paid.recorded, paid.cost) == (False, PRICE / 1e9)
    for answered in (taken, again):
        assert (answered.parsed, answered.recorded, answered.cost) == (paid.parsed, True, 0.0)
    assert len(model.requests) == 1
    assert (await desk.spent(), await desk.spent("task:b")) == (PRICE, 0)
    store, keys, steps = desk.swarm.blackboard.store, desk.swarm.blackboard.keys, desk.swarm.failure_recovery.steps
    assert ANSWER_S * 1000 - 60_000 < await store.command("PTTL", keys.answers("b")) <= ANSWER_S * 1000
    assert [(each.stage, each.token) for each in await steps.list("b")] == [(second.stage, second.token)]


async def test_who_asks_for_an_item_that_others_hold_has_the_cached_answer_recorded_without_a_stage(
    open_desk: Any,
) -> None:
    desk = await open_desk(FakeLLM(["1"], usage=HUNDRED))
    first, second = await desk.works("a", "b")
    await first.ask("content_analysis", "Judge.", cache_s=HOUR_S)
    judge = SimpleNamespace(
        swarm=desk.swarm, agent_id="eve", role="judge", item_id="b", key="b:debate", claim=None, check=second.check
    )
    taken = await ask(judge, "content_analysis", "Judge.", cache_s=HOUR_S)

    assert (taken.text, taken.recorded) == ("1", True)
    assert [(each.stage, each.token) for each in await desk.swarm.failure_recovery.steps.list("b")] == [("", 0)]


async def test_an_answer_from_the_cache_is_not_recorded_for_an_item_that_is_lost(open_desk: Any) -> None:
    desk = await open_desk(FakeLLM(["1"], usage=HUNDRED))
    first, second = await desk.works("a", "b")
    await first.ask("content_analysis", "Judge.", cache_s=HOUR_S)
    await desk.swarm.blackboard.hand_back(second.claim)
    with pytest.raises(ClaimLostError):
        await second.ask("content_analysis", "Judge.", cache_s=HOUR_S)
    assert await desk.swarm.failure_recovery.steps.list("b") == []


async def test_without_a_word_about_it_every_item_asks_anew(open_desk: Any) -> None:
    model = FakeLLM(["1", "2", "3"], usage=HUNDRED)
    desk = await open_desk(model)
    first, second, third = await desk.works("a", "b", "c")
    texts = [
        (await first.ask("content_analysis", "Judge.")).text,
        (await second.ask("content_analysis", "Judge.", cache_s=HOUR_S)).text,
        (await third.ask("content_analysis", "Judge.")).text,
    ]
    assert texts == ["1", "2", "3"]


async def test_an_answer_that_is_too_old_for_the_asker_is_paid_for_anew(open_desk: Any) -> None:
    model = FakeLLM(["old", "new"], usage=HUNDRED)
    desk = await open_desk(model)
    first, second = await desk.works("a", "b")
    await first.ask("content_analysis", "Judge.", cache_s=HOUR_S)
    store, keys = desk.swarm.blackboard.store, desk.swarm.blackboard.keys
    [key] = [each async for each in _scan(store, keys.cached_answer("*"))]
    await store.command("PEXPIRE", key, 3_000_000)  # ten minutes later

    assert (await second.ask("content_analysis", "Judge.", cache_s=60.0)).text == "new"
    assert await desk.spent("task:b") == PRICE


async def test_a_record_that_was_there_first_stands(open_desk: Any) -> None:
    desk = await open_desk(FakeLLM(["own", "other"], usage=HUNDRED))
    first, second = await desk.works("a", "b")
    await first.ask("content_analysis", "Judge.")
    await second.ask("content_analysis", "Judge.", cache_s=HOUR_S)
    assert (await first.ask("content_analysis", "Judge.", cache_s=HOUR_S)).text == "own"


async def test_a_failure_is_not_cached(open_desk: Any) -> None:
    model = FakeLLM([ModelError("gpt-6.1-terra", "refusal", "no", usage=HUNDRED), "yes"])
    desk = await open_desk(model)
    first, second = await desk.works("a", "b")
    with pytest.raises(ModelError):
        await first.ask("content_analysis", "Judge.", cache_s=HOUR_S)
    answered = await second.ask("content_analysis", "Judge.", cache_s=HOUR_S, retry=RetryPolicy(base_delay=0.0))
    assert (answered.text, answered.recorded) == ("yes", False)


async def test_a_repaired_answer_is_cached_for_the_question_that_was_asked(open_desk: Any) -> None:
    model = FakeLLM(["{}", {"score": 7, "why": "new"}], usage=HUNDRED)
    desk = await open_desk(model)
    first, second = await desk.works("a", "b")
    await first.ask("content_analysis", "Judge.", schema=Verdict, cache_s=HOUR_S)
    taken = await second.ask("content_analysis", "Judge.", schema=Verdict, cache_s=HOUR_S)
    assert (taken.parsed, taken.recorded) == (Verdict(score=7, why="new"), True)


@pytest.mark.parametrize("cache_s", [-1.0, float("nan"), float("inf")])
async def test_an_age_that_is_none_is_refused_before_anything_is_paid(open_desk: Any, cache_s: float) -> None:
    model = FunctionLLM(lambda asked: "yes")
    desk = await open_desk(model)
    [work] = await desk.works("a")
    with pytest.raises(InvalidInputError, match="cache_s"):
        await work.ask("content_analysis", "Judge.", cache_s=cache_s)
    assert model.requests == []


async def _scan(store: Store, pattern: str) -> AsyncIterator[bytes]:
    for key in await store.command("KEYS", pattern.replace("{", "[{]").replace("}", "[}]")):
        yield key


# -- embeddings ---------------------------------------------------------------------------------------------------------


class Embedder:
    """Gives each text its length and more; notes what it was called with."""

    def __init__(self, length: int = 3) -> None:
        self.length = length
        self.calls: list[list[str]] = []

    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(list(texts))
        return [[float(len(text)), 0.5, *[-1.0] * (self.length - 2)] for text in texts]


async def test_only_distinct_missing_texts_are_embedded_in_one_call_and_the_order_is_kept(
    store: Store, keys: BoardKeys
) -> None:
    embedder = Embedder()
    cache = EmbeddingCache(store, keys, embedder, model="m")
    await cache.embed(["aa", "b"])
    vectors = await cache.embed(["dddd", "b", "ccc", "aa", "dddd", "ccc", ""])

    assert embedder.calls == [["aa", "b"], ["dddd", "ccc", ""]]
    assert vectors == [[float(n), 0.5, -1.0] for n in (4, 1, 3, 2, 4, 3, 0)]


async def test_no_texts_need_nobody(store: Store, keys: BoardKeys) -> None:
    embedder = Embedder()
    assert await EmbeddingCache(store, keys, embedder, model="m").embed([]) == []
    assert embedder.calls == []


async def test_a_vector_is_the_same_number_for_number_before_and_after_it_is_kept(
    store: Store, keys: BoardKeys
) -> None:
    async def embed(texts: Sequence[str]) -> list[list[float]]:
        return [[0.1, 1 / 3] for _ in texts]

    cache = EmbeddingCache(store, keys, embed, model="m")
    assert await cache.embed(["a"]) == await cache.embed(["a"])


async def test_models_do_not_share_vectors(store: Store, keys: BoardKeys) -> None:
    one, other = Embedder(), Embedder(4)
    await EmbeddingCache(store, keys, one, model="m").embed(["xa"])
    assert len((await EmbeddingCache(store, keys, other, model="mx").embed(["a"]))[0]) == 4
    assert other.calls == [["a"]]


async def test_vectors_go_when_their_time_is_over(store: Store, keys: BoardKeys) -> None:
    await EmbeddingCache(store, keys, Embedder(), model="m", keep_s=60).embed(["a"])
    [key] = [each async for each in _scan(store, keys.vector("*"))]
    assert 0 < await store.command("PTTL", key) <= 60_000


async def kept_keys(store: Store, keys: BoardKeys, cache: EmbeddingCache, texts: Sequence[str]) -> dict[str, bytes]:
    """The key of each text, which is embedded for that."""
    found: dict[str, bytes] = {}
    for text in texts:
        await cache.embed([text])
        [found[text]] = [each async for each in _scan(store, keys.vector("*")) if each not in found.values()]
    return found


@pytest.mark.parametrize(
    "spoil", [lambda kept: kept[:-1], lambda kept: kept[:-4], lambda kept: kept[:4], lambda kept: b""]
)
async def test_a_torn_vector_is_computed_anew_and_kept(store: Store, keys: BoardKeys, spoil: Any) -> None:
    embedder = Embedder()
    cache = EmbeddingCache(store, keys, embedder, model="m")
    kept = await kept_keys(store, keys, cache, ["a", "bb"])
    await store.command("SET", kept["bb"], spoil(await store.command("GET", kept["bb"])))
    embedder.calls.clear()

    for _ in range(2):
        assert await cache.embed(["a", "bb"]) == [[1.0, 0.5, -1.0], [2.0, 0.5, -1.0]]
    assert embedder.calls == [["bb"]]


async def test_a_vector_of_another_length_than_its_neighbours_is_computed_anew(store: Store, keys: BoardKeys) -> None:
    embedder = Embedder()
    cache = EmbeddingCache(store, keys, embedder, model="m")
    await cache.embed(["a", "bb"])
    embedder.length = 5
    await cache.embed(["ccc"])
    embedder.length = 3
    embedder.calls.clear()

    assert [len(vector) for vector in await cache.embed(["a", "ccc", "bb", "dddd"])] == [3, 3, 3, 3]
    assert embedder.calls == [["ccc", "dddd"]]


async def test_when_as_many_are_long_as_are_short_all_are_computed_anew(store: Store, keys: BoardKeys) -> None:
    embedder = Embedder()
    cache = EmbeddingCache(store, keys, embedder, model="m")
    await cache.embed(["a"])
    embedder.length = 5
    await cache.embed(["bb"])
    assert [len(vector) for vector in await cache.embed(["a", "bb"])] == [5, 5]
    assert embedder.calls[-1] == ["a", "bb"]


async def test_a_model_whose_vectors_have_another_length_now_computes_all_anew(store: Store, keys: BoardKeys) -> None:
    embedder = Embedder()
    cache = EmbeddingCache(store, keys, embedder, model="m")
    await cache.embed(["a", "bb"])
    embedder.length = 5

    for _ in range(2):
        assert [vector[0] for vector in await cache.embed(["a", "ccc", "bb"])] == [1.0, 3.0, 2.0]
    assert embedder.calls == [["a", "bb"], ["ccc"], ["a", "bb"]]


@pytest.mark.parametrize("vectors", [[], [[1.0]], [[1.0], [1.0, 2.0]], [[], []], [[1e60], [1.0]], [["x"], [1.0]]])
async def test_vectors_that_do_not_match_the_texts_are_refused_and_not_kept(
    store: Store, keys: BoardKeys, vectors: Any
) -> None:
    async def embed(texts: Sequence[str]) -> Any:
        return vectors

    with pytest.raises(InvalidInputError, match="embed"):
        await EmbeddingCache(store, keys, embed, model="m").embed(["a", "bb"])
    assert [each async for each in _scan(store, keys.vector("*"))] == []


async def test_askers_of_the_same_moment_get_the_same(store: Store, keys: BoardKeys) -> None:
    cache = EmbeddingCache(store, keys, Embedder(), model="m")
    one, other = await asyncio.gather(cache.embed(["a", "bb"]), cache.embed(["bb", "a"]))
    assert one == other[::-1]
