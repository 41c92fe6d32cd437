"""The command ``swarm``, run as a user runs it: each in a process of its own, against a real server.

Most of these processes are forks of one that has imported everything, which takes ten times as long as a command does.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from swarm_infrastructure.blackboard import Blackboard, Submission, job_board
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.cli.app import app
from swarm_infrastructure.cli.run import load_swarm
from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.store import Store
from swarm_infrastructure.store.embedded import EmbeddedServer
from swarm_infrastructure.testing import RedisServer

pytestmark = pytest.mark.any_server

BOARD = job_board("tasks", "jobs", "mail", max_attempts=2)
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
READING = [
    ("status",),
    ("items", "list"),
    ("items", "show", "done-1"),
    ("agents",),
    ("agents", "list"),
    ("audit",),
    ("redis", "info"),
]
CHANGING = [
    ("items", "release", "bad-1"),
    ("items", "retry", "later-1"),
    ("items", "archive", "done-1"),
    ("items", "delete", "done-1", "--yes"),
    ("agents", "pause", "--all"),
    ("agents", "resume", "--all"),
    ("agents", "revoke", "w-1", "--yes"),
    ("redis", "upgrade"),
]
namespaces = (f"cli{n}" for n in itertools.count())


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def data(self) -> Any:
        return json.loads(self.out)


# Imports what commands import, then runs each command line that it is given in a fork.
WARM = """
import json, os, sys
from swarm_infrastructure.cli import main
import rich.live, rich.table
import swarm_infrastructure.agents, swarm_infrastructure.blackboard.audit, swarm_infrastructure.store.embedded

print("ready", flush=True)
for line in sys.stdin:
    words, folder, environment = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, name in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Warm:
    """The process that is forked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def run(self, words: Sequence[str], folder: Path, environment: dict[str, str]) -> Answer:
        started = time.monotonic()
        assert self._process.stdin
        self._process.stdin.write(json.dumps([list(words), str(folder), environment]) + "\n")
        self._process.stdin.flush()
        code = int(self._read())
        seconds = time.monotonic() - started
        return Answer(code, (folder / ".out").read_text(), (folder / ".err").read_text(), seconds)

    def close(self) -> None:
        self._process.communicate()


class CommandLine:
    """A shell in a folder of its own."""

    def __init__(self, folder: Path, warm: Warm, **variables: str) -> None:
        self.folder, self._warm = folder, warm
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SWARM_", "REDIS_"))}
        self.environment = kept | variables

    def __call__(self, *words: str, **variables: str) -> Answer:
        return self._warm.run(words, self.folder, self.environment | variables)

    def many(self, commands: Sequence[Sequence[str]], **variables: str) -> list[Answer]:
        """One command after the other."""
        return [self(*words, **variables) for words in commands]

    @contextlib.contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "swarm_infrastructure", *words],
            cwd=self.folder,
            env=self.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Not the session's server: tests of the functions may have loaded another build of them there."""
    with RedisServer(request.config.getoption("--redis-kind")) as server:
        yield server


@dataclass
class Seeded:
    """A board with an item of each kind, and a command line that looks at it."""

    swarm: CommandLine
    url: str
    namespace: str

    def do(self, work: Callable[[Blackboard], Awaitable[Any]]) -> Any:
        """What *work* does with the board, in this process."""

        async def run() -> Any:
            async with (
                Store(self.url, retry_s=0) as store,
                Blackboard(store, BOARD, namespace=self.namespace) as blackboard,
            ):
                return await work(blackboard)

        return asyncio.run(run())


async def _seed(blackboard: Blackboard) -> None:
    def new(item_id: str, section: str = "jobs", **facts: Any) -> Submission:
        return Submission(id=item_id, section=section, payload={"title": f"Title of {item_id}"}, **facts)

    await blackboard.register_agent("w-1", "writer", ["script"])
    await blackboard.submit(new("done-1"))
    [taken] = await blackboard.claim("jobs", "w-1")
    await blackboard.complete(taken.claim, result={"words": 7}, reason="it is good")
    await blackboard.submit(new("bad-1"))
    for _ in range(2):
        [taken] = await blackboard.claim("jobs", "w-1")
        await blackboard.fail(taken.claim, "ValueError: no such source")
    await blackboard.submit(new("held-1"))
    await blackboard.claim("jobs", "w-1", lease_s=600)
    await blackboard.submit(new("ready-1"), new("ready-2", priority=1), new("later-1", delay_s=3600))


