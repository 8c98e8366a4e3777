"""Runs under any interleaving: each reader has the output once, in order, and whole or with a gap, and its
end; no two producers write it; and its status is what its log says.

The model is in `run_stories.py`. To tell many more by hand: `python -m tests.run_stories 20000`.
"""

import os
import warnings

import pytest

from .programs import EVERYTHING
from .run_stories import error_of

STORIES = 200 if EVERYTHING in os.environ else 40
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_whole_or_told(part: int) -> None:
    for seed in range(part, STORIES, PARTS):
        _check(seed)


def test_whole_in_memory() -> None:
    for seed in range(STORIES // PARTS):
        _check(seed, memory=True)


def _check(seed: int, *, memory: bool = False) -> None:
    told: list[str] = []
    with warnings.catch_warnings():
        # What a story leaves behind that was broken off is of no interest.
        warnings.simplefilter("ignore")
        error = error_of(seed, told.append, memory=memory)
    if error is not None:
        pytest.fail(f"seed {seed}: {error}\n" + "\n".join(told[-100:]), pytrace=False)
