import gzip
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from examples.news_swarm import sources
from examples.news_swarm.sources import (
    Article,
    FeedError,
    FeedUnavailableError,
    Fetched,
    expand,
    fetch_url,
    read_source,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from swarm_infrastructure.errors import MissingExtraError, RefusedError, SwarmError, UnavailableError

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "news_swarm" / "sample"
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"  # beside the checkout, where it is at hand
RSS = '<rss version="2.0"><channel><title>Courier</title>{}</channel></rss>'
ITEM = "<item><title>{}</title><description>{}</description></item>"


@pytest.fixture
def given_file(tmp_path):
    def write(content: str | bytes, name: str = "feed.xml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def one_article(location: str) -> Article:
    (article,) = read_source(location).articles
    return article


# -- finding sources --------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_feeds_with_all_below_in_order_and_nothing_else(given_file, tmp_path):
    for name in ("b.rss", "sub/a.JSON", "a.xml", "notes.txt", ".hidden.xml", "sub/c.jsonl", "d.atom"):
        given_file("x", name)
    expected = ["a.xml", "b.rss", "d.atom", "sub/a.JSON", "sub/c.jsonl"]
    assert expand([str(tmp_path)]) == [str(tmp_path / name) for name in expected]


def test_files_folders_and_addresses_mix_and_nothing_comes_twice(given_file, tmp_path):
    feed, other = given_file("x", "a.xml"), given_file("x", "news.txt")
    url = "https://news.example/feed"
    assert expand([other, url, feed, str(tmp_path), url]) == [other, url, feed]


@pytest.mark.parametrize("wrong", ["no/such/file.xml", "", "ftp://news.example/feed", "file:///etc/passwd", "a\0b"])
def test_what_is_no_source_is_refused_at_once(wrong):
    with pytest.raises(FeedError) as refused:
        expand([wrong])
    assert isinstance(refused.value, RefusedError)
    assert refused.value.found
    assert refused.value.needed
    assert refused.value.step


def test_no_input_and_a_folder_without_feeds_are_refused(tmp_path, given_file):
    given_file("x", "readme.md")
    with pytest.raises(FeedError, match="nothing"):
        expand([])
    with pytest.raises(FeedError, match="no feed in it"):
        expand([str(tmp_path)])


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.xml")
    with pytest.raises(FeedError, match="no regular file"):
        expand([str(tmp_path)])


def test_an_unreadable_file_is_refused_at_once(given_file, monkeypatch):
    location = given_file("x")

    def refuse(*_words, **_facts):
        raise PermissionError(13, "Permission denied")  # what anybody but root meets with mode 000

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FeedError, match="unreadable"):
        expand([location])


def test_reading_a_file_that_has_gone_since_says_so():
    with pytest.raises(FeedError, match="unreadable"):
        read_source("gone.xml")


# -- RSS and Atom -----------------------------------------------------------------------------------------------------


def test_an_rss_item_becomes_an_article(given_file):
    item = """<item><title>Ferry &amp; bus</title><link>https://courier.example/1</link><guid>one</guid>
      <category>transport</category><category>harbour</category><category>transport</category>
      <pubDate>Mon, 10 Mar 2025 08:30:00 +0200</pubDate>
      <description>&lt;p&gt;First&amp;nbsp;part.&lt;/p&gt;
        &lt;p&gt;Second &lt;b&gt;part&lt;/b&gt;.&lt;/p&gt;</description></item>"""
    assert one_article(given_file(RSS.format(item))) == Article(
        title="Ferry & bus",
        content="First part.\nSecond part.",
        source="Courier",
        url="https://courier.example/1",
        published_at="2025-03-10T06:30:00Z",
        topics=("transport", "harbour"),
        guid="one",
        ordinal=1,
    )


def test_the_full_text_is_taken_where_the_item_has_a_teaser_too(given_file):
    item = (
        '<item><title>T</title><description>Short.</description><content:encoded xmlns:content="'
        'http://purl.org/rss/1.0/modules/content/"><![CDATA[<p>Short. And long.</p>]]></content:encoded></item>'
    )
    assert one_article(given_file(RSS.format(item))).content == "Short. And long."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_umlauts_come_through_in_every_encoding(given_file, encoding):
    name = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    feed = f'<?xml version="1.0" encoding="{name}"?>' + RSS.format(ITEM.format("Grüße", "Süßes Café"))
    article = one_article(given_file(feed.encode(encoding)))
    assert (article.title, article.content) == ("Grüße", "Süßes Café")


def test_the_format_is_told_by_the_content_not_by_the_name(given_file):
    assert one_article(given_file(RSS.format(ITEM.format("a", "b")), "feed.json")).title == "a"
    assert one_article(given_file('{"articles": [{"title": "c"}]}', "feed.xml")).title == "c"
    assert one_article(given_file('{"title": "d"}\n', "feed")).title == "d"


def test_an_empty_feed_has_no_articles_and_is_no_error(given_file):
    for empty in (RSS.format(""), '<feed xmlns="http://www.w3.org/2005/Atom"/>', '{"articles": []}', "[]"):
        assert read_source(given_file(empty)).articles == ()


def test_an_entry_without_title_and_text_is_reported_beside_the_others(given_file):
    feed = RSS.format(ITEM.format("a", "b") + "<item><link>https://x.example/</link></item>" + ITEM.format("c", "d"))
    reading = read_source(given_file(feed))
    assert [(article.ordinal, article.title) for article in reading.articles] == [(1, "a"), (3, "c")]
    assert [(bad.ordinal, bad.why) for bad in reading.malformed] == [(2, "it has neither title nor text")]


def test_a_feed_that_breaks_off_is_read_as_far_as_it_goes_and_says_so(given_file):
    reading = read_source(given_file(RSS.format(ITEM.format("a", "b"))[:-30]))
    assert [article.title for article in reading.articles] == ["a"]
    assert "broken" in reading.note


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "nothing"),
        ("  \n ", "white space only"),
        ("\ufeff", "white space|nothing"),
        ("<!DOCTYPE html><html><body>Hello</body></html>", "HTML page"),
        ("<catalogue><book/></catalogue>", "no feed"),
        ("<rss", "no feed"),
        ("Dear readers,", "neither XML nor JSON"),
        ('{"users": []}', "another shape"),
        ("42", "another shape"),
        ('{"articles": [', "neither XML nor JSON"),
        ('{"status": "error", "code": "apiKeyInvalid", "message": "Your key is wrong"}', "Your key is wrong"),
        ("[" * 100_000, "neither XML nor JSON"),
    ],
)
def test_what_is_no_feed_at_all_is_refused_with_what_was_found(given_file, content, found):
    with pytest.raises(FeedError, match=found):
        read_source(given_file(content))


