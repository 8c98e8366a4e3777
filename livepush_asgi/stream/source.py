"""Source: runs the async iterator behind one stream, no further than its client takes."""

import inspect
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextvars import copy_context
from time import perf_counter

import anyio

from ..errors import InvalidEventError, RunFailedError
from ..runtime.event_loop import Sleep, is_cancelled, pause, spawn, wake
from ..runtime.failure_log import fields
from ..runtime.scheduler import Timer
from ..wire.event import block_of
from ..wire.reasons import EndReason
from ..wire.run_record import error_text
from .context import StreamContext

#: How long a generator may take to close after its stream has ended, in seconds. Then it is cancelled again.
CLOSE_TIMEOUT = 3.0
# How long the end of the response waits for the generator to close, in seconds: some servers exit right after
# their last response. It is short beside the window of a drain.
LAST_CHUNK_WAIT = 0.1
# How much longer those wait that need a generator closed, in seconds: one may ignore its cancellation.
PATIENCE = 0.5
# A generator that never waits lets other tasks run after this time, in seconds.
TURN = 0.002


class Source:
    """Runs an async iterator of events in a task of its own, and closes it.

    While the stream sends an event the iterator runs until it has produced one more, and then waits. One task
    runs every step and the closing: cancel scopes and context variables of a generator stay in it.
    `on_closed` is called once, when the iterator has been closed.
    """

    __slots__ = (
        "_accept",
        "_block",
        "_cancel",
        "_context",
        "_iterator",
        "_most_bytes",
        "_on_closed",
        "_room",
        "_step_cancelled",
        "_stepping",
        "_stopped",
        "_tell_stream",
        "_timer",
        "closed",
        "end_reason",
        "error",
        "over",
    )

    def __init__(
        self,
        iterator: AsyncIterator[object],
        context: StreamContext,
        on_closed: Callable[["Source"], object],
        most_bytes: int | None = None,
    ) -> None:
        #: Set when the iterator has been closed.
        self.closed = anyio.Event()
        #: FINISHED or ERROR when the iterator has ended by itself. `take` may still return a block.
        self.end_reason: EndReason | None = None
        #: The text for the readers of a run, if the iterator has raised one.
        self.error: str | None = None
        #: Whether the response may end: the iterator has been closed, or has not been in LAST_CHUNK_WAIT.
        self.over = False
        self._iterator: AsyncIterator[object] | None = iterator
        self._context = context
        self._on_closed = on_closed
        # How large a block may be.
        self._most_bytes = most_bytes
        # The block that the stream has not taken.
        self._block = b""
        # The task sleeps here while the stream has not taken the block.
        self._room: Sleep | None = None
        # Whether the task is in a step of the iterator.
        self._stepping = False
        # Whether `stop` has cancelled a step.
        self._step_cancelled = False
        self._stopped = False
        self._cancel: Callable[[], object] | None = None
        self._timer: Timer | None = None
        self._tell_stream: Callable[[], None] = lambda: None
        self._accept: Callable[[bytes], bool] | None = None

    def start(self, tell_stream: Callable[[], None], accept: Callable[[bytes], bool] | None = None) -> None:
        """Start the task, in the context of the calling task. Harmless the second time.

        `tell_stream` is called when there is a block, and at the end. `accept`, if given, is first offered
        each block: where it returns True, it has taken the block, and nobody is told.
        """
        if self._cancel is None:
            self._tell_stream, self._accept = tell_stream, accept
            self._cancel = spawn(self._run, "livepush generator", copy_context())

    def take(self) -> bytes:
        """Remove and return the block, and let the iterator run on. Return b"" if there is none."""
        block, self._block = self._block, b""
        if block and self._room is not None:
            wake(self._room)
            self._room = None
        return block

    def stop(self) -> None:
        """Close the iterator soon, because its stream has ended. Returns at once; harmless the second time.

        A generator that awaits is cancelled there, and one at a `yield` gets a GeneratorExit. Its `finally`
        may await, for CLOSE_TIMEOUT.
        """
        if self._stopped:
            return
        self._stopped = True
        if self.closed.is_set():
            return
        self._timer = self._context.scheduler.call_later(LAST_CHUNK_WAIT, self._let_response_end)
        if self._cancel is None:
            # It never ran. A generator then has nothing to do, but another iterator may hold something.
            self._cancel = spawn(self._run, "livepush generator")
        elif self._stepping:
            self._step_cancelled = True
            self._cancel()
        else:
            wake(self._room)

    async def wait_closed(self) -> None:
        """Wait until the iterator has been closed, even if cancelled. After `stop` that takes a bounded time.

        It returns CLOSE_TIMEOUT and half a second after `stop` in any case.
        """
        await wait_all_closed([self])

    async def _run(self) -> None:
        reason = EndReason.ERROR
        try:
            await self._iterate()
            reason = EndReason.FINISHED
        except Exception as error:
            if isinstance(error, RunFailedError):
                self.error = error_text(error)
            text = "a generator raised, so its stream ended as `error`"
            self._log_failure("a generator raised while it was closed" if self._stopped else text, error)
        except BaseException as error:
            # A cancellation of this task from outside is the end of the event loop.
            if not self._stopped and not is_cancelled():
                text = "a generator raised a cancellation of its own, so its stream ended as `error`"
                self._log_failure(text, error)
            raise
        finally:
            self.end_reason = reason
            # The stream sends what it has while the iterator closes.
            self._tell_stream()
            await self._close()

    async def _iterate(self) -> None:
        iterator = self._iterator
        assert iterator is not None
        hub, turn_ends = self._context.hub, perf_counter() + TURN
        accept, encode, most_bytes = self._accept, self._context.encode, self._most_bytes
        # If the hub has delivered in another turn of the loop, the generator has waited by itself.
        turn = hub.turn
        cancellation: BaseException | None = None
        while not self._stopped:
            self._stepping = True
            try:
                item = await (anext(iterator) if cancellation is None else _throw(iterator, cancellation))
            except StopAsyncIteration:
                return
            finally:
                self._stepping = False
            if self._stopped:
                return
            block = block_of(item, encode)
            if most_bytes is not None and len(block) > most_bytes:
                raise _too_large(block, most_bytes)
            cancellation = None
            if accept is None or not accept(block):
                self._block = block
                self._tell_stream()
                cancellation = await self._wait_taken() if self._block else None
            if turn != (turn := hub.turn):
                turn_ends = perf_counter() + TURN
            elif perf_counter() >= turn_ends:
                try:
                    await pause()
                except anyio.get_cancelled_exc_class() as error:
                    cancellation = error
                # `turn` has grown in this pause of the source. The generator has not waited by itself.
                turn, turn_ends = hub.turn, perf_counter() + TURN

    async def _wait_taken(self) -> BaseException | None:
        """Wait until the stream has taken the block. Return a cancellation of this task meanwhile, if any.

        It is for the generator: a time limit around a `yield` has ended.
        """
        cancellation: BaseException | None = None
        while self._block and not self._stopped:
            self._room = self._context.make_sleep()
            try:
                if cancellation is None:
                    await self._room
                else:
                    # A cancel scope of anyio cancels in every turn of the loop.
                    with anyio.CancelScope(shield=True):
                        await self._room
            except anyio.get_cancelled_exc_class() as error:
                cancellation = error
        return cancellation

    async def _close(self) -> None:
        iterator, self._iterator = self._iterator, None
        aclose = getattr(iterator, "aclose", None)
        try:
            if aclose is None:
                pass
            elif self._step_cancelled and not self._context.on_asyncio:
                # On trio the step was cancelled for good, and closing is not part of it.
                with anyio.CancelScope(shield=True) as scope:
                    self._cancel = scope.cancel
                    await aclose()
            else:
                # In no scope: a generator at a `yield` leaves those that it has entered, which are outside.
                await aclose()
        except BaseExceptionGroup as errors:
            # A task group around a `yield` wraps the GeneratorExit.
            if errors.split((GeneratorExit, anyio.get_cancelled_exc_class()))[1] is not None:
                self._log_failure("a generator raised while it was closed", errors)
        except Exception as error:
            self._log_failure("a generator raised while it was closed", error)
        finally:
            self.closed.set()
            self.over = True
            self._tell_stream()
            # Break the reference cycle with the stream.
            self._tell_stream, self._accept = lambda: None, None
            timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            self._on_closed(self)

    def _let_response_end(self) -> None:
        if not self.closed.is_set():
            self._timer = self._context.scheduler.call_later(
                CLOSE_TIMEOUT - LAST_CHUNK_WAIT, self._close_late
            )
            self.over = True
            self._tell_stream()

    def _close_late(self) -> None:
        if not self.closed.is_set() and self._cancel is not None:
            self._context.failures.log(
                logging.WARNING,
                "a generator was not closed %.0f s after the end of its stream, so it is cancelled: does its "
                "`finally` wait for something slow, or does it catch CancelledError?",
                CLOSE_TIMEOUT,
                extra=fields("generator_unclosed", seconds=CLOSE_TIMEOUT),
            )
            self._cancel()

    def _log_failure(self, text: str, error: BaseException) -> None:
        self._context.failures.log(logging.ERROR, text, error=error, extra=fields("generator_failed"))


