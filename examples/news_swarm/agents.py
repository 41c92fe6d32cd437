"""The agents of the news swarm.

::

    sources ─ scout ─▶ raw_feed ─ scout ─▶ debate_queue ─ analyst ─▶ consensus ─ writer ─▶ review_queue ─ reviewer ─▶ approved
                          │ near-copy          │ not news                             │ faults          publisher ─▶ published
                          ▼ archive            ▼ archive                              ▼ archive
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from swarm_infrastructure import (
    BaseAgent,
    BlackboardSection,
    Claims,
    ContentStatus,
    Item,
    NewsItem,
    Outcome,
    Submission,
    Work,
)
from swarm_infrastructure.blackboard.queries import text_of
from swarm_infrastructure.blackboard.similarity import REJECT

from . import engine, output
from .board import BOARD, SOURCES
from .models import Choice, Review, Tags, Verdict, question
from .sources import Article, FeedError, read_source

__all__ = ["Analyst", "Publisher", "Reviewer", "Scout", "Writer", "story_id"]

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


class Analyst(BaseAgent):
    """Decides whether an article is news, and from which angle to tell it."""

    role = "analyst"
    claims = Claims(BlackboardSection.DEBATE_QUEUE, batch=8)
    budget = DAILY

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
        tags = (await work.ask("topic_tagging", **question(Tags, **facts))).parsed
        topics = list(dict.fromkeys([*tags.topics, *item.topics]))[:8]
        patch = {"verdict": told, "topics": topics, "sentiment_score": tags.sentiment, "angle": verdict.angle}
        return work.move(BlackboardSection.CONSENSUS, patch=patch)


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