def test_entities_in_a_doctype_are_not_expanded(given_file):
    bomb = '<!DOCTYPE r [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    reading = read_source(given_file(bomb + RSS.format(ITEM.format("x &b; &f;", "y"))))
    assert "aaaa" not in reading.articles[0].title
    assert "root" not in reading.articles[0].title


def test_a_feed_whose_text_is_the_name_of_a_file_is_not_opened(given_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given_file(RSS.format(ITEM.format("secret", "x")), "<secret")
    with pytest.raises(FeedError):
        read_source(given_file("<secret", "evil.xml"))


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_a_newsapi_article_becomes_an_article(given_file):
    entry = {
        "source": {"id": None, "name": "Ledger"},
        "title": "Rents &amp; wages",
        "description": "Rents rise faster than wages.",
        "content": "Rents rise faster than wages. The council met on Mon… [+439 chars]",
        "url": "https://ledger.example/1",
        "publishedAt": "2025-08-13T11:49:17+02:00",
        "tags": ["housing", 7, "money"],
    }
    article = one_article(given_file(json.dumps({"status": "ok", "articles": [entry]})))
    assert article == Article(
        title="Rents & wages",
        content="Rents rise faster than wages. The council met on…",
        source="Ledger",
        url="https://ledger.example/1",
        published_at="2025-08-13T09:49:17Z",
        topics=("housing", "money"),
        guid="",
        ordinal=1,
    )


@pytest.mark.parametrize(
    ("description", "content", "joined"),
    [
        ("A one. B two.", "A one. B tw… [+9 chars]", "A one.\nB two."),  # the content's torn end stands in full above
        ("Standfirst here.", "Other text. More.", "Standfirst here.\nOther text. More."),
        ("A one. B two. C thr…", "A one. B two. C three. D four.", "A one. B two. C three. D four."),
        ("", "Only this… [+1 chars]", "Only…"),
        ("Only that.", "", "Only that."),
        ("Same.", "Same.", "Same."),
        ("x", "[+12 chars]", "x"),
        ("", "First line.\r\nSecond line.", "First line.\nSecond line."),
    ],
)
def test_description_and_content_are_joined_without_saying_anything_twice(given_file, description, content, joined):
    entry = {"title": "T", "description": description, "content": content}
    assert one_article(given_file(json.dumps([entry]))).content == joined


def test_a_bad_line_is_one_malformed_entry_and_not_the_end(given_file):
    lines = [
        '{"title": "a"}',
        "",
        "not json",
        '{"title": 5}',
        '["x"]',
        '{"title": "b", "source": "Wire"}',
        '{"title": "c',
    ]
    reading = read_source(given_file("\n".join(lines), "feed.jsonl"))
    assert [(article.ordinal, article.title, article.source) for article in reading.articles] == [
        (1, "a", "feed"),
        (6, "b", "Wire"),
    ]
    assert [bad.ordinal for bad in reading.malformed] == [3, 4, 5, 7]
    assert all(bad.why for bad in reading.malformed)


def test_a_line_that_is_not_utf_8_is_malformed_and_the_others_are_read(given_file):
    reading = read_source(given_file(b'{"title": "caf\xe9"}\n{"title": "caf\xc3\xa9"}\n'))
    assert [article.title for article in reading.articles] == ["café"]
    assert [bad.why for bad in reading.malformed] == ["its text is not UTF-8"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_comes_through_in_every_encoding(given_file, encoding):
    assert (
        one_article(given_file(json.dumps([{"title": "Grüße"}], ensure_ascii=False).encode(encoding))).title == "Grüße"
    )


def test_articles_that_the_outlet_removed_are_malformed(given_file):
    reading = read_source(given_file('[{"title": "[Removed]", "content": "[Removed]"}, null]'))
    assert reading.articles == ()
    assert [bad.ordinal for bad in reading.malformed] == [1, 2]


@pytest.mark.parametrize(
    ("given_date", "read"),
    [
        ("2025-08-13T11:49:17Z", "2025-08-13T11:49:17Z"),
        ("2025-08-13 11:49", "2025-08-13T11:49:00Z"),
        ("Wed, 13 Aug 2025 11:49:17 -0500", "2025-08-13T16:49:17Z"),
        ("yesterday", ""),
        ("0001-01-01T00:00:00+14:00", ""),
        (1755085757, ""),
    ],
)
def test_dates_are_read_as_utc_or_left_out(given_file, given_date, read):
    assert one_article(given_file(json.dumps([{"title": "t", "publishedAt": given_date}]))).published_at == read


# -- plain text and limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("<p>One</p><p>Two<br/>Three</p>", "One\nTwo\nThree"),
        ("a<script>alert(1)</script>b<style>p{}</style>c", "abc"),
        ("<ul><li>x</li><li>y</li></ul>", "x\ny"),
        ("5 < 7 and 9 > 8", "5 < 7 and 9 > 8"),
        ("AT&amp;amp;T &#8220;q&#8221;", "AT&T “q”"),
        ("nul\x00 bell\x07 zero\u200bwidth \u202eevil", "nul bell zerowidth evil"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("a   b\t\tc\n\n\n\nd", "a b c\nd"),
        ("<p>wrapped\nlines   here</p>", "wrapped lines here"),
        (
            "A line of plain text that was wrapped by hand at some sixty characters or\nthereabouts goes on.",
            "A line of plain text that was wrapped by hand at some sixty characters or thereabouts goes on.",
        ),
        ("&lt;p&gt;One&lt;/p&gt;&lt;p&gt;5 &amp;lt; 7&lt;/p&gt;", "One\n5 < 7"),
        ("<![x", "<![x"),
        ('<img src="x" onerror="alert(1)">text', "text"),
    ],
)
def test_text_comes_out_plain(given_file, raw, plain):
    assert one_article(given_file(json.dumps([{"title": "t", "content": raw}]))).content == plain


@pytest.mark.parametrize(
    "hostile", ['<a href="', "<a b='", "<!--", "<![CDATA[", "<p", "</x", "<script>", "&#", "<pre>\n"]
)
@pytest.mark.parametrize("form", ["json", "rss"])
def test_broken_markup_takes_no_longer_than_its_length(given_file, hostile, form):
    text = "<p>" + hostile * 20_000
    feed = (
        RSS.format(ITEM.format("t", escape(text))) if form == "rss" else json.dumps([{"title": "t", "content": text}])
    )
    start = time.perf_counter()
    read_source(given_file(feed))
    assert time.perf_counter() - start < 5  # a tenth of a second; a parser that backtracks needs minutes


def test_only_web_links_are_kept(given_file):
    entries = [
        {"title": "t", "url": url} for url in ("javascript:alert(1)", "file:///etc/passwd", " https://x.example/a b ")
    ]
    assert [article.url for article in read_source(given_file(json.dumps(entries))).articles] == [
        "",
        "",
        "https://x.example/ab",
    ]


def test_content_is_cut_at_a_word_and_titles_too(given_file):
    article = one_article(given_file(json.dumps([{"title": "word " * 1000, "content": "sentence " * 5000}])))
    assert len(article.content) <= sources.MAX_CONTENT_CHARS
    assert article.content.endswith("sentence…")
    assert len(article.title) <= 500
    assert "\n" not in article.title


def test_a_source_over_the_limits_is_refused(given_file, monkeypatch):
    feed = given_file(json.dumps([{"title": "t"}] * 4))
    monkeypatch.setattr(sources, "MAX_ARTICLES", 3)
    with pytest.raises(FeedError, match="4 entries"):
        read_source(feed)
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    with pytest.raises(FeedError, match="larger"):
        read_source(feed)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=400)
    | st.text(max_size=200).map(lambda text: RSS.format(ITEM.format(text, text)).encode("utf-8", "replace"))
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["title", "content", "articles"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
@example(b"<rss version='2.0'><channel><item><title>x</title><link/></item></channel></rss>")
@example('{"title": "\ud800"}'.encode("utf-8", "surrogatepass"))
@example(b"\x00\x00&q")
def test_no_bytes_raise_anything_but_our_own_errors(tmp_path, content):
    path = tmp_path / "random"
    path.write_bytes(content)
    try:
        reading = read_source(str(path))
    except SwarmError:
        return
    for article in reading.articles:
        assert article.title or article.content
        (article.title + article.content + article.source).encode()  # no lone surrogates


def test_missing_libraries_name_the_extra(given_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "feedparser", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"feedparser.*\[news\]"):
        read_source(given_file(RSS.format("")))
    with pytest.raises(MissingExtraError, match=r"httpx2.*\[news\]"):
        fetch_url("https://news.example/feed")


# -- addresses --------------------------------------------------------------------------------------------------------


def test_an_address_is_read_with_the_content_type_and_the_final_host():
    body = RSS.format(ITEM.format("Grüße", "x")).replace("<title>Courier</title>", "").encode("iso-8859-1")

    def fetch(url: str) -> Fetched:
        return Fetched(body, "application/rss+xml; charset=iso-8859-1", "https://www.courier.example/rss")

    (article,) = read_source("https://short.example/x", fetch=fetch).articles
    assert (article.title, article.source) == ("Grüße", "courier.example")


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, tuple[int, dict[str, str], bytes]], list[str]]]:
    """A web server on loopback: its address, what it answers by path, and the Host headers it got."""
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
    hosts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hosts.append(self.headers["host"])
            status, headers, body = answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers, hosts
        server.shutdown()
        thread.join()


