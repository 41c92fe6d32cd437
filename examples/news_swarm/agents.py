"""The agents of the news swarm.

::

                                                        pro
                                                         ╱╲
    sources ─ scout ─▶ raw_feed ─ scout ─▶ debate_queue ─ analyst ─▶ consensus ─ writer ─▶ review_queue ─ reviewer ─▶ approved
                          │ near-copy             neutral  contra                     │ faults          publisher ─▶ published
                          ▼ archive            ▼ archive: not news, or outvoted      ▼ archive
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from pathlib import Path
from typing import Any

from swarm_infrastructure import (
    Ballot,
    BaseAgent,
    BlackboardSection,
    Claims,
    ContentStatus,
    Debate,
    Debater,
    Item,
    NewsItem,
    Outcome,
    Seat,
    Submission,
    Work,
)
from swarm_infrastructure.agents import bench
from swarm_infrastructure.blackboard.queries import text_of
from swarm_infrastructure.blackboard.similarity import REJECT

from . import engine, output
from .board import BOARD, SOURCES
from .models import STANCES, Choice, Opinion, Review, Tags, Verdict, question
from .sources import Article, FeedError, read_source

__all__ = ["Analyst", "Contra", "Neutral", "Pro", "Publisher", "Reviewer", "Scout", "Writer", "story_id"]

DEBATE_S = 15.0  # how long the debaters have; without a quorum by then the analyst decides
SEATS_S = 3.0  # how long the list of debaters is believed
DAILY = {"daily_limit": 2.00}  # dollars a day for all agents of a role together


def story_id(article: Article) -> str:
    """The id of an article's item: the same text from the same outlet has the same id, in every run."""
    return (
        "n_" + NewsItem(id="-", title=article.title, content=article.content, source=article.source).content_hash[:20]
    )


def occurrence_of(location: str, ordinal: int) -> str:
    """Names one entry of one source."""
    return hashlib.sha256(f"{location}#{ordinal}".encode()).hexdigest()[:16]


class Scout(BaseAgent):
    """Reads sources, puts each article on the board once, and recognises near-copies."""

    role = "scout"
    claims = Claims(SOURCES, BlackboardSection.RAW_FEED, batch=16)
    budget = DAILY

    async def process(self, item: Item, work: Work) -> Outcome:
        """Read a source, or look whether an article is a near-copy of an earlier one."""
        if item.section == SOURCES:
            return await self._read(item, work)
        alike = await self.swarm.blackboard.recognise(item.id, text_of(item.payload))
        if alike and alike[0].similarity >= REJECT:
            first = alike[0].item
            original = str(first.payload.get("duplicate_of") or first.id)
            return work.move(
                BlackboardSection.ARCHIVE,
                ContentStatus.ARCHIVED,
                patch={"duplicate_of": original, "similarity": alike[0].similarity},
                reason=f"near-copy of {original}",
            )
        related = [{"id": each.item.id, "similarity": each.similarity} for each in alike[:5]]
        return work.move(BlackboardSection.DEBATE_QUEUE, patch={"related_to": related} if related else None)

    async def _read(self, item: Item, work: Work) -> Outcome:
        location, run = str(item.payload["location"]), str(item.payload["run"])
        try:
            reading = await asyncio.to_thread(read_source, location)
        except FeedError as error:
            return work.fail(str(error), give_up=True)  # it will be no better feed in a minute
        stories: list[str] = []
        known: dict[str, str] = {}
        articles: dict[str, list[Article]] = {}
        for article in reading.articles:
            articles.setdefault(story_id(article), []).append(article)
        submissions = [self._submission(location, run, each[0]) for each in articles.values()]
        answers = await work.submit(*submissions)
        there = await self.swarm.blackboard.find_many([answer.duplicate_of for answer in answers if not answer])
        found = {item.id: item for item in there if item is not None}
        for answer, same in zip(answers, articles.values(), strict=True):
            first, *copies = same
            if answer or _is_ours(found.get(answer.duplicate_of), location, run, first):
                stories.append(answer.id)
            else:
                copies = same
            known |= {f"{location}#{copy.ordinal}": answer.duplicate_of or answer.id for copy in copies}
        return work.done(
            {
                "run": run,
                "read": len(reading.articles) + len(reading.malformed),
                "stories": stories,
                "known": known,
                "malformed": {f"{location}#{each.ordinal}": each.why for each in reading.malformed},
                "note": reading.note,
            }
        )

    @staticmethod
    def _submission(location: str, run: str, article: Article) -> Submission:
        news = NewsItem(
            id=story_id(article),
            title=article.title,
            content=article.content,
            source=article.source,
            url=article.url,
            published_at=article.published_at,
            topics=list(article.topics),
        )
        payload = news.to_dict() | {
            "run": run,
            "occurrence": occurrence_of(location, article.ordinal),
            "found_in": location,
        }
        return Submission(
            id=news.id, section=BlackboardSection.RAW_FEED, payload=payload, content_hash=news.content_hash
        )