@pytest.fixture
def seeded(server: RedisServer, warm: Warm, tmp_path: Path) -> Seeded:
    namespace = next(namespaces)
    made = Seeded(CommandLine(tmp_path, warm, REDIS_URL=server.url, SWARM_ID=namespace), server.url, namespace)
    made.do(_seed)
    return made


@pytest.fixture
def swarm(tmp_path: Path, warm: Warm) -> CommandLine:
    """A command line that knows no Redis."""
    return CommandLine(tmp_path, warm)


def every_command() -> list[list[str]]:
    """The words of each command and group, hidden aliases left out."""
    found: list[list[str]] = []

    def walk(command: Any, words: list[str]) -> None:
        found.append(words)
        for name, each in getattr(command, "commands", {}).items():
            if not each.hidden:
                walk(each, [*words, name])

    walk(typer.main.get_command(app), [])
    return found


def ids(answer: Answer) -> list[str]:
    return [item["id"] for item in answer.data]


# -- help, docs, wrong arguments ---------------------------------------------------------------------------------------


def test_every_command_explains_itself(swarm: CommandLine) -> None:
    commands = every_command()

    answers = swarm.many([[*words, "--help"] for words in commands])

    assert len(commands) > 20
    for words, answer in zip(commands, answers, strict=True):
        assert (answer.code, answer.err) == (0, ""), words
        assert answer.out.startswith(f"Usage: {' '.join(['swarm', *words])} "), words


def test_every_command_and_option_is_in_the_docs() -> None:
    text = DOCS.read_text()
    root: Any = typer.main.get_command(app)

    for words in every_command():
        assert f"`{' '.join(['swarm', *words])}" in text, words
        command = root
        for word in words:
            command = command.commands[word]
        for option in command.params:
            for name in (option.opts or [])[:1]:
                if name.startswith("--") and "completion" not in name:
                    assert name in text, (words, name)


def test_a_group_without_a_command_shows_its_help(swarm: CommandLine) -> None:
    for answer in swarm.many([(), ("items",), ("redis",), ("config",)]):
        assert answer.code == 0
        assert "Commands:" in answer.out


def test_script_and_module_are_the_same_command(seeded: Seeded) -> None:
    script = Path(sys.executable).parent / "swarm"

    def run(*command: str | Path) -> str:
        return subprocess.run(command, env=seeded.swarm.environment, capture_output=True, text=True, check=True).stdout

    assert run(script, "--version") == "swarm 0.1.0\n"
    assert run(sys.executable, "-m", "swarm_infrastructure", "items", "list") == seeded.swarm("items", "list").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "No such command 'nothing' (see: swarm --help)"),
        (["items", "lst"], "Did you mean 'list'? (see: swarm items --help)"),
        (["items", "show"], "Missing argument 'ID' (see: swarm items show --help)"),
        (["items", "list", "--limit", "0"], "--limit"),
        (["items", "list", "-o", "yaml"], "'yaml' is not one of 'table', 'json', 'jsonl'"),
        (["status", "--wtach"], "No such option: --wtach"),
        (["run"], "Missing argument 'TARGET'"),
        (["run", "x:y", "--processes", "0"], "--processes"),
        (["agents", "pause"], "an agent's id, role:NAME, --all"),
        (["agents", "pause", "x", "--all"], "found 'both'"),
        (["agents", "-o", "json", "list"], "swarm agents list"),
        (["items", "delete", "x"], "needed --yes"),
        (["agents", "revoke", "x"], "needed --yes"),
    ],
)
def test_a_wrong_argument_is_one_line_and_2(swarm: CommandLine, words: list[str], said: str) -> None:
    answer = swarm(*words)

    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("swarm: ")
    assert said in answer.err
    assert answer.err.count("\n") == 1


# -- reading -----------------------------------------------------------------------------------------------------------


def test_json_and_jsonl_parse_for_each_reading_command(seeded: Seeded) -> None:
    for words, answer in zip(READING, seeded.swarm.many([[*words, "-o", "json"] for words in READING]), strict=True):
        assert answer.code == 0, (words, answer.err)
        assert answer.data, words
    for words, answer in zip(READING, seeded.swarm.many([[*words, "-o", "jsonl"] for words in READING]), strict=True):
        assert answer.code == 0, words
        assert all(json.loads(line) for line in answer.out.splitlines()), words


def test_tables_are_plain_text_off_a_terminal_and_cut_nothing_that_names_a_thing(seeded: Seeded) -> None:
    seeded.do(lambda board: board.submit(Submission(id="x" * 128, section="mail", payload={"text": "y" * 5000})))

    for words, answer in zip(READING, seeded.swarm.many(READING), strict=True):
        assert answer.code == 0, (words, answer.err)
        assert "\x1b" not in answer.out, words
        assert not any(line.endswith(" ") for line in answer.out.splitlines()), words
    listed = seeded.swarm("items", "list").out
    assert "x" * 128 in listed
    assert "y" * 300 not in listed
    assert "y" * 5000 in seeded.swarm("items", "list", "-o", "json").out


