"""Report: results as a table for the terminal, as Markdown and as plots, with the machine they are of."""

import importlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import correlation, linear_regression
from textwrap import fill

from .result import Result

# The title of each figure in a table.
TITLES = {
    "events_per_s": "events a second",
    "us_per_event": "µs per event",
    "valkey_us": "of it Valkey",
    "us_per_connect": "µs per connect",
    "kib_per_stream": "KiB per stream",
    "peak_kib_per_stream": "KiB at the peak",
    "mib": "MiB in all",
    "fullest": "most sockets of a process",
    "connect_s": "connected, s",
    "subscribed_s": "subscribed, s",
    "ready_s": "ready, s",
    "cpu_s": "processor, s",
    "cpu_percent": "% of a core",
    "first_ms": "first ms",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_ms": "last ms",
    "live_p99_ms": "p99 of others, ms",
    "work": "events x streams",
}
COUNTS = {"missing", "duplicates", "connections", "fullest", "work"}
PACKAGES = ("uvicorn", "granian", "hypercorn", "uvloop", "httptools", "anyio", "redis", "hiredis")


def machine(peers: Sequence[str] = ()) -> str:
    """Return the machine, the versions, and how busy the machine is with other things."""
    named = [f"{name} {found}" for name in (*PACKAGES, *peers) if (found := _version(name))]
    return (
        f"{os.cpu_count()} cores ({_processor()}), {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {', '.join(named)}; load average {os.getloadavg()[0]:.1f}"
    )


def heading(result: Result) -> str:
    """Return what was measured, and how often."""
    rounds = f"{result.rounds} rounds" if result.rounds > 1 else "1 round"
    return f"{result.name}: {result.title} ({result.size}; median of {rounds})"


def rows(result: Result) -> list[list[str]]:
    """Return the table, its head first: each figure, and behind a compared one its ratio to the first row."""
    head = [""]
    for key in result.shown:
        head.append(TITLES.get(key, key))
        if key in result.compared:
            head.append("ratio (spread)")
    return [head, *([label, *_cells(result, label)] for label in result.runs)]


def text(result: Result) -> str:
    """Return the table for a terminal."""
    table = rows(result)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return "\n".join([heading(result), *lines, *_fit_line(result)])


def markdown(results: Sequence[Result], conditions: str) -> str:
    """Return all tables, under the machine."""
    parts = [f"{conditions}."]
    for result in results:
        parts.append(
            "\n".join([f"**{heading(result)}**", "", *markdown_table(rows(result)), *_fit_line(result)])
        )
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, whose first row is its head."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" + "|--:" * (len(rows[0]) - 1) + "|", *rest]


def plot(results: Sequence[Result], folder: Path, conditions: str) -> list[Path]:
    """Draw one picture of each result, and return where they are. Raises ImportError without matplotlib."""
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        figure = _draw_line(pyplot, result) if result.name == "line" else _draw_bars(pyplot, result)
        width = int(16 * figure.get_figwidth())
        figure.suptitle(fill(heading(result), width), fontsize=8)
        figure.text(0.01, 0.01, fill(conditions, 3 * width // 2), fontsize=5)
        figure.tight_layout(rect=(0, 0.05, 1, 0.98))
        paths.append(folder / f"{result.name}.png")
        figure.savefig(paths[-1], dpi=120)
        pyplot.close(figure)
    return paths


def fit(result: Result) -> tuple[float, float, float]:
    """Return the straight line through cost and work: microseconds per event, seconds at 0, and r²."""
    work = [result.median(label, "work") for label in result.runs]
    cost = [result.median(label, "cpu_s") for label in result.runs]
    slope, at_nothing = linear_regression(work, cost)
    return 1e6 * slope, at_nothing, correlation(work, cost) ** 2


def _fit_line(result: Result) -> list[str]:
    if result.name != "line" or len(result.runs) < 3:
        return []
    slope, at_nothing, r2 = fit(result)
    return ["", f"straight line: {slope:.2f} µs per event and {1000 * at_nothing:.1f} ms, r² {r2:.4f}"]


def _cells(result: Result, label: str) -> list[str]:
    cells = []
    for key in result.shown:
        cells.append(_number(key, result.median(label, key)))
        if key in result.compared:
            cells.append(ratio(result.ratios(label, key)))
    return cells


def ratio(ratios: list[float]) -> str:
    """Return the median, and where there are several rounds the smallest and the largest."""
    middle = ratios[len(ratios) // 2] if len(ratios) % 2 else sum(ratios[len(ratios) // 2 - 1 :][:2]) / 2
    return f"{middle:.3g} ({ratios[0]:.3g} to {ratios[-1]:.3g})" if len(ratios) > 1 else f"{middle:.3g}"


def _number(key: str, value: float) -> str:
    if key in COUNTS:
        return f"{value:,.0f}"
    if value < 1:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _draw_bars(pyplot, result: Result):  # type: ignore[no-untyped-def]
    keys = result.compared
    figure, axes = pyplot.subplots(1, len(keys), figsize=(4.5 * len(keys) + 1.5, 3.5), squeeze=False)
    labels = list(result.runs)
    for axis, key in zip(axes[0], keys, strict=True):
        middle = [result.median(label, key) for label in labels]
        spread = [[figures[key] for figures in result.runs[label]] for label in labels]
        below = [m - min(values) for m, values in zip(middle, spread, strict=True)]
        above = [max(values) - m for m, values in zip(middle, spread, strict=True)]
        axis.barh(labels, middle, xerr=[below, above], color="#4878a8", capsize=3)
        axis.invert_yaxis()
        axis.set_xlabel(TITLES.get(key, key))
    return figure


def _draw_line(pyplot, result: Result):  # type: ignore[no-untyped-def]
    figure, axis = pyplot.subplots(figsize=(6, 4))
    work = [result.median(label, "work") for label in result.runs]
    for label, at in zip(result.runs, work, strict=True):
        axis.plot([at] * result.rounds, [run["cpu_s"] for run in result.runs[label]], "o", color="#4878a8")
    if len(work) > 2:
        slope, at_nothing, r2 = fit(result)
        along = [work[0] * (work[-1] / work[0]) ** (step / 50) for step in range(51)]
        drawn = [max(1e-6, at_nothing + slope * at / 1e6) for at in along]
        axis.plot(along, drawn, color="#c06040", label=f"{slope:.2f} µs per event, r² {r2:.4f}")
        axis.legend()
    axis.set(xscale="log", yscale="log", xlabel=TITLES["work"], ylabel=TITLES["cpu_s"])
    return figure


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