def _is_ours(item: Item | None, location: str, run: str, article: Article) -> bool:
    """Whether an item that was there already came from this very entry: of this run, or of one that was cut off."""
    if item is None or item.payload.get("occurrence") != occurrence_of(location, article.ordinal):
        return False
    return item.payload.get("run") == run or item.status not in {*BOARD.final, BOARD.quarantine}


class NewsDebater(Debater):
    """Says what it thinks of an article, and votes."""

    budget = DAILY

    async def argue(self, debate: Debate, seat: Seat) -> Ballot | None:
        """Read the article that the debate is about."""
        item = await self.swarm.blackboard.find(debate.item_id)
        if item is None:
            return None
        facts = {"stance": self.stance, "title": item.payload["title"], "content": item.payload["content"]}
        told = (await seat.ask("debate_argument", **question(Opinion, **facts))).parsed
        return Ballot(choice=told.choice, confidence=told.confidence, argument=told.argument)


class Pro(NewsDebater):
    """Looks for what speaks for a story."""

    stance = "pro"


class Contra(NewsDebater):
    """Looks for what speaks against a story."""

    stance = "contra"


class Neutral(NewsDebater):
    """Weighs both."""

    stance = "neutral"


class Analyst(BaseAgent):
    """Decides whether an article is news, has it debated, and says from which angle to tell it."""

    role = "analyst"
    claims = Claims(BlackboardSection.DEBATE_QUEUE, batch=8)
    budget = DAILY

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self._seats: dict[str, str] = {}
        self._seats_read_at = -math.inf

    async def process(self, item: NewsItem, work: Work) -> Outcome:
        """Judge one article."""
        facts = {"title": item.title, "content": item.content, "source": item.source}
        verdict = (await work.ask("content_analysis", **question(Verdict, **facts))).parsed
        told = {"confidence": verdict.confidence, "reasons": verdict.reasons}
        if verdict.confidence < 0.3:
            return work.move(
                BlackboardSection.ARCHIVE,
                ContentStatus.ARCHIVED,
                patch={"verdict": told, "rejected_because": verdict.reasons[0]},
                reason=f"not news: {verdict.reasons[0]}",
            )
        debate = await self._debate(item, work)
        if debate is not None and debate["position"] == "drop":
            why = f"outvoted: {debate['share']:.0%} for dropping it"
            return work.move(
                BlackboardSection.ARCHIVE,
                ContentStatus.ARCHIVED,
                patch={"verdict": told, "debate": debate, "rejected_because": why},
                reason=why,
            )
        tags = (await work.ask("topic_tagging", **question(Tags, **facts))).parsed
        topics = list(dict.fromkeys([*tags.topics, *item.topics]))[:8]
        patch = {
            "verdict": told, "topics": topics, "sentiment_score": tags.sentiment, "angle": verdict.angle, "debate": debate,
        }  # fmt: skip
        return work.move(BlackboardSection.CONSENSUS, patch=patch)

    async def _debate(self, item: NewsItem, work: Work) -> dict[str, Any] | None:
        """How the debaters who are here decide; None if there are none. Without a consensus the analyst's word counts."""
        seats, debates = await self._bench(), self.swarm.debates
        if not seats:
            return None
        debate = await debates.open(
            f"{item.id}:{work.claim.token}", item.title[:4000], ("tell", "drop"), voters=list(seats.values()),
            quorum=min(2, len(seats)), deadline_s=DEBATE_S, item_id=item.id, opened_by=self.agent_id,
        )  # fmt: skip
        verdict = await debates.wait(debate.id, self.agent_id)
        said = {argument.agent_id: argument.text for argument in await debates.arguments(debate.id)}
        stances = {agent_id: stance for stance, agent_id in seats.items()}
        votes: list[dict[str, Any]] = [
            {
                "stance": stances[vote.agent_id], "choice": vote.choice, "confidence": vote.confidence,
                "argument": said.get(vote.agent_id, ""),
            }
            for vote in await debates.votes(debate.id)
        ]  # fmt: skip
        votes.sort(key=lambda vote: list(STANCES).index(vote["stance"]))
        return {
            "outcome": str(verdict.outcome),
            "position": verdict.position,
            "share": round(verdict.share, 3),
            "votes": votes,
        }

    async def _bench(self) -> dict[str, str]:
        """A debater for each stance; who is here is looked up every few seconds."""
        now = asyncio.get_running_loop().time()
        if now - self._seats_read_at > SEATS_S:
            found = await bench(self.swarm)
            self._seats = {stance: agent_id for stance, agent_id in found.items() if stance in STANCES}
            self._seats_read_at = now
        return self._seats


