"""The extractive engine: what the news desk's agents say when no language model is at hand.

Owns sentences, their ranking, topics, sentiment, the first verdict on a story, and scripts. Leaves reading to
``sources`` and deciding what to do with a verdict to the agents.

Everything here is a pure function of the text: the same text gives the same answer on every machine. Nothing is ever
written anew. A script is a choice among the source's own sentences, so it can leave facts out but can't invent any, and
``check_script`` proves that for one script. Word lists are English with some German; other Latin-script languages are
split and ranked well enough, but get few topics and a sentiment near 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from swarm_infrastructure.errors import InvalidInputError

__all__ = [
    "ENGINE_NOTE",
    "WORDS_PER_MINUTE",
    "Line",
    "Ranked",
    "Script",
    "Verdict",
    "angle",
    "check_script",
    "count_words",
    "newsworthiness",
    "rank_sentences",
    "sentiment",
    "split_sentences",
    "topics",
    "write_script",
]

ENGINE_NOTE = "No language model was called: each line below is a sentence of its source, chosen by fixed rules."

WORDS_PER_MINUTE = 150  #: a calm newsreader's pace
MIN_SCRIPT_WORDS = 12  #: below that (5 s of speech) there is nothing to watch
MAX_SCRIPT_WORDS = 120  #: 48 s of speech, a short video

TITLE_LINE = -1  #: ``Line.sentence_position`` of a line that is the title
ATTRIBUTION_LINE = -2  #: ``Line.sentence_position`` of the line that names the source


@dataclass(frozen=True, slots=True)
class Ranked:
    """One sentence of a text and how much of the story it carries."""

    sentence: str  #: verbatim
    score: float  #: in [0, 1], comparable within one text only
    position: int  #: index in ``split_sentences(text)``, from 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an entry is a story that can be told."""

    confidence: float  #: in [0, 1]; below 0.3 drop it, above 0.9 nothing more needs asking
    reasons: tuple[str, ...]  #: plain sentences, the weightiest first, never empty


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a script."""

    text: str  #: a sentence of the source as it stands there, the title, or the attribution
    sentence_position: int  #: index in ``split_sentences(text)``, or TITLE_LINE, or ATTRIBUTION_LINE


@dataclass(frozen=True, slots=True)
class Script:
    """What is shown as the headline, and what is said."""

    headline: str  #: the title; shown, not spoken
    lines: tuple[Line, ...]  #: in reading order, the attribution last
    words: int  #: of all lines together
    duration_s: float  #: seconds of speech at WORDS_PER_MINUTE


# --- words ---------------------------------------------------------------------------------------------------------


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

_ENGLISH = _set(
    """a about above after again against all also although am an and another any are around as at away back be
    became because become been before being below between both but by came can could day days did do does
    doing down during each even every few first for from further get given go going got had has have having he
    her here hers him his how however i if in including into is it its itself just last later least less let
    like made make makes making many may me might month months more most much must my near need never new next
    no nor not now of off often on once one only or other our out over own part people per put same say says
    said she should since so some still such take taken than that the their them then there these they this
    those though three through time to today together told too took toward two under until up upon us use used
    using very was way we week weeks well went were what when where whether which while who whom whose why
    will with within without would year years yesterday yet you your"""
)
_GERMAN = _set(
    """ab aber alle allem allen aller alles als also am an auch auf aus bei beim bereits bis da dabei damit dann
    das dass daß dazu dem den denn der des deshalb die dies diese diesem diesen dieser dieses doch dort du
    durch ein eine einem einen einer eines er erst es etwa für gegen geht gibt habe haben hat hatte hatten
    hier hin ich ihm ihn ihnen ihr ihre ihrem ihren ihrer im immer in indem ins ist ja jahr jahre jahren
    jedoch jetzt kann kein keine können könnte laut machen mehr mit müssen nach nicht noch nun nur ob oder
    ohne schon sei sein seine seinem seinen seiner seit sich sie sind so soll sollen sondern sowie über um und
    uns unter viele vom von vor war waren was weil weiter welche wenn werden wie wieder will wir wird wo wurde
    wurden zu zum zur zwei zwischen"""
)
_ROMANCE = _set(
    """au aux avec ce ces cette con dans de del des di dos du el elle en entre est et fue ha il la las le les los
    mais más ne nous os ou où para pas plus por pour que qui se ses son sont su sur un una une uno y"""
)
_STOP = _ENGLISH | _GERMAN | _ROMANCE


def count_words(text: str) -> int:
    """Words as a speaker counts them: runs between spaces that hold at least one letter or digit."""
    return sum(any(char.isalnum() for char in run) for run in text.split())


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def _stem(word: str) -> str:
    """Words of one family mostly get one key: endings of possessives and plurals off, then seven letters."""
    word = word.removesuffix("'s")
    if len(word) > 4 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    return word[:7]


def _content_stems(text: str) -> list[str]:
    return [_stem(word) for word in _words(text) if len(word) > 2 and word not in _STOP and not word.isdigit()]


@lru_cache(maxsize=256)
def _language(text: str) -> str:
    """'en', 'de', or '' when neither's little words prevail."""
    words = _words(text)[:400]
    english = sum(word in _ENGLISH for word in words)
    german = sum(word in _GERMAN for word in words)
    if max(english, german) < len(words) * 0.15:
        return ""
    return "en" if english >= german else "de"