def _too_large(block: bytes, most_bytes: int) -> InvalidEventError:
    return InvalidEventError(
        f"an item of {len(block)} bytes is too large for a log of {2 * most_bytes} bytes, "
        "which has to hold two: see History(size=...), or yield less at once"
    )


def _throw(iterator: AsyncIterator[object], cancellation: BaseException) -> Awaitable[object]:
    """Return the next step of a generator, in which a cancellation is raised at its `yield`."""
    athrow = getattr(iterator, "athrow", None)
    if athrow is None:
        raise cancellation
    step: Awaitable[object] = athrow(cancellation)
    return step


async def wait_all_closed(sources: Sequence[Source]) -> None:
    """Wait as `Source.wait_closed` does, for all of these together."""
    if all(source.closed.is_set() for source in sources):
        return
    with anyio.move_on_after(CLOSE_TIMEOUT + PATIENCE, shield=True):
        for source in sources:
            await source.closed.wait()


def iterator_of(source: object) -> AsyncIterator[object]:
    """Return the async iterator of a source. Raises TypeError for anything else, with the likely mistake."""
    if isinstance(source, AsyncIterable):
        return aiter(source)
    hint = ""
    if inspect.isasyncgenfunction(source):
        hint = f": call it, {source.__name__}()"
    elif inspect.iscoroutine(source):
        source.close()
        hint = ": does its `async def` have no `yield`?"
    elif isinstance(source, Iterable):
        hint = (
            ": it is synchronous, and would block the event loop; make it `async def`, or wrap it in "
            "iterate_in_threadpool of starlette.concurrency"
        )
    raise TypeError(f"a source is an async iterator, such as a generator, not {source!r:.100}{hint}")


async def close_unused(iterator: AsyncIterator[object]) -> None:
    """Close an iterator that was not run."""
    # A generator that never ran has nothing to close, but another iterator may hold something.
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        # The client may have left, which cancels this call.
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await aclose()
