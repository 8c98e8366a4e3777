"""Tell many stories on all cores: `python -m tests.seam 20000 [--first SEED] [--found]`.

Prints how many stories failed. Of each kind of failure it shows one story, as short as it can be made and in
the form in which `found.py` keeps it. Exits 1 if any story failed.
"""

import argparse
import os
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from .found import FOUND
from .tales import Tale, invent, shorten

CHUNK = 50
#: How many kinds of failure are shortened and printed whole.
MAX_SHOWN = 25


def failures(seeds: range) -> list[tuple[int, str]]:
    """Tell the stories of these seeds, and return what was wrong with each."""
    # A story that failed may leave tasks and sockets behind, of which Python warns.
    warnings.simplefilter("ignore")
    found = ((seed, invent(seed).error()) for seed in seeds)
    return [(seed, error) for seed, error in found if error is not None]


def kind(error: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"\b[abcd] ", "? ", error))[:110]


def report(found: Iterable[tuple[int, str]], stories: int, seconds: float) -> bool:
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for seed, error in found:
        kinds[kind(error)].append(seed)
    failed = sum(map(len, kinds.values()))
    print(f"{stories} stories in {seconds:.0f} s, {stories / seconds:.0f} a second: {failed} failed")
    for name, seeds in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):6} {name}  (seeds {', '.join(map(str, seeds[:5]))})")
    for seeds in list(kinds.values())[:MAX_SHOWN]:
        show(shorten(invent(seeds[0])))
    return bool(kinds)


def show(tale: Tale) -> None:
    print(f"\n{tale.error()}\n{tale}\n{tale.transcript()}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.seam", description=__doc__)
    parser.add_argument("stories", type=int, nargs="?", default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first story")
    parser.add_argument(
        "--found", action="store_true", help="tell the stories that failed once, and no others"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.found:
        wrong = [(name, error) for name, tale in FOUND.items() if (error := tale.error()) is not None]
        print("\n".join(f"{name}: {error}" for name, error in wrong) or "none fails")
        return bool(wrong)
    begun, last = time.monotonic(), given.first + given.stories
    chunks = [range(seed, min(seed + CHUNK, last)) for seed in range(given.first, last, CHUNK)]
    with ProcessPoolExecutor(given.jobs) as pool:
        found = [failure for failed in pool.map(failures, chunks) for failure in failed]
    return report(found, given.stories, time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
