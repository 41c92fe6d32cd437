"""Reading news: files, folders and addresses in, articles with plain text out.

Owns finding sources, fetching them, telling formats apart by their content (RSS, Atom, NewsAPI JSON, JSON lines) and
turning what an outlet sends into clean text. Leaves judging an article to ``engine`` and telling duplicates apart to
the board. Everything here blocks: call it from a thread.

What comes in is not trusted. Sizes are capped, text keeps neither markup nor control characters, and an address is
fetched only from hosts on the public internet: the host is looked up once, checked, and the connection goes to the
checked address, at each redirect anew, so that no feed can make the swarm read a service inside the network.
An entry that can't be used is reported beside the others; only a source that is no feed at all is an error.
"""

from __future__ import annotations

import calendar
import ipaddress
import json
import os
import re
import socket
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from examples.news_swarm.engine import split_sentences
from swarm_infrastructure.errors import MissingExtraError, RefusedError, UnavailableError

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "MAX_ARTICLES",
    "MAX_BYTES",
    "MAX_CONTENT_CHARS",
    "Article",
    "FeedError",
    "FeedUnavailableError",
    "Fetched",
    "Malformed",
    "Reading",
    "expand",
    "fetch_url",
    "read_source",
]

MAX_BYTES = 20 * 1024 * 1024  #: of one source, after decompression
MAX_ARTICLES = 10_000  #: of one source
MAX_CONTENT_CHARS = 20_000  #: of one article; the rest is cut off at a word's end
MAX_REDIRECTS = 5
_MAX_TITLE_CHARS = 500
_SUFFIXES = frozenset({".xml", ".rss", ".atom", ".json", ".jsonl"})


class FeedError(RefusedError):
    """A source that can't be read as news: nothing of it was used."""

    def __init__(self, thing: str, *, found: str, needed: str, step: str) -> None:
        self.thing, self.found, self.needed, self.step = thing, found, needed, step
        super().__init__(f"{thing}: found {found}, needed {needed}; {step}")