# --- sentences -----------------------------------------------------------------------------------------------------

_END = re.compile(r"[.!?…]+[\"'”’“»«)\]]*")
_OPENERS = "\"'“”‘’„«»([{-–— "
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # U.S, e.g, z.B
_GLUED = re.compile(r"(?:[A-ZÄÖÜ][a-zäöüß]+|A|I)[\s,'’]")  # a sentence that starts without a space before it

# With a dot, these never end a sentence.
_TITLES = _set(
    """mr mrs ms messrs dr prof rev hon st gen col lt sgt capt cmdr maj gov sen rep pres supt insp vs al ca approx
    eg ie cf hr fr frl dipl ing bzw usw ggf evtl zzt inkl exkl str bd tel jh sog mme mlle mt"""
)
_BEFORE_NUMBERS = _set("no nos nr vol fig abs art p pp kap tel")
# These may end one: they do when the next word is one that usually opens a sentence.
_MAYBE = _set(
    """inc ltd co corp jr sr etc dept est jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu
    thur thurs fri sat sun ave rd blvd min max mio mrd plc bros univ assn ft"""
)
_MONTHS = _set(
    """january february march april may june july august september october november december januar februar märz
    mai juni juli oktober dezember janvier février mars avril juin juillet août septembre octobre novembre
    décembre"""
)
_STARTERS = _set(
    """the a an it its he she they we you i this that these those there but and or in on at for from to by with
    after before as if when while although however meanwhile also another his her their our what who why how
    since yet so now then no not one some many most all both each under over police officials der die das ein
    eine es er sie wir ihr im am bei mit nach vor für zu auch aber und doch wer was wie wenn als dies diese
    dieser so nun laut"""
)


def split_sentences(text: str) -> list[str]:
    """The sentences of *text* in order, each as it stands there; only white space between them is left out.

    A line break ends a sentence. Knows common abbreviations, initials, decimals, German ordinals, quotations that go on
    (``"Why?" she asked``) and full stops without a space after them. Meant for Latin scripts.
    """
    sentences: list[str] = []
    for paragraph in text.splitlines():
        start = 0
        for end in _END.finditer(paragraph):
            if _ends_sentence(paragraph, start, end):
                sentences.append(paragraph[start : end.end()].strip())
                start = end.end()
        sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


_REACH = 80  # characters looked at on each side of a full stop: a text of nothing but full stops must not take for ever


def _ends_sentence(paragraph: str, start: int, end: re.Match[str]) -> bool:
    after = paragraph[end.end() : end.end() + _REACH]
    before = paragraph[max(start, end.start() - _REACH) : end.start()]
    last_word = before.split()[-1].lstrip(_OPENERS) if before.strip() and not before[-1].isspace() else ""
    if not after:
        return True
    if not after[0].isspace():
        return len(last_word) > 2 and last_word.isalpha() and last_word[1:].islower() and bool(_GLUED.match(after))
    following = after.lstrip(_OPENERS + "\t")
    if not following or following[0].islower():
        return not following
    word = _WORD.search(following)
    next_word = word.group().lower() if word else ""
    opens = next_word in _STARTERS
    if end.group() == ".":
        key = last_word.lower()
        if key in _TITLES or (key in _BEFORE_NUMBERS and following[0].isdigit()):
            return False
        if key in _MAYBE or (len(last_word) == 1 and last_word.isalpha()) or _DOTTED.fullmatch(last_word):
            return opens
        if last_word.isdigit() and len(last_word) <= 2:
            if before.strip() == last_word or next_word in _MONTHS:  # a list's number, or a German date
                return False
            return opens or _language(paragraph) != "de"
    return True


