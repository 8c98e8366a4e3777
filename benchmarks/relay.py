"""The scenario of what an event costs Valkey itself, by the number of processes that listen."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .bench import Bench
from .elsewhere import append_to
from .load import Figures
from .result import Case
from .serve import REPOSITORY, cores, cpu_of

PROCESSES = (0, 1, 10, 100)
WAYS = (("one after the other", "broker"), ("from 1,000 tasks", "broker_in_tasks"))


def relay_cases(bench: Bench) -> list[Case]:
    return [
        Case(f"{number} listen, {label}", lambda way=way, number=number: relay(bench, way, number))  # type: ignore[misc]
        for label, way in WAYS
        for number in PROCESSES
    ]


def relay(bench: Bench, way: str, processes: int) -> Figures:
    """Append the events of this size while so many listen, and return what Valkey has used for each."""
    with bench.valkey(serving=True) as valkey, listeners(valkey.url, processes):
        before = cpu_of(valkey.pid)
        figures = append_to(valkey.url, way, bench.size, cores()[1])
        used = cpu_of(valkey.pid) - before
    return {"events_per_s": figures["events_per_s"], "us_per_event": 1e6 * used / bench.size.events}


@contextmanager
def listeners(url: str, number: int) -> Iterator[None]:
    """Have so many listen, in one process on the cores of the load."""
    command = [sys.executable, "-m", "benchmarks.listen", url, str(number)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        os.sched_setaffinity(process.pid, cores()[1])
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate()
