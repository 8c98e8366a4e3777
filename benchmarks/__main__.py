"""Measure what events and streams cost, beside a floor, and print the table.

    python -m benchmarks [SCENARIO ...] [--quick] [--only LABEL,...] [--peers sse-starlette,fastapi,...]

Run it from the repository, on Linux, with a C compiler and `pip install -e ".[bench,test]"`. The server has
one core to itself and the clients the others; the rounds alternate between those compared, so that a ratio
holds while the machine's speed drifts. A `--quick` run says that it works, and little of the figures.
"""

import argparse
import importlib.util
import json
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from . import report
from .bench import Bench
from .load import build
from .result import Case, Result, Size
from .scenarios import SCENARIOS, run
from .serve import COMMANDS

PEERS = {
    "sse-starlette": "sse_starlette",
    "fastapi": "fastapi",
    "litestar": "litestar",
    "mgf-livepush": "mgf",
}
# Files that a server has open besides its streams.
OTHER_FILES = 200


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"all of {', '.join(SCENARIOS)}")
    made.add_argument("--quick", action="store_true", help="small sizes and one round")
    made.add_argument("--only", default="", metavar="LABEL,...", help="the first case, and those that match")
    made.add_argument("--rounds", type=int, help="how often each is measured (3)")
    made.add_argument("--streams", type=int, help="instead of the scenario's own size")
    made.add_argument("--events", type=int, help="instead of the scenario's own size")
    made.add_argument("--server", choices=COMMANDS, default="uvicorn")
    made.add_argument("--peers", default="", help="also measure these, where they are installed")
    made.add_argument("--markdown", type=Path, help="write the tables into this file")
    made.add_argument("--plots", type=Path, help="write a PNG of each into this folder (needs matplotlib)")
    made.add_argument("--json", type=Path, help="write every figure of every round into this file")
    return made


def texts(option: str) -> tuple[str, ...]:
    """Return the texts between the commas of an option."""
    return tuple(filter(None, (text.strip() for text in option.split(","))))


def peers_of(text: str) -> tuple[str, ...]:
    """Return the peers named that are installed, and say of the others that they are not."""
    names = texts(text)
    for name in names:
        if name not in PEERS:
            raise SystemExit(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
        if importlib.util.find_spec(PEERS[name]) is None:
            print(f"{name} is not installed and left out", file=sys.stderr)
    return tuple(name for name in names if importlib.util.find_spec(PEERS[name]) is not None)


def open_files() -> int:
    """Allow as many open files as may be, here and in all that is started, and return the number."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def size_of(name: str, options: argparse.Namespace) -> Size:
    """Return the size of a scenario, no larger than the limit of open files allows."""
    size = SCENARIOS[name].quick if options.quick else SCENARIOS[name].size
    size = replace(size, streams=options.streams or size.streams, events=options.events or size.events)
    room = open_files() - OTHER_FILES
    if size.streams > room:
        print(f"{name}: {room} streams only; `ulimit -Hn` allows no more", file=sys.stderr)
    return replace(size, streams=min(size.streams, room))


def cases_of(name: str, bench: Bench, only: Sequence[str]) -> list[Case]:
    """Return the first case, which is what the others are held against, and those that `only` names."""
    first, *others = SCENARIOS[name].cases(bench)
    if not only:
        return [first, *others]
    chosen = [case for case in others if any(text.lower() in case.label.lower() for text in only)]
    if not chosen:
        labels = ", ".join(case.label for case in others)
        raise SystemExit(f"{name} has no case {', '.join(only)}; it has {labels}")
    return [first, *chosen]


def measure(names: Sequence[str], options: argparse.Namespace, conditions: str) -> list[Result]:
    """Run the scenarios and print each table as soon as it is there."""
    rounds = options.rounds or (1 if options.quick else 3)
    print(conditions, flush=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        program, peers = build(Path(folder)), peers_of(options.peers)
        sizes = [(name, size_of(name, options)) for name in names]
        benches = [(name, Bench(program, Path(folder), size, options.server, peers)) for name, size in sizes]
        chosen = [(name, bench.size, cases_of(name, bench, texts(options.only))) for name, bench in benches]
        for name, size, cases in chosen:
            results.append(run(name, size, cases, rounds))
            print(f"\n{report.text(results[-1])}", flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    names = options.scenarios or list(SCENARIOS)
    if unknown := sorted(set(names) - set(SCENARIOS)):
        raise SystemExit(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    conditions = f"{options.server}; {report.machine(peers_of(options.peers))}"
    results = measure(names, options, conditions)
    if options.markdown:
        options.markdown.write_text(report.markdown(results, conditions))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    if options.plots:
        try:
            report.plot(results, options.plots, conditions)
        except ImportError:
            raise SystemExit("the plots need matplotlib: pip install matplotlib") from None


if __name__ == "__main__":
    main()