_TERMINATED = re.compile(r"[.!?][\"'”’“»)\]]*$")
_LINK = re.compile(r"https?://|www\.|\S+@\S+\.\w")
_CODE = re.compile(r"[{}<>=|\\`]|\w\(\)|\w+::\w|\w_\w|^\s*[$#>]|\.(?:py|go|js|c|h|rs|sh)\b")
_BOILERPLATE = re.compile(
    r"\b(?:read (?:more|also|the full|full)|also read|click here|sign up|subscrib|newsletter|follow us|photo(?:graph)?:"
    r"|image:|advertisement|all rights reserved|terms of (?:use|service)|cookies?|log ?in|download the app|share this"
    r"|appeared first on|weiterlesen|mehr dazu)",
    re.IGNORECASE,
)
_ANAPHOR = re.compile(
    r"[\"'“‘„]?(?:he|she|it|they|this|that|these|those|his|her|their|its|but|and|so|however|also|meanwhile|instead|then"
    r"|there|such|both|another|since then|until then|without (?:it|them)|(?:in )?one of them|the (?:same|latter|former)"
    r"|er|sie|es|dies|diese|dieser|dieses|aber|doch|und|auch|zudem|dabei|damit|dort|außerdem|allerdings|trotzdem"
    r"|deshalb)\b",
    re.IGNORECASE,
)
_VERBS_EN = _set(
    """is are was were be been has have had do does did will would can could may might must shall should says
    said say tells told tell asks adds gets got get gives gave give goes went go takes took take makes made
    make comes came come sees saw knows knew thinks thought finds found shows show leaves left keeps kept
    begins began begin starts start runs ran holds held hold brings brought stands stood loses lost pays paid
    meets met meet sets set leads led puts put becomes became become means meant sends sent builds built build
    falls fell fall rises rose rise wins won win hits hit speaks spoke reads read spends spent grows grew grow
    sells sold buys bought opens open closes close plans plan expects seeks sought wants want needs need calls
    call helps help faces face remains remain turns turn works work includes include offers offer continues
    continue reports report announces launches reveals confirms claims warns hopes moves move plays play feels
    felt hears heard cuts cut drives drove draws drew writes wrote breaks broke catches caught teaches taught
    fights fought spreads spread costs cost lies lay lets let sits sat shuts shut cast tries try uses use
    drops ends lives live allows allow aims aim gains marks raises serves ranks carries provides it's that's
    he's she's there's they're we're don't doesn't didn't isn't wasn't won't can't couldn't"""
)
_VERBS_DE = _set(
    """ist sind war waren hat haben hatte hatten wird werden wurde wurden kann können könnte soll sollen sollte
    muss müssen will wollen darf dürfen gibt geht kommt steht liegt macht zeigt bringt läuft sieht sei habe
    gilt lässt heißt"""
)
_VERB_ENDING = {"en": re.compile(r"[a-z]{3,}ed"), "de": re.compile(r"[a-zäöüß]{3,}(?:t|te|ten|en)")}
# "proposes the", "seeks to": an -s before such a word is hardly ever a plural.
_THIRD_PERSON = re.compile(
    r"\b[a-z]{2,}[a-rt-z]s (?:the|a|an|its|his|her|their|that|how|why|this|these|it|him|them|to|up|out|over|no|more|new"
    r"|[a-z]+ing|\d\S*)\b"
)


def _has_verb(sentence: str) -> bool:
    """Whether the sentence has a word that looks like a verb. True where the language is unknown: it can't be told."""
    language = _language(sentence)
    if not language:
        return True
    known = _VERBS_EN if language == "en" else _VERBS_DE
    ending = _VERB_ENDING[language]
    if any(word in known for word in _words(sentence)) or any(
        ending.fullmatch(word) for word in _WORD.findall(sentence)
    ):
        return True
    return language == "en" and bool(_THIRD_PERSON.search(sentence))


def _is_complete(sentence: str, *, opens: bool = False) -> bool:
    """Whether it is a whole sentence. Many outlets leave the full stop off the line that *opens* a text."""
    first = sentence.lstrip(_OPENERS)[:1]
    ended = _TERMINATED.search(sentence) or (opens and sentence[-1:].isalnum() and count_words(sentence) >= 8)
    return (
        count_words(sentence) >= 5
        and bool(ended)
        and not sentence.rstrip("\"'”’“»)]").endswith(("...", ".."))
        and (first.isupper() or first.isdigit() or first in "$£€₹")
        and _has_verb(sentence)
    )


def _is_balanced(sentence: str) -> bool:
    """Whether quotation marks and brackets that open in it also close in it."""
    return (
        sentence.count('"') % 2 == 0
        and sentence.count("“") + sentence.count("„") in (sentence.count("”"), 2 * sentence.count("„"))
        and sentence.count("(") == sentence.count(")")
        and sentence.count("«") == sentence.count("»")
    )


def _is_speakable(sentence: str, position: int) -> bool:
    """Whether a newsreader could read it out as it stands, away from its neighbours."""
    return (
        _is_complete(sentence, opens=position == 0)
        and _is_balanced(sentence)
        and count_words(sentence) <= 50
        and not (sentence.startswith("(") and sentence.endswith((")", ").")))
        and not _LINK.search(sentence)
        and not _CODE.search(sentence)
        and not _BOILERPLATE.search(sentence)
    )


# --- ranking -------------------------------------------------------------------------------------------------------

_CENTROID_WEIGHT, _POSITION_WEIGHT, _TITLE_WEIGHT = 0.4, 0.3, 0.3


