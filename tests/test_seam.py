"""The seam between history and live, under any interleaving: what a client gets is contiguous, or the stream
says where it is not; and nothing comes twice.

The model, the clients and the stories are in `tests/seam/`. All runs in memory and in virtual time, so that a
story is the same each time it is told. `SEAM_STORIES` is how many are told here; unset, it is 2000 with
`--everything` and 400 without. To tell many more by hand: `python -m tests.seam 20000`.
"""

import os
import warnings

import pytest

from .programs import EVERYTHING
from .seam.found import FOUND
from .seam.tales import Tale, invent, shorten, subscribing

STORIES = int(os.environ.get("SEAM_STORIES") or (2000 if EVERYTHING in os.environ else 400))
PARTS = 8


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_wrong_once(name: str) -> None:
    _check(FOUND[name])


@pytest.mark.parametrize("part", range(PARTS))
def test_contiguous_or_told(part: int) -> None:
    for seed in range(part, STORIES, PARTS):
        _check(invent(seed))


@pytest.mark.parametrize("part", range(PARTS))
def test_contiguous_or_told_to_python_code(part: int) -> None:
    for seed in range(part, STORIES // 2, PARTS):
        _check(subscribing(invent(seed)))


def _check(tale: Tale) -> None:
    """Tell a story; if it fails, say how, with the shortest one that fails so and what its clients saw."""
    if tale.error() is None:
        return
    with warnings.catch_warnings():
        # What a story leaves behind that was broken off is of no interest.
        warnings.simplefilter("ignore")
        shortest = shorten(tale)
        pytest.fail(f"{shortest.error()}\n{shortest}\n{shortest.transcript()}", pytrace=False)