def test_status_counts_what_an_agent_could_take_and_why_not_the_rest(seeded: Seeded) -> None:
    seeded.do(lambda board: board.agents.pause("role:writer", reason="too fast"))

    facts = seeded.swarm("status", "-o", "json").data

    [board] = facts["boards"]
    [jobs, mail] = board["sections"]
    assert facts["redis"]["found"] == "REDIS_URL"
    assert facts["namespace"] == seeded.namespace
    assert jobs == {
        "section": "jobs",
        "total": 6,
        "ready": 2,
        "claimed": 1,
        "delayed": 1,
        "quarantined": 1,
        "resting": 1,
        "by_status": {"waiting": 3, "active": 1, "quarantined": 1, "done": 1},
    }
    assert mail["total"] == 0
    assert board["agents"] == {"alive": 1, "offline": 0}
    assert board["gates"] == {"role:writer": "too fast"}
    told = seeded.swarm("status").out
    assert "Gate shut for role:writer: too fast" in told
    assert "Board tasks: 6 items, 1 agents alive" in told


def test_an_item_whose_delay_has_passed_counts_as_ready_before_anybody_looks(seeded: Seeded) -> None:
    seeded.do(lambda board: board.store.command("HSET", board.keys.rules, "clock_offset_ms", 3_700_000))

    [board] = seeded.swarm("status", "-o", "json").data["boards"]

    assert (board["ready"], board["delayed"]) == (3, 0)


def test_status_goes_on_showing_until_it_is_interrupted(seeded: Seeded) -> None:
    with seeded.swarm.running("status", "--watch", "--every", "0.1", "-o", "jsonl") as watching:
        assert watching.stdout
        shown = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)

        assert watching.wait(10) == 130
    assert all(facts["boards"] for facts in shown)


def test_items_are_listed_by_place_and_holder(seeded: Seeded) -> None:
    everything, jobs, waiting, quarantined, held, first = seeded.swarm.many(
        [
            ["items", "list", "-o", "json", *words]
            for words in (
                [],
                ["--section", "jobs"],
                ["--status", "waiting"],
                ["--section", "jobs", "--status", "quarantined"],
                ["--agent", "w-1"],
                ["--limit", "1"],
            )
        ]
    )

    assert set(ids(everything)) == {"done-1", "bad-1", "held-1", "ready-1", "ready-2", "later-1"}
    assert set(ids(jobs)) == set(ids(everything))
    assert ids(waiting) == ["ready-2", "ready-1", "later-1"]
    assert ids(quarantined) == ["bad-1"]
    assert ids(held) == ["held-1"]
    assert ids(first) == ["ready-2"]
    assert "the first 1 are shown" in first.err


def test_item_is_an_alias_of_items(seeded: Seeded) -> None:
    assert seeded.swarm("item", "list", "-o", "json").data == seeded.swarm("items", "list", "-o", "json").data


def test_an_item_is_shown_with_all_that_happened_to_it(seeded: Seeded) -> None:
    facts = seeded.swarm("items", "show", "bad-1", "-o", "json").data
    without = seeded.swarm("items", "show", "done-1", "--no-history", "-o", "json").data
    held = seeded.swarm("items", "show", "held-1", "-o", "json").data

    assert [event["kind"] for event in facts["history"]] == ["submitted", "claimed", "failed", "claimed", "quarantined"]
    last = facts["history"][-1]
    assert (last["from"], last["to"], last["by"]) == ("jobs/active/", "jobs/quarantined/", "w-1")
    assert last["reason"] == "ValueError: no such source"
    assert last["at_ms"] > 0
    assert [error["error"] for error in facts["errors"]] == ["ValueError: no such source"] * 2
    assert "history" not in without
    assert without["result"] == {"words": 7}
    assert held["until_ms"] > held["changed_ms"] + 500_000


def test_an_item_is_shown_to_people(seeded: Seeded) -> None:
    told = seeded.swarm("items", "show", "bad-1").out

    for words in ("jobs/quarantined", "Title of bad-1", "jobs/waiting → active", "jobs/active → quarantined", "w-1"):
        assert words in told
    assert "until" in seeded.swarm("items", "show", "held-1").out
    assert "not before" in seeded.swarm("items", "show", "later-1").out