def rank_sentences(title: str, text: str) -> list[Ranked]:
    """The sentences of *text*, the most telling first; equal scores keep the reading order.

    A sentence scores by its words' weight in the whole text (centroid), by how early it stands, and by what it shares
    with the title; what can't be read out (fragments, links, code, "sign up" lines) keeps a tenth of that.

    Source: D. Radev, H. Jing, M. Styś, D. Tam, "Centroid-based summarization of multiple documents", Information
    Processing & Management 40(6), 2004 (MEAD: centroid + position + overlap). Here the overlap is with the title
    instead of the first sentence, and a word's weight is the log of how many of the text's sentences use it, for want
    of a corpus.
    """
    sentences = split_sentences(text)
    stems = [_content_stems(sentence) for sentence in sentences]
    spread = Counter(stem for each in stems for stem in set(each))
    weight = {stem: math.log2(1 + count) for stem, count in spread.items()}
    in_title = set(_content_stems(title))

    # The square root of the length keeps long sentences from winning by bulk and short ones by purity.
    centroid = [sum(weight[stem] for stem in set(each)) / math.sqrt(len(each) + 4) for each in stems]
    most = max(centroid, default=0.0) or 1.0
    ranked = []
    for position, (sentence, each) in enumerate(zip(sentences, stems, strict=True)):
        shared = len(in_title.intersection(each)) / len(in_title) if in_title else 0.0
        score = (
            _CENTROID_WEIGHT * centroid[position] / most
            + _POSITION_WEIGHT * (len(sentences) - position) / len(sentences)
            + _TITLE_WEIGHT * shared
        )
        ranked.append(Ranked(sentence, round(score if _is_speakable(sentence, position) else score / 10, 6), position))
    return sorted(ranked, key=lambda each: (-each.score, each.position))


def angle(title: str, text: str) -> str:
    """The one sentence to build the story around, verbatim: what follows from the event, rather than the event again.

    Among the better half of the sentences, one that tells a consequence, a cause, a contrast or a number is preferred;
    without any sentence that can be read out, the title.
    """
    ranked = [each for each in rank_sentences(title, text) if _is_speakable(each.sentence, each.position)]
    if not ranked:
        return title.strip()
    better = [each for each in ranked[: max(2, len(ranked) // 2)] if not _ANAPHOR.match(each.sentence)] or ranked[:1]
    said = set(_content_stems(title))

    def weight(each: Ranked) -> float:
        stems = set(_content_stems(each.sentence))
        repeats = (
            len(said & stems) / len(stems) if stems else 1.0
        )  # a sentence that only repeats the title adds nothing
        return each.score * (1.25 if _CONSEQUENCE.search(each.sentence) else 1.0) * (1 - 0.5 * repeats)

    return max(better, key=lambda each: (weight(each), -each.position)).sentence


_CONSEQUENCE = re.compile(
    r"\b(?:because|after|despite|although|while|but|instead|means?|will|would|could|expect\w*|plan\w*|until|unless"
    r"|so that|for the first time|warn\w*|weil|obwohl|trotz|aber|sondern|soll\w*|wird|könnte\w*)\b|\d",
    re.IGNORECASE,
)


# --- topics and sentiment ------------------------------------------------------------------------------------------

# A star stands for any ending. German words only where the English ones don't serve both.
_TOPICS = {
    "politics": """election* vote* voter* ballot parliament* minister* council* mayor government* senat* congress*
        party parties president* policy coalition democra* republican* referendum legislat* bill lawmaker*
        wahl* regierung* bundestag partei* diplomat*""",
    "economy": """econom* market* bank* inflation tariff* trade* gdp tax* invest* profit* revenue* budget* price*
        stock* shares export* import* business* company companies industr* employ* jobs wage* sales billion
        crore lakh unternehmen milliarden* wirtschaft* firm* grant fund funding""",
    "technology": """software computer* internet digital app apps robot* chip* semiconductor* startup* cyber* data ai
        smartphone* algorithm* online android ios google microsoft amazon apple spiel* konsole* programm*
        linux code server* encryption browser* nutzer*""",
    "science": """scien* research* study studies university laborator* discover* experiment* space nasa telescope*
        planet* species fossil* archaeolog* physic* astronom* forscher* wissenschaft* survey* excavat*""",
    "health": """health* hospital* doctor* patient* disease* vaccin* medic* clinic* cancer virus* surgeon* nurse*
        drug* therap* mental diet* gesundheit* krankenhaus* ambulance""",
    "environment": """climate environment* wildlife forest* river* pollut* conservation* recycl* carbon emission*
        habitat* bird* tree* solar wind renewable* nature ecolog* otter* bees meadow* reef* energie* umwelt*""",
    "weather": """weather storm* flood* rain* snow* hurricane* heatwave* drought* tornado* forecast* temperature*
        gale* frost* wetter* landslide* cyclone*""",
    "sport": """match matches team* league* cup goal* player* coach* football cricket tennis olympic* championship*
        tournament* squad game games season* champion* race races rowing regatta scored medal* innings
        batsman bowler athlete*""",
    "culture": """music* film* movie* theatre* theater* artist* museum* festival* novel* book* concert* exhibition*
        album* actor* actress* gallery paint* choir* orchestra* library libraries celebrit* kino*""",
    "justice": """court* police judge* crime* trial* arrest* murder* lawyer* prison* sentenc* convict* guilty suspect*
        investigat* fraud* theft* burglar* lawsuit* polizei gericht* stolen jury""",
    "education": """school* student* teacher* pupil* college* exam exams curriculum classroom* educat* universit*
        scholarship* schule* lesson* apprentic*""",
    "transport": """train* rail* railway* bus buses road* traffic airport* flight* airline* ferry ferries bridge* cycl*
        tram* motorway* passenger* vehicle* driver* car cars bahn auto* commut*""",
    "conflict": """war wars military army troops missile* attack* ceasefire soldier* ukraine* russia* gaza israel*
        weapon* peace nuclear drone* hostage* militant* terror*""",
    "housing": """housing homes houses rent* tenant* landlord* mortgage* propert* neighbourhood*
        apartment* wohnung* homeless*""",
    "food": """food* restaurant* farm* harvest* crop* chef* bakery baker* cheese* fish* recipe* brew* orchard*
        market-stall wheat dairy""",
}


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word).replace(r"\*", r"\w*") for word in words.split()))


