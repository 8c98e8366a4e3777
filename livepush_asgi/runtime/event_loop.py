"""Functions of the asyncio or trio event loop that anyio does not offer."""

import asyncio
import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future, wait
from contextvars import Context
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from ..errors import BrokerUnavailableError

# asyncio and trio themselves declare `Any` for the values that a coroutine yields and receives.
T = TypeVar("T")
BackgroundFunction = Callable[[], Coroutine[Any, Any, None]]
Caller = Callable[[Callable[[], object]], None]

# How often a thread that waits for another one's event loop looks whether that still runs, in seconds.
_LOOK_INTERVAL = 0.5
_LOOP_ENDED = "the event loop ended before this call; what it asked for may have been done"


def loop_identity() -> object:
    """Return an object that identifies the running event loop."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()


def is_running(loop: object) -> bool:
    """Return whether an event loop, given by its `loop_identity`, still runs. Any thread may call this."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_running()
    import trio

    assert isinstance(loop, trio.lowlevel.TrioToken)
    try:
        loop.run_sync_soon(lambda: None)
    except trio.RunFinishedError:
        return False
    return True


async def run_on(loop: object, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await a coroutine on the event loop of another thread, given by its `loop_identity`."""
    return await anyio.to_thread.run_sync(call_on, loop, function, abandon_on_cancel=True)


def call_on(loop: object, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on the event loop of another thread, and wait for its result. Blocks.

    Raises BrokerUnavailableError if the loop ends first.
    """
    if isinstance(loop, asyncio.AbstractEventLoop):
        return result_of(submit_to(loop, function()), loop)
    import trio

    assert isinstance(loop, trio.lowlevel.TrioToken)
    try:
        return trio.from_thread.run(function, trio_token=loop)
    except (trio.Cancelled, trio.RunFinishedError) as error:
        raise BrokerUnavailableError(_LOOP_ENDED) from error


def submit_to(loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the event loop of another thread. BrokerUnavailableError if it is closed."""
    try:
        return asyncio.run_coroutine_threadsafe(call, loop)
    except RuntimeError as error:
        call.close()
        raise BrokerUnavailableError(_LOOP_ENDED) from error


def result_of(future: Future[T], loop: asyncio.AbstractEventLoop) -> T:
    """Wait for the result of `submit_to`. Raises BrokerUnavailableError if the loop ends first."""
    # A loop that ends runs nothing that was submitted at that moment, so the future may stay pending.
    while not wait([future], _LOOK_INTERVAL).done and loop.is_running():
        pass
    future.cancel()
    try:
        return future.result()
    except CancelledError as error:
        raise BrokerUnavailableError(_LOOP_ENDED) from error


def refuse_to_block(name: str, instead: str) -> None:
    """Raise RuntimeError if this thread runs an event loop, which the function called `name` would block."""
    # If trio is not imported, it cannot be running.
    trio = sys.modules.get("trio")
    if on_asyncio() or (trio is not None and trio.lowlevel.in_trio_run()):
        raise RuntimeError(f"{name} blocks, and this thread runs an event loop: use `{instead}`")


def on_asyncio() -> bool:
    """Return whether an asyncio event loop runs, such as uvloop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return the running asyncio loop. Raises RuntimeError on trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "the adapters for Redis and NATS work on asyncio, and no event loop of it runs here: serve with "
            "an asyncio worker, or take MemoryBroker and MemorySlotCap"
        ) from None


def threadsafe_caller() -> Caller:
    """Return a function that schedules another function on the running loop.

    A signal handler, a finalizer or another thread may call it. After the end of the loop it does nothing.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_caller()

    def call(function: Callable[[], object]) -> None:
        # asyncio and uvloop raise RuntimeError when the loop is closed.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function)

    return call


def soon_caller() -> Callable[[Callable[[], object]], object]:
    """Return a function that schedules another function in the loop's next turn. Not thread-safe."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _trio_caller()

    return loop.call_soon


def _trio_caller() -> Caller:
    import trio

    token = trio.lowlevel.current_trio_token()

    def call(function: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(function)

    return call


def start_task(
    coroutine: Coroutine[Any, Any, None], name: str, context: Context | None = None
) -> asyncio.Task[None]:
    """Start a task of the running asyncio loop whose first step runs in a later turn of the loop.

    With `asyncio.eager_task_factory`, `create_task` runs the first step of a task at once, before the caller
    has stored the task and set the state that the task reads. So this function does not use the loop's task
    factory.
    """
    return asyncio.Task(coroutine, loop=asyncio_loop(), name=name, context=context)


#: Whether `start_eager_task` starts a task at once.
HAS_EAGER_TASKS = sys.version_info >= (3, 12)

if sys.version_info >= (3, 12):

    def start_eager_task(
        coroutine: Coroutine[Any, Any, None], context: Context | None = None
    ) -> asyncio.Task[None]:
        """Start a task that runs its first step now, in a context that runs nothing else."""
        return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), context=context, eager_start=True)