def test_a_payload_can_send_no_escape_sequences_to_the_terminal(seeded: Seeded) -> None:
    payload = {"title": "\x1b]0;owned\x07\x1b[31mred"}
    seeded.do(lambda board: board.submit(Submission(id="evil-1", section="mail", payload=payload)))

    answers = seeded.swarm.many([["items", "list"], ["items", "show", "evil-1"]])

    for answer in answers:
        assert "owned" in answer.out
        assert "\x1b" not in answer.out


def test_agents_are_listed(seeded: Seeded) -> None:
    [agent] = seeded.swarm("agents", "-o", "json").data

    assert agent["agent_id"] == "w-1"
    assert agent["role"] == "writer"
    assert agent["status"] == "working"
    assert agent["current_items"] == ["held-1"]
    assert "working" in seeded.swarm("agents", "list").out


def test_a_reader_that_leaves_early_is_no_traceback(seeded: Seeded) -> None:
    seeded.do(
        lambda board: board.submit(
            *(Submission(id=f"n{n}", section="mail", payload={"text": "z" * 2000}) for n in range(200))
        )
    )
    command = f"'{sys.executable}' -m swarm_infrastructure items list -n 500 -o jsonl | head -1"

    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=seeded.swarm.environment, check=False
    )

    assert json.loads(done.stdout)
    assert done.stderr == ""


# -- which board -------------------------------------------------------------------------------------------------------


def test_the_board_must_be_named_where_there_are_several(seeded: Seeded) -> None:
    async def another(blackboard: Blackboard) -> None:
        async with (
            Blackboard(blackboard.store, job_board("other"), namespace=seeded.namespace) as other,
            other.acquire_lock("something", "w-1"),  # which makes a board of its own
        ):
            pass

    seeded.do(another)

    unnamed, named, unknown, both = seeded.swarm.many(
        [["items", "list"], ["items", "list", "-b", "other"], ["items", "list", "-b", "nope"], ["status", "-o", "json"]]
    )

    assert unnamed.code == 2
    assert "one of other, tasks" in unnamed.err
    assert (named.code, named.err) == (0, "swarm: no such items\n")
    assert unknown.code == 2
    assert "other, tasks" in unknown.err
    assert [board["board"] for board in both.data["boards"]] == ["other", "tasks"]
    assert seeded.swarm("audit", "-b", "other.locks").code == 0


def test_a_namespace_without_boards_is_said(seeded: Seeded) -> None:
    status, listed, audited = seeded.swarm.many([["status"], ["items", "list"], ["audit"]], SWARM_ID="empty")

    assert status.code == 0
    assert "No board yet" in status.out
    assert listed.code == audited.code == 3
    assert "no board in namespace 'empty'" in listed.err


# -- changing items ----------------------------------------------------------------------------------------------------


def test_an_item_comes_back_from_quarantine_and_its_history_says_who_and_why(seeded: Seeded) -> None:
    answer = seeded.swarm("items", "release", "bad-1", "--reason", "the source is back")
    again = seeded.swarm("items", "release", "bad-1")

    assert (answer.code, answer.out, answer.err) == (0, "", "swarm: released bad-1\n")
    facts = seeded.swarm("items", "show", "bad-1", "-o", "json").data
    assert (facts["status"], facts["attempts"]) == ("waiting", 0)
    assert facts["history"][-1]["reason"] == "the source is back"
    assert facts["history"][-1]["by"].startswith("user:")
    assert again.code == 1
    assert "needed in quarantine" in again.err


def test_a_delayed_item_is_offered_now(seeded: Seeded) -> None:
    assert seeded.swarm("items", "retry", "later-1").code == 0

    assert seeded.swarm("status", "-o", "json").data["boards"][0]["ready"] == 3


def test_what_can_not_be_done_is_refused_with_1(seeded: Seeded) -> None:
    answers = seeded.swarm.many(
        [
            ["items", "show", "nope"],
            ["items", "retry", "done-1"],
            ["items", "archive", "done-1"],
            ["items", "delete", "held-1", "--yes"],
            ["items", "release", "nope", "done-1"],
        ]
    )

    assert [answer.code for answer in answers] == [1, 1, 1, 1, 1]
    assert "no item 'nope' on board 'tasks'" in answers[0].err
    assert "without an archive" in answers[2].err
    assert "claimed by 'w-1'" in answers[3].err
    assert all(answer.err.startswith("swarm: ") and answer.out == "" for answer in answers)