_TOPIC_PATTERNS = {topic: _pattern(words) for topic, words in _TOPICS.items()}
_MAX_TOPICS, _MAX_LABELS = 2, 5


def topics(title: str, text: str) -> tuple[str, ...]:
    """Up to five labels, lower case, the best first: at most two of the desk's topics, then the text's own words.

    A topic needs two different words of its list, a word in the title counting for two.
    """
    title_words, text_words = _words(title), _words(text)
    scores: dict[str, int] = {}
    for topic, pattern in _TOPIC_PATTERNS.items():
        in_title = {_stem(word) for word in title_words if pattern.fullmatch(word)}
        in_text = {_stem(word) for word in text_words if pattern.fullmatch(word)}
        score = 2 * len(in_title) + len(in_text - in_title)
        if score >= 2:
            scores[topic] = score
    found = sorted(scores, key=lambda topic: (-scores[topic], topic))[:_MAX_TOPICS]

    forms: dict[str, Counter[str]] = {}
    for word in title_words * 2 + text_words:
        if len(word) > 3 and word not in _STOP and not any(char.isdigit() for char in word):
            forms.setdefault(_stem(word), Counter())[word.removesuffix("'s")] += 1
    order = sorted(forms, key=lambda stem: (-forms[stem].total(), stem))
    words = [min(forms[stem], key=lambda word: (-forms[stem][word], word)) for stem in order]
    return tuple(dict.fromkeys([*found, *words]))[:_MAX_LABELS]


_GOOD = _set(
    """able achieve achieved achievement admire admired applaud applauded award awarded awards beautiful beloved
    benefit benefits best better boost boosted bright brilliant celebrate celebrated celebrates celebration
    charming cheer cheered clean cheerful comfort comfortable confident congratulate cure delight delighted
    eager ease efficient encouraging enjoy enjoyed enjoys excellent excited exciting fair famous favourite
    fine free fresh friendly fun gain gained gains generous gift glad gold good grateful great grow growing
    growth happy harmony healthy help helped helpful hero honour honoured hope hopeful hopes ideal improve
    improved improvement improves impressive innovation inspire inspired joy kind love loved loves lovely
    lucky medal nice optimistic peace peaceful perfect pleasant pleased popular praise praised prize progress
    promising prosper proud rare record recover recovered recovery relief reopen reopened reopens rescue rescued restore restored
    reward rich rise safe safer safety saved secure smile solution solved splendid strong stronger succeed
    succeeded success successful support supported supports surge thank thanked thanks thrilled thrive
    thriving top treasure triumph trust victory volunteer volunteers warm welcome welcomed win winner winners
    winning wins won wonderful worth gut gute guten guter gutes besser beste erfolg erfolgreich freude freut
    gewinn gewinnt glück lob lobt neu schön schnell sicher stark verbessert"""
)
_BAD = _set(
    """abuse abused accident accidents afraid alarm alarming anger angry anxious arrest arrested attack attacked
    attacks awful bad ban banned battle blame blamed blaze bomb breach broken burden chaos closed closure
    collapse collapsed complain complained complaint complaints concern concerned concerns condemn condemned
    conflict corrupt corruption crash crashed crime criminal crisis critic critical criticised criticism cruel
    cut cuts damage damaged danger dangerous dead deadly death deaths debt decline declined defeat defeated
    delay delayed delays demolished destroy destroyed die died dies difficult difficulty dirty disaster
    disease dispute doubt down drought drown drowned emergency fail failed fails failure fake fall falling
    fear feared fears fell fight fine fined fire flood flooded flooding fraud guilty harm harmed hate hit
    hostile hurt illegal ill injured injuries injury jail jailed kill killed kills lack lose loses losing loss
    losses lost murder murdered negative neglect pain panic penalty pollute polluted pollution poor problem
    problems protest protests rape recession refuse refused reject rejected resign resigned resigns risk risks
    sad scandal severe shortage shortages shut shock shot sick slump stolen storm strike struggle struggled
    struggles struggling suffer suffered suffering suspect suspected suspended terrible terror theft threat
    threaten threatened threats tragedy tragic trouble unable unfair unhappy unsafe upset victim victims
    violence violent vulnerable war warn warned warning warnings weak wildfire worse worst worried worry wound
    wounded wrong angst fehler gefahr gefährlich getötet kritik kritisiert krise leider opfer probleme problem
    scheitert schlecht schlechte schlechter schwere sorge streit tod tot tote unfall verletzt verliert verlust
    verlor warnt"""
)
_AMBIGUOUS = _GOOD & _BAD  # "fine": praise or penalty
_NEGATIONS = _set(
    """not no never neither nor without hardly cannot can't don't doesn't didn't isn't aren't wasn't weren't
    won't wouldn't couldn't shouldn't nicht kein keine keinen keiner nie ohne kaum"""
)
_NEGATION_REACH = 3  # words: "not a very good day" turns, "not here. A good day" has ended before that


