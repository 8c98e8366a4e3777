"""The event loop that asyncio tests run on, by the environment variable LIVEPUSH_EVENT_LOOP.

Without it the default loop. With `eager` (Python 3.12 and newer) a loop that starts each task at once, also
in the uvicorn servers that tests start. With `uvloop` only tests in memory that need no virtual time run,
on uvloop. With either of them nothing runs on trio.
"""

import asyncio
import os
import sys

import pytest
import uvloop

from .selection import is_for_eager_tasks, is_for_uvloop

CHOICE = os.environ.get("LIVEPUSH_EVENT_LOOP", "")


def prepare(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Have a new loop start its tasks as was chosen, and return it."""
    if CHOICE == "eager" and sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a loop as it was chosen. `uvicorn --loop tests.event_loops:new_event_loop` serves on it."""
    return uvloop.new_event_loop() if CHOICE == "uvloop" else prepare(asyncio.SelectorEventLoop())


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return new_event_loop()


def install() -> None:
    """Have all that makes an event loop in this process make the one that was chosen."""
    if CHOICE == "eager" and sys.version_info < (3, 12):
        raise pytest.UsageError("LIVEPUSH_EVENT_LOOP=eager needs Python 3.12 or newer")
    if CHOICE not in ("", "eager", "uvloop"):
        raise pytest.UsageError(f"LIVEPUSH_EVENT_LOOP is eager, uvloop or empty, not {CHOICE!r}")
    if CHOICE:
        asyncio.set_event_loop_policy(_Policy())


def runs(test: pytest.Function) -> bool:
    """Return whether a test is one for the chosen loop."""
    if CHOICE == "uvloop":
        return is_for_uvloop(test)
    return CHOICE != "eager" or is_for_eager_tasks(test)
