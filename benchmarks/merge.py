"""Print the ratios of several runs side by side: `python -m benchmarks.merge 311.json 313.json`.

Each file is what `--json` has written, all of them with the same scenarios and cases.
"""

import json
import sys
from pathlib import Path

from .report import TITLES, markdown_table, ratio
from .result import Result


def main(*files: str) -> None:
    names = [Path(file).stem for file in files]
    for results in zip(*(read(Path(file)) for file in files), strict=True):
        first = results[0]
        head = [first.name, *(f"{TITLES[key]}, {name}" for key in first.compared for name in names)]
        rows = [
            [label, *(ratio(each.ratios(label, key)) for key in first.compared for each in results)]
            for label in first.runs
        ]
        print("\n".join(markdown_table([head, *rows])), end="\n\n")


def read(file: Path) -> list[Result]:
    return [Result(**result) for result in json.loads(file.read_text())]


if __name__ == "__main__":
    main(*sys.argv[1:])
