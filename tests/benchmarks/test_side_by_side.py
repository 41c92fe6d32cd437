"""The runner that measures this runtime beside its peers: its arithmetic, and our own part in it. No peer is needed."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import ceiling, environments, report
from benchmarks.peers.adapters import GROUPS, PEERS, expand, peer_called
from benchmarks.peers.environments import Environments, MissingError, check
from benchmarks.peers.fanout import FANOUTS
from benchmarks.peers.pipelines import PIPELINES
from benchmarks.peers.probe import Probe, make_payload
from benchmarks.peers.rig import Bench, FailedError, until
from benchmarks.peers.run import EACH, WORKLOADS, Run, main, options_of, repetitions_of
from benchmarks.peers.targets import CHECKS, Figures, Series, faults, judge
from benchmarks.peers.workloads import BUSY_S, Workloads, percentiles

from swarm_infrastructure.testing.redis_server import ONE_OF


@pytest.fixture
def here(request: pytest.FixtureRequest) -> Environments:
    kind = request.config.getoption("--redis-kind")
    return Environments(server=ONE_OF.get(kind, kind))


# -- our own adapter ------------------------------------------------------------------------------------------------


def test_ours_drains_500_items_and_the_probe_counts_500(here: Environments) -> None:
    ours = peer_called("ours")
    with Bench(here) as bench:
        bench.submit("ours", 500)
        assert not ours.is_drained(bench.redis, 500)
        worker = bench.start("ours", "work")
        until(lambda: ours.is_drained(bench.redis, 500), "500 items done", within_s=30, alive=[worker])
        count = bench.probe.read()
    assert (count.bodies, count.workers) == (500, 1)
    assert count.last_ns <= time.monotonic_ns()


def test_a_drain_tells_its_rate_and_what_it_cost(here: Environments, tmp_path: Path) -> None:
    ours = peer_called("ours")
    told = Workloads(here, tmp_path, scale=500 / (ours.pace * BUSY_S)).drain(ours)
    assert told["tasks"] == 500
    assert told["bodies_twice"] == 0
    assert told["per_s"] == pytest.approx(1e6 / (told["seconds"] * 1e6 / (told["per_s"] * told["seconds"])))
    assert 0 < told["commands"] < 10  # batches: a few calls for hundreds of items


def test_our_pipeline_has_a_body_a_stage(here: Environments) -> None:
    pipeline = peer_called("ours-pipeline")
    with Bench(here) as bench:
        bench.submit("ours-pipeline", 50)
        worker = bench.start("ours-pipeline", "work")
        until(lambda: pipeline.is_drained(bench.redis, 50), "50 items done", within_s=30, alive=[worker])
        assert bench.probe.read().bodies == 50 * pipeline.bodies == 200


def test_latency_is_told_for_each_sample(here: Environments) -> None:
    with Bench(here) as bench:
        bench.start("ours", "work", idle=True)
        told = bench.ask("ours", "latency", slot=1, n=5)
    assert len(told["start_us"]) == len(told["result_us"]) == 5
    assert all(0 < start < result for start, result in zip(told["start_us"], told["result_us"], strict=True))


def test_a_worker_that_can_not_work_is_told_of_with_its_last_words(here: Environments) -> None:
    with Bench(here) as bench:
        bench.submit("ours", 1)
        worker = bench.start("ours-pipeline", "work")  # another board of the same name
        with pytest.raises(FailedError, match="board"):
            until(lambda: False, "never", within_s=20, alive=[worker])


def test_the_ceiling_refuses_a_token_that_is_not_the_claims(here: Environments) -> None:
    with Bench(here) as bench:
        bench.redis.function_load((Path(ceiling.__file__).parent / "ceiling.lua").read_text())

        def call(function: str, *args: Any) -> Any:
            return bench.redis.fcall(function, len(ceiling.KEYS), *ceiling.KEYS, *args)

        call("ceiling_fill", 0, 3, "{}")
        [[item, token, payload], _] = call("ceiling_claim", 2, "c", 1000, 500)
        assert (payload, bench.redis.zscore("leases", item)) == (b"{}", 1500)
        assert call("ceiling_complete", 1100, item, token + 1, "{}") == 0
        assert call("ceiling_complete", 1100, item, token, "{}") == 1
        assert call("ceiling_complete", 1100, item, token, "{}") == 0
        counts = [bench.redis.zcard(key) for key in ("waiting", "leases", "done")]
        assert (counts, bench.redis.xlen("events")) == ([1, 1, 1], 3 + 2 + 1)


def test_what_is_sent_is_told_apart_from_what_a_function_runs(here: Environments) -> None:
    with Bench(here) as bench, ThreadPoolExecutor(1) as beside:
        bench.redis.function_load((Path(ceiling.__file__).parent / "ceiling.lua").read_text())
        watching = beside.submit(bench.watch_commands, 1.0)
        until(lambda: any(each["cmd"] == "monitor" for each in bench.redis.client_list()), "watched", within_s=5)
        bench.redis.fcall("ceiling_fill", len(ceiling.KEYS), *ceiling.KEYS, 0, 1, "{}")
        sent, inside = watching.result()
    assert inside == 3  # HSET, ZADD, XADD
    assert sent in (1, 2)  # the function; the last look at who is there may have been watched as well


def test_idle_workers_are_watched_at_the_same_time(here: Environments, tmp_path: Path) -> None:
    told = Workloads(here, tmp_path, scale=1 / 60).idle([peer_called("ours"), peer_called("ours-alone")])
    assert list(told) == ["ours", "ours-alone"]
    for each in told.values():
        assert isinstance(each, dict), each
        assert 0 <= each["sent_per_s"] <= each["commands_per_s"]


# -- the probe ------------------------------------------------------------------------------------------------------


def test_a_probe_counts_over_all_workers(tmp_path: Path) -> None:
    counted = Probe.create(tmp_path / "probe")
    assert counted.read().bodies == counted.read().last_ns == 0
    first, second = Probe(tmp_path / "probe", 0), Probe(tmp_path / "probe", 3)
    for _ in range(3):
        first.tick()
    second.tick()
    assert (counted.read().bodies, counted.read().workers) == (4, 2)


def test_a_payload_is_300_bytes_of_json() -> None:
    assert {len(json.dumps(make_payload(n), separators=(",", ":"))) for n in (0, 7, 999_999_999)} == {300}


def test_percentiles_need_samples() -> None:
    assert percentiles([float(n) for n in range(101)]) == {"p50": 50, "p95": 95, "p99": 99}
    with pytest.raises(FailedError, match="found 1 samples"):
        percentiles([1.0])


# -- targets --------------------------------------------------------------------------------------------------------

OURS = {"environment": "ours", "language": "python", "durable": True}
A_PEER = {"environment": "peers", "language": "python", "durable": True}


def given_result(*rows: dict[str, Any], **peers: dict[str, Any]) -> dict[str, Any]:
    named = {name: {"settings": "", "delivery": "", "versions": {}} | facts for name, facts in peers.items()}
    machine = dict.fromkeys(("cpu", "cores", "kernel", "python", "redis", "node", "date", "commit"), "?")
    return {
        "peers": named,
        "rows": [{"rep": 0} | row for row in rows],
        "machine": machine,
        "left_out": [],
        "whole": False,
    }


def drained(peer: str, per_s: float, **facts: Any) -> dict[str, Any]:
    return {"workload": "drain", "peer": peer, "per_s": per_s} | facts


def opened(per_s: float, **facts: Any) -> dict[str, Any]:
    return {"workload": "ceiling", "peer": "drain", "batch_per_s": per_s} | facts


def words(result: dict[str, Any], number: str) -> list[tuple[float | None, str]]:
    return [(each.value, each.word) for each in judge(result) if each.check.number == number]


@pytest.mark.parametrize(("per_s", "word"), [(39_999, "missed"), (40_000, "met"), (79_999, "met"), (80_000, "aim met")])
def test_a_floor_and_an_aim_are_bounds_that_count_as_met(per_s: float, word: str) -> None:
    assert words(given_result(drained("ours", per_s), opened(100_000), ours=OURS), "T1") == [(per_s / 100_000, word)]


def test_where_less_is_better_the_bounds_lie_above() -> None:
    for us, word in ((12.0, "aim met"), (25.0, "met"), (25.1, "missed")):
        [worker, redis] = words(given_result(drained("ours", 1, worker_us=us), ours=OURS), "T5")
        assert worker == (us, word)
        assert redis == (None, "not measured")


def test_a_ratio_is_made_within_a_repetition() -> None:
    rows = [drained("ours", 10, rep=0), opened(100, rep=0), drained("ours", 60, rep=1), opened(100, rep=1)]
    rows += [drained("ours", 90, rep=2), opened(1000, rep=2), drained("ours", 1e9, rep=3)]  # no ceiling in the last
    assert words(given_result(*rows, ours=OURS), "T1") == [(0.1, "missed")]


def test_the_best_peer_is_none_of_ours_and_the_best_durable_one_in_python_is_both() -> None:
    peers = {
        "ours": OURS,
        "ours_50": OURS,
        "node": A_PEER | {"language": "node"},
        "forgetful": A_PEER | {"durable": False},
        "slow": A_PEER,
        "durable": A_PEER,
    }
    rates = {"ours": 90, "ours_50": 1000, "node": 30, "forgetful": 20, "slow": 5, "durable": 9}
    result = given_result(*(drained(name, rate) for name, rate in rates.items()), **peers)
    assert words(result, "T2") == [(3.0, "aim met"), (10.0, "met")]


def test_the_best_peer_is_the_one_with_the_best_median() -> None:
    rows = [drained("ours", 100, rep=rep) for rep in range(3)]
    rows += [drained("steady", 50, rep=rep) for rep in range(3)]
    rows += [drained("lucky", rate, rep=rep) for rep, rate in enumerate((90, 10, 10))]
    best = words(given_result(*rows, ours=OURS, lucky=A_PEER, steady=A_PEER), "T2")[0]
    assert best == (2.0, "met")


def test_growth_compares_a_million_with_a_thousand_and_nothing_else() -> None:
    def behind(waiting: int, redis_us: float) -> dict[str, Any]:
        return {"workload": "growth", "peer": "ours", "waiting": waiting, "per_s": 100.0, "redis_us": redis_us}

    some = given_result(behind(1_000, 10), behind(10_000, 99), ours=OURS)
    assert words(some, "T9") == [(None, "not measured")] * 2
    some["rows"].append({"rep": 0} | behind(1_000_000, 15))
    assert words(some, "T9") == [(1.5, "missed"), (1.0, "aim met")]


def test_one_item_that_ran_twice_in_one_repetition_is_one_too_many() -> None:
    rows = [{"workload": "scaling", "peer": "ours", "per_s": 1, "bodies_twice": n, "rep": n} for n in (0, 1)]
    assert words(given_result(*rows, ours=OURS), "T11")[1] == (1, "missed")


def test_a_run_has_shown_nothing_while_a_floor_is_missed_or_a_measurement_failed() -> None:
    well = given_result(drained("ours", 50), opened(100), ours=OURS)
    assert faults(well) == []
    assert any(fault.startswith("T9 not measured") for fault in faults(well | {"whole": True}))
    poor = given_result(
        drained("ours", 39), opened(100), {"workload": "drain", "peer": "slow", "error": "why"}, ours=OURS
    )
    assert faults(poor) == [
        "drain of slow failed: why",
        "T1 missed: one agent, batches of 100 ÷ the ceiling in batches of 100: 0.39, floor 0.4",
    ]


def test_every_target_of_the_issue_is_checked() -> None:
    assert list(dict.fromkeys(each.number for each in CHECKS)) == [f"T{n}" for n in range(1, 15)]


# -- who takes part in which repetition -----------------------------------------------------------------------------


def planned(rep: int, *arguments: str) -> list[tuple[Any, ...]]:
    run = Run(options_of(arguments))
    return [each.key for each in run.plan(rep, Workloads(Environments(), Path()))]


class Compared(Figures):
    """Writes down what is asked for."""

    def __init__(self) -> None:
        super().__init__({"peers": {}, "rows": []})
        self.asked: set[tuple[str, str]] = set()

    def series(self, workload: str, peer: str, figure: str, **tags: Any) -> Series:
        self.asked.add((workload, peer))
        return {}


def test_what_a_target_compares_is_measured_in_each_repetition() -> None:
    figures = Compared()
    for each in CHECKS:
        each.measure(figures)
    once = {asked for asked in figures.asked if repetitions_of(*asked) != EACH}
    assert once == {("idle", "ours"), ("memory", "ours")}  # no ratios: they come out the same each time
    for workload in ("drain", "enqueue", "latency"):  # of which the best peer is compared, whichever that is
        assert repetitions_of(workload, "huey") == EACH


def test_a_repetition_begins_with_another_peer_each_time_and_later_ones_are_shorter() -> None:
    first, second, third = (planned(rep, "--only", "drain,memory,fanout") for rep in range(3))
    assert first[:2] == [("ceiling", "drain"), ("drain", "ours")]
    assert second[:2] == [("ceiling", "drain"), ("drain", "ours-50")]
    assert {workload for workload, _ in second} == {"ceiling", "drain", "fanout"}
    assert set(first) > set(second) > set(third)  # those that take part once, and twice
    assert {peer for workload, peer in third if workload == "fanout"} == {"ours", "redis-py-50", "redis-py-1"}


def test_a_million_waits_only_behind_peers_that_submit_it_soon() -> None:
    sizes: dict[str, list[int]] = {}
    for _, peer, size in planned(0, "--only", "growth", "--without", "ceiling"):
        sizes.setdefault(peer, []).append(size)
    assert {peer for peer, found in sizes.items() if 1_000_000 in found} == {"ours", "bullmq-node"}
    assert all(found[:2] == [1_000, 10_000] for found in sizes.values())
    assert max(planned(0, "--only", "growth", "--peers", "ours", "--most-waiting", "10000"))[2] == 10_000


# -- the report -----------------------------------------------------------------------------------------------------


def test_the_report_says_what_was_measured_met_missed_and_failed() -> None:
    failed = {"workload": "drain", "peer": "slow", "error": "FailedError: slow work: not a word"}
    facts = {"worker_us": 30.0, "redis_us": 15.0, "commands": 0.4}
    text = report.summary(
        given_result(drained("ours", 90_000, **facts), opened(100_000), failed, ours=OURS, slow=A_PEER)
    )
    assert "| T1 one agent, batches of 100 ÷ the ceiling in batches of 100 | ≥ 0.4 | ≥ 0.8 | 0.90 | aim met |" in text
    assert "| T5 batches: worker's CPU, µs an item | ≤ 25 | ≤ 12 | 30 | missed |" in text
    assert "| ours | 90,000 | 0.900 | 1.00 | 30.0 | 15.0 | 0.4 |" in text
    assert "| drain, slow, repetition 1 | FailedError: slow work: not a word |" in text


def test_the_targets_of_other_runs_stand_beside_with_how_fast_the_machine_was_then() -> None:
    now, then = (
        given_result(drained("ours", rate), opened(ceiling_rate), ours=OURS)
        for rate, ceiling_rate in ((90_000, 100_000), (20_000, 50_000))
    )
    text = report.summary(now, {"peers-1": then})
    assert "| the ceiling in batches of 100, items/s |  |  | 100,000 | 50,000 |  |" in text
    assert (
        "| T1 one agent, batches of 100 ÷ the ceiling in batches of 100 | ≥ 0.4 | ≥ 0.8 | 0.90 | 0.40 | aim met |"
        in text
    )


def test_the_report_says_what_was_measured_less_often() -> None:
    rows = [
        {"workload": "memory", "peer": peer, "waiting_bytes": 500.0, "completed_bytes": 700.0, "rep": rep}
        for peer, times in (("ours", 3), ("node", 1), ("slow", 1))
        for rep in range(times)
    ]
    result = given_result(*rows, ours=OURS, node=A_PEER, slow=A_PEER)
    assert "Repetitions: 3 of ours; 1 of the others." in report.summary(result)
    result["rows"] = [row for row in rows if row["rep"] == 0]
    assert "Repetitions:" not in report.summary(result)


def test_growth_is_told_up_to_the_greatest_backlog_of_each() -> None:
    def behind(peer: str, *rates: float) -> list[dict[str, Any]]:
        return [
            {"workload": "growth", "peer": peer, "waiting": 1000 * 10**n, "per_s": rate, "redis_us": 10.0}
            for n, rate in enumerate(rates)
        ]

    text = report.summary(given_result(*behind("ours", 100, 90, 80), *behind("slow", 10, 5), ours=OURS, slow=A_PEER))
    assert "| ours | 100 | 90 | 80 | 0.80 | 1.00 |" in text
    assert "| slow | 10 | 5 |  | 0.50 | 1.00 |" in text


def test_the_page_keeps_what_stands_around_the_tables(tmp_path: Path) -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.placed(page, "new", Path("page.md"))
    assert once == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.placed(once, "new", Path("page.md")) == once
    with pytest.raises(ValueError, match=r"page\.md"):
        report.placed("no marks", "new", Path("page.md"))


def test_the_real_page_has_its_marks() -> None:
    assert "new" in report.placed(report.PAGE.read_text(), "new", report.PAGE)


# -- who takes part -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_says_how_it_is_set_up_and_what_it_promises(name: str) -> None:
    peer = peer_called(name)  # none of its libraries is needed for that
    assert peer.name == name
    assert peer.settings
    assert peer.delivery
    assert peer.packages
    assert peer.workloads is None or peer.workloads <= set(WORKLOADS)


def test_names_of_groups_stand_for_their_peers() -> None:
    assert expand(["ours", "ours-50", "arq"]) == [*GROUPS["ours"], "arq"]
    with pytest.raises(ValueError, match="found 'kafka'"):
        expand(["kafka"])


def test_every_script_is_there() -> None:
    folder = Path(environments.__file__).parent
    for kind, scripts in (("pipelines", PIPELINES), ("fanout", FANOUTS)):
        for name, found in scripts.items():
            assert (folder / kind / f"{found.module}.py").exists(), name


@pytest.mark.parametrize(("option", "named"), [("--only", "workload"), ("--peers", "peer")])
def test_a_name_that_does_not_exist_is_misuse(option: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option, "kafka"])
    assert ended.value.code == 2
    assert f"{named}: found 'kafka', needed one of" in capsys.readouterr().err


def test_a_run_in_which_nobody_takes_part_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peers", "ours-alone", "--only", "enqueue", "--without", "ceiling"]) == 2
    assert "none of ours-alone takes part in enqueue" in capsys.readouterr().err


def test_what_is_not_installed_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"redis-server"}
    monkeypatch.setattr(shutil, "which", lambda program: program if program in there else None)
    with pytest.raises(MissingError, match=r'apt install gcc libhiredis-dev, or .* WITHOUT="ceiling"$'):
        check({"ours", "ceiling"})
    with pytest.raises(MissingError, match=r'apt install nodejs npm, or .* WITHOUT="bullmq-node"$'):
        check({"node"})
    check({"ours", "peers"})
    there.clear()
    with pytest.raises(MissingError, match=r"apt install redis-server$"):
        check({"ours"})
