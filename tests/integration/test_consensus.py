"""Debates: one vote per agent, whatever comes twice, and an outcome, whoever dies meanwhile.

Each test's debates are audited when it has ended, as its boards are.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from given import Connect, Tape, in_time, snapshot, until

from swarm_infrastructure.blackboard import Blackboard
from swarm_infrastructure.consensus import Cast, Debate, DebateOutcome, Debates, Verdict, audit_debates
from swarm_infrastructure.errors import (
    DebateNotFoundError,
    DebateRefusedError,
    InvalidInputError,
    LibraryMismatchError,
    SectionFullError,
    StoreUnavailableError,
)
from swarm_infrastructure.testing import ManualClock

CONSENSUS, NO_CONSENSUS, TIE, NO_QUORUM, CANCELLED = DebateOutcome
TOLD = list[tuple[str, Mapping[str, Any]]]


@pytest.fixture
def told() -> TOLD:
    """What was announced."""
    return []


@pytest.fixture
async def debates(board: Blackboard, told: TOLD, request: pytest.FixtureRequest) -> AsyncIterator[Debates]:
    """The debates of ``board``."""
    yield debates_of(board, told)
    if not request.node.get_closest_marker("unaudited"):
        breaches = await audit_debates(board.store, board.keys)
        assert not breaches, "\n".join(map(str, breaches))


def debates_of(board: Blackboard, told: TOLD, **options: Any) -> Debates:
    async def announce(kind: str, facts: Mapping[str, Any]) -> None:
        told.append((kind, facts))

    return Debates(board.store, board.keys, announce, **options)


async def given_votes(debates: Debates, *votes: str, debate_id: str = "d") -> Cast:
    """Votes of ``a1``, ``a2``, …: ``"publish"`` or ``"publish 0.5"``. What became of the last one."""
    casts = []
    for n, vote in enumerate(votes, 1):
        choice, _, confidence = vote.partition(" ")
        casts.append(await debates.vote(debate_id, f"a{n}", choice, float(confidence or 1)))
    assert all(cast.counted for cast in casts), "a debate of this test closed before its last vote"
    return casts[-1]


async def given_verdict(debates: Debates, *votes: str, **facts: Any) -> Verdict:
    """The verdict of a debate that gets just these votes."""
    await debates.open("d", "?", expected=len(votes), **({"quorum": len(votes)} | facts))
    cast = await given_votes(debates, *votes)
    assert cast.closed and cast.debate.verdict is not None
    return cast.debate.verdict


# -- one vote ------------------------------------------------------------------------------------------------------------


async def test_a_hundred_simultaneous_votes_of_one_agent_count_once(
    debates: Debates, board: Blackboard, connect: Connect
) -> None:
    elsewhere = Debates(await connect(board.store.url), board.keys)
    await debates.open("d", "?", expected=5)

    casts = await asyncio.gather(*((debates, elsewhere)[n % 2].vote("d", "a1", "publish", 0.7) for n in range(100)))

    assert len({cast.vote for cast in casts}) == 1
    debate = await debates.get("d")
    assert (debate.votes, debate.standing["publish"].weight) == (1, 0.7)
    assert len(await debates.votes("d")) == 1


async def test_of_simultaneous_votes_that_differ_the_first_counts_and_the_others_are_told_which(
    debates: Debates,
) -> None:
    await debates.open("d", "?", expected=5)
    votes = [("publish", 0.7), ("reject", 0.7), ("publish", 0.8)] * 10
    random.Random(7).shuffle(votes)

    answers = await asyncio.gather(*(debates.vote("d", "a1", *vote) for vote in votes), return_exceptions=True)

    [standing] = await debates.votes("d")
    for vote, answer in zip(votes, answers, strict=True):
        if vote == (standing.choice, standing.confidence):
            assert isinstance(answer, Cast) and answer.vote == standing
        else:
            assert isinstance(answer, DebateRefusedError) and (answer.kind, answer.standing) == ("voted", standing)
    assert (await debates.get("d")).votes == 1


async def test_an_agent_that_voted_is_told_its_vote_also_when_the_debate_is_over(debates: Debates) -> None:
    await debates.open("d", "?", expected=1)
    first = await debates.vote("d", "a1", "publish", 0.7, "good story")

    again = await debates.vote("d", "a1", "publish", 0.7, "put otherwise")

    assert again.vote == first.vote and again.vote is not None and again.vote.reason == "good story"
    assert (first.closed, again.closed) == (True, False)
    with pytest.raises(DebateRefusedError, match="has voted 'publish'"):
        await debates.vote("d", "a1", "reject", 0.7)


# -- outcomes ------------------------------------------------------------------------------------------------------------


async def test_a_quorum_that_agrees_is_a_consensus(debates: Debates) -> None:
    await debates.open("d", "Is it news?", expected=3, quorum=3, item_id="news_1")

    cast = await given_votes(debates, "publish 0.9", "reject 0.8", "publish 0.6")

    verdict = cast.debate.verdict
    assert verdict is not None and verdict.reached and cast.closed
    assert (verdict.outcome, verdict.position, verdict.how, verdict.votes) == (CONSENSUS, "publish", "all", 3)
    assert (verdict.weight, round(verdict.share, 4)) == (1.5, round(1.5 / 2.3, 4))
    assert (verdict.debate_id, verdict.item_id) == ("d", "news_1")


async def test_without_a_quorum_at_the_deadline_even_one_mind_is_no_consensus(
    debates: Debates, clock: ManualClock
) -> None:
    await debates.open("d", "?", expected=5, quorum=3, deadline_s=30)
    await given_votes(debates, "publish", "publish")

    await clock.advance(s=31)
    verdict = await debates.outcome("d")

    assert verdict is not None
    assert (verdict.outcome, verdict.position, verdict.votes, verdict.how) == (NO_QUORUM, "", 2, "deadline")
    assert verdict.leaders == ("publish",)


async def test_a_debate_in_which_nobody_votes_has_an_outcome_too(debates: Debates, clock: ManualClock) -> None:
    await debates.open("d", "?")

    await clock.advance(s=31)
    verdict = await debates.outcome("d")

    assert verdict is not None
    assert (verdict.outcome, verdict.leaders, verdict.share, verdict.weight) == (NO_QUORUM, (), 0.0, 0.0)


@pytest.mark.parametrize(
    ("votes", "leaders"),
    [
        (("reject 0.5", "publish 0.5"), ("publish", "reject")),
        (("reject 0.4", "wait 0.5", "reject 0.3", "publish 0.7"), ("publish", "reject")),
        (("reject", "wait", "publish"), ("publish", "reject", "wait")),
    ],
)
async def test_positions_of_the_same_weight_are_a_tie(
    debates: Debates, votes: tuple[str, ...], leaders: tuple[str, ...]
) -> None:
    verdict = await given_verdict(debates, *votes, options=("publish", "reject", "wait"), threshold=0.2)

    assert (verdict.outcome, verdict.position, verdict.leaders) == (TIE, "", leaders)


async def test_one_sure_vote_outweighs_two_doubtful_ones_only_where_votes_are_weighed(debates: Debates) -> None:
    votes = [("a1", "publish", 0.9), ("a2", "reject", 0.3), ("a3", "reject", 0.4)]
    positions = []
    for debate_id, weighted in (("weighed", True), ("counted", False)):
        await debates.open(debate_id, "?", expected=3, quorum=3, weighted=weighted)
        for vote in votes:
            cast = await debates.vote(debate_id, *vote)
        assert cast.debate.verdict is not None
        positions.append((cast.debate.verdict.position, cast.debate.verdict.weight))

    assert positions == [("publish", 0.9), ("reject", 2.0)]


@pytest.mark.parametrize(("others", "outcome"), [("reject 0.4", CONSENSUS), ("reject 0.401", NO_CONSENSUS)])
async def test_a_share_at_the_threshold_is_enough_and_one_just_below_is_not(
    debates: Debates, others: str, outcome: DebateOutcome
) -> None:
    verdict = await given_verdict(debates, "publish 0.6", others, threshold=0.6)

    assert (verdict.outcome, verdict.leaders) == (outcome, ("publish",))
    assert verdict.position == ("publish" if outcome is CONSENSUS else "")


async def test_votes_without_confidence_make_the_quorum_but_decide_nothing(debates: Debates) -> None:
    verdict = await given_verdict(debates, "publish 0", "publish 0")

    assert (verdict.outcome, verdict.share, verdict.votes) == (NO_CONSENSUS, 0.0, 2)


# -- when it closes ------------------------------------------------------------------------------------------------------


async def test_a_debate_closes_as_soon_as_the_votes_still_out_cannot_change_it(debates: Debates) -> None:
    await debates.open("d", "?", expected=5, quorum=3)

    cast = await given_votes(debates, "publish 0.9", "publish 0.8", "publish 0.9")

    verdict = cast.debate.verdict
    assert verdict is not None and verdict.decided_ms < cast.debate.deadline_ms
    assert (verdict.outcome, verdict.how, verdict.votes) == (CONSENSUS, "certain", 3)


@pytest.mark.parametrize(
    ("votes", "facts"),
    [
        pytest.param(["publish"], {"expected": 2, "quorum": 1}, id="the last vote could make it a tie"),
        pytest.param(
            ["publish", "reject", "publish"], {"expected": 4, "quorum": 1, "threshold": 0.3}, id="it could draw level"
        ),
        pytest.param(
            ["reject", "publish", "reject"], {"expected": 4, "quorum": 1, "threshold": 0.3}, id="so could the first"
        ),
        pytest.param(
            ["publish"] * 2, {"expected": 3, "quorum": 1, "threshold": 0.9}, id="the share could fall too low"
        ),
        pytest.param(["publish"] * 3, {"expected": 5, "quorum": 4}, id="the quorum is not there"),
        pytest.param(["publish"] * 3, {}, id="nobody knows how many will vote"),
        pytest.param(
            ["publish 0.7", "publish 0.6"], {"expected": 3, "quorum": 2, "threshold": 0.6}, id="doubtful votes"
        ),
    ],
)
async def test_a_debate_stays_open_while_a_vote_could_change_it(
    debates: Debates, votes: list[str], facts: dict[str, Any]
) -> None:
    await debates.open("d", "?", **facts)

    cast = await given_votes(debates, *votes)

    assert cast.debate.is_open and not cast.closed
    assert await debates.outcome("d") is None


async def test_votes_after_the_deadline_are_not_counted_and_say_so(debates: Debates, clock: ManualClock) -> None:
    await debates.open("d", "?", expected=3, quorum=1, deadline_s=30)
    await given_votes(debates, "publish 0.2")

    await clock.advance(s=30)
    late = await debates.vote("d", "a2", "reject")

    assert (late.counted, late.vote, late.closed) == (False, None, True), "it came too late, but it closed the debate"
    verdict = late.debate.verdict
    assert verdict is not None
    assert (verdict.position, verdict.votes, verdict.how) == ("publish", 1, "deadline")
    assert verdict.decided_ms == late.debate.deadline_ms, "however late somebody looked"
    assert [vote.agent_id for vote in await debates.votes("d")] == ["a1"]


async def test_a_vote_after_an_early_end_is_late_too_and_closes_nothing(debates: Debates) -> None:
    await debates.open("d", "?", expected=3, quorum=2)
    await given_votes(debates, "publish", "publish")

    late = await debates.vote("d", "a3", "reject")

    assert not late.counted and not late.closed
    assert late.debate.verdict == await debates.outcome("d")


async def test_a_verdict_never_changes(debates: Debates, clock: ManualClock) -> None:
    verdict = await given_verdict(debates, "publish", "publish 0.5")

    await clock.advance(s=3600)

    assert await debates.outcome("d") == verdict
    assert await debates.cancel("d", "too late") == verdict
    assert (await debates.open("d", "?", expected=2, quorum=2)).verdict == verdict
    assert await debates.wait("d") == verdict


async def test_a_cancelled_debate_has_an_outcome_and_takes_nothing_more(debates: Debates) -> None:
    await debates.open("d", "?", expected=2)
    await debates.vote("d", "a1", "publish")

    verdict = await debates.cancel("d", "the item was withdrawn")

    assert (verdict.outcome, verdict.position, verdict.how) == (CANCELLED, "", "cancelled")
    assert verdict.reason == "the item was withdrawn"
    assert not (await debates.vote("d", "a2", "publish")).counted
    assert await debates.argue("d", "a2", "publish", "but …") is None


async def test_cancelling_after_the_deadline_comes_too_late(debates: Debates, clock: ManualClock) -> None:
    await debates.open("d", "?", quorum=1)
    await debates.vote("d", "a1", "publish")
    await clock.advance(s=31)

    assert (await debates.cancel("d")).outcome is CONSENSUS


# -- whoever dies --------------------------------------------------------------------------------------------------------


async def test_the_outcome_needs_no_moderator(
    debates: Debates, board: Blackboard, connect: Connect, clock: ManualClock
) -> None:
    await debates.open("d", "?", expected=5, quorum=1)
    await debates.vote("d", "a1", "publish", 0.4)  # and then whoever opened it is never heard of again

    elsewhere = Debates(await connect(board.store.url), board.keys)
    await clock.advance(s=31)

    verdict = await elsewhere.outcome("d")
    assert verdict is not None and verdict.position == "publish"


async def test_of_many_who_look_after_the_deadline_one_announces_the_end(
    board: Blackboard, debates: Debates, told: TOLD, clock: ManualClock, connect: Connect
) -> None:
    await debates.open("d", "?", quorum=1)
    await debates.vote("d", "a1", "publish")
    await clock.advance(s=31)
    lookers = [debates, debates_of(board, told), debates_of(board, told)]

    await asyncio.gather(
        *(looker.outcome("d") for looker in lookers * 10), debates.sweep(), debates.vote("d", "a2", "reject")
    )

    ends = [facts for kind, facts in told if kind == "debate.consensus"]
    assert [(facts["outcome"], facts["position"]) for facts in ends] == [("consensus", "publish")]


async def test_repeating_any_call_after_a_lost_reply_gives_the_first_answer_and_changes_nothing(
    debates: Debates, board: Blackboard
) -> None:
    tape = Tape(board.store)
    await debates.open("d", "?", expected=2)
    await debates.argue("d", "a1", "publish", "because")
    await given_votes(debates, "publish", "publish 0.5")
    await debates.open("e", "?")
    await debates.cancel("e")
    settling = tape.last("vote_debate")
    assert settling.answer[2] == b"1", "that vote closed the debate"
    before = await snapshot(board.store)

    def without_time(answer: list[Any]) -> list[Any]:
        return [answer[0], *answer[2:]]

    for function in ("open_debate", "argue_debate", "vote_debate", "look_debate"):
        call = tape.last(function)
        again = without_time(await tape.again(call))
        if function != "open_debate":  # the debate it opened has closed since
            assert again[:2] == without_time(call.answer)[:2] and again[3:] == without_time(call.answer)[3:]
    assert await snapshot(board.store) == before


async def test_an_argument_is_recorded_once_however_often_the_call_arrives(debates: Debates, board: Blackboard) -> None:
    tape = Tape(board.store)
    await debates.open("d", "?")
    first = await debates.argue("d", "a1", "publish", "because", 0.5)
    call = tape.last("argue_debate")
    second = await debates.argue("d", "a1", "", "and yet", 0.25)
    await debates.cancel("d")

    assert (await tape.again(call))[4:] == call.answer[4:]

    assert await debates.arguments("d") == [first, second]
    assert (await debates.get("d")).arguments == 2


async def test_whoever_takes_a_debate_over_opens_it_again_and_invites_once_more(
    debates: Debates, told: TOLD, clock: ManualClock
) -> None:
    first = await debates.open("d", "Is it news?", voters=["a1", "a2"], item_id="news_1", opened_by="moderator_1")
    await debates.vote("d", "a1", "publish", 0.3)
    await clock.advance(s=10)

    again = await debates.open("d", "Is it news?", voters=["a2", "a1"], item_id="news_1", opened_by="moderator_2")

    assert (again.deadline_ms, again.votes, again.opened_by) == (first.deadline_ms, 1, "moderator_1")
    invitations = [facts for kind, facts in told if kind == "debate.invite"]
    assert [each["voters"] for each in invitations] == [["a1", "a2"]] * 2
    await clock.advance(s=30)
    decided = await debates.open("d", "Is it news?", voters=["a2", "a1"], item_id="news_1")
    assert decided.verdict is not None, "and when it is over, who opens it again learns the outcome"
    assert len([kind for kind, _ in told if kind == "debate.invite"]) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"topic": "?!"},
        {"options": ("a", "b")},
        {"quorum": 3},
        {"deadline_s": 31},
        {"weighted": False},
        {"roles": ["x"]},
    ],
)
async def test_a_debate_is_not_opened_with_other_facts(
    debates: Debates, board: Blackboard, other: dict[str, Any]
) -> None:
    facts: dict[str, Any] = {"topic": "?", "expected": 3}
    await debates.open("d", **facts)
    before = await snapshot(board.store)

    with pytest.raises(DebateRefusedError, match="other facts") as refused:
        await debates.open("d", **facts | other)

    assert refused.value.kind == "differs"
    assert await snapshot(board.store) == before


async def test_a_debater_that_missed_its_invitation_finds_what_it_may_still_vote_on(
    debates: Debates, clock: ManualClock
) -> None:
    await debates.open("late", "?", roles=["debater"], deadline_s=60)
    await debates.open("soon", "?", voters=["a1", "a2"], deadline_s=40)
    await debates.open("all", "?", deadline_s=50)
    await debates.open("others", "?", voters=["b1"])
    await debates.open("over", "?", voters=["a1"])
    await debates.cancel("over")
    await debates.open("voted", "?", voters=["a1", "a2"])
    await debates.vote("voted", "a1", "publish")
    await debates.open("due", "?", deadline_s=1)
    await clock.advance(s=2)

    def ids(found: list[Debate]) -> list[str]:
        return [debate.id for debate in found]

    assert ids(await debates.open_debates("a1", "debater")) == ["soon", "all", "late"]
    assert ids(await debates.open_debates(role="debater")) == ["all", "late"]
    assert ids(await debates.open_debates("b1")) == ["others", "all"]
    assert ids(await debates.open_debates()) == ["others", "voted", "soon", "all", "late"]


# -- who may say what ----------------------------------------------------------------------------------------------------


async def test_only_those_who_were_invited_argue_and_vote(debates: Debates, board: Blackboard) -> None:
    await debates.open("d", "?", voters=["a1", "a11"], roles=["contra"], expected=5)
    before = await snapshot(board.store)

    for agent, role in (("a", ""), ("a12", "pro"), ("contra", ""), ("x", "contr")):
        with pytest.raises(DebateRefusedError, match="not invited") as refused:
            await debates.vote("d", agent, "publish", role=role)
        assert refused.value.kind == "uninvited"
        with pytest.raises(DebateRefusedError, match="not invited"):
            await debates.argue("d", agent, "publish", "because", role=role)
    assert await snapshot(board.store) == before

    await debates.open("of_a1", "?", voters=["a1"])
    with pytest.raises(DebateRefusedError, match="not invited"):
        await debates.vote("of_a1", "a2", "publish")
    assert (await debates.vote("d", "a1", "publish")).counted
    assert (await debates.vote("d", "x", "publish", role="contra")).counted


async def test_a_position_that_the_debate_does_not_have_is_refused(debates: Debates, board: Blackboard) -> None:
    await debates.open("d", "?", options=("yes, now", "not yet"))
    before = await snapshot(board.store)

    for position in ("yes", "yes, now\nnot yet", "1"):
        with pytest.raises(InvalidInputError, match="one of yes, now, not yet"):
            await debates.vote("d", "a1", position)
        with pytest.raises(InvalidInputError, match="one of yes, now, not yet"):
            await debates.argue("d", "a1", position, "because")
    with pytest.raises(InvalidInputError, match="one of yes, now"):
        await debates.vote("d", "a1", "")
    assert await snapshot(board.store) == before


async def test_what_is_not_there_is_not_found_and_nothing_is_written(debates: Debates, board: Blackboard) -> None:
    before = await snapshot(board.store)
    calls = [
        debates.vote("d", "a1", "publish"), debates.argue("d", "a1", "publish", "because"), debates.get("d"),
        debates.outcome("d"), debates.wait("d"), debates.cancel("d"), debates.votes("d"), debates.arguments("d"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(DebateNotFoundError, match="no debate 'd'"):
            await call
    assert await debates.forget("d") is False
    assert await snapshot(board.store) == before


async def test_arguments_are_kept_in_order_with_all_that_was_said(debates: Debates, told: TOLD) -> None:
    await debates.open("d", "?", roles=["pro", "contra"])
    text = "First line.\n\nof|a1 – «naïve» 日本 \ud800 | 7 8"

    await debates.argue("d", "a1", "publish", text, 0.9, role="pro")
    await debates.argue("d", "a2", "reject", "", 0.1, role="contra")
    await debates.argue("d", "a1", "", "on second thoughts", role="pro")

    found = await debates.arguments("d")
    assert [(each.number, each.agent_id, each.role, each.position, each.confidence) for each in found] == [
        (1, "a1", "pro", "publish", 0.9), (2, "a2", "contra", "reject", 0.1), (3, "a1", "pro", "", 1.0),
    ]  # fmt: skip
    assert [each.text for each in found] == [text.replace("\ud800", "?"), "", "on second thoughts"]
    assert [facts["number"] for kind, facts in told if kind == "debate.argument"] == [1, 2, 3]


async def test_arguments_are_limited_for_each_agent_and_for_all(debates: Debates) -> None:
    await debates.open("d", "?", arguments_each=2, arguments_most=3)

    async def argue(agent: str) -> None:
        assert await debates.argue("d", agent, "publish", "because")

    answers = await asyncio.gather(*(argue("a1") for _ in range(9)), return_exceptions=True)
    assert [str(each) for each in answers if each is not None] == [
        "debate 'd' refuses 'a1': 'a1' has brought 2 arguments, needed fewer; vote, or open debates with a higher limit"
    ] * 7
    await argue("a2")
    with pytest.raises(DebateRefusedError, match="there are 3 arguments") as refused:
        await argue("a3")
    assert refused.value.kind == "arguments"
    assert len(await debates.arguments("d")) == 3


async def test_arguments_after_the_deadline_are_not_recorded(debates: Debates, clock: ManualClock) -> None:
    await debates.open("d", "?")
    await clock.advance(s=30)

    assert await debates.argue("d", "a1", "publish", "because") is None
    assert (await debates.arguments("d"), (await debates.get("d")).is_open) == ([], False)


@pytest.mark.parametrize(
    "facts",
    [
        {"options": ("one",)}, {"options": "publish"}, {"options": ("a", "a")}, {"options": ("a", " ")},
        {"options": ("a", "b\nc")}, {"options": tuple(map(str, range(17)))}, {"options": ("a", "b" * 201)},
        {"expected": -1}, {"expected": 1001}, {"expected": 2, "quorum": 3}, {"quorum": 0},
        {"voters": ["a", "b"], "expected": 3}, {"voters": ["a", "b"], "quorum": 3}, {"voters": "ab"}, {"voters": ["a b"]},
        {"roles": ["A"]}, {"threshold": 0}, {"threshold": 1.1}, {"threshold": float("nan")}, {"deadline_s": 0},
        {"deadline_s": float("inf")}, {"topic": "x" * 4001}, {"item_id": "a b"}, {"opened_by": "|"},
        {"arguments_each": 201}, {"arguments_most": -1}, {"keep_s": -1}, {"debate_id": "a b"},
    ],
)  # fmt: skip
async def test_a_debate_that_could_not_work_is_not_opened(
    debates: Debates, board: Blackboard, facts: dict[str, Any]
) -> None:
    before = await snapshot(board.store)
    with pytest.raises(InvalidInputError):
        await debates.open(**({"debate_id": "d", "topic": "?"} | facts))
    assert await snapshot(board.store) == before


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan"), True, "0.5", None])
async def test_a_confidence_is_a_number_from_0_to_1(debates: Debates, confidence: Any) -> None:
    await debates.open("d", "?")
    with pytest.raises(InvalidInputError, match="confidence"):
        await debates.vote("d", "a1", "publish", confidence)


# -- waiting and telling -------------------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_debate(debates: Debates, board: Blackboard, told: TOLD) -> None:
    waiting = debates_of(board, told, poll_s=0.01)
    await debates.open("d", "?", expected=1)
    waiters = [asyncio.create_task(waiting.wait("d")) for _ in range(3)]

    await debates.vote("d", "a1", "publish")

    assert await in_time(asyncio.gather(*waiters)) == [await debates.outcome("d")] * 3


async def test_who_waits_hears_of_the_end_without_looking_again_and_again(board: Blackboard, debates: Debates) -> None:
    heard, listening = asyncio.Event(), asyncio.Event()

    async def listen(debate_id: str) -> None:
        listening.set()
        await heard.wait()

    tape = Tape(board.store)
    await debates.open("d", "?", expected=1, deadline_s=3600)
    waiter = asyncio.create_task(Debates(board.store, board.keys, listen=listen, poll_s=3600).wait("d"))
    await listening.wait()
    await until(lambda: _is(tape.count("look_debate") == 1))

    await debates.vote("d", "a1", "publish")
    heard.set()

    assert (await in_time(waiter)).position == "publish"
    assert tape.count("look_debate") == 2


async def test_who_hears_nothing_waits_no_longer_than_the_deadline(board: Blackboard, debates: Debates) -> None:
    async def deaf(debate_id: str) -> None:
        raise StoreUnavailableError("nowhere", "no pub/sub today")

    async def patient(debate_id: str) -> None:
        await asyncio.Event().wait()

    await debates.open("d", "?", deadline_s=0.2)
    waiters = [
        Debates(board.store, board.keys, listen=listen, poll_s=3600).wait("d") for listen in (None, deaf, patient)
    ]

    assert [verdict.outcome for verdict in await in_time(asyncio.gather(*waiters))] == [NO_QUORUM] * 3


async def test_who_is_cancelled_while_waiting_leaves_no_ear_behind(board: Blackboard, debates: Debates) -> None:
    ears, listening = Counter[str](), asyncio.Event()

    async def listen(debate_id: str) -> None:
        ears["open"] += 1
        listening.set()
        try:
            await asyncio.Event().wait()
        finally:
            ears["open"] -= 1

    await debates.open("d", "?")
    waiter = asyncio.create_task(Debates(board.store, board.keys, listen=listen, poll_s=3600).wait("d"))
    await listening.wait()
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)

    assert waiter.cancelled() and ears["open"] == 0


async def test_each_step_is_announced_once(debates: Debates, told: TOLD) -> None:
    await debates.open("d", "Is it news?", expected=2, item_id="news_1")
    await debates.argue("d", "a1", "publish", "because")
    await given_votes(debates, "publish", "publish 0.5")
    await debates.vote("d", "a1", "publish")
    await debates.outcome("d")

    assert [kind for kind, _ in told] == [
        "debate.invite", "debate.argument", "debate.vote", "debate.vote", "debate.consensus",
    ]  # fmt: skip
    assert all((facts["debate_id"], facts["item_id"]) == ("d", "news_1") for _, facts in told)
    verdict = await debates.outcome("d")
    assert verdict is not None and told[-1][1] == verdict.as_dict()


async def test_a_debate_goes_on_when_nobody_can_be_told(board: Blackboard, debates: Debates) -> None:
    async def announce(kind: str, facts: Mapping[str, Any]) -> None:
        raise StoreUnavailableError("bus", "gone")

    silent = Debates(board.store, board.keys, announce)
    await silent.open("d", "?", expected=1)
    await silent.argue("d", "a1", "publish", "because")

    assert (await silent.vote("d", "a1", "publish")).closed


# -- housekeeping --------------------------------------------------------------------------------------------------------


async def test_a_sweep_closes_what_is_due_and_forgets_what_was_kept_long_enough(
    debates: Debates, board: Blackboard, clock: ManualClock, told: TOLD
) -> None:
    before = await snapshot(board.store)
    await debates.open("d", "?", quorum=1, keep_s=100)
    await debates.argue("d", "a1", "publish", "because")
    await debates.vote("d", "a1", "publish")
    await clock.advance(s=31)

    assert await debates.sweep() == (1, 0)
    assert told[-1][0] == "debate.consensus"
    await clock.advance(s=99)
    assert await debates.sweep() == (0, 0)
    await clock.advance(s=2)
    assert await debates.sweep() == (0, 1)

    after = await snapshot(board.store)
    assert set(after) == set(before)
    with pytest.raises(DebateNotFoundError):
        await debates.get("d")


async def test_opening_a_debate_tidies_up_after_others(debates: Debates, board: Blackboard, clock: ManualClock) -> None:
    await debates.open("due", "?", deadline_s=30)
    await debates.open("old", "?", keep_s=20)
    await debates.cancel("old")
    await clock.advance(s=31)

    await debates.open("new", "?")

    left = {key.decode().removeprefix(board.keys.prefix) for key in await snapshot(board.store)}
    assert {each for each in left if each.startswith("debate:")} == {"debate:due", "debate:new"}
    assert await board.store.command("ZRANGE", board.keys.debates, 0, -1) == [b"new"]


async def test_a_sweep_that_comes_early_forgets_nothing(
    debates: Debates, board: Blackboard, clock: ManualClock
) -> None:
    tape = Tape(board.store)
    await debates.open("d", "?", keep_s=10)
    await debates.cancel("d")
    await clock.advance(s=11)
    await debates.sweep()
    await debates.open("d", "?", keep_s=10)  # another of this name
    await debates.cancel("d")

    answer = await tape.again(tape.last("forget_debate"))

    assert answer[0] == b"kept"
    assert await debates.outcome("d") is not None


async def test_an_open_debate_is_not_forgotten(debates: Debates) -> None:
    await debates.open("d", "?")
    with pytest.raises(DebateRefusedError, match="cancel it first"):
        await debates.forget("d")
    await debates.cancel("d")

    assert await debates.forget("d") is True
    assert await debates.forget("d") is False


async def test_a_debate_that_is_due_ends_before_it_is_forgotten(
    debates: Debates, clock: ManualClock, told: TOLD
) -> None:
    await debates.open("d", "?")
    await clock.advance(s=31)

    assert await debates.forget("d") is True

    assert told[-1][0] == "debate.consensus"


async def test_votes_still_land_when_redis_is_out_of_memory(debates: Debates, board: Blackboard) -> None:
    await debates.open("d", "?", expected=1)
    await board.store.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(SectionFullError):
            await debates.open("e", "?")
        assert (await debates.vote("d", "a1", "publish")).closed
    finally:
        await board.store.command("CONFIG", "SET", "maxmemory", "0")


# -- the audit -----------------------------------------------------------------------------------------------------------


@pytest.mark.unaudited
@pytest.mark.parametrize(
    ("forge", "invariant"),
    [
        (("HINCRBY", "debate:open", "weight|1", 1), "D1"),
        (("HINCRBY", "debate:open", "votes", 1), "D1"),
        (("HINCRBY", "debate:open", "arguments", 1), "D1"),
        (("HDEL", "votes:closed", "a1"), "D1"),
        (("HSET", "votes:open", "x", "2 1 500  1 r\n"), "D1"),
        (("HSET", "votes:open", "x", "torn"), "D1"),
        (("HDEL", "debate:open", "options"), "D1"),
        (("HSET", "debate:closed", "outcome", "tie"), "D2"),
        (("HSET", "debate:closed", "leaders", "2"), "D2"),
        (("HSET", "debate:closed", "how", "deadline"), "D2"),
        (("HSET", "debate:closed", "quorum", "3"), "D2"),
        (("ZREM", "debates", "open"), "D3"),
        (("ZADD", "debates", 1, "closed"), "D3"),
        (("ZREM", "debates_closed", "closed"), "D3"),
        (("DEL", "debate:closed"), "D3"),
        (("ZADD", "debates", 1, "never"), "D3"),
        (("HINCRBY", "board", "clock_offset_ms", 100_000), "D4"),
    ],
)
async def test_the_audit_names_what_must_not_be(
    debates: Debates, board: Blackboard, forge: tuple[Any, ...], invariant: str
) -> None:
    await debates.open("open", "?", voters=["a1", "a2"], deadline_s=30)
    await debates.vote("open", "a1", "publish", 0.5)
    await debates.open("closed", "?", expected=1)
    await debates.vote("closed", "a1", "publish")
    assert await audit_debates(board.store, board.keys) == []

    await board.store.command(forge[0], board.keys.prefix + forge[1], *forge[2:])

    assert invariant in {breach.invariant for breach in await audit_debates(board.store, board.keys)}


@pytest.mark.unaudited
async def test_an_answer_that_this_version_does_not_know_is_no_vote(debates: Debates, board: Blackboard) -> None:
    await debates.open("d", "?")

    async def call(*_: Any, **__: Any) -> list[bytes]:
        return [b"maybe"]

    board.store.call, original = call, board.store.call  # type: ignore[method-assign]
    try:
        for answer in (debates.vote("d", "a1", "publish"), debates.argue("d", "a1", "publish", "x"), debates.get("d")):
            with pytest.raises(LibraryMismatchError):
                await answer
        for other in (debates.open("e", "?"), debates.cancel("d")):
            with pytest.raises(LibraryMismatchError):
                await other
    finally:
        board.store.call = original  # type: ignore[method-assign]


async def _is(what: bool) -> bool:
    return what