class FeedUnavailableError(UnavailableError):
    """The network or the outlet's server failed; the same address may answer later."""

    def __init__(self, url: str, why: str) -> None:
        self.url, self.why = url, why
        super().__init__(f"{url} does not answer ({why}); try again later, or give a saved copy of the feed as a file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """One news entry as plain text."""

    title: str  #: one line, may be empty if there is content
    content: str  #: paragraphs separated by line breaks, at most MAX_CONTENT_CHARS; may be empty if there is a title
    source: str  #: the outlet's name; the host or the file's name where the feed names none
    url: str = ""  #: of the article, http or https, or empty
    published_at: str = ""  #: ISO 8601 in UTC, 2025-08-13T11:49:17Z, or empty
    topics: tuple[str, ...] = ()  #: the outlet's own tags, in its order
    guid: str = ""  #: the outlet's own id, or empty
    ordinal: int  #: place in its source, from 1; the line's number in JSON lines


@dataclass(frozen=True, slots=True)
class Malformed:
    """An entry that could not be used."""

    ordinal: int  #: as in Article
    why: str


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one source held."""

    articles: tuple[Article, ...]  #: in the source's order
    malformed: tuple[Malformed, ...]
    note: str = ""  #: what was wrong with the source as a whole, though it could be read; mostly empty


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an address answered."""

    body: bytes
    content_type: str
    url: str  #: after redirects


Fetch = Callable[[str], Fetched]


# --- finding sources -----------------------------------------------------------------------------------------------


def expand(inputs: list[str]) -> list[str]:
    """The source locations that *inputs* name: addresses as they are, files, and the feeds in and below folders.

    A folder gives its files that end in .xml, .rss, .atom, .json or .jsonl, sorted by path; a file named outright may
    end in anything. Nothing is listed twice.

    Raises: FeedError for no input at all, a path that is missing or unreadable, a folder without any feed, or an
    address that is not http or https.
    """
    if not inputs:
        raise FeedError("input", found="nothing", needed="a feed", step="give a file, a folder or an http(s) address")
    locations: dict[str, None] = {}
    for given in inputs:
        if "://" in given:
            _check_scheme(given)
            locations[given] = None
        else:
            locations.update(dict.fromkeys(_files(given)))
    return list(locations)


def _is_url(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def _check_scheme(url: str) -> None:
    if not _is_url(url):
        raise FeedError(
            _shown(url),
            found=f"an address of the kind {url.split('://')[0][:20]!r}",
            needed="http or https",
            step="give a file on this machine by its path",
        )


def _files(given: str) -> list[str]:
    path = Path(given)
    try:
        if not given or "\0" in given or not path.exists():
            raise FeedError(repr(given), found="no such file or folder", needed="a feed", step="check the path")
        if not path.is_dir():
            _check_readable(path)
            return [given]
        found = sorted(
            Path(folder) / name
            for folder, _, names in os.walk(path, onerror=_refuse)
            for name in names
            if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")
        )
        for file in found:
            _check_readable(file)
    except OSError as error:  # a name too long, a folder on the way that is closed to us
        raise _unreadable(given, error) from error
    if not found:
        raise FeedError(
            f"folder {given!r}",
            found="no feed in it",
            needed=f"a file ending in {', '.join(sorted(_SUFFIXES))}",
            step="name the file itself if it ends otherwise",
        )
    return [str(file) for file in found]


def _refuse(error: OSError) -> None:
    raise error


def _check_readable(path: Path) -> None:
    if not path.is_file():  # reading a pipe or a device might never end
        raise FeedError(repr(str(path)), found="no regular file", needed="a feed", step="save it to a file first")
    with path.open("rb"):
        pass


def _unreadable(location: str, error: OSError) -> FeedError:
    why = error.strerror or type(error).__name__
    return FeedError(repr(location), found=f"unreadable ({why})", needed="a readable feed", step="check its rights")


# --- reading one source --------------------------------------------------------------------------------------------


def read_source(location: str, *, fetch: Fetch | None = None) -> Reading:
    """The articles of one source, as ``expand`` names it, in its own order.

    Args:
        location: a file's path, or an http(s) address.
        fetch: gets an address; ``fetch_url`` if not given.

    Raises:
        FeedError: what stands there is no feed, or is larger than MAX_BYTES or MAX_ARTICLES. An empty feed is none.
        FeedUnavailableError: the network or the server failed.
        MissingExtraError: RSS, Atom and addresses need ``swarm-infrastructure[news]``.
    """
    if _is_url(location):
        fetched = (fetch or fetch_url)(location)
        body, content_type, shown, default = fetched.body, fetched.content_type, _shown(location), _host(fetched.url)
        base = fetched.url
    else:
        body, content_type, shown, default = _read_file(location), "", repr(location), Path(location).stem
        base = ""
    if len(body) > MAX_BYTES:
        raise _too_large(shown)
    head = body[:4096].translate(None, b"\0\xef\xbb\xbf\xfe\xff").lstrip()
    if not head:
        raise _no_feed(shown, "nothing" if not body else "white space only")
    if head.startswith(b"<"):
        entries, note = _xml_entries(body, content_type, base, shown, default)
    else:
        entries, note = _json_entries(body, shown, default)
    if len(entries) > MAX_ARTICLES:
        raise FeedError(
            shown, found=f"{len(entries)} entries", needed=f"at most {MAX_ARTICLES}", step="split it into smaller files"
        )
    return Reading(
        tuple(entry for entry in entries if isinstance(entry, Article)),
        tuple(entry for entry in entries if isinstance(entry, Malformed)),
        note,
    )


def _read_file(location: str) -> bytes:
    try:
        with open(location, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise _unreadable(location, error if isinstance(error, OSError) else OSError(str(error))) from error


def _no_feed(shown: str, found: str, step: str = "check that this is the feed itself") -> FeedError:
    return FeedError(shown, found=found, needed="RSS, Atom, NewsAPI JSON or JSON lines", step=step)


def _too_large(shown: str) -> FeedError:
    limit = f"at most {MAX_BYTES // 1024 // 1024} MB"
    return FeedError(shown, found="a larger source", needed=limit, step="split it into smaller files")


def _article(ordinal: int, *, title: str, content: str, source: str, **fields: Any) -> Article | Malformed:
    """The entry with its texts within their limits, or why it can't be used."""
    if title.lower() == "[removed]" or (not title and content.lower() == "[removed]"):
        return Malformed(ordinal, "the outlet has removed it")
    if not title and not content:
        return Malformed(ordinal, "it has neither title nor text")
    title = _cut(title, _MAX_TITLE_CHARS)
    return Article(ordinal=ordinal, title=title, content=_cut(content, MAX_CONTENT_CHARS), source=source, **fields)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    whole_words = re.match(r".*(?=\s)", text[: limit - 1], re.DOTALL)
    return (whole_words.group() if whole_words else text[: limit - 1]).rstrip() + "…"


# --- RSS and Atom --------------------------------------------------------------------------------------------------


def _xml_entries(
    body: bytes, content_type: str, base: str, shown: str, default: str
) -> tuple[list[Article | Malformed], str]:
    try:
        import feedparser
    except ImportError as error:
        raise MissingExtraError("feedparser", "news") from error

    headers = {"content-type": content_type} if content_type else {}
    if base:
        headers["content-location"] = base
    try:
        # Bare bytes would be tried as a file's name first.
        parsed = feedparser.parse(
            BytesIO(body), response_headers=headers, sanitize_html=False, resolve_relative_uris=False
        )
    except Exception as error:  # the parser lets many kinds escape on input broken on purpose
        raise _no_feed(shown, f"XML that can't be parsed ({type(error).__name__})") from error

    problem = parsed.get("bozo_exception")
    harmless = (feedparser.CharacterEncodingOverride, feedparser.NonXMLContentType)
    broken = problem is not None and not isinstance(problem, harmless)
    if not parsed.entries and (broken or not parsed.get("version")):
        page = re.match(rb"\s*<(?:!doctype html|html)", body, re.IGNORECASE)
        if page:
            raise _no_feed(shown, "an HTML page", "give the address of its feed, often /feed or /rss")
        raise _no_feed(shown, f"XML that is no feed ({problem})" if problem else "XML that is no feed")

    outlet = _plain(parsed.feed.get("title")) or default
    entries = [_xml_entry(ordinal, entry, outlet) for ordinal, entry in enumerate(parsed.entries, start=1)]
    return entries, f"the XML is broken, read as far as possible: {problem}" if broken else ""


def _xml_entry(ordinal: int, entry: Any, outlet: str) -> Article | Malformed:
    # Any field may be there and None. Asking for "updated" without looking first gets "published", and a warning.
    bodies = [part.get("value") for part in entry.get("content") or []]
    texts = [_plain(text, lines=True) for text in (*bodies, entry.get("summary"))]
    stamps = (entry[name] for name in ("published_parsed", "updated_parsed") if name in entry)
    when = next(filter(None, stamps), None)
    try:
        published_at = _utc(datetime.fromtimestamp(calendar.timegm(when), UTC)) if when else ""
    except (ValueError, OverflowError, OSError):  # a date no calendar has
        published_at = ""
    tags = (_plain(tag.get("term") or tag.get("label")) for tag in entry.get("tags") or [])
    return _article(
        ordinal,
        title=_plain(entry.get("title")),
        content=max(texts, key=len),  # the teaser repeats the text where there is one
        source=_plain((entry.get("source") or {}).get("title")) or outlet,
        url=_link(entry.get("link") or ""),
        published_at=published_at,
        topics=tuple(dict.fromkeys(tag for tag in tags if tag)),
        guid=_plain(entry.get("id")),
    )


# --- JSON ----------------------------------------------------------------------------------------------------------


def _json_entries(body: bytes, shown: str, default: str) -> tuple[list[Article | Malformed], str]:
    encoding = json.detect_encoding(body)
    # Bytes that are no UTF-8 survive as lone surrogates, so that one bad line can be told from the good ones.
    text = body.decode(encoding, errors="surrogateescape" if encoding.startswith("utf-8") else "replace")
    text = text.removeprefix("\ufeff")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _json_lines(text, shown, default, error), ""
    match whole:
        case {"status": "error", "message": message}:
            raise _no_feed(shown, f"an error message of NewsAPI ({_plain(str(message))[:200]})", "fetch it again")
        case {"articles": list(objects)} | list(objects):
            return [_json_entry(ordinal, each, default) for ordinal, each in enumerate(objects, start=1)], ""
        case {"title": _} | {"content": _} | {"description": _}:
            return [_json_entry(1, whole, default)], ""
        case _:
            kind = f"an object with {sorted(whole)[:5]}" if isinstance(whole, dict) else type(whole).__name__
            raise _no_feed(shown, f"JSON of another shape ({kind})")


def _json_lines(text: str, shown: str, default: str, error: Exception) -> list[Article | Malformed]:
    entries: list[Article | Malformed] = []
    for ordinal, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(_json_entry(ordinal, json.loads(line), default))
        except (ValueError, RecursionError) as bad:
            entries.append(Malformed(ordinal, f"the line is no JSON ({bad})"))
        if len(entries) > MAX_ARTICLES:
            break
    if not any(isinstance(entry, Article) for entry in entries):
        raise _no_feed(shown, f"neither XML nor JSON ({error})") from error
    return entries


def _json_entry(ordinal: int, entry: object, default: str) -> Article | Malformed:
    if not isinstance(entry, dict):
        return Malformed(ordinal, f"it is no JSON object but {type(entry).__name__}")

    def text(*names: str) -> str:
        return next((value for name in names if isinstance(value := entry.get(name), str) and value.strip()), "")

    if any("\udc80" <= char <= "\udcff" for char in text("title") + text("description") + text("content", "text")):
        return Malformed(ordinal, "its text is not UTF-8")
    outlet = entry.get("source")
    if isinstance(outlet, dict):
        outlet = outlet.get("name") or outlet.get("id")
    tags = entry.get("topics") or entry.get("tags")
    return _article(
        ordinal,
        title=_plain(text("title")),
        content=_join(_plain(text("description"), lines=True), _plain(text("content", "text"), lines=True)),
        source=_plain(outlet) if isinstance(outlet, str) and outlet.strip() else default,
        url=_link(text("url", "link")),
        published_at=_date(text("publishedAt", "published_at", "published")),
        topics=tuple(dict.fromkeys(_plain(tag) for tag in tags if isinstance(tag, str) and tag.strip()))
        if isinstance(tags, list)
        else (),
        guid=_plain(text("guid", "id")),
    )


_MORE = re.compile(r"\s?(?:…|\.\.\.)?\s?\[\+\d{1,9} chars\]$")
_CUT_OFF = re.compile(r"\s?\S{0,30}…$")  # NewsAPI cuts in the middle of a word


def _join(description: str, content: str) -> str:
    """Description and content as one text without what both say; NewsAPI sends some 200 characters of each.

    Where a text was cut off, the torn word goes and "…" marks the place, so that no half sentence looks whole.
    """
    description, content = (
        _CUT_OFF.sub("…", _MORE.sub("…", text)).removeprefix("…") for text in (description, content)
    )
    ahead = split_sentences(description)
    last = (split_sentences(content) or [""])[-1]
    if last.endswith("…") and _bare(last) and any(_bare(sentence).startswith(_bare(last)) for sentence in ahead):
        content = content.removesuffix(last).rstrip()  # the description has this sentence in full
    said = _bare(content)
    new = [(index, sentence) for index, sentence in enumerate(ahead) if _bare(sentence) not in said]
    shared = next((index for index, sentence in enumerate(ahead) if _bare(sentence) in said), len(ahead))
    # What stands in the description before the shared part is a standfirst; what stands after it goes on from there.
    before = " ".join(sentence for index, sentence in new if index < shared)
    after = " ".join(sentence for index, sentence in new if index > shared)
    return "\n".join(part for part in (before, content, after) if part)


def _bare(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum())


def _date(text: str) -> str:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            when = parse(text.strip())
            return _utc(when if when.tzinfo else when.replace(tzinfo=UTC))
        except (ValueError, TypeError, OverflowError):  # OverflowError: year 1 east of Greenwich
            continue
    return ""


def _utc(when: datetime) -> str:
    return when.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def _link(text: str) -> str:
    link = "".join(text.split())[:2000]
    return _clean(link) if _is_url(link) else ""


# --- plain text ----------------------------------------------------------------------------------------------------

_BLOCKS = frozenset(
    """address article aside blockquote br dd div dl dt figcaption figure footer h1 h2 h3 h4 h5 h6 header hr li main nav
    ol p pre section table td th tr ul""".split()  # noqa: SIM905 - one line per word would hide the list
)
# Not the standard library's HTMLParser: some broken markup takes it minutes (CVE-2025-6069), and feeds come from anywhere.
# Each pattern below stops at the next "<" or takes all that is left, so that the time grows with the text alone.
_IN_TAG = r"""(?:(?:"[^"<]*"|'[^'<]*'|[^<>"'])*+|[^<>]*)"""
_TAG = re.compile(rf"<(/?)([a-zA-Z][\w:-]*)(?![\w:-]){_IN_TAG}>|<[!?][a-zA-Z][^<>]*>")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_SILENT = re.compile(
    rf"<(head|iframe|noscript|object|script|style|svg|template)(?![\w:-]){_IN_TAG}>.*?(?:</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)


def _without_markup(raw: str) -> str:
    """What a reader would see of HTML, with a line break where a block begins or ends."""
    raw = _SILENT.sub("", _COMMENT.sub("", raw.replace("<![CDATA[", "").replace("]]>", "")))
    parts: list[str] = []
    preformatted, at = 0, 0
    for tag in _TAG.finditer(raw):
        parts.append(_visible(raw[at : tag.start()], preformatted > 0))
        at = tag.end()
        name = (tag.group(2) or "").lower()
        if name in _BLOCKS:
            parts.append("\n")
        if name == "pre":
            preformatted = max(0, preformatted - 1) if tag.group(1) else preformatted + 1
    return "".join([*parts, _visible(raw[at:], preformatted > 0)])


def _visible(text: str, preformatted: bool) -> str:
    text = unescape(text)
    return _unwrap(text) if preformatted else re.sub(r"\s+", " ", text)


def _plain(text: object, *, lines: bool = False) -> str:
    """*text* without markup, entities, control characters and surplus space; one line unless *lines*."""
    raw = "" if text is None else str(text)
    if "&" in raw and not _has_markup(raw):
        raw = unescape(raw)  # JSON with markup that was escaped once more
    raw = _without_markup(raw) if _has_markup(raw) else _unwrap(raw)
    if "&" in raw:
        raw = unescape(raw)  # outlets escape twice: &amp;amp;
    tidy = (" ".join(line.split()) for line in _clean(raw).splitlines())
    return ("\n" if lines else " ").join(line for line in tidy if line)


def _has_markup(text: str) -> bool:
    return "<" in text and (_TAG.search(text) is not None or "<!--" in text)


def _unwrap(text: str) -> str:
    """Plain text with the line breaks of a hard-wrapped paragraph taken out, those between paragraphs kept."""
    out: list[str] = []
    for line in (each.strip() for each in text.splitlines()):
        wrapped = out and len(out[-1]) >= 50 and out[-1][-1] not in ".!?:;…\"'”’»)" and line
        if wrapped or (out and out[-1] and line[:1].islower()):
            out[-1] = f"{out[-1]} {line}"
        else:
            out.append(line)
    return "\n".join(out)


def _clean(text: str) -> str:
    """*text* without control and invisible characters; lone surrogates, which no encoding can hold, become U+FFFD."""
    if text.isascii() and text.isprintable():
        return text
    kept = []
    for char in text:
        category = unicodedata.category(char)
        if category == "Cs":
            kept.append("\ufffd")
        elif category[0] != "C" or char in "\n\t\r\u200c\u200d":  # the joiners belong to Persian, Hindi and emoji
            kept.append(char)
    return unicodedata.normalize("NFC", "".join(kept))


# --- addresses -----------------------------------------------------------------------------------------------------

_TIMEOUT_S = 20.0  # for connecting and for each read
_DEADLINE_S = 60.0  # for all of it, redirects included: a server that drips a byte a second must not hold a thread
_ACCEPT = "application/rss+xml, application/atom+xml, application/json;q=0.9, application/xml;q=0.9, */*;q=0.5"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


Resolve = Callable[[str, int], list[str]]


def fetch_url(url: str, *, allow_private: bool = False, resolve: Resolve | None = None) -> Fetched:
    """What *url* answers, after at most MAX_REDIRECTS redirects, at most MAX_BYTES of it.

    Args:
        url: http or https.
        allow_private: also fetch from this machine and the local network, and use the proxy of the environment.
        resolve: host and port to IP addresses; the system's resolver if not given.

    Raises:
        FeedError: another scheme, a host that is not on the public internet, too many redirects, too much data, or a
            refusal by the server (404 and the like).
        FeedUnavailableError: no such name, no connection, a timeout, or a server in trouble (5xx, 408, 429).
        MissingExtraError: httpx2 is not installed.
    """
    try:
        import httpx2
    except ImportError as error:
        raise MissingExtraError("httpx2", "news") from error

    shown = _shown(url)
    deadline = time.monotonic() + _DEADLINE_S
    try:
        target = httpx2.URL(url)
        with httpx2.Client(timeout=_TIMEOUT_S, trust_env=allow_private) as client:
            for _ in range(MAX_REDIRECTS + 1):
                _check_scheme(str(target))
                addresses = [""] if allow_private else _public_addresses(target, resolve or _resolve)
                response = _send(client, target, addresses)
                try:
                    if not response.has_redirect_location:
                        return _answer(response, target, shown, deadline)
                    target = target.join(response.headers["location"])
                finally:
                    response.close()
    except httpx2.InvalidURL as error:
        raise FeedError(
            shown, found=f"a broken address ({error})", needed="http(s)://host/path", step="check it"
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        raise FeedUnavailableError(shown, str(error) or type(error).__name__) from error
    raise FeedError(
        shown, found=f"more than {MAX_REDIRECTS} redirects", needed="a feed", step="give the address they end at"
    )


def _send(client: httpx2.Client, target: httpx2.URL, addresses: list[str]) -> httpx2.Response:
    """The answer of the first of *addresses* that takes a connection; "" lets the client look the host up."""
    import httpx2

    for address in addresses:
        url, headers, extensions = target, {"accept": _ACCEPT, "accept-encoding": "gzip, identity"}, {}
        if address:  # the checked address instead of a second look-up, which could be answered otherwise
            url = target.copy_with(host=address)
            headers["host"] = target.netloc.decode("ascii")
            extensions = {"sni_hostname": target.raw_host.decode("ascii")}
        request = client.build_request("GET", url, headers=headers, extensions=extensions)
        try:
            return client.send(request, stream=True)
        except httpx2.ConnectError:
            if address == addresses[-1]:
                raise
    raise httpx2.ConnectError(f"{target.host} has no address")


def _answer(response: httpx2.Response, target: httpx2.URL, shown: str, deadline: float) -> Fetched:
    status = response.status_code
    if status in (408, 429) or status >= 500:
        raise FeedUnavailableError(shown, f"HTTP {status}")
    if not response.is_success:
        raise FeedError(shown, found=f"HTTP {status}", needed="HTTP 200", step="check the address in a browser")
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > MAX_BYTES:
            raise _too_large(shown)
        if time.monotonic() > deadline:
            raise FeedUnavailableError(shown, f"not finished after {_DEADLINE_S:g} s")
    return Fetched(bytes(body), response.headers.get("content-type", ""), str(target))


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _public_addresses(target: httpx2.URL, resolve: Resolve) -> list[str]:
    """The IP addresses of the host, all of them public.

    Raises: FeedError if one is not: a name that points inside is suspicious as a whole.
    """
    host = target.raw_host.decode("ascii")
    try:
        addresses = resolve(host, target.port or (443 if target.scheme == "https" else 80))
    except UnicodeError as error:  # a label of more than 63 letters
        raise FeedError(host[:80], found="no possible host name", needed="a host name", step="check it") from error
    except OSError as error:
        raise FeedUnavailableError(host, error.strerror or "no such host") from error
    for address in addresses:
        if not _is_public(address):
            raise FeedError(
                host,
                found=f"{address}, an address inside this machine or network",
                needed="a host on the public internet",
                step="save the feed to a file, or call fetch_url(..., allow_private=True) if you trust it",
            )
    return addresses


def _is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # an IPv6 address with a zone, fe80::1%eth0, is link-local
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        # Ways to write an IPv4 address inside an IPv6 one.
        inner = (
            ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        )
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or url).removeprefix("www.")
    except ValueError:
        return url


def _shown(url: str) -> str:
    """The address as it may stand in a message: passwords and queries, which often hold a key, left out."""
    scheme, _, rest = url.partition("://")
    place, query, _ = rest.partition("?")
    authority, slash, path = place.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"[:200] + ("?…" if query else "")
