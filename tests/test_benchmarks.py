"""The benchmarks run: one of each kind in a size that says nothing, and their tables have all rows."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.nchan import MODULE

from .programs import need
from .serving import REPOSITORY

HEAD = "µs per event  ratio (spread)  p50 ms  p99 ms  missing  duplicates"


def benchmarks(*arguments: str, said: str = "", module: str = "benchmarks") -> str:
    """Return the tables that a run writes; on the error stream it writes what is `said`, and nothing else."""
    need("cc")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, said)
    return done.stdout


def words(line: str) -> str:
    """Return a line of a table with every measured figure left out and two spaces between columns."""
    return re.sub(r"\s{2,}", "  ", re.sub(r"\d[\d.,]*\.\d+", "_", line.strip()))


def test_a_burst_is_measured_beside_the_floor() -> None:
    conditions, _, title, head, floor, own = benchmarks(
        "--quick", "burst", "--streams", "20", "--events", "20"
    ).splitlines()
    assert conditions.startswith("uvicorn; ")
    assert title == (
        "burst: Processor time of the server for each delivered event, all at once "
        "(20 streams, 20 events of 200 bytes at once; median of 1 round)"
    )
    assert words(head) == HEAD
    assert re.fullmatch(r"floor  [_\d]+  1  [_\d]+  [_\d]+  0  0", words(floor))
    assert re.fullmatch(r"livepush_asgi  [_\d]+  [_\d]+  [_\d]+  [_\d]+  0  0", words(own))


def test_the_ratios_of_two_runs_are_put_side_by_side(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    benchmarks("--quick", "burst", "--streams", "5", "--events", "5", "--json", str(old))
    shutil.copy(old, new)
    head, rule, floor, own = benchmarks(str(old), str(new), module="benchmarks.merge").strip().splitlines()
    assert head == "| burst | µs per event, old | µs per event, new |"
    assert rule == "|---|--:|--:|"
    assert floor == "| floor | 1 | 1 |"
    assert re.fullmatch(r"\| livepush_asgi \| ([\d.]+) \| \1 \|", own)


def test_a_view_is_measured_beside_one_that_is_written_by_hand() -> None:
    options = ("--only", "view of Django, behind five", "--streams", "20", "--events", "5")
    _, _, title, head, *rows = benchmarks("--quick", "mounted", *options).splitlines()
    assert title.startswith("mounted: Processor time for each delivered event, all at once, where people ")
    assert words(head) == f"{HEAD}  KiB per stream  ratio (spread)"
    # So few streams may fit into memory that the process has already: then there is no ratio.
    figures = r"  [_\d]+  [_\d]+  [_\d]+  [_\d]+  0  0  [_\d]+  (?:[_\d]+|nan|inf)"
    labels = (
        "floor",
        "behind five middleware",
        "view of Django",
        "floor behind five middleware",
        "floor in a view of Django",
    )
    assert len(rows) == len(labels)
    for label, row in zip(labels, rows, strict=True):
        assert re.fullmatch(label + figures, words(row)), row


def test_publishing_to_a_log_is_measured_beside_redis_py() -> None:
    _, _, title, head, *rows = benchmarks("--quick", "publish", "--events", "100").splitlines()
    assert title == (
        "publish: Events that a process publishes to a log in Valkey, and its processor time for each "
        "(100 events of 200 bytes; median of 1 round)"
    )
    assert words(head) == "events a second  ratio (spread)  µs per event"
    figures = r"  [\d,_]+  [\d._]+  [\d,_]+"
    labels = (
        "XADD by redis-py",
        "RedisStreamsBroker",
        "Publisher, over it",
        "XADD from 100 tasks",
        "XADD in pipelines of 1,000",
        "RedisStreamsBroker from 1,000 tasks",
        "the same to 1,000 channels",
        "LivePush.publish from 1,000 tasks",
    )
    assert len(rows) == len(labels)
    for label, row in zip(labels, rows, strict=True):
        assert re.fullmatch(re.escape(label) + figures, words(row)), row


def test_valkey_is_measured_by_those_who_listen() -> None:
    options = ("--only", "10 listen", "--events", "50")
    _, _, title, head, *rows = benchmarks("--quick", "relay", *options).splitlines()
    assert title.startswith("relay: Processor time of Valkey for each event of a log, ")
    assert words(head) == "events a second  µs per event"
    labels = (
        "0 listen, one after the other",
        "10 listen, one after the other",
        "10 listen, from 1,000 tasks",
    )
    assert len(rows) == len(labels)
    for label, row in zip(labels, rows, strict=True):
        assert re.fullmatch(rf"{label}  [\d,_]+  [\d,_]+", words(row)), row


def test_four_workers_are_measured_beside_the_floor() -> None:
    options = ("--only", "on one core", "--streams", "40", "--events", "2")
    _, _, title, head, floor, workers = benchmarks("--quick", "scale", *options).splitlines()
    assert title == (
        "scale: As many streams as one process may hold, and one event to all of them "
        "(40 streams, 2 events of 200 bytes at 2 a second, 1 s; median of 1 round)"
    )
    assert words(head) == (
        "connected, s  KiB per stream  MiB in all  most sockets of a process  % of a core  µs per event  "
        "ratio (spread)  first ms  p50 ms  p99 ms  last ms  ratio (spread)  missing"
    )
    before, behind = r"(  [_\d]+){3}", r"(  [_\d]+){8}  0"
    assert re.fullmatch(f"floor, no heartbeats{before}  40{behind}", words(floor))
    label = "4 workers through Valkey, on one core"
    assert re.fullmatch(rf"{label}{before}  \d\d{behind}", words(workers))


@pytest.mark.parametrize("module", [MODULE, Path("/nowhere/nchan.so")], ids=["as it is here", "missing"])
def test_nchan_is_measured_or_the_run_says_how_to_install_it(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("nginx")
    monkeypatch.setenv("NCHAN_MODULE", str(module))
    there = module.exists()
    said = f"nchan is not installed ({module}) and left out: apt-get install libnginx-mod-nchan\n"
    _, _, title, head, *rows = benchmarks(
        "--quick", "nchan", "--streams", "20", "--events", "20", said="" if there else said
    ).splitlines()
    assert title.startswith(
        "nchan: Processor time of all that serves for each delivered event, all at once, "
    )
    assert words(head) == (
        "µs per event  ratio (spread)  of it Valkey  p50 ms  p99 ms  ratio (spread)  missing  duplicates  "
        "KiB per stream"
    )
    labels = (*["nchan"][: int(there)], "RedisBroker", "RedisStreamsBroker")
    assert len(rows) == len(labels)
    for label, row in zip(labels, rows, strict=True):
        assert re.fullmatch(label + r"(  [_\d]+){6}  0  0  [_\d]+", words(row)), row


def refusal(*arguments: str) -> str:
    """Return what the command says of arguments that it cannot take."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def test_an_unknown_scenario_is_named_with_those_that_there_are() -> None:
    assert refusal("gust").startswith("no scenario gust; there are burst, paced, memory, ")


def test_an_unknown_case_is_named_with_those_that_there_are() -> None:
    need("cc")
    said = refusal("burst", "mounted", "--only", "middleware, gust")
    assert said == "burst has no case middleware, gust; it has livepush_asgi\n"


def test_runs_are_measured_beside_a_plain_response() -> None:
    _, _, title, head, *rows = benchmarks(
        "--quick", "--only", "200 runs: yield", module="benchmarks.runs"
    ).splitlines()
    assert title == (
        "200 runs: yield alone: tokens, processor time for each, and their delays "
        "(200 streams, 30 events of 35 bytes at once; median of 1 round)"
    )
    assert words(head) == "events a second  µs per event  ratio (spread)  p50 ms  p99 ms"
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == ["StreamingResponse", "memory", "valkey"]