def sentiment(text: str) -> float:
    """The balance of good and bad words, from -1 (all bad) over 0 (even, or none known) to 1 (all good).

    Counts some 390 English and 45 German words; a negation up to three words before turns one round. It knows no irony,
    no context and no names: "the storm that nobody feared" is bad news to it. Good for sorting, not for judging.
    """
    balance, weight = 0, 0
    for sentence in split_sentences(text):
        words = _words(sentence)
        for index, word in enumerate(words):
            if word in _AMBIGUOUS:
                continue
            value = (word in _GOOD) - (word in _BAD)
            if value:
                turned = any(before in _NEGATIONS for before in words[max(0, index - _NEGATION_REACH) : index])
                balance += -value if turned else value
                weight += 1
    # Two neutral words more than were found: one lone word in a long text is no verdict.
    return round(balance / (weight + 2), 3) if weight else 0.0


# --- the first verdict ---------------------------------------------------------------------------------------------

_ADVERT = re.compile(
    r"\b(?:buy (?:now|one|today)|order (?:now|online|today)|shop now|call (?:now|us|today)|book (?:now|today)"
    r"|discount\w*|sale (?:ends|now)|special offer|limited time|free (?:delivery|quote|trial)|promo(?:tional)? code"
    r"|coupon\w*|click here|best deals?|sponsored|advertisement|advertorial|while stocks last|visit our|money[- ]back"
    r"|prices? (?:from|start)|terms apply|no obligation|jetzt (?:bestellen|kaufen)|rabatt\w*|gratis|anzeige)\b"
    r"|\d+ ?% off\b|\b(?:don't|don’t) miss\b",
    re.IGNORECASE,
)
_LETTERS = re.compile(
    r"\bletters? to (?:the )?editor\b|\breaders?['’]? letters?\b|\byour letters\b|\bdear (?:sir|editor|madam)\b"
    r"|\bleserbriefe?\b",
    re.IGNORECASE,
)
_LISTING_TITLE = re.compile(
    r"\b(?:what['’]?s on|listings?|fixtures|tv guide|horoscopes?|crossword|wordle|sudoku|quiz|classifieds?|notices"
    r"|diary dates|opening hours|answers? today|hints?,? (?:and )?(?:clues?|answers?)|live updates)\b",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"\b\d{1,2}(?:[:.]\d{2}| ?[ap]\.?m\b)|[£€$] ?\d+(?:\.\d\d)?\b(?! (?:million|billion|trillion))")
_IMPERATIVE = re.compile(
    r"(?:add|fix|move|remove|refactor|rename|bump|update|use|avoid|handle|parse|revert|merge|improve|implement|simplify"
    r"|replace|introduce|drop|clean ?up|reuse|make|allow|set|enable|disable)(?:e?s)?\b(?!.*[.!?]$)",
    re.IGNORECASE,
)
_COMMIT = re.compile(
    r"^(?:Signed-off-by|Co-authored-by):|^(?:feat|fix|chore|docs|refactor)(?:\(\w+\))?: ", re.IGNORECASE | re.MULTILINE
)
_RELEASE = re.compile(
    r"\bCAGR\b|/ ?PRNewswire|GLOBE NEWSWIRE|Business Wire|market size|(?:NYSE|NASDAQ):", re.IGNORECASE
)
_REPORTED = re.compile(
    r"\b(?:said|says|told|according to|announced|reported|confirmed|statement|spokes\w+|sagte|laut|teilte"
    r"|erklärte)\b|[“„]",
    re.IGNORECASE,
)

_BASE = (0.1, 0.5, 0.6, 0.66, 0.7)  # by the number of complete sentences; the last stands for all higher numbers


