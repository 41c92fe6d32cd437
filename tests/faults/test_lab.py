"""The lab's own instruments: the proxy reads what passes, crash points are met when they say, the table tells what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from crash_points import CrashPoint
from proxy import BEFORE, NEVER, Proxy, Requests
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as CutError
from redis.exceptions import TimeoutError as NoAnswerError
from redis.retry import Retry
from table import BEGIN, END, gathered, newest, section, write

from swarm_infrastructure.testing import RedisServer


def test_requests_are_read_whatever_the_pieces_that_they_come_in() -> None:
    words = [b"FCALL", b"swarm_v1_claim", b"2", b"\r\n*1\r\n", b"x" * 3000]
    data = b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)])
    data += b"*1\r\n$4\r\nPING\r\n"
    for size in (1, 7, 1000, len(data)):
        requests = Requests()
        found = [each for n in range(0, len(data), size) for each in requests.feed(data[n : n + size])]
        assert found == [[b"FCALL", b"swarm_v1_claim"], [b"PING"]]


def test_the_proxy_cuts_after_a_request_was_executed_and_before_its_reply(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as direct, Proxy(redis_server.socket) as proxy:
        direct.delete("lab")
        with Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=0.2) as far:
            assert far.incr("lab") == 1
            proxy.fate = lambda name: BEFORE if name == "INCRBY" else None
            with pytest.raises(CutError):
                far.incr("lab")
            assert direct.get("lab") == b"2"
            proxy.fate = lambda name: NEVER if name == "INCRBY" else None
            with pytest.raises(NoAnswerError):
                far.incr("lab")
            assert direct.get("lab") == b"3"
            proxy.fate = lambda _name: None
            proxy.close()
            with pytest.raises(CutError):
                far.incr("lab")
            proxy.open()
            assert far.incr("lab") == 4
            assert proxy.calls["INCRBY"] == 4


def test_the_proxy_delays_and_falls_silent(redis_server: RedisServer) -> None:
    with Proxy(redis_server.socket) as proxy:
        with Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), socket_timeout=0.2) as far:
            assert far.ping()
            for proxy.delay_s in ((0.5, 0.0), (0.0, 0.5)):
                with pytest.raises(NoAnswerError):
                    far.ping()
            proxy.delay_s = (0.0, 0.0)
            proxy.bytes_per_s = (10, 0)
            with pytest.raises(NoAnswerError):
                far.echo("0123456789")
            proxy.bytes_per_s = (0, 0)
            assert far.ping()
            proxy.silent = True
            with pytest.raises(NoAnswerError):
                far.ping()
            proxy.silent = False
            assert far.ping()


@pytest.mark.parametrize(
    ("text", "at", "how"),
    [
        ("after:claim", 1, "kill"),
        ("after:claim:3", 3, "kill"),
        ("after:claim:2:stop", 2, "stop"),
        ("after:claim:term", 1, "term"),
    ],
)
def test_a_crash_point_is_met_once_at_its_number(text: str, at: int, how: str) -> None:
    point = CrashPoint.read(text)
    assert point.how == how
    assert not point.is_passed("before", "claim")
    assert not point.is_passed("after", "renew")
    assert [point.is_passed("after", "claim") for _ in range(5)] == [n == at for n in range(1, 6)]


def test_the_table_takes_the_newest_of_each_and_gathers_crash_points(tmp_path: Path) -> None:
    row = {"server": "redis", "seed": 1, "rounds": 5, "lease_s": 1.0, "fault": "F1", "n": 5, "lost": 0}
    rows = newest(
        json.dumps(row | facts)
        for facts in (
            {"test": "kill -9 after:claim", "recovery_max_s": 9.0},
            {"test": "kill -9 after:claim", "recovery_max_s": 1.0},
            {"test": "kill -9 before:settle", "recovery_max_s": 1.2},
            {"test": "reply lost", "fault": "F11"},
        )
    )
    [kill, lost] = gathered(rows)
    assert (kill["test"], kill["points"], kill["n"], kill["recovery_max_s"]) == (
        "kill -9 at each crash point",
        2,
        10,
        1.2,
    )
    assert lost["test"] == "reply lost"

    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write(page, section(rows))
    text = page.read_text()
    assert text.startswith(f"# Before\n\n{BEGIN}\n## Faults")
    assert text.endswith(f"{END}\n\nafter\n")
    assert "old" not in text
    assert "1.20 s" in text
