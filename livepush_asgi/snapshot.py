"""Snapshots: what an application's callback returns, as blocks."""

import inspect
from collections.abc import Callable

from .event import Event


async def blocks_of(snapshot: Callable[[], object]) -> bytes:
    """Call a snapshot callback, async or not, and return its events as blocks.

    It returns one event or a list (or tuple) of them, each an Event or what an Event takes as data.
    Raises what the callback raises, and InvalidEventError.
    """
    found = snapshot()
    if inspect.isawaitable(found):
        found = await found
    events = found if isinstance(found, (list, tuple)) else [found]
    return b"".join(_event_of(item).encode() for item in events)


def _event_of(item: object) -> Event:
    return item if isinstance(item, Event) else Event(item)
