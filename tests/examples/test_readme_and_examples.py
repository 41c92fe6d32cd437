"""Every example runs, and the README's program prints what the README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, cwd: Path, data: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "SWARM_"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=clean | {"SWARM_DATA_DIR": str(data), "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=110,
    )


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_readmes_program_prints_what_the_readme_says(tmp_path: Path) -> None:
    program, *_ = readme_blocks("python")
    shown = readme_blocks("console")[0].partition("\n")[2]
    (tmp_path / "count.py").write_text(program)
    done = run("count.py", cwd=tmp_path, data=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


@pytest.mark.parametrize("times", ["the first time", "again"])
@pytest.mark.parametrize("name", ["basic_usage.py", "agent_implementation.py", "talking.py", "recovering.py"])
def test_an_example_runs(name: str, times: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.getbasetemp() / f"data of {name}"
    done = run(str(ROOT / "examples" / name), cwd=ROOT, data=data)
    assert done.returncode == 0, done.stderr
    assert any(
        each in done.stdout
        for each in ("True", "consensus/consensus_reached", "debate: consensus yes 57%", "replayed at no cost")
    )


def test_the_news_swarm_accounts_for_every_article_and_knows_them_all_the_second_time(tmp_path: Path) -> None:
    out, summary = tmp_path / "o u t", tmp_path / "summary.json"
    words = ("examples/news_swarm/main.py", "examples/news_swarm/sample", "--out", str(out), "--summary", str(summary))

    first = run(*words, cwd=ROOT, data=tmp_path / "data")
    assert first.returncode == 0, first.stderr
    told = json.loads(summary.read_text())
    assert told["read"] >= 40
    assert told["published"] + told["duplicates"] + told["rejected"] == told["read"]
    assert told["published"] > 20
    assert told["near_copies"] >= 3
    assert told["rejected"] >= 3
    assert first.stdout.startswith("No language model was called")
    folders = sorted(out.iterdir())
    assert len(folders) == told["published"]
    for folder in folders:
        story = json.loads((folder / "story.json").read_text())
        assert story["sources"][0]["outlet"]
        assert story["history"][0]["kind"] == "submitted"
        votes = {vote["stance"]: vote["choice"] for vote in story["debate"]["votes"]}
        assert (story["debate"]["position"], len(votes) >= 2) == (
            "tell",
            True,
        )  # it closes when the last can't change it
        assert story["history"][-1]["to"] == "published/published/"
        text = (folder / "script.md").read_text()
        assert text.startswith("# ")
    linked = [json.loads((folder / "story.json").read_text())["sources"] for folder in folders]
    named = sum(len(sources) > 1 for sources in linked)
    assert named == told["near_copies"]  # those from other outlets stand beside the original

    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    second = run(*words, cwd=ROOT, data=tmp_path / "data")
    assert second.returncode == 0, second.stderr
    told = json.loads(summary.read_text())
    assert told["published"] == 0
    assert told["known"] == told["duplicates"] == told["read"]
    assert {path: path.read_bytes() for folder in sorted(out.iterdir()) for path in folder.iterdir()} == before


def shared(name: str) -> Path:
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout")
    return path


@pytest.mark.parametrize("name", ["newsapi_articles.json", "feeds"])
def test_real_articles_are_all_accounted_for(name: str, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    words = (
        "examples/news_swarm/main.py",
        str(shared(name)),
        "--out",
        str(tmp_path / "out"),
        "--summary",
        str(summary),
    )
    done = run(*words, "--processes", "2", cwd=ROOT, data=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    told = json.loads(summary.read_text())
    assert told["read"] == {"newsapi_articles.json": 460, "feeds": 85}[name]
    assert told["published"] + told["duplicates"] + told["rejected"] == told["read"]
    assert told["failed"] == 0
    assert len(list((tmp_path / "out").iterdir())) == told["published"]


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        (["missing.xml"], 2, ["missing.xml"]),
        (["empty"], 2, ["empty"]),
        (["broken.xml"], 1, ["broken.xml"]),
        (["broken.xml", "good.jsonl"], 6, ["broken.xml"]),
    ],
)
def test_bad_input_is_named_and_good_input_is_still_read(
    inputs: list[str], code: int, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.xml").write_text("<html>this is no feed")
    text = (
        "The new ferry made its first crossing on Monday. It carried two hundred people to the island and back again."
    )
    (tmp_path / "good.jsonl").write_text(
        json.dumps({"title": "Ferry sails", "content": text, "source": {"name": "Quay"}})
    )
    done = run(
        str(ROOT / "examples/news_swarm/main.py"), *inputs, "--out", "out", cwd=tmp_path, data=tmp_path / "data"
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_wrong_redis_url_is_named(tmp_path: Path) -> None:
    words = ("examples/news_swarm/main.py", "examples/news_swarm/sample", "--out", str(tmp_path / "out"))
    for url, code in (("http://localhost:1", 3), ("redis://127.0.0.1:1", 4)):
        done = run(*words, cwd=ROOT, data=tmp_path / "data", REDIS_URL=url, SWARM_STORE_RETRY_S="0")
        assert done.returncode == code, done.stderr
        assert "REDIS_URL" in done.stderr
        assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1  # Redis that is not there: one line
