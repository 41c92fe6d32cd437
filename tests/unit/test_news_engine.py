from dataclasses import replace
from pathlib import Path

import pytest
from examples.news_swarm.engine import (
    ATTRIBUTION_LINE,
    ENGINE_NOTE,
    TITLE_LINE,
    Line,
    angle,
    check_script,
    count_words,
    newsworthiness,
    rank_sentences,
    sentiment,
    split_sentences,
    topics,
    write_script,
)
from examples.news_swarm.sources import Article, expand, read_source
from hypothesis import given
from hypothesis import strategies as st

from swarm_infrastructure.errors import InvalidInputError

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "news_swarm" / "sample"
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"  # beside the checkout, where it is at hand
THIN = {"What's on this weekend", "Spring sale at the ring road carpet hall", "Mill Lane closed"}
TITLE = "Saltmere ferry returns after eleven-week refit"
TEXT = (
    "The Saltmere ferry carried passengers again on Monday, eleven weeks after it was lifted out of the water. "
    "About 140 people stood on the quay for the first crossing.\n"
    "The yard replaced both engines, the harbour office said. "
    "It also renewed a third of the steel plates. "
    "The ferry carried passengers again on Monday after eleven weeks out of the water.\n"
    "Fares for the ferry will not rise before next year."
)
prose = st.text(st.sampled_from("abcXYZäß .!?…\"'“”()\n\t0123,;:-–"), max_size=200) | st.text(max_size=200)


def articles_of(folder: Path) -> list[Article]:
    return [article for location in expand([str(folder)]) for article in read_source(location).articles]


def bare(text: str) -> str:
    return "".join(text.split())


# -- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained.", "It stopped!", "Did it?", "Yes."],
        ["Dr. Who met Mr. Smith at 5 p.m. on Sept. 3.", "They talked."],
        ["The U.S. Army paid $3.5 million.", "That is a lot."],
        ["He lives in the U.S.", "The weather is fine."],
        ["J. R. Smith of Acme Inc. said no.", "He left."],
        ["Prices rose by 2.5 per cent, i.e. twice as fast.", "Wages did not."],
        ['"Why?" she asked.', '"Because."', "He shrugged."],
        ["“We go on.”", "Then they went."],
        ["Read chapter no. 5 first.", "Then rest."],
        ["He said no.", "Nobody listened."],
        ["Am 3. Oktober ist der Laden zu.", "Das ist so."],
        ["Der 1. FC Übersund hat am Sonntag z. B. nicht gewonnen.", "Das war nicht gut."],
        ["The pass closed at 7.", "Crews dug all night."],
        ["Wait...", "What was that?!", "Nothing."],
        ["No full stop at the end", "A new line starts a new sentence."],
        ["See example.com for more.", "It is free."],
    ],
)
def test_a_text_is_split_where_a_reader_would_pause(sentences):
    joined = "\n".join(sentences) if not sentences[0].endswith((".", "!", "?", '"', "”")) else " ".join(sentences)
    assert split_sentences(joined) == sentences


def test_a_full_stop_without_a_space_after_it_ends_a_sentence_too():
    assert split_sentences("He said so on Monday.Out of 56.03 crore") == ["He said so on Monday.", "Out of 56.03 crore"]


@given(prose)
def test_splitting_loses_and_adds_nothing_but_white_space(text):
    sentences = split_sentences(text)
    assert bare("".join(sentences)) == bare(text)
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


# -- ranking, topics, sentiment ---------------------------------------------------------------------------------------


@given(prose, prose)
def test_every_sentence_is_ranked_once_with_its_place(title, text):
    ranked = rank_sentences(title, text)
    sentences = split_sentences(text)
    assert sorted(each.position for each in ranked) == list(range(len(sentences)))
    assert all(each.sentence == sentences[each.position] and 0 <= each.score <= 1 for each in ranked)
    assert [each.score for each in ranked] == sorted((each.score for each in ranked), reverse=True)


def test_the_sentence_that_tells_the_story_comes_first_and_what_cannot_be_read_out_last():
    text = (
        TEXT
        + "\nSign up for our newsletter about the Saltmere ferry.\nRead https://x.example/saltmere-ferry-refit now."
    )
    ranked = rank_sentences(TITLE, text)
    assert ranked[0].position == 0
    assert {each.position for each in ranked[-2:]} == {6, 7}


def test_the_angle_is_a_sentence_of_the_text_or_else_the_title():
    assert angle(TITLE, TEXT) in split_sentences(TEXT)
    assert angle("Nothing here", "fragment only") == "Nothing here"


