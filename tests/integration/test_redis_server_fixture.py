"""The server that tests get: a real one, which can be frozen, killed and started again, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as NoAnswerError
from redis.retry import Retry

from swarm_infrastructure.errors import ConfigurationError
from swarm_infrastructure.testing import RedisServer, available_servers

pytestmark = pytest.mark.usefixtures("one_server")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--redis-kind"))


def client_of(server: RedisServer, timeout_s: float = 5) -> Redis:
    return Redis.from_url(server.url, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options, folder]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_fixture_is_a_real_server_of_the_kind_that_the_run_asked_for(redis_server, kind):
    with client_of(redis_server) as client:
        assert client.ping()
        assert ("valkey_version" in client.info()) == (kind == "valkey")


def test_valkey_is_always_available():
    assert available_servers() in (["valkey"], ["valkey", "redis"])


def test_a_redis_that_is_too_old_is_not_available(tmp_path, monkeypatch):
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho Redis server v=6.2.14\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert available_servers() == ["valkey"]
    with pytest.raises(ConfigurationError, match="redis 6"):
        RedisServer("redis").start()


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(ConfigurationError, match="found kind 'memory', needed 'valkey' or 'redis'"):
        RedisServer("memory").start()


def test_after_the_with_block_neither_process_nor_folder_is_left(kind):
    with RedisServer(kind) as server:
        pid, folder = server.pid, server.folder
        assert exists(pid)
        assert folder.is_dir()

    assert not exists(pid)
    assert not folder.exists()
    server.stop()


def test_what_needs_a_started_server_says_so(kind):
    with pytest.raises(RuntimeError, match="not started"):
        _ = RedisServer(kind).url


def test_options_are_part_of_the_configuration(kind):
    options = {"maxmemory": "100mb", "user": "reader on nopass ~* +@read", "save": "900 1"}
    with RedisServer(kind, options=options) as server, client_of(server) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(100 * 1024**2)}
        assert client.config_get("save") == {"save": "900 1"}
        assert "reader" in client.acl_users()


def test_a_server_that_does_not_start_is_quoted_and_leaves_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(ConfigurationError, match="no-such-option"):
        RedisServer(kind, options={"no-such-option": "1"}).start()

    assert not list(tmp_path.iterdir())


def test_a_restart_keeps_the_address_and_forgets_what_was_written(kind):
    with RedisServer(kind) as server, client_of(server) as client:
        url, pid = server.url, server.pid
        client.set("key", "value")

        server.restart()

        assert server.url == url
        assert server.pid != pid
        with client_of(server) as fresh:
            assert fresh.get("key") is None


def test_with_persistence_a_restart_keeps_what_was_written(kind):
    with RedisServer(kind, persist=True) as server:
        with client_of(server) as client:
            client.set("key", "value")

        server.restart()

        with client_of(server) as client:
            assert client.get("key") == b"value"


def test_with_persistence_a_kill_loses_nothing_that_was_acknowledged(kind):
    with RedisServer(kind, persist=True) as server:
        with client_of(server) as client:
            client.set("key", "value")

        server.kill()
        assert not server.running
        server.kill()
        server.restart()

        with client_of(server) as client:
            assert client.get("key") == b"value"


def test_without_persistence_nothing_survives_a_kill(kind):
    with RedisServer(kind) as server:
        with client_of(server) as client:
            client.set("key", "value")

        server.kill()
        server.restart()

        with client_of(server) as client:
            assert client.get("key") is None


def test_a_frozen_server_answers_nothing_until_it_is_thawed(kind):
    with RedisServer(kind) as server, client_of(server, timeout_s=0.1) as client:
        client.set("key", "value")

        server.freeze()
        assert server.running
        with pytest.raises(NoAnswerError):
            client.get("key")

        server.thaw()
        with client_of(server) as patient:
            assert patient.get("key") == b"value"


def test_a_frozen_server_can_be_stopped(kind):
    with RedisServer(kind) as server:
        pid = server.pid
        server.freeze()

    assert not exists(pid)


def test_a_temporary_folder_with_a_path_too_long_for_a_socket_will_do(kind, tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    with RedisServer(kind) as server, client_of(server) as client:
        assert client.ping()

    assert not list(folder.iterdir())


# -- the plugin in other people's projects ----------------------------------------------------------------------------


def test_the_plugin_imports_nothing_that_a_run_without_it_would_not():
    code = (
        "import pytest, sys, swarm_infrastructure; before = set(sys.modules); "
        "import swarm_infrastructure.testing.pytest_plugin; print(sorted(set(sys.modules) - before))"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded == "['swarm_infrastructure.testing', 'swarm_infrastructure.testing.pytest_plugin']\n"


def test_a_project_with_a_redis_server_fixture_of_its_own_keeps_it(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import pytest\n@pytest.fixture\ndef redis_server():\n    return 'their own'\n",
    )
    (tmp_path / "test_theirs.py").write_text("def test_it(redis_server):\n    assert redis_server == 'their own'\n")

    done = run_pytest(tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_project_gets_the_fixture_by_installing_the_package(tmp_path, kind):
    (tmp_path / "test_theirs.py").write_text(
        "def test_it(redis_server):\n    assert redis_server.url.startswith('unix:///') and redis_server.running\n"
        f"    assert redis_server.kind == {kind!r}\n"
    )

    done = run_pytest(tmp_path, "--redis-kind", kind)

    assert done.returncode == 0, done.stdout + done.stderr
