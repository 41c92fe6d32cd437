"""URLs of several servers: what they name, and the URL of one server among them."""

from __future__ import annotations

import pytest

from swarm_infrastructure.redis_url import server_group
from swarm_infrastructure.store import without_password


def test_sentinels_are_named_with_the_master_that_they_know() -> None:
    group = server_group("rediss+sentinel://me:p%40ss@a,b:7000,[::1]:9/main/2?sentinel_password=x&ssl_cert_reqs=none")

    assert group is not None
    assert (group.kind, group.master, group.db) == ("sentinel", "main", 2)
    assert group.hosts == (("a", 26379), ("b", 7000), ("::1", 9))
    assert (group.sentinel_username, group.sentinel_password) == (None, "x")
    assert group.url_of("10.0.0.1", 6379) == "rediss://me:p%40ss@10.0.0.1:6379/2?ssl_cert_reqs=none"
    assert "p%40ss" not in repr(group) and "'x'" not in repr(group)


def test_a_cluster_is_named_by_some_of_its_nodes() -> None:
    group = server_group("redis+cluster://a:7000,b")

    assert group is not None
    assert (group.kind, group.hosts) == ("cluster", (("a", 7000), ("b", 6379)))
    assert group.url_of("::1", 7001) == "redis://[::1]:7001/0"


@pytest.mark.parametrize("url", ["redis://a", "rediss://a:1/2", "unix:///s", "", "redis+tls://a"])
def test_one_servers_url_names_no_group(url: str) -> None:
    assert server_group(url) is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis+sentinel://me:hush@a:1,b:2/main", "redis+sentinel://me:***@a:1,b:2/main"),
        ("redis+cluster://a:1,b:2", "redis+cluster://a:1,b:2"),
        ("redis+sentinel://a/main?sentinel_password=hush", "redis+sentinel://a/main"),
        ("redis+cluster://hu@sh@a", "redis+cluster://***"),
    ],
)
def test_no_password_of_a_group_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
