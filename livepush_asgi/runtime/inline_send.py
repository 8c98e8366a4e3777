"""InlineSend: calls an ASGI `send` outside of the stream's task, during a delivery.

Waking a task costs more than sending. `send` usually returns without waiting, so `InlineSend` steps its
coroutine directly. If `send` does wait, the stream's task finishes the coroutine.
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

# A `send` may start outside of its task if it waits for asyncio futures only and uses nothing that belongs to
# a task, such as a cancel scope or a timeout. The same holds for `receive`. These functions fulfil that. A
# function that a middleware has put around them may not, so it is not stepped. Another server can mark its
# own functions with an attribute `livepush_inline = True`.
# https://github.com/encode/uvicorn/tree/master/uvicorn/protocols/http
_STEPPABLE = frozenset(
    {
        (f"uvicorn.protocols.http.{module}", f"RequestResponseCycle.{name}")
        for module in ("httptools_impl", "h11_impl")
        for name in ("send", "receive")
    }
)

# The first and the last tested version of uvicorn, without the patch number.
TESTED_UVICORN = ((0, 34), (0, 54))

# The functions that passed the check: every request checks two.
_verified: set[types.FunctionType] = set()


def can_step(function: object) -> bool:
    """Return whether this `send` or `receive` may be stepped outside of the stream's task."""
    function = getattr(function, "__func__", function)
    if isinstance(function, types.FunctionType) and function in _verified:
        return True
    # `functools.wraps` copies the name and the attributes of a function to a wrapper, which may do anything.
    if hasattr(function, "__wrapped__"):
        return False
    if isinstance(function, types.FunctionType) and _is_steppable(function):
        return True
    return getattr(function, "livepush_inline", False) is True


def _is_steppable(function: types.FunctionType) -> bool:
    # Compare the names in the code object: `functools.wraps` does not change them.
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
    # `lru_cache` limits this line to one per version.
    logger.info(
        "uvicorn %s is not among the versions whose `send` was tested outside of its task "
        "(%d.%d to %d.%d): each stream's own task sends, which takes more processor time",
        version or "of an unknown version",
        *first,
        *last,
    )
    return False


class InlineSend(ABC):
    """Sends chunks by stepping `send`. Requires `can_step(send)`. Base class of the drivers."""

    __slots__ = ("_send", "_yielded", "unfinished")

    def __init__(self, send: Send) -> None:
        self._send = send
        #: A `send` that has started and waits. Until `finish` returns, the driver must not send anything
        #: else.
        self.unfinished: Coroutine[Any, Any, None] | None = None
        self._yielded: object = None

    @abstractmethod
    def send_failed(self, error: Exception) -> None:
        """Called when `send` has raised. Returns at once."""

    @abstractmethod
    def interrupt(self) -> None:
        """Stop the driver, even during a send. Returns at once; harmless the second time."""

    def begin(self, chunk: bytes) -> bool:
        """Start to send a chunk. Return True if `send` has returned, False if `finish` has to be awaited."""
        # `can_step` guarantees a coroutine; the type of `send` is wider.
        coroutine: Any = self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        try:
            self._yielded = coroutine.send(None)
        except StopIteration:
            return True
        except asyncio.CancelledError:
            # No task runs here that could be cancelled: the server has cancelled the future that `send`
            # awaits.
            self.send_failed(ConnectionAbortedError("the server has closed the connection"))
            return True
        except Exception as error:
            self.send_failed(error)
            return True
        self.unfinished = coroutine
        return False

    async def finish(self) -> None:
        """Finish the `send` that `begin` has started. Raises what `send` raises."""
        coroutine, self.unfinished = self.unfinished, None
        if coroutine is not None:
            await _resume(coroutine, self._yielded)

    def abandon(self) -> None:
        """Close the `send` that `begin` has started and `finish` has not finished."""
        coroutine, self.unfinished = self.unfinished, None
        if coroutine is not None:
            coroutine.close()


@types.coroutine
def _resume(coroutine: Coroutine[Any, Any, None], yielded: object) -> Generator[Any, Any, None]:
    """Run a coroutine from its first `yield` to its end, as `yield from` would."""
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