def test_one_item_that_is_refused_does_not_keep_the_others(seeded: Seeded) -> None:
    answer = seeded.swarm("items", "delete", "nope", "done-1", "ready-1", "--yes")

    assert answer.code == 6
    assert "deleted done-1" in answer.err
    assert not {"done-1", "ready-1"} & set(ids(seeded.swarm("items", "list", "-o", "json")))


# -- agents ------------------------------------------------------------------------------------------------------------


def test_gates_are_shut_and_opened(seeded: Seeded) -> None:
    def gates() -> dict[str, str]:
        return dict(seeded.swarm("status", "-o", "json").data["boards"][0]["gates"])

    for words in (["w-1", "--reason", "slow"], ["role:writer"], ["--all"]):
        assert seeded.swarm("agents", "pause", *words).code == 0
    assert gates() == {"agent:w-1": "slow", "role:writer": "paused", "*": "paused"}

    assert "still shut: w-1 (slow)" in seeded.swarm("agents", "resume", "--all").err
    assert seeded.swarm("agents", "resume", "role:writer").code == 0
    assert seeded.swarm("agents", "resume", "w-1").code == 0
    assert gates() == {}
    assert "was not paused" in seeded.swarm("agents", "resume", "w-1").err


def test_pausing_a_stranger_is_done_and_said(seeded: Seeded) -> None:
    answer = seeded.swarm("agents", "pause", "w-2")

    assert answer.code == 0
    assert "no agent is registered as 'w-2'" in answer.err


def test_a_revoked_agent_loses_what_it_holds(seeded: Seeded) -> None:
    answer = seeded.swarm("agents", "revoke", "w-1", "--yes", "--reason", "it runs wild")

    assert answer.code == 0
    assert "1 claims are offered again" in answer.err
    facts = seeded.swarm("items", "show", "held-1", "-o", "json").data
    assert (facts["status"], facts["holder"]) == ("waiting", "")
    assert "it runs wild by user:" in facts["history"][-1]["reason"]


# -- audit -------------------------------------------------------------------------------------------------------------


def test_an_audit_of_a_sound_board_is_0(seeded: Seeded) -> None:
    answer = seeded.swarm("audit")

    assert answer.code == 0
    assert "every invariant holds" in answer.out


def test_an_audit_of_a_forged_board_is_1_and_names_the_item(seeded: Seeded) -> None:
    async def forge(board: Blackboard) -> None:
        record = await board.store.command("HGET", board.keys.items, "ready-1")
        fields = record.decode().split("|")
        fields[9] = "99"  # its version
        await board.store.command("HSET", board.keys.items, "ready-1", "|".join(fields))
        await board.store.command("HSET", board.keys.rules, "step|waiting|done", "1")

    seeded.do(forge)

    table, facts = seeded.swarm.many([["audit"], ["audit", "-b", "tasks", "-o", "json"]])

    assert table.code == facts.code == 1
    assert "ready-1" in table.out
    [report] = facts.data
    assert not report["clean"]
    assert {(breach["invariant"], breach["item"]) for breach in report["breaches"]} >= {("I6", "")}


# -- doctor, config ----------------------------------------------------------------------------------------------------


def checks(answer: Answer) -> dict[str, Any]:
    return {check["check"]: check for check in answer.data}


def test_the_doctor_finds_nothing_wrong(seeded: Seeded) -> None:
    answer = seeded.swarm("doctor", "-o", "json")

    found = checks(answer)
    assert answer.code == 0
    assert not [check for check in answer.data if check["state"] == "fail"]
    assert found["persistence"]["state"] == "warn"  # the server of a test keeps nothing
    for name in ("settings", "redis", "version", "memory policy", "functions", "clock", "boards", "agents", "uvloop"):
        assert found[name]["state"] in ("ok", "warn"), name
    assert seeded.swarm("doctor").out.count("ok ") > 8


