"""How well near-duplicates are recognised: precision, recall and speed of the board's ``similarity``.

    python benchmarks/near_duplicates.py                                  the sample news of examples/news_swarm
    python benchmarks/near_duplicates.py --articles FILE-OR-FOLDER ...    your own news
    python benchmarks/near_duplicates.py --pairs msr_paraphrase_train.txt labelled paraphrases too (MRPC)

Copies are made from the articles by fixed edits, so that the right answer is known; every pair of different articles
counts as not alike. Among real articles some of those pairs are copies after all, so the pairs above FLAG are printed,
to be judged by eye. A lexical method is good at copies and weak at paraphrases; the second part shows how weak.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples.news_swarm.engine import split_sentences  # noqa: E402
from examples.news_swarm.sources import Article, expand, read_source  # noqa: E402

from swarm_infrastructure.blackboard import similarity as lexical  # noqa: E402
from swarm_infrastructure.blackboard.similarity import FLAG, REJECT, normalise, similarity, sketch  # noqa: E402

THRESHOLDS = (0.4, 0.5, FLAG, 0.65, 0.75, REJECT, 0.95)
SEED = 7
PREFIXES = ("HARBOUR TOWN (Agency) - ", "(Updated) ", "By our own correspondent. ", "NEWS DESK: ")
SUFFIXES = (" (Reporting by the desk; editing by the night editor)", " More follows.", " Read more on our website.")

Edit = Callable[[Article, random.Random, list[str]], str]


def text_of(title: str, content: str) -> str:
    return f"{title}\n{content}"


def changed(text: str, share: float, chance: random.Random, words: list[str]) -> str:
    return re.sub(r"\w+", lambda word: chance.choice(words) if chance.random() < share else word.group(), text)


def shortened(text: str, share: float) -> str:
    words = text.split()
    return " ".join(words[: max(5, int(len(words) * share))])


def without_a_sentence(text: str, chance: random.Random) -> str:
    sentences = split_sentences(text)
    if len(sentences) > 1:
        del sentences[chance.randrange(len(sentences))]
    return " ".join(sentences)


def framed(text: str, chance: random.Random) -> str:
    return chance.choice(PREFIXES) + text + chance.choice(SUFFIXES)


EDITS: dict[str, Edit] = {
    "agency line before and after": lambda a, c, w: text_of(a.title, framed(a.content, c)),
    "another headline": lambda a, c, w: text_of(changed(a.title, 0.6, c, w), a.content),
    "one sentence dropped": lambda a, c, w: text_of(a.title, without_a_sentence(a.content, c)),
    "5 % of words changed": lambda a, c, w: changed(text_of(a.title, a.content), 0.05, c, w),
    "10 % of words changed": lambda a, c, w: changed(text_of(a.title, a.content), 0.1, c, w),
    "cut to 70 %": lambda a, c, w: text_of(a.title, shortened(a.content, 0.7)),
    "cut to 50 %": lambda a, c, w: text_of(a.title, shortened(a.content, 0.5)),
    "headline, agency, sentence, 5 %": lambda a, c, w: text_of(
        changed(a.title, 0.5, c, w), framed(changed(without_a_sentence(a.content, c), 0.05, c, w), c)
    ),
}


def different(articles: Iterable[Article]) -> list[Article]:
    """The articles of 25 words or more, without those that repeat an earlier one; these are printed."""
    kept: list[Article] = []
    print("Duplicates among the articles themselves, left out:")
    for article in (each for each in articles if len(each.content.split()) >= 25):
        text = text_of(article.title, article.content)
        scores = [similarity(text, text_of(other.title, other.content)) for other in kept]
        if scores and max(scores) >= REJECT:
            earlier = kept[scores.index(max(scores))]
            print(f"    {max(scores):.3f}  {article.title[:70]} [{article.source}]")
            print(f"           {earlier.title[:70]} [{earlier.source}]")
        else:
            kept.append(article)
    return kept


def share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def copies_of(articles: list[Article]) -> dict[str, list[tuple[str, str]]]:
    chance = random.Random(SEED)
    words = sorted({word for article in articles for word in re.findall(r"[a-zäöüß]{4,}", article.content)})
    return {
        name: [(text_of(each.title, each.content), edit(each, chance, words)) for each in articles]
        for name, edit in EDITS.items()
    }


def measure_copies(articles: list[Article]) -> dict[str, object]:
    texts = [text_of(each.title, each.content) for each in articles]
    copies = copies_of(articles)
    scores = {name: [similarity(a, b) for a, b in pairs] for name, pairs in copies.items()}
    negatives = [(similarity(a, b), i, j) for (i, a), (j, b) in combinations(enumerate(texts), 2)]
    found = [score for each in scores.values() for score in each]

    print(
        f"\nCopies: {len(found)} made from {len(articles)} articles, against {len(negatives)} pairs of different ones"
    )
    print(f"  {'threshold':<12}{'precision':>10}{'recall':>9}{'false links':>13}")
    table = []
    for threshold in THRESHOLDS:
        true, false = sum(s >= threshold for s in found), sum(s >= threshold for s, _, _ in negatives)
        row = {
            "threshold": threshold,
            "precision": true / max(1, true + false),
            "recall": true / len(found),
            "false": false,
        }
        table.append(row)
        mark = {FLAG: " = FLAG", REJECT: " = REJECT"}.get(threshold, "")
        print(f"  {threshold:<12}{row['precision']:>10.4f}{row['recall']:>9.3f}{false:>13}{mark}")

    print(f"\n  {'edit':<34}{'median':>8}{'2nd pctl':>10}{'>= FLAG':>9}{'>= REJECT':>11}")
    edits = {}
    for name, each in scores.items():
        ranked = sorted(each)
        edits[name] = {"flag": share([s >= FLAG for s in each]), "reject": share([s >= REJECT for s in each])}
        low = ranked[len(ranked) // 50]
        print(
            f"  {name:<34}{statistics.median(each):>8.2f}{low:>10.2f}"
            f"{edits[name]['flag']:>9.3f}{edits[name]['reject']:>11.3f}"
        )

    alike = [(a, b) for name in copies for (a, b), s in zip(copies[name], scores[name], strict=True) if s >= FLAG]
    near = [(a, b) for a, b in alike if similarity(a, b) < FLAG + 0.1]
    meet = share([not set(sketch(a)).isdisjoint(sketch(b)) for a, b in alike])
    meet_near = share([not set(sketch(a)).isdisjoint(sketch(b)) for a, b in near])
    bands = [frozenset(sketch(text)) for text in texts]
    stray = share([not bands[i].isdisjoint(bands[j]) for s, i, j in negatives if s < FLAG])
    print(
        f"\n  Sketches meet for {meet:.4f} of the {len(alike)} copies at or above FLAG"
        f" ({meet_near:.4f} of the {len(near)} within 0.1 of it), and for {stray:.4f} of the pairs below it"
    )

    linked = sorted((each for each in negatives if each[0] >= FLAG), reverse=True)
    print(f"\n  Different articles above FLAG: {len(linked)} pairs; judge them by eye")
    for score, i, j in linked:
        print(f"    {score:.3f}  {articles[i].title[:70]} [{articles[i].source}]")
        print(f"           {articles[j].title[:70]} [{articles[j].source}]")
    return {"thresholds": table, "edits": edits, "sketch": {"alike": meet, "near_flag": meet_near, "unalike": stray}}


def kinds_of_shingles() -> dict[str, Callable[[str], set[str]]]:
    def runs(words: list[str], n: int) -> set[str]:
        return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}

    def characters(text: str) -> set[str]:
        normal = normalise(text)
        return {normal[i : i + 5] for i in range(len(normal) - 4)}

    return {
        "single words": lambda text: runs(normalise(text).split(), 1),
        "words and pairs": lambda text: runs(normalise(text).split(), 1) | runs(normalise(text).split(), 2),
        "pairs": lambda text: runs(normalise(text).split(), 2),
        "pairs and triples": lambda text: runs(normalise(text).split(), 2) | runs(normalise(text).split(), 3),
        "five characters": characters,
        "in use: pairs, long words, numbers": lambda text: {str(each) for each in lexical.shingles(text)},
    }


def compare_shingles(articles: list[Article]) -> None:
    """Why these shingles: recall at FLAG, false links, and how many strangers a sketch would offer for comparison."""
    copies = copies_of(articles)
    print(f"\nKinds of shingles, all at {FLAG}; strangers: share of unlike pairs whose sketches would meet")
    print(f"  {'kind':<36}{'recall':>8}{'hardest edit':>14}{'false links':>13}{'strangers':>11}")
    for name, shingle in kinds_of_shingles().items():
        sets = [shingle(text_of(each.title, each.content)) for each in articles]

        def dice(a: set[str], b: set[str]) -> float:
            return 2 * len(a & b) / max(1, len(a) + len(b))

        recalls = [share([dice(shingle(a), shingle(b)) >= FLAG for a, b in pairs]) for pairs in copies.values()]
        scores = [dice(a, b) for a, b in combinations(sets, 2)]
        strangers = statistics.fmean(1 - (1 - (s / (2 - s)) ** 2) ** lexical.BANDS for s in scores)
        print(
            f"  {name:<36}{statistics.fmean(recalls):>8.3f}{min(recalls):>14.3f}"
            f"{sum(s >= FLAG for s in scores):>13}{strangers:>11.4f}"
        )


def measure_paraphrases(path: Path) -> dict[str, object]:
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()[1:]]
    scored = [(row[0] == "1", similarity(row[3], row[4])) for row in rows if len(row) == 5]
    same = sum(label for label, _ in scored)
    print(f"\nParaphrases: {len(scored)} pairs of sentences, {same} of them judged to say the same by people")
    print(f"  {'threshold':<12}{'precision':>10}{'recall':>9}")
    table = []
    for threshold in THRESHOLDS:
        hits = [label for label, score in scored if score >= threshold]
        row = {"threshold": threshold, "precision": share(hits), "recall": sum(hits) / max(1, same)}
        table.append(row)
        print(f"  {threshold:<12}{row['precision']:>10.3f}{row['recall']:>9.3f}")
    print(
        f"  Calling every pair the same would be right for {same / max(1, len(scored)):.3f}: whether two sentences\n"
        "  say the same can't be told from their words. Use an embedder for that."
    )
    return {"pairs": len(scored), "same": same, "thresholds": table}


def measure_speed(articles: list[Article]) -> dict[str, float]:
    long = " ".join(text_of(each.title, each.content) for each in articles)
    text = (long * (1 + 2048 // max(1, len(long))))[:2048]

    def best_ms(call: Callable[[], object]) -> float:
        spent = []
        for _ in range(50):
            lexical._profile.cache_clear()
            start = time.perf_counter()
            call()
            spent.append(time.perf_counter() - start)
        return min(spent) * 1000

    speed = {"sketch_ms": best_ms(lambda: sketch(text)), "similarity_ms": best_ms(lambda: similarity(text, text[:-9]))}
    print(f"\nSpeed, 2 KB of text: sketch {speed['sketch_ms']:.2f} ms, similarity {speed['similarity_ms']:.2f} ms")
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = str(ROOT / "examples" / "news_swarm" / "sample")
    parser.add_argument("--articles", nargs="+", default=[sample], metavar="PATH", help="feeds to make copies from")
    parser.add_argument("--pairs", type=Path, metavar="TSV", help="labelled paraphrases: Quality, #1 ID, #2 ID, #1, #2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()

    read = [article for location in expand(given.articles) for article in read_source(location).articles]
    articles = different(read)
    print(f"{len(read)} articles, {len(articles)} different ones of 25 words or more")
    results: dict[str, object] = {"articles": len(articles), "copies": measure_copies(articles)}
    compare_shingles(articles)
    if given.pairs:
        results["paraphrases"] = measure_paraphrases(given.pairs)
    results["speed"] = measure_speed(articles)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
