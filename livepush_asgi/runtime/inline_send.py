"""InlineSend: calls an ASGI `send` outside of the stream's task, during a delivery.

Waking a task costs more than sending, and `send` usually returns without waiting. So `InlineSend` steps the
coroutine of a `send` that it knows. From Python 3.12 on it runs any other `send` in an eager task, which
costs half a microsecond more. If `send` does wait, the stream's task finishes it.
https://docs.python.org/3/library/asyncio-task.html#eager-task-factory
"""

import asyncio
import logging
import re
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Generator
from contextvars import Context
from functools import lru_cache, partial
from typing import Any

from .asgi import Message, Send
from .event_loop import HAS_EAGER_TASKS, start_eager_task
from .failure_log import fields

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

# The `send` of granian, written in Rust, returns an awaitable that is done already.
# https://github.com/emmett-framework/granian/blob/master/src/asgi/io.rs
_STEPPABLE_BUILTINS = frozenset({("granian._granian", "ASGIHTTPProtocol.send")})

# The functions that every application of Starlette and FastAPI puts around `send`. They await nothing else.
# https://github.com/encode/starlette/blob/master/starlette/_exception_handler.py
_PASSING_ON = frozenset(
    {
        ("starlette.middleware.errors", "ServerErrorMiddleware.__call__.<locals>._send"),
        (
            "starlette._exception_handler",
            "wrap_app_handling_exceptions.<locals>.wrapped_app.<locals>.sender",
        ),
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
    if isinstance(function, types.FunctionType):
        if _name_of(function) in _PASSING_ON:
            return can_step(_closure_of(function).get("send"))
        if _is_steppable(function):
            return True
    if isinstance(function, types.BuiltinMethodType):
        return (type(function.__self__).__module__, function.__qualname__) in _STEPPABLE_BUILTINS
    return getattr(function, "livepush_inline", False) is True


def _name_of(function: types.FunctionType) -> tuple[object, str]:
    # `functools.wraps` changes every name of a function but that in its code object.
    return function.__globals__.get("__name__"), function.__code__.co_qualname


def _closure_of(function: types.FunctionType) -> dict[str, object]:
    cells = function.__closure__ or ()
    return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, cells, strict=True)}


def _is_steppable(function: types.FunctionType) -> bool:
    if _name_of(function) not in _STEPPABLE:
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
        "(%d.%d to %d.%d): it runs in a task, which takes more processor time",
        version or "of an unknown version",
        *first,
        *last,
        extra=fields("server_untested", version=version),
    )
    return False


class InlineSend(ABC):
    """Sends chunks outside of the stream's task, if `can_begin`. Base class of the drivers."""

    __slots__ = ("_context", "_is_stepped", "_send", "_yielded", "unfinished")

    def __init__(self, send: Send) -> None:
        # A function of another language may return an awaitable that is no coroutine.
        self._send = partial(_call, send) if isinstance(send, types.BuiltinMethodType) else send
        #: A `send` that has started and waits. Until `finish` returns, the driver must not send anything
        #: else.
        self.unfinished: Coroutine[Any, Any, None] | asyncio.Task[None] | None = None
        self._yielded: object = None
        self._is_stepped = can_step(send)
        # The context of the eager tasks: that of the stream's task when the response has started.
        self._context: Context | None = None

    @property
    def can_begin(self) -> bool:
        """Whether `send` may run outside of the stream's task: in a step, or in an eager task."""
        return self._is_stepped or HAS_EAGER_TASKS

    @abstractmethod
    def send_failed(self, error: Exception) -> None:
        """Called when `send` has raised. Returns at once."""

    @abstractmethod
    def interrupt(self) -> None:
        """Stop the driver, even during a send. Returns at once; harmless the second time."""

    def begin(self, chunk: bytes) -> bool:
        """Start to send a chunk. Return True if `send` has returned, False if `finish` has to be awaited."""
        message: Message = {"type": "http.response.body", "body": chunk, "more_body": True}
        try:
            if self._context is not None:
                return self._run(message, self._context)
            # `can_step` guarantees a coroutine; the type of `send` is wider.
            coroutine: Any = self._send(message)
            self._yielded = coroutine.send(None)
        except StopIteration:
            return True
        except asyncio.CancelledError:
            # The server has cancelled the future that `send` awaits, and not a task of the component.
            self.send_failed(ConnectionAbortedError("the server has closed the connection"))
            return True
        except Exception as error:
            self.send_failed(error)
            return True
        self.unfinished = coroutine
        return False

    def _run(self, message: Message, context: Context) -> bool:
        # A copy, because a context runs one task at a time. A `send` that is a plain function is called in
        # the task too.
        task = start_eager_task(_call(self._send, message), context.copy())
        if task.done():
            task.result()
            return True
        self.unfinished = task
        return False

    async def finish(self) -> None:
        """Finish the `send` that `begin` has started. Raises what `send` raises."""
        unfinished, self.unfinished = self.unfinished, None
        if isinstance(unfinished, asyncio.Task):
            await unfinished
        elif unfinished is not None:
            await _resume(unfinished, self._yielded)

    def abandon(self) -> None:
        """Stop the `send` that `begin` has started and `finish` has not finished."""
        unfinished, self.unfinished = self.unfinished, None
        if isinstance(unfinished, asyncio.Task):
            unfinished.add_done_callback(lambda task: task.cancelled() or task.exception())
            unfinished.cancel()
        elif unfinished is not None:
            unfinished.close()


async def _call(send: Send, message: Message) -> None:
    await send(message)


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