def newsworthiness(title: str, text: str) -> Verdict:
    """How far an entry is a story that can be told: complete sentences count for it, marks of something else against.

    Adverts, listings, letters pages and commit logs land below 0.3, a whole report of two sentences near 0.65, one of
    six with figures and somebody quoted above 0.9. How new it is plays no part.
    """
    sentences = split_sentences(text)
    cut_off = [sentence for sentence in sentences if sentence.endswith("…")]
    repeated = [sentence for sentence in sentences if sentence.rstrip(".!? ").lower() == title.rstrip(".!? ").lower()]
    telling = [
        sentence
        for position, sentence in enumerate(sentences)
        if sentence not in repeated
        and _is_complete(sentence, opens=position == 0)
        and not _BOILERPLATE.search(sentence)
    ]
    whole, fragments = len(telling), len(sentences) - len(telling) - len(repeated) - len(cut_off)
    words = count_words(text)
    reasons: list[str] = []

    confidence = _BASE[min(whole, len(_BASE) - 1)]
    reasons.append(f"{whole} complete sentence{'' if whole == 1 else 's'}, {words} words")
    if cut_off:
        reasons.append("the outlet gives only the beginning")
    if whole and words >= 60:
        confidence += 0.05 if words < 120 else 0.1
    if whole and any(char.isdigit() for char in text):
        confidence += 0.05
        reasons.append("gives figures")
    if whole and _REPORTED.search(text):
        confidence += 0.07
        reasons.append("says who said so")
    if not title.strip():
        confidence -= 0.15
        reasons.append("has no title")

    against: list[tuple[float, str]] = []
    adverts = {match.group().lower() for match in _ADVERT.finditer(f"{title}\n{text}")}
    if len(adverts) >= 2 or (adverts and words < 40):
        against.append((0.3, f"reads like an advert: {', '.join(sorted(adverts)[:3])}"))
    if letters := _LETTERS.search(f"{title}\n{text}"):
        against.append((0.3, f"is a letters page: {letters.group()}"))
    entries = len(_ENTRY.findall(text))
    if listing := _LISTING_TITLE.search(title):
        against.append((0.3, f"is a listing: {listing.group()}"))
    elif entries >= 4 and entries * 12 > words:
        against.append((0.3, f"is a listing: {entries} times and prices in {words} words"))
    elif fragments >= 3 and fragments > whole:
        against.append((0.5, f"is mostly fragments: {fragments} of {len(sentences)}"))
    if words < 15:
        against.append((0.4, f"has {words} words, too few to tell anything"))
    if _COMMIT.search(f"{title}\n{text}") or (repeated and _IMPERATIVE.match(title)):
        against.append((0.25, "reads like a change log"))
    if _RELEASE.search(f"{title}\n{text}"):
        against.append((0.7, "is a press release"))
    for factor, _ in against:
        confidence *= factor
    return Verdict(round(min(1.0, max(0.0, confidence)), 3), (*(reason for _, reason in against), *reasons))


class Opinion(NamedTuple):
    """What one side says about an entry."""

    choice: str  #: tell or drop
    confidence: float
    argument: str


_FAR_FROM_NEWS, _DOUBTFUL = (
    0.85,
    0.4,
)  # above the first even the sceptic gives in; below the second a fair mind drops it


def opinion(stance: str, title: str, text: str) -> Opinion:
    """What ``pro``, ``contra`` or ``neutral`` makes of an entry: the same signs, weighed from another side.

    With equal weights for all three, an entry is told from a newsworthiness of 0.4 on.
    """
    verdict = newsworthiness(title, text)
    sure, told = verdict.confidence, "; ".join(verdict.reasons)
    if stance == "pro":
        return Opinion("tell", sure, f"Tell it: {told}.")
    if stance == "contra" and sure >= _FAR_FROM_NEWS:
        return Opinion("tell", round(1 - sure, 3), f"Hardly anything speaks against it: {told}.")
    if stance == "contra":
        return Opinion("drop", round(1 - sure, 3), f"Drop it, too little speaks for it: {told}.")
    choice = "tell" if sure >= _DOUBTFUL else "drop"
    return Opinion(choice, round(min(1.0, 0.5 + abs(sure - _DOUBTFUL)), 3), f"On balance {choice} it: {told}.")


# --- scripts -------------------------------------------------------------------------------------------------------

_MMR_LAMBDA = 0.7  # relevance against novelty; 0.7 is the usual middle for short summaries
_TOO_ALIKE = 0.6  # cosine of two sentences' words above which the second adds nothing
_ATTRIBUTION = re.compile(r"Source: \S.*\.")


def write_script(
    title: str,
    text: str,
    source: str,
    url: str,
    *,
    sentences: Collection[int] | None = None,
    max_words: int = MAX_SCRIPT_WORDS,
) -> Script:
    """A script of the source's own sentences in reading order, with "Source: OUTLET." at its end.

    Starts with the first sentence that can be read out (news tells the main thing first), then adds by rank what says
    something new, as long as it belongs to the story (shares a word with the title or a chosen line, or stands in a
    paragraph of several sentences, which adverts and menus do not) and leans on no sentence that is missing ("He also
    ..."). Without any such sentence the title is the one line.

    Args:
        title: becomes the headline.
        text: plain, paragraphs separated by line breaks.
        source: the outlet's name; where it is empty, the host of *url* stands in.
        url: the article's address, may be empty.
        sentences: their positions, where somebody else has chosen; those that there is no room for are left out.
        max_words: of all lines together, attribution included; at least 20.

    Raises: InvalidInputError if max_words is below 20.

    Source: J. Carbonell, J. Goldstein, "The use of MMR, diversity-based reranking for reordering documents and
    producing summaries", SIGIR 1998.
    """
    if max_words < 20:
        raise InvalidInputError("max_words of a script", found=max_words, needed="20 or more")
    attribution = Line(_attribution(source, url), ATTRIBUTION_LINE)
    room = max_words - count_words(attribution.text)
    paragraphs = [number for number, line in enumerate(text.splitlines()) for _ in split_sentences(line)]
    ranked = rank_sentences(title, text)
    chosen = _choose(title, ranked, paragraphs, room) if sentences is None else _taken(ranked, sentences, room)
    lines = [Line(each.sentence, each.position) for each in sorted(chosen, key=lambda each: each.position)]
    if not lines and title.strip():
        lines = [Line(title.strip(), TITLE_LINE)]
    lines.append(attribution)
    words = sum(count_words(line.text) for line in lines)
    return Script(title.strip(), tuple(lines), words, round(words * 60 / WORDS_PER_MINUTE, 1))


