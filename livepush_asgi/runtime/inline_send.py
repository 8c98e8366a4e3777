"""DirectSend: an ASGI `send` that is called outside of the stream's task, in the middle of a delivery.

Waking a task costs more than sending. Where `send` commonly runs to its end without waiting, it is
stepped by hand instead, and only if it does wait does the stream's task go on with it.
"""

import asyncio
import logging
import re
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Generator
from functools import lru_cache
from typing import Any, Protocol

from .asgi import Send

logger = logging.getLogger("livepush_asgi")

# A `send` may be begun here and finished in another task if it waits for nothing but a future of asyncio,
# and uses nothing that belongs to a task, as a cancel scope or a timeout does; so may a `receive`. These
# servers' are such. Of what a middleware has put around them nobody knows that. Another server can say it of
# its own: by an attribute `livepush_inline = True` of the function.
# https://github.com/encode/uvicorn/tree/master/uvicorn/protocols/http
_KNOWN = frozenset(
    {
        (f"uvicorn.protocols.http.{module}", f"RequestResponseCycle.{name}")
        for module in ("httptools_impl", "h11_impl")
        for name in ("send", "receive")
    }
)

# The first and the last version of uvicorn (without the patch number) whose functions were found to be so.
TESTED_UVICORN = ((0, 34), (0, 54))

# The functions that were found to be such: every request asks for two of them.
_found: set[types.FunctionType] = set()


def is_stepped(function: object) -> bool:
    """Return whether this `send` or `receive` may be stepped outside of the stream's task."""
    function = getattr(function, "__func__", function)
    # What `functools.wraps` has put around one has its name and its attributes, and may do anything.
    if hasattr(function, "__wrapped__"):
        return False
    if isinstance(function, types.FunctionType) and _is_known(function):
        return True
    return getattr(function, "livepush_inline", False) is True


def _is_known(function: types.FunctionType) -> bool:
    if function in _found:
        return True
    # By what it was compiled from, and not by the names that it may have been given.
    if (function.__globals__.get("__name__"), function.__code__.co_qualname) not in _KNOWN:
        return False
    if not _is_tested(str(getattr(sys.modules.get("uvicorn"), "__version__", ""))):
        return False
    _found.add(function)
    return True


@lru_cache
def _is_tested(version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    first, last = TESTED_UVICORN
    if found is not None and first <= (int(found[1]), int(found[2])) <= last:
        return True
    # Cached, so that it is said once.
    logger.info(
        "uvicorn %s is not among the versions whose `send` is known to run outside of its task "
        "(%d.%d to %d.%d): each stream's own task sends, which costs more processor time",
        version or "of an unknown version",
        *first,
        *last,
    )
    return False


class Carrier(Protocol):
    """Who asks for a stream's chunks and sends them."""

    def interrupt(self) -> None:
        """Stop at once, in the middle of a send too. Returns at once; harmless the second time."""
        ...


class DirectSend(ABC):
    """Sends chunks by stepping `send`, of which `applies` is true. It is the base of a carrier."""

    __slots__ = ("_begun", "_send", "_yielded")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun: Coroutine[Any, Any, None] | None = None
        self._yielded: object = None

    @abstractmethod
    def note(self, error: Exception) -> None:
        """Take note that `send` has failed. Returns at once."""

    @staticmethod
    def applies(send: Send) -> bool:
        """Return whether this `send` is one that can be stepped."""
        return is_stepped(send)

    @property
    def unfinished(self) -> bool:
        """Whether a chunk is on its way: until `finish` has returned nothing else may be sent."""
        return self._begun is not None

    def begin(self, chunk: bytes) -> bool:
        """Send a chunk, or as much of it as goes without waiting; return whether that was all."""
        # One Coroutine, by `applies`: the type of `send` has to be wider.
        coroutine: Any = self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        try:
            self._yielded = coroutine.send(None)
        except StopIteration:
            return True
        except asyncio.CancelledError:
            # No task runs here that could be cancelled: the server has given up what `send` waited for.
            self.note(ConnectionAbortedError("the server has given up the connection"))
            return True
        except Exception as error:
            self.note(error)
            return True
        self._begun = coroutine
        return False

    async def finish(self) -> None:
        """Wait for what was begun. Raises what `send` raises."""
        coroutine, self._begun = self._begun, None
        if coroutine is not None:
            await _go_on(coroutine, self._yielded)

    def give_up(self) -> None:
        """Give up what was begun and not finished."""
        coroutine, self._begun = self._begun, None
        if coroutine is not None:
            coroutine.close()


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, None], yielded: object) -> Generator[Any, Any, None]:
    """Hand on what a coroutine waits for, until it returns."""
    try:
        while True:
            try:
                value = yield yielded
            except BaseException as error:
                yielded = coroutine.throw(error)
            else:
                yielded = coroutine.send(value)
    except StopIteration:
        return