def test_the_doctor_sees_a_server_that_evicts_a_torn_board_and_a_foreign_library(warm: Warm, tmp_path: Path) -> None:
    with RedisServer(options={"maxmemory-policy": "allkeys-lru"}) as server:
        swarm = CommandLine(tmp_path, warm, REDIS_URL=server.url)

        async def send(*commands: Sequence[str]) -> None:
            store = Store(server.url, retry_s=0)  # not entered: it would refuse this server
            for words in commands:
                await store.command(*words)
            await store.close()

        source = (
            '#!lua name=swarm_v1\nredis.register_function{function_name="swarm_v1_digest", '
            'callback=function() return "feedfacefeedface" end, flags={"no-writes"}}'
        )
        board = ("HSET", "swarm:{default:torn}:board", "definition", "{", "digest", "0")
        asyncio.run(send(board, ("FUNCTION", "LOAD", source)))
        answer = swarm("doctor", "-o", "json")
        refused = swarm("status")
        asyncio.run(send(("CONFIG", "SET", "maxmemory-policy", "noeviction")))
        mismatch = swarm("status")
        upgraded, again, works = swarm("redis", "upgrade"), swarm("redis", "upgrade"), swarm("items", "list")

    found = checks(answer)
    assert answer.code == 3
    assert found["memory policy"]["state"] == found["boards"]["state"] == found["functions"]["state"] == "fail"
    assert "swarm redis upgrade" in found["functions"]["step"]
    assert refused.code == 3
    assert "noeviction" in refused.err
    assert mismatch.code == 3
    assert "swarm redis upgrade" in mismatch.err
    assert "in place of feedfacefeed" in upgraded.err
    assert "already" in again.err
    assert "torn" in works.err


def test_the_doctor_names_every_wrong_setting(swarm: CommandLine) -> None:
    answer = swarm("doctor", "-o", "json", SWARM_HEARTBEAT_S="soon", SWARM_ID="a b")

    assert answer.code == 3
    faults = [check["found"] for check in answer.data if check["state"] == "fail"]
    assert [fault.split(":")[0] for fault in faults] == ["SWARM_ID", "SWARM_HEARTBEAT_S"]
    assert swarm("status", SWARM_ID="a b").code == 3


def test_the_doctor_of_a_fresh_folder_warns_and_makes_nothing(swarm: CommandLine) -> None:
    answer = swarm("doctor", "-o", "json")

    assert answer.code == 0
    assert checks(answer)["redis"]["state"] == "warn"
    assert "swarm redis start" in checks(answer)["redis"]["step"]
    assert not (swarm.folder / ".swarm").exists()


def test_the_doctor_sees_a_data_folder_that_others_may_write_to(swarm: CommandLine) -> None:
    folder = swarm.folder / "open"
    folder.mkdir()
    (folder / "file").touch()
    folder.chmod(0o777)

    answer = swarm("doctor", "-o", "json", SWARM_DATA_DIR=str(folder))

    assert answer.code == 3
    assert "chmod 700" in checks(answer)["data folder"]["found"]


def test_settings_are_shown_with_their_source_and_without_passwords(swarm: CommandLine) -> None:
    (swarm.folder / ".env").write_text("SWARM_ID=news\nREDIS_PASSWORD=sesame\nSWARM_LEASE_S=\n")

    answer = swarm("config", "show", "-o", "json", REDIS_URL="redis://me:open@db:1/2", SWARM_HEARTBEAT_S="5")
    table = swarm("config", "show", REDIS_URL="redis://me:open@db:1/2")

    rows = {row["variable"]: (row["value"], row["from"]) for row in answer.data}
    assert rows["REDIS_URL"] == ("redis://***@db:1/2", "environment")
    assert rows["REDIS_PASSWORD"] == ("***", ".env")
    assert rows["SWARM_ID"] == ("news", ".env")
    assert rows["SWARM_HEARTBEAT_S"] == (5.0, "environment")
    assert rows["SWARM_LEASE_S"] == (None, "default")
    assert rows["SWARM_DATA_DIR"] == (".swarm", "default")
    assert "sesame" not in answer.out + table.out
    assert "open@" not in answer.out + table.out


# -- Redis is not there ------------------------------------------------------------------------------------------------


def test_without_a_redis_each_command_says_so_in_one_line_and_starts_none(swarm: CommandLine) -> None:
    commands = [*READING, *CHANGING]

    for words, answer in zip(commands, swarm.many(commands), strict=True):
        assert answer.code == 4, words
        assert answer.out == "", words
        assert answer.err.count("\n") == 1, words
        assert "swarm redis start" in answer.err, words
    assert not (swarm.folder / ".swarm").exists()


def test_with_redis_down_each_command_says_so_in_one_line(swarm: CommandLine) -> None:
    commands = [*READING, *CHANGING]

    for words, answer in zip(commands, swarm.many(commands, REDIS_URL="redis://127.0.0.1:1"), strict=True):
        assert answer.code == 4, words
        assert answer.out == "", words
        assert answer.err.count("\n") == 1, words
        assert "does not answer" in answer.err, words


def test_a_redis_that_is_silent_is_given_up_within_seconds(warm: Warm, tmp_path: Path) -> None:
    with RedisServer() as server:
        server.freeze()

        answers = CommandLine(tmp_path, warm, REDIS_URL=server.url).many([["status"], ["doctor"]])

        server.thaw()
    assert [answer.code for answer in answers] == [4, 4]
    assert all(answer.seconds < 6 for answer in answers)  # 2 s of them are patience, the rest a busy machine