def test_an_address_is_fetched_through_redirects(web):
    url, answers, _ = web
    body = RSS.format(ITEM.format("a", "b")).encode()
    answers["/a"] = (302, {"location": "/b"}, b"")
    answers["/b"] = (301, {"location": f"{url}/c"}, b"")
    answers["/c"] = (200, {"content-type": "text/xml", "content-encoding": "gzip"}, gzip.compress(body))
    reading = read_source(f"{url}/a", fetch=partial(fetch_url, allow_private=True))
    assert [article.title for article in reading.articles] == ["a"]
    assert fetch_url(f"{url}/a", allow_private=True) == Fetched(body, "text/xml", f"{url}/c")


def test_redirects_come_to_an_end(web):
    url, answers, hosts = web
    answers["/a"] = (302, {"location": "/a"}, b"")
    with pytest.raises(FeedError, match="more than 5 redirects"):
        fetch_url(f"{url}/a", allow_private=True)
    assert len(hosts) == 6


@pytest.mark.parametrize(
    ("status", "error"), [(404, FeedError), (401, FeedError), (503, FeedUnavailableError), (429, FeedUnavailableError)]
)
def test_a_refusal_is_told_from_trouble_that_passes(web, status, error):
    url, answers, _ = web
    answers["/a"] = (status, {}, b"")
    with pytest.raises(error, match=str(status)):
        fetch_url(f"{url}/a", allow_private=True)