class Writer(BaseAgent):
    """Writes the script: the sentences of the source that carry the story."""

    role = "script_writer"
    claims = Claims(BlackboardSection.CONSENSUS, batch=8)
    budget = DAILY

    async def process(self, item: NewsItem, work: Work) -> Outcome:
        """Write one script."""
        facts = {"title": item.title, "content": item.content, "source": item.source, "url": item.url}
        numbered = dict(enumerate(engine.split_sentences(item.content)))
        choice = await work.ask("script_draft", **question(Choice, **facts, sentences=_shown(numbered)))
        script = await asyncio.to_thread(
            engine.write_script, item.title, item.content, item.source, item.url, sentences=choice.parsed.sentences
        )
        patch = {"script": output.script_to_json(script), "model": choice.model}
        return work.move(BlackboardSection.REVIEW_QUEUE, patch=patch)


def _shown(sentences: dict[int, str], most: int = 12_000) -> dict[str, str]:
    """Sentences by number, as many as fit into *most* characters."""
    shown: dict[str, str] = {}
    for number, sentence in sentences.items():
        most -= len(sentence)
        if most < 0:
            break
        shown[str(number)] = sentence
    return shown


class Reviewer(BaseAgent):
    """Holds each script against its source: nothing in it may be invented, and it must be worth watching."""

    role = "reviewer"
    claims = Claims(BlackboardSection.REVIEW_QUEUE, statuses=(ContentStatus.REVIEWING, ContentStatus.FAILED), batch=8)
    budget = DAILY

    async def process(self, item: Item, work: Work) -> Outcome:
        """Check one script: by rule, which nobody can talk round, and if that finds nothing by a model."""
        news = NewsItem.from_dict(item.payload)
        script = output.script_from_json(item.payload["script"])
        faults = list(await asyncio.to_thread(engine.check_script, script, news.title, news.content))
        if not faults:
            lines = [line.text for line in script.lines]
            facts = {"title": news.title, "content": news.content, "lines": lines}
            faults = (await work.ask("quality_assurance", **question(Review, **facts))).parsed.faults
        if faults:
            return work.move(
                BlackboardSection.ARCHIVE,
                ContentStatus.REJECTED,
                patch={"rejected_because": "; ".join(faults)},
                reason=f"rejected: {faults[0]}",
            )
        return work.move(BlackboardSection.REVIEW_QUEUE, ContentStatus.APPROVED)


class Publisher(BaseAgent):
    """Writes a story's files into the output folder. Doing it twice gives the same files."""

    role = "publisher"
    claims = Claims(BlackboardSection.REVIEW_QUEUE, statuses=(ContentStatus.APPROVED,), batch=8)
    budget = DAILY

    def __init__(self, *, out: Path, **facts: Any) -> None:
        super().__init__(**facts)
        self._out = out

    async def process(self, item: Item, work: Work) -> Outcome:
        """Publish one story."""
        events = await self.swarm.blackboard.history(item.id)
        cost = (await self.swarm.cost_manager.ledger.accounts(f"task:{item.id}"))["total"].settled
        folder = await asyncio.to_thread(output.write_story, self._out, item, events, cost=cost)
        return work.done({"folder": folder.name})
