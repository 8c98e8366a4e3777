"""InlineSend: calls an ASGI `send` outside of the stream's task, in the middle of a delivery.

Waking a task costs more than sending. Where `send` usually returns without waiting, its coroutine is stepped
by hand. Only if it does wait does the stream's task go on with it.
"""

import asyncio
import logging
import re
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Generator
from functools import lru_cache
from typing import Any

from .asgi import Send

logger = logging.getLogger("livepush_asgi")

# A `send` may be begun here and finished in another task if it waits for nothing but futures of asyncio and
# uses nothing that belongs to a task, such as a cancel scope or a timeout. The same holds for `receive`. The
# functions of these servers are like that. A function that a middleware has put around them may not be, so it
# is not stepped. Another server can mark its own functions with an attribute `livepush_inline = True`.
# https://github.com/encode/uvicorn/tree/master/uvicorn/protocols/http
_STEPPABLE = frozenset(
    {
        (f"uvicorn.protocols.http.{module}", f"RequestResponseCycle.{name}")
        for module in ("httptools_impl", "h11_impl")
        for name in ("send", "receive")
    }
)

# The first and the last version of uvicorn (without the patch number) whose functions were tested.
TESTED_UVICORN = ((0, 34), (0, 54))

# The known functions that were seen: every request asks for two of them.
_verified: set[types.FunctionType] = set()


def can_step(function: object) -> bool:
    """Return whether this `send` or `receive` may be stepped outside of the stream's task."""
    function = getattr(function, "__func__", function)
    if isinstance(function, types.FunctionType) and function in _verified:
        return True
    # `functools.wraps` copies the name and the attributes of a function to one that may do anything.
    if hasattr(function, "__wrapped__"):
        return False
    if isinstance(function, types.FunctionType) and _is_steppable(function):
        return True
    return getattr(function, "livepush_inline", False) is True


def _is_steppable(function: types.FunctionType) -> bool:
    # By what it was compiled from, and not by the names that it was given later.
    if (function.__globals__.get("__name__"), function.__code__.co_qualname) not in _STEPPABLE:
        return False
    if not _is_tested(str(getattr(sys.modules.get("uvicorn"), "__version__", ""))):
        return False
    _verified.add(function)
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


class InlineSend(ABC):
    """Sends chunks by stepping `send`, where `can_step` is true of it. Base of a stream's driver."""

    __slots__ = ("_send", "_yielded", "unfinished")

    def __init__(self, send: Send) -> None:
        self._send = send
        #: The `send` of a chunk that is on its way: until `finish` has returned nothing else may be sent.
        self.unfinished: Coroutine[Any, Any, None] | None = None
        self._yielded: object = None

    @abstractmethod
    def send_failed(self, error: Exception) -> None:
        """Take note that `send` has raised. Returns at once."""

    @abstractmethod
    def interrupt(self) -> None:
        """Stop driving the stream, in the middle of a send too. Returns at once; harmless the second time."""

    def begin(self, chunk: bytes) -> bool:
        """Send a chunk, or as much of it as goes without waiting; return whether that was all."""
        # One Coroutine, by `can_step`: the type of `send` has to be wider.
        coroutine: Any = self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        try:
            self._yielded = coroutine.send(None)
        except StopIteration:
            return True
        except asyncio.CancelledError:
            # No task runs here that could be cancelled: the server has given up what `send` waited for.
            self.send_failed(ConnectionAbortedError("the server has given up the connection"))
            return True
        except Exception as error:
            self.send_failed(error)
            return True
        self.unfinished = coroutine
        return False

    async def finish(self) -> None:
        """Wait for what was begun. Raises what `send` raises."""
        coroutine, self.unfinished = self.unfinished, None
        if coroutine is not None:
            await _resume(coroutine, self._yielded)

    def abandon(self) -> None:
        """Give up what was begun and not finished."""
        coroutine, self.unfinished = self.unfinished, None
        if coroutine is not None:
            coroutine.close()


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, None], yielded: object) -> Generator[Any, Any, None]:
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