def test_a_large_answer_is_cut_off_also_when_it_comes_compressed(web, monkeypatch):
    url, answers, _ = web
    answers["/a"] = (200, {"content-encoding": "gzip"}, gzip.compress(b"x" * 5_000_000))
    monkeypatch.setattr(sources, "MAX_BYTES", 100_000)
    with pytest.raises(FeedError, match="larger"):
        fetch_url(f"{url}/a", allow_private=True)


def test_a_server_that_is_not_there_is_unavailable():
    with pytest.raises(FeedUnavailableError) as error:
        fetch_url("http://127.0.0.1:1/feed", allow_private=True)
    assert isinstance(error.value, UnavailableError)


@pytest.mark.parametrize(
    "inside",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.9", "169.254.169.254", "0.0.0.0", "224.0.0.1", "100.64.0.1"),
        *("::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_hosts_inside_the_network_are_refused_before_a_connection(inside):
    with pytest.raises(FeedError, match="inside this machine or network"):
        fetch_url("http://feeds.example/rss", resolve=lambda host, port: ["93.184.215.14", inside])


@pytest.mark.parametrize("url", ["http://localhost:1/", "http://127.1:1/", "http://2130706433:1/", "http://[::1]:1/"])
def test_loopback_is_recognised_however_it_is_written(url):
    with pytest.raises(FeedError, match="inside this machine or network"):
        fetch_url(url)


def test_a_redirect_to_the_inside_is_refused(web, monkeypatch):
    url, answers, hosts = web
    port = url.rpartition(":")[2]
    answers["/a"] = (302, {"location": "http://metadata.example/secret"}, b"")
    monkeypatch.setattr(
        sources, "_is_public", lambda address: address == "127.0.0.1"
    )  # only the first host counts as outside
    names = {"feeds.example": ["127.0.0.1"], "metadata.example": ["169.254.169.254"]}
    with pytest.raises(FeedError, match=r"169\.254\.169\.254"):
        fetch_url(f"http://feeds.example:{port}/a", resolve=lambda host, _: names[host])
    assert len(hosts) == 1


def test_the_connection_goes_to_the_address_that_was_checked(web, monkeypatch):
    url, answers, hosts = web
    port = url.rpartition(":")[2]
    answers["/a"] = (200, {}, b"<rss/>")
    looked_up = []
    monkeypatch.setattr(sources, "_is_public", lambda address: True)

    def resolve(host: str, at: int) -> list[str]:
        looked_up.append((host, at))
        return ["127.0.0.1"]

    # feeds.invalid has no address of its own: a second look-up would fail.
    assert fetch_url(f"http://feeds.invalid:{port}/a", resolve=resolve).body == b"<rss/>"
    assert looked_up == [("feeds.invalid", int(port))]
    assert hosts == [f"feeds.invalid:{port}"]


@pytest.mark.parametrize("url", ["gopher://news.example/", "file:///etc/passwd"])
def test_other_schemes_are_refused(url):
    with pytest.raises(FeedError, match="http or https"):
        fetch_url(url)


@pytest.mark.parametrize(
    "url", ["http://", "http://a b/", "http://[::1/", "http://x.example:99999/", "http://" + "a" * 70 + ".example/"]
)
def test_broken_addresses_raise_our_own_errors(url):
    with pytest.raises((FeedError, FeedUnavailableError)):
        fetch_url(url, resolve=lambda host, port: [host.encode("idna").decode()] if len(host) > 63 else [])


def test_messages_show_neither_passwords_nor_keys():
    with pytest.raises(FeedError) as error:
        fetch_url("http://user:secret@localhost:1/feed?apiKey=hidden")
    assert "secret" not in str(error.value)
    assert "hidden" not in str(error.value)


# -- whole feeds ------------------------------------------------------------------------------------------------------


def test_the_sample_reads_completely():
    readings = [read_source(location) for location in expand([str(SAMPLE)])]
    assert [len(reading.articles) for reading in readings] == [15, 12, 13]
    assert not any(reading.malformed or reading.note for reading in readings)
    articles = [article for reading in readings for article in reading.articles]
    assert {article.source for article in articles} == {"Harbour Courier", "Northern Ledger", "Open Field News"}
    assert all(article.url and article.published_at.endswith("Z") for article in articles)
    (band,) = [article for article in articles if "Übersund" in article.title]
    assert "süßen Bären, serves crème brûlée & plum cake" in band.content
    assert "“Föhnwind Musikanten”" in band.content
    assert "< 3 °C" in band.content


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside this checkout")
def test_real_feeds_read_completely():
    for location in expand([str(REAL)]):
        reading = read_source(location)
        assert reading.articles
        for article in reading.articles:
            assert "<p>" not in article.content
            assert "[+" not in article.content[-15:]
