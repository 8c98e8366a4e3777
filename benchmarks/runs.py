"""Measure what a run costs, beside a plain `StreamingResponse` of the same iterator, and print the tables.

    python -m benchmarks.runs [--over memory,valkey,nats,postgres] [--only LABEL,...] [--rounds 3] [--quick]

One uvicorn has the producers and the readers, on a core of its own; a broker runs beside the clients, and its
processor time is not counted. Each run has one reader. Opening and ending are in the figures.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.nats_server import NatsProcess
from tests.postgres_server import PostgresProcess
from tests.server_process import free_port
from tests.valkey import ValkeyProcess

from . import report
from .load import Figures, Load, build
from .result import Result, Size
from .serve import Server, command_of, cores

APP = "benchmarks.runs_app:app"
PLAIN, OVER = "StreamingResponse", ("memory", "valkey", "nats", "postgres")
SHOWN = ("events_per_s", "us_per_event", "p50_ms", "p99_ms")
# Seconds for what the server does behind the last token.
SETTLE = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """So many runs, each of so many tokens. `pace` is what `benchmarks.runs_app.tokens` takes."""

    label: str
    runs: int
    tokens: int
    pace: float

    @property
    def size(self) -> Size:
        return Size(self.runs, self.tokens, max(self.pace, 0), 35)


JOBS = (
    Job("one run, yield alone", 1, 40_000, -1),
    Job("one run, sleep(0)", 1, 40_000, 0),
    Job("one run, 100 tokens a second", 1, 400, 100),
    Job("200 runs, yield alone", 200, 300, -1),
    Job("200 runs, sleep(0)", 200, 300, 0),
    Job("200 runs, 50 tokens a second", 200, 300, 50),
)
_ids = count()


def measure(program: Path, server: Server, job: Job) -> Figures:
    """Have the server produce a job, and return what each token has cost it."""
    path = f"/events?id={next(_ids)}-{{}}&n={job.tokens}&pace={job.pace}"
    before, began = server.cpu(), time.perf_counter()
    with Load(program, server.port, job.runs, path, expect=job.tokens) as load:
        load.opened()
        figures = load.result()
        took = time.perf_counter() - began
        time.sleep(SETTLE)
        used = server.cpu() - before
    number = job.runs * job.tokens
    wrong = {key: figures[key] for key in ("missing", "duplicates", "gaps") if figures[key]}
    if wrong or figures["events"] != number:
        raise RuntimeError(f"{figures['events']} of {number} tokens came, with {wrong}")
    return {**figures, "events_per_s": number / took, "us_per_event": 1e6 * used / number}


@contextmanager
def brokers(names: Sequence[str], folder: Path) -> Iterator[dict[str, str]]:
    """Run the brokers beside the clients, and yield the RUNS_OVER of each name."""
    urls = {PLAIN: "", "memory": "memory"}
    mine = os.sched_getaffinity(0)
    with ExitStack() as stack:
        # They inherit the cores.
        os.sched_setaffinity(0, cores()[1])
        if "valkey" in names:
            urls["valkey"] = stack.enter_context(ValkeyProcess(folder / "valkey")).url
        if "nats" in names:
            urls["nats"] = stack.enter_context(NatsProcess(folder / "nats", jetstream=True)).url
        if "postgres" in names:
            urls["postgres"] = stack.enter_context(PostgresProcess()).dsn
        os.sched_setaffinity(0, mine)
        yield {name: urls[name] for name in (PLAIN, *names)}


@contextmanager
def servers(urls: dict[str, str], folder: Path) -> Iterator[dict[str, Server]]:
    """Serve the application over each of them. All have the same core, and one is loaded at a time."""
    with ExitStack() as stack:
        found = {}
        for name, url in urls.items():
            port = free_port()
            log, environment = folder / f"{name}.log", {"RUNS_OVER": url}
            server = Server(command_of(APP, "uvicorn", port), port, log, environment)
            found[name] = stack.enter_context(server)
        yield found


def run(job: Job, served: dict[str, Server], program: Path, rounds: int) -> Result:
    runs: dict[str, list[Figures]] = {name: [] for name in served}
    for _ in range(rounds):
        for name, server in served.items():
            runs[name].append(measure(program, server, job))
    return Result(
        job.label,
        "tokens, processor time for each, and their delays",
        job.size,
        SHOWN,
        ("us_per_event",),
        runs,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--over", default="memory,valkey", help=f"of {', '.join(OVER)}")
    parser.add_argument("--only", default="", metavar="LABEL,...", help="jobs whose label has one of these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, and a tenth of the tokens")
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    jobs = [job for job in JOBS if any(text in job.label for text in wanted)]
    print(report.machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        program, place = build(Path(folder)), Path(folder)
        for name in OVER:
            (place / name).mkdir()
        with brokers(options.over.split(","), place) as urls, servers(urls, place) as served:
            for server in served.values():
                measure(program, server, Job("warm up", 2, 200, -1))
            for job in jobs:
                if options.quick:
                    job = Job(job.label, job.runs, job.tokens // 10, job.pace)
                result = run(job, served, program, 1 if options.quick else options.rounds)
                print(f"\n{report.text(result)}", flush=True)


if __name__ == "__main__":
    main()