else:

    def start_eager_task(
        coroutine: Coroutine[Any, Any, None], context: Context | None = None
    ) -> asyncio.Task[None]:
        """Start a task, whose first step runs in the next turn of the loop on this version of Python."""
        return asyncio.get_running_loop().create_task(coroutine, context=context)


# asyncio itself keeps only weak references to its tasks.
_background: set[asyncio.Task[None]] = set()


def spawn(function: BackgroundFunction, name: str, context: Context | None = None) -> Callable[[], object]:
    """Start a task that outlives the caller, in `context` or an empty context. Return its `cancel`.

    The task runs until it returns, or until the loop ends and cancels it. The function must not raise.
    Each call of `cancel` cancels what the task awaits at that moment, on asyncio: a `finally` may await. On
    trio the task stays cancelled.
    """
    context = Context() if context is None else context
    if not on_asyncio():
        return _spawn_on_trio(function, name, context)
    task = start_task(function(), name, context)
    _background.add(task)
    task.add_done_callback(_background.discard)
    return task.cancel


def _spawn_on_trio(function: BackgroundFunction, name: str, context: Context) -> Callable[[], object]:
    import trio

    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await function()

    trio.lowlevel.spawn_system_task(run, name=name, context=context)
    return scope.cancel


def is_cancelled() -> bool:
    """Return whether the running task was cancelled. On trio nothing else raises a cancellation."""
    return not on_asyncio() or ((task := asyncio.current_task()) is not None and task.cancelling() > 0)


def time_source() -> Callable[[], float]:
    """Return the clock function of the running loop: monotonic, in seconds. Any thread may call it."""
    try:
        return asyncio.get_running_loop().time
    except RuntimeError:
        import trio

        return trio.lowlevel.current_clock().current_time


def now() -> float:
    """Return the time of the running loop's clock, in seconds. In hot paths `time_source` is faster."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        import trio

        return trio.current_time()


async def pause() -> None:
    """Let other tasks run. Unlike a checkpoint of anyio, it also works outside of a task."""
    if on_asyncio():
        await asyncio.sleep(0)
    else:
        import trio

        await trio.lowlevel.checkpoint()


# The timeout of a sleep is up to this much later, in seconds.
TIMEOUT_RESOLUTION = 0.05


class Sleep(Protocol):
    """The sleep of one task: it awaits the object until another task calls `set_result`, once.

    On asyncio this is a future: a stream sleeps once for every event, and an anyio Event costs several µs.
    """

    def done(self) -> bool:
        """Return whether the sleep has ended."""
        ...

    def set_result(self, woken: bool, /) -> None:
        """End the sleep. Awaiting it returns `woken`."""
        ...

    def __await__(self) -> Generator[Any, Any, bool]: ...


class _EventSleep:
    """A sleep on an anyio Event, for trio."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._woken = False

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, woken: bool, /) -> None:
        self._woken = woken
        self._event.set()

    def __await__(self) -> Generator[Any, Any, bool]:
        yield from self._event.wait().__await__()
        return self._woken


def sleep_maker() -> Callable[[], Sleep]:
    """Return the function that makes the sleeps of the running loop's tasks."""
    try:
        return asyncio.get_running_loop().create_future
    except RuntimeError:
        return _EventSleep


def wake(sleep: Sleep | None) -> None:
    """End a sleep, if there is one and it has not ended."""
    if sleep is not None and not sleep.done():
        sleep.set_result(True)


def sleep_at_most(sleep: Sleep, timeout: float) -> Awaitable[bool]:
    """Sleep. Return True when woken, and False after `timeout` seconds or up to 50 ms more."""
    if not isinstance(sleep, asyncio.Future):
        return _sleep_at_most(sleep, timeout)
    # Round up, so that the sleeps of many streams end in few turns of the loop. Returning the future itself
    # saves a coroutine for each sleeping stream.
    loop = sleep.get_loop()
    when = math.ceil((loop.time() + timeout) / TIMEOUT_RESOLUTION) * TIMEOUT_RESOLUTION
    timer = loop.call_at(when, _time_out, sleep)
    sleep.add_done_callback(lambda done: timer.cancel())
    return sleep


def _time_out(sleep: asyncio.Future[bool]) -> None:
    if not sleep.done():
        sleep.set_result(False)


async def _sleep_at_most(sleep: Sleep, timeout: float) -> bool:
    with anyio.move_on_after(timeout):
        return await sleep
    return False


class Waker:
    """Lets one task of the running loop sleep until woken. A `wake` while the task is awake has no effect."""

    __slots__ = ("_make_sleep", "_sleep")

    def __init__(self) -> None:
        self._make_sleep = sleep_maker()
        self._sleep: Sleep | None = None

    def wake(self) -> None:
        """Wake the task if it sleeps. Returns at once."""
        wake(self._sleep)

    async def wait(self) -> None:
        """Sleep until woken."""
        self._sleep = self._make_sleep()
        await self._sleep