@pytest.mark.parametrize(
    ("title", "text", "topic"),
    [
        ("Council votes on the budget", "The mayor lost the vote.", "politics"),
        ("Storm floods quay", "The gale brought rain and snow.", "weather"),
        ("Hospital hires nurses", "Patients were pleased.", "health"),
        ("Club wins the cup", "The players scored in the last match of the season.", "sport"),
        ("Court rules on footpath", "The judge found for the walkers.", "justice"),
        ("Bahn baut um", "Der Zug und das Auto: Bahn und Bus werden schneller, die Bahn auch.", "transport"),
    ],
)
def test_a_story_gets_its_topic(title, text, topic):
    found = topics(title, text)
    assert found[0] == topic
    assert len(found) <= 5
    assert len(set(found)) == len(found)


def test_one_stray_word_makes_no_topic_and_the_texts_own_words_are_the_rest():
    assert topics("Gnomes return", "Forty gnomes went home by bus. The gnomes smiled.")[0] == "gnomes"


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("A wonderful success: the rescue was a triumph.", 1),
        ("A terrible disaster killed and injured many.", -1),
        ("The plan is not good.", -1),
        ("There was no danger and no damage.", 1),
        ("The meeting is on Tuesday.", 0),
        ("", 0),
        ("Der Erfolg freut alle.", 1),
    ],
)
def test_the_sentiment_follows_the_words_and_their_negation(text, sign):
    value = sentiment(text)
    assert (value > 0) - (value < 0) == sign


@given(prose)
def test_the_sentiment_stays_in_its_range(text):
    assert -1.0 <= sentiment(text) <= 1.0


# -- the verdict ------------------------------------------------------------------------------------------------------


@given(prose, prose)
def test_the_verdict_is_always_a_confidence_with_reasons(title, text):
    verdict = newsworthiness(title, text)
    assert 0.0 <= verdict.confidence <= 1.0
    assert verdict.reasons
    assert all(verdict.reasons)


def test_more_of_a_report_makes_more_confidence():
    grown = [newsworthiness(TITLE, "\n".join(TEXT.splitlines()[:n])).confidence for n in (0, 1, 2, 3)]
    assert grown == sorted(grown)
    assert grown[0] < 0.3 < grown[1]


@pytest.mark.parametrize(
    ("title", "text", "reason"),
    [
        ("Spring sale", "Up to 40% off! Call now for a free quote. Free delivery. While stocks last.", "advert"),
        ("What's on", "Friday, 7 pm: Concert. 4.50\nSaturday, 9 pm: Film. 6.00\nSunday, 3 pm: Walk. 2.00", "listing"),
        (
            "Letters to the Editor",
            "Your report on the ferry was wrong. I have never been late in my life.",
            "letters page",
        ),
        ("Refactor RSS parser", "Refactor RSS parser\nThis change avoids some limitations.", "change log"),
        ("What's on this week", "The choir sings on Friday in the hall. The market opens on Saturday.", "listing"),
        ("Fix build", "The build is green again now.\n\nSigned-off-by: A Developer", "change log"),
        ("Lane closed", "The lane is closed today.", "too few"),
        ("Only a title", "", "0 complete sentences"),
        ("Title", "The minister said on Monday that the…", "only the beginning"),
    ],
)
def test_what_is_no_story_is_turned_down_with_the_reason(title, text, reason):
    verdict = newsworthiness(title, text)
    assert verdict.confidence < 0.3
    assert any(reason in each for each in verdict.reasons)


def test_a_report_that_merely_mentions_an_offer_is_no_advert():
    verdict = newsworthiness(TITLE, TEXT + " Tickets are on special offer until May.")
    assert verdict.confidence > 0.7
    assert not any("advert" in reason for reason in verdict.reasons)


# -- scripts ----------------------------------------------------------------------------------------------------------


def test_a_script_is_the_sources_own_sentences_in_reading_order_and_names_it():
    script = write_script(TITLE, TEXT, "Harbour Courier", "https://courier.example/1")
    sentences = split_sentences(TEXT)
    *spoken, last = script.lines
    assert script.headline == TITLE
    assert [line.text for line in spoken] == [sentences[line.sentence_position] for line in spoken]
    assert [line.sentence_position for line in spoken] == sorted({line.sentence_position for line in spoken})
    assert spoken[0].sentence_position == 0
    assert last == Line("Source: Harbour Courier.", ATTRIBUTION_LINE)
    assert script.words == sum(count_words(line.text) for line in script.lines)
    assert script.duration_s == pytest.approx(script.words / 150 * 60, abs=0.05)
    assert check_script(script, TITLE, TEXT) == ()


def test_a_script_says_nothing_twice():
    lines = [line.text for line in write_script(TITLE, TEXT, "Courier", "").lines]
    assert "The ferry carried passengers again on Monday after eleven weeks out of the water." not in lines