# -- the private server ------------------------------------------------------------------------------------------------


@pytest.fixture
def private(swarm: CommandLine) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(swarm.folder / ".swarm")
    yield server
    server.stop_now()


def test_a_private_redis_that_was_started_by_hand_outlives_its_users(
    swarm: CommandLine, private: EmbeddedServer
) -> None:
    assert "it runs until: swarm redis stop" in swarm("redis", "start").err
    first = swarm("redis", "info", "-o", "json").data

    private.start()
    private.stop()
    second = swarm("redis", "info", "-o", "json").data

    assert first["pid"] == second["pid"]
    assert second["kept"] is True
    assert second["data_dir"] == str(private.data_dir)
    assert "stopped" in swarm("redis", "stop").err
    assert "no Redis runs" in swarm("redis", "stop").err
    assert swarm("status").code == 4


def test_a_private_redis_is_not_kept_once_it_was_stopped(swarm: CommandLine, private: EmbeddedServer) -> None:
    swarm("redis", "start")
    swarm("redis", "stop")

    private.start()

    assert not private.kept
    assert private.stop()


def test_a_private_redis_in_use_is_stopped_only_if_that_is_insisted_on(
    swarm: CommandLine, private: EmbeddedServer
) -> None:
    private.start()

    refused, insisted = swarm("redis", "stop"), swarm("redis", "stop", "--now")

    assert refused.code == 1
    assert "swarm redis stop --now" in refused.err
    assert insisted.code == 0
    assert private.find() is None


def test_no_private_redis_is_started_beside_one_that_is_named(swarm: CommandLine) -> None:
    answer = swarm("redis", "start", REDIS_URL="redis://:secret@db:6379")

    assert answer.code == 3
    assert "secret" not in answer.err


# -- run ---------------------------------------------------------------------------------------------------------------

CREW = """
from __future__ import annotations

import asyncio
import os
from pathlib import Path

from swarm_infrastructure import BaseAgent, Claims, Item, Outcome, Swarm, Work, job_board


class Clerk(BaseAgent):
    claims = Claims("jobs")

    async def process(self, item: Item, work: Work) -> Outcome:
        with Path("begun").open("a") as begun:
            begun.write(f"{item.id} {os.getpid()}\\n")
        await asyncio.sleep(item.payload["s"])
        return work.done({"pid": os.getpid()})


board = job_board("office", "jobs")
swarm = Swarm([Clerk], board=board)
several = [swarm]


def build() -> Swarm:
    return swarm


def build_for(folder: str) -> Swarm:
    return swarm


async def build_later() -> Swarm:
    return swarm
"""


