"""Prometheus: the numbers of a LivePush in prometheus_client, for one process or for several workers.

`pip install 'livepush_asgi[prometheus]'`. Without that library, `livepush_asgi.metrics.text` writes the same
series as text.
"""

import os
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, values
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector

from ..app.livepush import LivePush
from ..metrics.series import SERIES, Series, Value, Values
from ..metrics.text import bound_text
from ..process.observer import Observer
from ..process.statistics import Statistics

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
# How the gauges of several workers become one. A worker that has died does not count.
_MODES = {"livepush_healthy": "livemin", "livepush_draining": "livemax", "livepush": "livemax"}
_LIVE_FILE = re.compile(r"gauge_live[a-z]+_(\d+)\.db")
# The LivePush whose numbers this process writes to the directory. A second one would overwrite them.
_written: list[LivePush] = []


def collector(push: LivePush) -> Collector:
    """Return a collector, for `REGISTRY.register(collector(push))`. It reads `push` at each scrape.

    Raises RuntimeError if PROMETHEUS_MULTIPROC_DIR is set: prometheus_client runs no collectors then, so the
    series would be missing without a word. Use `instrument` there.
    """
    if _directory() is not None:
        raise RuntimeError(
            f"{_DIRECTORY} is set: prometheus_client runs no collectors in its multiprocess mode, so these "
            "series would be missing; call instrument(push) instead"
        )
    return _Collector(push)


def instrument(push: LivePush, interval: float = 1.0, *, registry: CollectorRegistry = REGISTRY) -> None:
    """Add the series of `push` to prometheus_client. Call it where `push` is made, before it starts.

    In one process this registers a `collector` with `registry`, which reads `push` at each scrape.

    If PROMETHEUS_MULTIPROC_DIR is set, each worker writes its numbers there every `interval` seconds, and
    once more when it stops. A scrape of any worker through MultiProcessCollector then gives the sums over all
    workers: the counters of workers that have ended stay in the sums, and their gauges do not. For
    `livepush_healthy` it gives 0 if one worker is unhealthy. Gauges of a worker that was killed go when
    another worker has noticed it, within `interval` seconds.

    Raises ValueError if the directory does not exist, another LivePush of the process writes there, or
    `interval` is not above 0. Raises RuntimeError if the variable was set after prometheus_client had been
    imported, or if `push` has started.
    """
    if not interval > 0:
        raise ValueError(f"interval is a number of seconds above 0, not {interval!r}")
    directory = _directory()
    if directory is None:
        registry.register(_Collector(push))
        return
    if not directory.is_dir():
        raise ValueError(f"{_DIRECTORY} is {str(directory)!r}, which is no directory: make it first, empty")
    if values.ValueClass is values.MutexValue:
        raise RuntimeError(
            f"{_DIRECTORY} was set after prometheus_client had been imported, which has no effect: set it in "
            "the environment of the server"
        )
    if _written:
        raise ValueError("another LivePush of this process is instrumented: its series have the same names")
    push._observe(_Writer(push, directory, interval))
    _written.append(push)


def _directory() -> Path | None:
    # prometheus_client still takes the lower case.
    found = os.environ.get(_DIRECTORY) or os.environ.get(_DIRECTORY.lower())
    return Path(found) if found else None


class _Collector(Collector):
    def __init__(self, push: LivePush) -> None:
        self._push = push

    def collect(self) -> Iterator[Metric]:
        now = self._push.statistics()
        for series in SERIES:
            yield _family(series, series.read(now))

    def describe(self) -> Iterator[Metric]:
        for series in SERIES:
            yield _family(series, {})


def _family(series: Series, found: Values) -> Metric:
    family: Metric
    if series.kind == "info":
        family = info = InfoMetricFamily(series.name, series.help)
        for labels in found:
            info.add_metric([], dict(zip(series.labels, labels, strict=True)))
    elif series.kind == "histogram":
        family = histogram = HistogramMetricFamily(series.name, series.help, labels=series.labels)
        for labels, value in found.items():
            assert isinstance(value, dict)
            bounds = [bound_text(bound) for bound in [*value["bounds"], float("inf")]]
            buckets = list(zip(bounds, accumulate(value["counts"]), strict=True))
            histogram.add_metric(labels, buckets, value["sum"])
    else:
        kind = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
        family = numbers = kind(series.name, series.help, labels=series.labels)
        for labels, value in found.items():
            assert not isinstance(value, dict)
            numbers.add_metric(labels, value)
    return family


class _Writer(Observer):
    """Writes the numbers of this worker into the files of prometheus_client's multiprocess mode.

    It makes the files in its first `sample`, and not before: a server may make `push` in a process that forks
    the workers and has no streams.
    """

    def __init__(self, push: LivePush, directory: Path, interval: float) -> None:
        self.interval = interval
        self._push = push
        self._directory = directory
        self._pid = 0
        self._numbers: dict[tuple[str, ...], _Number] = {}
        # The other processes that were alive.
        self._alive: set[int] = set()

    def sample(self) -> None:
        if self._pid != os.getpid():
            # A process that was forked from one that had written counts from 0.
            self._pid, self._numbers = os.getpid(), {}
        now: Statistics = self._push.statistics()
        for series in SERIES:
            for labels, value in series.read(now).items():
                self._write(series, labels, value)
        self._remove_gauges_of_the_dead()

    def _write(self, series: Series, labels: tuple[str, ...], value: Value) -> None:
        if not isinstance(value, dict):
            self._number(series, series.full_name, labels).write(value)
            return
        for bound, count in zip([*value["bounds"], float("inf")], value["counts"], strict=True):
            self._number(series, f"{series.name}_bucket", labels, bound_text(bound)).write(count)
        self._number(series, f"{series.name}_sum", labels).write(value["sum"])

    def _number(self, series: Series, name: str, labels: tuple[str, ...], *le: str) -> "_Number":
        key = (name, *labels, *le)
        if key not in self._numbers:
            self._numbers[key] = _Number(series, name, labels, le)
        return self._numbers[key]

    def _remove_gauges_of_the_dead(self) -> None:
        # Only of processes that this one has seen: the directory may be shared with another container, whose
        # processes cannot be seen from here.
        found = {int(match[1]) for name in os.listdir(self._directory) if (match := _LIVE_FILE.match(name))}
        alive = {pid for pid in found if _is_alive(pid)}
        for pid in self._alive & (found - alive):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
        self._alive = alive


class _Number:
    """One number in a file of this process."""

    def __init__(self, series: Series, name: str, labels: tuple[str, ...], le: tuple[str, ...]) -> None:
        # A counter is increased and not set: its file may be that of an earlier process with the same id.
        self._is_gauge = series.kind in ("gauge", "info")
        self._last: float = 0
        self._value = values.ValueClass(
            "gauge" if self._is_gauge else series.kind,
            series.full_name if self._is_gauge else series.name,
            name,
            (*series.labels, *(["le"] if le else [])),
            (*labels, *le),
            series.help,
            multiprocess_mode=_MODES.get(series.name, "livesum") if self._is_gauge else "",
        )

    def write(self, value: float) -> None:
        if self._is_gauge:
            self._value.set(value)
        elif value != self._last:
            self._value.inc(value - self._last)
            self._last = value


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