def test_a_sentence_that_leans_on_another_is_not_used_without_it():
    opening = "The Saltmere ferry returned on Monday after a refit of eleven weeks."
    leaning = "It also carried the mayor of Saltmere, the first passenger of the ferry since the refit."
    between = "The yard replaced both engines of the ferry."
    linked = "See https://x.example/saltmere-ferry-refit for more."

    def used(text: str) -> list[str]:
        return [line.text for line in write_script(TITLE, text, "Courier", "").lines]

    assert leaning in used(f"{opening} {between} {leaning}")
    assert leaning not in used(
        f"{opening} {linked} {leaning}"
    )  # a link can't be read out, so what leans on it goes too


def test_the_outlet_is_the_host_where_the_feed_names_none():
    assert write_script(TITLE, TEXT, " ", "https://www.courier.example/1").lines[-1].text == "Source: courier.example."
    assert write_script(TITLE, TEXT, "Acme Inc.", "").lines[-1].text == "Source: Acme Inc."
    assert write_script(TITLE, TEXT, "", "http://[broken").lines[-1].text == "Source: not named."


def test_without_a_sentence_that_can_be_read_out_the_title_is_all_there_is():
    script = write_script(TITLE, "half a sentence that…", "Courier", "")
    assert script.lines[0] == Line(TITLE, TITLE_LINE)
    assert len(script.lines) == 2


@given(prose, prose, st.integers(20, 200))
def test_a_script_keeps_to_its_length_and_its_source(title, text, most):
    script = write_script(title, text, "Courier", "", max_words=most)
    faults = check_script(script, title, text, max_words=most)
    assert not [fault for fault in faults if "not in the source" in fault]
    assert not [fault for fault in faults if "too long" in fault] or script.lines[0].sentence_position == TITLE_LINE


def test_a_script_of_hardly_any_words_is_not_asked_for():
    with pytest.raises(InvalidInputError):
        write_script(TITLE, TEXT, "Courier", "", max_words=19)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: replace(s, lines=(Line("The ferry sank.", 0), *s.lines)), "not in the source"),
        (
            lambda s: replace(s, lines=(Line(s.lines[0].text.replace("again", "never"), 0), *s.lines[1:])),
            "not in the source",
        ),
        (lambda s: replace(s, lines=(Line(s.lines[0].text[:30], 0), *s.lines[1:])), "not in the source"),
        (lambda s: replace(s, lines=s.lines[:-1]), "does not end with one line 'Source"),
        (lambda s: replace(s, lines=(*s.lines, s.lines[-1])), "does not end with one line 'Source"),
        (lambda s: replace(s, lines=(*s.lines[:-1], Line("A ferry sank.", ATTRIBUTION_LINE))), "'Source: OUTLET.'"),
        (lambda s: replace(s, lines=s.lines[-1:]), "empty"),
        (lambda s: replace(s, lines=()), "empty"),
        (lambda s: replace(s, lines=s.lines[:1] * 10 + s.lines[-1:]), "too long"),
        (lambda s: replace(s, headline="Ferry sinks"), "headline"),
        (lambda s: replace(s, lines=(Line("Fares rise.", 0), s.lines[-1])), "too short"),
    ],
)
def test_a_faulty_script_is_found_out(change, fault):
    script = write_script(TITLE, TEXT, "Courier", "")
    assert check_script(script, TITLE, TEXT) == ()
    assert any(fault in found for found in check_script(change(script), TITLE, TEXT))


def test_the_note_says_that_no_model_was_called():
    assert ENGINE_NOTE.startswith("No language model was called")
    assert "\n" not in ENGINE_NOTE


# -- whole feeds ------------------------------------------------------------------------------------------------------


def test_the_sample_stories_become_faultless_scripts_and_the_thin_ones_are_turned_down():
    for article in articles_of(SAMPLE):
        verdict = newsworthiness(article.title, article.content)
        if article.title in THIN:
            assert verdict.confidence < 0.3, article.title
            continue
        assert verdict.confidence >= 0.7, (article.title, verdict)
        script = write_script(article.title, article.content, article.source, article.url)
        assert check_script(script, article.title, article.content) == ()
        assert len(script.lines) >= 5
        assert 60 <= script.words <= 120
        assert angle(article.title, article.content) in split_sentences(article.content)


def test_the_same_text_always_gives_the_same_script():
    article = articles_of(SAMPLE)[0]
    scripts = {write_script(article.title, article.content, article.source, article.url) for _ in range(3)}
    assert len(scripts) == 1


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside this checkout")
def test_real_stories_become_scripts_of_their_own_sentences():
    for article in articles_of(REAL):
        script = write_script(article.title, article.content, article.source, article.url)
        faults = check_script(script, article.title, article.content)
        assert not [fault for fault in faults if "too short" not in fault], article.title