class Office:
    """A folder with a swarm in it, and its board."""

    def __init__(self, folder: Path, warm: Warm, url: str, namespace: str) -> None:
        self.folder, self._url, self._namespace = folder, url, namespace
        (folder / "crew.py").write_text(CREW)
        self.swarm = CommandLine(folder, warm, REDIS_URL=url, SWARM_ID=namespace, SWARM_SHUTDOWN_GRACE_S="4")

    def _do(self, work: Callable[[Blackboard], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with (
                Store(self._url, retry_s=0) as store,
                Blackboard(store, job_board("office", "jobs"), namespace=self._namespace) as blackboard,
            ):
                return await work(blackboard)

        return asyncio.run(run())

    def submit(self, **items: float) -> None:
        """Items by id, with the seconds that each takes."""
        self._do(
            lambda board: board.submit(
                *(Submission(id=name, section="jobs", payload={"s": s}) for name, s in items.items())
            )
        )

    def begun(self) -> list[tuple[str, int]]:
        """What was begun: the item, and the process that did."""
        file = self.folder / "begun"
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(item, int(pid)) for item, pid in rows]

    def statuses(self) -> dict[str, str]:
        async def read(board: Blackboard) -> dict[str, str]:
            return {item.id: item.status async for item in board.queries.items("jobs")}

        found: dict[str, str] = self._do(read)
        return found

    def is_sound(self) -> bool:
        async def check(board: Blackboard) -> bool:
            return (await audit(board.store, self._namespace, "office")).clean

        return bool(self._do(check))


@pytest.fixture
def office(server: RedisServer, warm: Warm, tmp_path: Path) -> Office:
    return Office(tmp_path, warm, server.url, next(namespaces))


def until(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM is 0", "Ctrl-C is 130"]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_swarm_that_is_told_to_stop_finishes_what_it_has_in_hand(
    office: Office, number: signal.Signals, code: int, processes: int
) -> None:
    office.submit(quick=0, slow=1.5, rest=60)
    with office.swarm.running("run", "crew", "--processes", str(processes)) as running:
        until(lambda: "slow" in dict(office.begun()))

        running.send_signal(number)

        assert running.wait(20) == code
        assert running.stdout
        assert running.stdout.read() == ""
    assert office.statuses()["slow"] == "done"
    assert office.statuses()["quick"] == "done"
    assert office.is_sound()


def test_a_second_ctrl_c_waits_for_nothing(office: Office) -> None:
    office.submit(long=300)
    with office.swarm.running("run", "crew.py:swarm") as running:
        until(office.begun)

        running.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert running.poll() is None
        running.send_signal(signal.SIGINT)

        assert running.wait(10) == 130
    assert office.statuses() == {"long": "waiting"}


def test_a_worker_that_crashes_is_started_again(office: Office) -> None:
    office.submit(a=0.1, b=0.1, c=0.1, d=0.1)
    with office.swarm.running("run", "crew:build", "-p", "2") as running:
        until(lambda: set(office.statuses().values()) == {"done"})
        victim = office.begun()[0][1]
        assert victim != running.pid

        os.kill(victim, signal.SIGKILL)
        others = {pid for _, pid in office.begun()} - {victim}

        def newcomer() -> bool:
            office.submit(**{f"e{time.monotonic_ns()}": 0.3, f"f{time.monotonic_ns()}": 0.3})
            return bool({pid for _, pid in office.begun()} - {victim} - others)

        until(newcomer)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    assert office.is_sound()


def test_another_board_of_the_same_name_is_replaced_only_on_request(office: Office) -> None:
    office.submit(a=0)
    text = CREW.replace('job_board("office", "jobs")', 'job_board("office", "jobs", "mail")')
    (office.folder / "crew.py").write_text(text)

    refused = office.swarm("run", "crew")
    with office.swarm.running("run", "crew", "--replace-board", "-p", "2") as running:
        until(office.begun)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0

    assert refused.code == 3
    assert "--replace-board" in refused.err
    listed = office.swarm("status", "-o", "json").data["boards"][0]["sections"]
    assert [section["section"] for section in listed] == ["jobs", "mail"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere", "there is no 'nowhere'"),
        ("crew.deep:swarm", "a file is named by its path|there is no 'crew.deep'"),
        ("lost.py", "there is no "),
        ("crew:nobody", "it has: swarm"),
        ("crew:Clerk.nobody", "it has: swarm"),
        ("crew:several", "it is of type list"),
        ("crew:build_for", "missing a required argument: 'folder'"),
        ("crew:build_later", "an async function"),
        ("crew:Clerk", "calling it gives type Clerk"),
        ("folder/json.py", "whose name is not taken"),
        (":swarm", "module:attribute"),
        (".crew", "module:attribute"),
        ("", "module:attribute"),
    ],
)
def test_a_target_that_is_no_swarm_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    (tmp_path / "crew.py").write_text(CREW)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "json.py").write_text(CREW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "crew", raising=False)

    with pytest.raises(InvalidInputError, match=said):
        load_swarm(target)

    sys.modules.pop("crew", None)


@pytest.mark.parametrize("target", ["crew", "crew:swarm", "crew.py", "./crew.py:build", "inner/part.py", "inner.part"])
def test_a_target_is_a_module_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    (tmp_path / "crew.py").write_text(CREW)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "__init__.py").touch()
    (tmp_path / "inner" / "names.py").write_text("from crew import swarm\n")
    (tmp_path / "inner" / "part.py").write_text("from .names import swarm\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    try:
        assert load_swarm(target).board.name == "office"
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("crew", "inner")]:
            del sys.modules[name]


def test_a_fault_in_the_users_file_shows_where_it_is_and_nothing_else(swarm: CommandLine) -> None:
    (swarm.folder / "zero.py").write_text("1 / 0\n")
    (swarm.folder / "unread.py").write_text("import a_module_that_is_not_there\n")
    (swarm.folder / "torn.py").write_text("def f(:\n")

    answers = swarm.many([["run", "zero"], ["run", "unread"], ["run", "torn.py"], ["run", "nowhere"]])

    assert [answer.code for answer in answers] == [1, 1, 1, 2]
    for answer, file in zip(answers, ("zero.py", "unread.py", "torn.py"), strict=False):
        assert file in answer.err
        assert "typer" not in answer.err
    assert "No module named 'a_module_that_is_not_there'" in answers[1].err
