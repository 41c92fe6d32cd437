"""Addresses of Redis: what a URL means that names several servers.

Owns ``redis+sentinel://`` and ``redis+cluster://`` (and ``rediss+…`` for TLS). One server's ``redis://``, ``rediss://`` and
``unix://`` are redis-py's, and mean here what they mean there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode

__all__ = ["SCHEMES", "ServerGroup", "server_group"]

SCHEMES = "redis://, rediss:// or unix://, redis+sentinel:// or redis+cluster://"
_GROUP = re.compile(
    r"redis(?P<tls>s?)\+(?P<kind>sentinel|cluster)://((?P<login>[^/?#@]*)@)?(?P<hosts>[^/?#@]*)(?P<path>(/[^?#]*)?)(\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+)(:(\d{1,5}))?")
_PORTS = {"sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerGroup:
    """Several servers that stand behind one URL."""

    kind: Literal["sentinel", "cluster"]
    hosts: tuple[tuple[str, int], ...]  #: of sentinels, or of some nodes of a cluster
    master: str  #: the name under which the sentinels know it; "" in a cluster
    scheme: str  #: of one server among them: redis or rediss
    login: str = field(repr=False)  #: ``user:password@`` of those servers, quoted as in the URL, or ""
    db: int
    query: str = field(repr=False)  #: redis-py's options for those servers
    sentinel_username: str | None
    sentinel_password: str | None = field(repr=False)

    def url_of(self, host: str, port: int) -> str:
        """The URL of one of its servers."""
        host = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{self.login}{host}:{port}/{self.db}{'?' if self.query else ''}{self.query}"


def server_group(url: str) -> ServerGroup | None:
    """What *url* names, or None if it is one server's::

        redis+sentinel://[user:password@]host[:26379][,host…]/mastername[/db][?sentinel_username=…&sentinel_password=…]
        redis+cluster://[user:password@]host[:6379][,host…]

    Raises:
        ValueError: it says what was needed, and quotes nothing.
    """
    scheme = url.partition("://")[0]
    if scheme not in ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"):
        return None
    parts = _GROUP.fullmatch(url)
    if parts is None:
        raise ValueError(
            "needed host:port[,host:port] after the user and password (%-codes for : / @ ? # in a password)"
        )
    kind: Literal["sentinel", "cluster"] = "sentinel" if parts["kind"] == "sentinel" else "cluster"
    path = parts["path"].strip("/").split("/") if parts["path"].strip("/") else []
    if kind == "sentinel" and not (1 <= len(path) <= 2 and all(path)):
        raise ValueError("needed the master's name after the hosts, such as redis+sentinel://a:26379,b:26379/mymaster")
    if len(path) == 2 and not path[1].isdigit():
        raise ValueError("needed a number as the database after the master's name")
    if kind == "cluster" and path not in ([], ["0"]):
        raise ValueError("needed no database: a cluster has the one")
    query = dict(parse_qsl(parts["query"] or ""))
    username, password = query.pop("sentinel_username", None), query.pop("sentinel_password", None)
    return ServerGroup(
        kind=kind,
        hosts=tuple(_host(each, _PORTS[kind]) for each in parts["hosts"].split(",")),
        master=unquote(path[0]) if kind == "sentinel" else "",
        scheme="redis" + parts["tls"],
        login=f"{parts['login']}@" if parts["login"] else "",
        db=int(path[1]) if len(path) == 2 else 0,
        query=urlencode(query),
        sentinel_username=username,
        sentinel_password=password,
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found[3] or default_port) if found else 0
    if found is None or not 1 <= port <= 65535:
        raise ValueError("needed host or host:port with a port from 1 to 65535, with commas between them")
    return found[1].strip("[]"), port
