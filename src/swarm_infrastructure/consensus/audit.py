"""The audit of debates: does Redis hold what was promised? Reads Redis and nothing else.

====  ==================================================================================================
D1    the tallies are the fold of the votes; each agent has one, and was invited
D2    a verdict is what its votes say, and was not written before they were in or time was up
D3    an open debate stands in line by its deadline, a closed one to be forgotten; nothing else does
D4    no open debate is past its deadline by more than it takes somebody to look
====  ==================================================================================================

Each debate is read in one transaction, so the swarm may be at work meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..blackboard.audit import Breach
from ..errors import LibraryMismatchError
from ..keys import BoardKeys
from ..store import Store
from .values import Debate, DebateOutcome, Standing, Vote, read_debate, read_vote

__all__ = ["audit_debates"]

OVERDUE_S = 60.0  # a swarm at work sweeps every few seconds


async def audit_debates(store: Store, keys: BoardKeys, *, overdue_s: float = OVERDUE_S) -> list[Breach]:
    """Every breach of D1 to D4 on one board."""
    found: list[Breach] = []
    for debate_id in sorted(await _ids(store, keys)):
        debate = keys.debate(debate_id)
        facts, arguments, votes, running, closed = await store.commands(
            ("HGETALL", debate.record), ("HGETALL", debate.arguments), ("HGETALL", debate.votes),
            ("ZSCORE", keys.debates, debate_id), ("ZSCORE", keys.debates_closed, debate_id),
        )  # fmt: skip
        [now_ms, *_] = await store.call("list_debates", [keys.rules, keys.debates, keys.debates_closed], [0])
        lines = (None if running is None else int(float(running)), None if closed is None else int(float(closed)))
        named = {name.decode(): value.decode() for name, value in facts.items()}
        for invariant, what in _check(debate_id, named, arguments, votes, lines, int(now_ms) - round(overdue_s * 1000)):
            found.append(Breach(invariant=invariant, item=f"debate {debate_id}", what=what))
    return found


async def _ids(store: Store, keys: BoardKeys) -> set[str]:
    ids: set[str] = set()
    for line in (keys.debates, keys.debates_closed):
        ids |= {each.decode() for each in await store.command("ZRANGE", line, 0, -1)}
    of_one = keys.debate("")
    for prefix in (of_one.record, of_one.arguments, of_one.votes):
        pattern = prefix.replace("[", "\\[").replace("*", "\\*") + "*"
        ids |= {key.decode().removeprefix(prefix) async for key in store.scan(pattern)}
    return ids


def _check(
    debate_id: str, facts: Mapping[str, str], arguments: Mapping[bytes, bytes], packed: Mapping[bytes, bytes],
    lines: tuple[int | None, int | None], overdue_ms: int,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    running, closed = lines
    if not facts:
        if running is not None or closed is not None or arguments or packed:
            yield "D3", "it is not there, but something of it is"
        return
    try:
        debate = read_debate(debate_id, facts, 0)
        votes = [read_vote(agent.decode(), text, debate.options) for agent, text in packed.items()]
    except (LibraryMismatchError, ValueError, IndexError) as error:
        yield "D1", f"its record is torn: {error}"
        return
    yield from _check_tallies(debate, votes)
    if debate.arguments != sum(not number.startswith(b"of|") for number in arguments):
        yield "D1", f"it counts {debate.arguments} arguments, and there are others"
    if debate.verdict is None:
        if running != debate.deadline_ms or closed is not None:
            yield "D3", f"it is open until {debate.deadline_ms}, but stands in line at {running} and {closed}"
        if debate.deadline_ms < overdue_ms:
            yield (
                "D4",
                f"its deadline was {(overdue_ms - debate.deadline_ms) / 1000:.0f} s earlier than nobody may overlook",
            )
        return
    if running is not None or closed is None:
        yield "D3", f"it is closed, but stands in line at {running} and {closed}"
    yield from _check_verdict(debate)


def _check_tallies(debate: Debate, votes: list[Vote]) -> Iterator[tuple[str, str]]:
    folded: dict[str, tuple[int, int]] = dict.fromkeys(debate.options, (0, 0))
    for vote in votes:
        n, weight = folded[vote.choice]
        folded[vote.choice] = n + 1, weight + (round(vote.confidence * 1000) if debate.weighted else 1000)
        if not debate.invites(vote.agent_id, vote.role):
            yield "D1", f"{vote.agent_id!r} has voted and was not invited"
        if vote.at_ms >= debate.deadline_ms:
            yield "D1", f"{vote.agent_id!r} has voted after the deadline"
    if sorted(vote.number for vote in votes) != list(range(1, debate.votes + 1)):
        yield "D1", f"it counts {debate.votes} votes, and there are {len(votes)}"
    for position, (n, weight) in folded.items():
        wanted = Standing(votes=n, weight=weight / 1000)
        if debate.standing[position] != wanted:
            yield "D1", f"{position!r} has {debate.standing[position]}, its votes give {wanted}"


def _check_verdict(debate: Debate) -> Iterator[tuple[str, str]]:
    verdict: Any = debate.verdict
    weights = {position: round(each.weight * 1000) for position, each in debate.standing.items()}
    best, total = max(weights.values()), sum(weights.values())
    leaders = tuple(position for position, weight in weights.items() if weight == best) if debate.votes else ()
    if verdict.how == "cancelled":
        outcome = DebateOutcome.CANCELLED
    elif debate.votes < debate.quorum:
        outcome = DebateOutcome.NO_QUORUM
    elif total and len(leaders) > 1:
        outcome = DebateOutcome.TIE
    elif total and best * 1000 >= round(debate.threshold * 1000) * total:
        outcome = DebateOutcome.CONSENSUS
    else:
        outcome = DebateOutcome.NO_CONSENSUS
    if (verdict.outcome, verdict.leaders) != (outcome, leaders):
        yield "D2", f"it ended with {verdict.outcome} for {verdict.leaders}, its votes say {outcome} for {leaders}"
    if verdict.decided_ms > debate.deadline_ms or (verdict.how == "deadline") != (
        verdict.decided_ms == debate.deadline_ms
    ):
        yield "D2", f"it was decided ({verdict.how}) at {verdict.decided_ms}, its deadline was {debate.deadline_ms}"
    if verdict.how == "all" and debate.votes != debate.expected:
        yield "D2", f"it ended with all {debate.expected} votes, and there are {debate.votes}"
    if verdict.how == "certain" and outcome is not DebateOutcome.CONSENSUS:
        yield "D2", "it ended early without a consensus"