def _taken(ranked: list[Ranked], sentences: Collection[int], room: int) -> list[Ranked]:
    """Those of *sentences* that exist and fit into *room* words, from the first on."""
    taken = []
    for each in sorted(ranked, key=lambda each: each.position):
        length = count_words(each.sentence)
        if each.position in sentences and length <= room:
            taken.append(each)
            room -= length
    return taken


def _attribution(source: str, url: str) -> str:
    try:
        host = (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:  # a broken address names nobody
        host = ""
    outlet = " ".join(source.split()) or host or "not named"
    return f"Source: {outlet.rstrip('.')}."


def _choose(title: str, ranked: list[Ranked], paragraphs: list[int], room: int) -> list[Ranked]:
    """The sentences of a script, at most *room* words, by maximal marginal relevance.

    *paragraphs* says for each position which paragraph it stands in.
    """
    headline = title.strip().rstrip(".!?").lower()
    open_to_choice = {
        each.position: each
        for each in ranked
        if _is_speakable(each.sentence, each.position) and each.sentence.rstrip(".!? ").lower() != headline
    }
    stems = {position: Counter(_content_stems(each.sentence)) for position, each in open_to_choice.items()}
    prose = Counter(paragraphs[position] for position in open_to_choice)
    chosen: dict[int, Ranked] = {}
    told = set(_content_stems(title))

    def gain(each: Ranked) -> float:
        alike = max((_cosine(stems[each.position], stems[position]) for position in chosen), default=0.0)
        return -1.0 if alike > _TOO_ALIKE else _MMR_LAMBDA * each.score - (1 - _MMR_LAMBDA) * alike

    def fits(each: Ranked) -> bool:
        length = count_words(each.sentence)
        leans = each.position > 0 and (length < 7 or _ANAPHOR.match(each.sentence))  # "The tenth plant was a carrot."
        return length <= room and (not leans or each.position - 1 in chosen)

    def belongs(each: Ranked) -> bool:
        return prose[paragraphs[each.position]] > 1 or not told.isdisjoint(stems[each.position])

    while open_to_choice:
        fitting = [each for each in open_to_choice.values() if fits(each)]
        candidates = [each for each in fitting if belongs(each)]
        if not chosen:
            candidates = sorted(candidates or fitting, key=lambda each: each.position)[:1]
        best = max(candidates, key=lambda each: (gain(each), -each.position), default=None)
        if best is None or gain(best) <= -1.0:
            break
        chosen[best.position] = open_to_choice.pop(best.position)
        room -= count_words(best.sentence)
        told.update(stems[best.position])
    return list(chosen.values())


def _cosine(a: Counter[str], b: Counter[str]) -> float:
    dot = sum(count * b[stem] for stem, count in a.items())
    return dot / math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values())) if dot else 0.0


def check_script(script: Script, title: str, text: str, *, max_words: int = MAX_SCRIPT_WORDS) -> tuple[str, ...]:
    """What is wrong with a script, in plain sentences; an empty tuple means that it may go out.

    Each line must be a sentence of *text*, the title, or the attribution, letter for letter (white space aside).
    """
    spoken = [line for line in script.lines if line.sentence_position != ATTRIBUTION_LINE]
    attributions = [line for line in script.lines if line.sentence_position == ATTRIBUTION_LINE]
    allowed = {" ".join(sentence.split()) for sentence in split_sentences(text)} | {" ".join(title.split())}
    words = sum(count_words(line.text) for line in script.lines)
    faults: list[str] = []
    if not any(line.text.strip() for line in spoken):
        faults.append("the script is empty: it has no line but its attribution")
    faults += [
        f"line {number} is not in the source: {line.text[:80]!r}"
        for number, line in enumerate(script.lines, start=1)
        if line in spoken and " ".join(line.text.split()) not in allowed
    ]
    if len(attributions) != 1 or not _ATTRIBUTION.fullmatch(attributions[0].text):
        faults.append("the script does not end with one line 'Source: OUTLET.'")
    if " ".join(script.headline.split()) != " ".join(title.split()):
        faults.append(f"the headline is not the title: {script.headline[:80]!r}")
    if words > max_words:
        faults.append(f"the script is too long: {words} words, at most {max_words}")
    if spoken and words < MIN_SCRIPT_WORDS:
        faults.append(f"the script is too short: {words} words, at least {MIN_SCRIPT_WORDS}")
    return tuple(faults)
