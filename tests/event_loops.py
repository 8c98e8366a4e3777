"""LIVEPUSH_EVENT_LOOP: an environment variable that chooses the event loop of asyncio tests.

`eager` (Python 3.12 and newer) starts each task eagerly, in tests and in the uvicorn servers that they start.
It runs the asyncio tests alone. `uvloop` runs the tests in memory that need no virtual time. Unset, every
test runs, on the default loop and on trio.
"""

import asyncio
import os
import sys

import pytest
import uvloop

from .selection import is_for_eager_tasks, is_for_uvloop

CHOICE = os.environ.get("LIVEPUSH_EVENT_LOOP", "")


def prepare(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Set the chosen task factory of a new loop, and return the loop."""
    if CHOICE == "eager" and sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop of the chosen kind. Also for `uvicorn --loop tests.event_loops:new_event_loop`."""
    return uvloop.new_event_loop() if CHOICE == "uvloop" else prepare(asyncio.SelectorEventLoop())


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return new_event_loop()


def install() -> None:
    """Make loops of the chosen kind the default of this process."""
    if CHOICE == "eager" and sys.version_info < (3, 12):
        raise pytest.UsageError("LIVEPUSH_EVENT_LOOP=eager needs Python 3.12 or newer")
    if CHOICE not in ("", "eager", "uvloop"):
        raise pytest.UsageError(f"LIVEPUSH_EVENT_LOOP is eager, uvloop or empty, not {CHOICE!r}")
    if CHOICE:
        asyncio.set_event_loop_policy(_Policy())


def runs(test: pytest.Function) -> bool:
    """Return whether the chosen loop runs this test."""
    if CHOICE == "uvloop":
        return is_for_uvloop(test)
    return CHOICE != "eager" or is_for_eager_tasks(test)
