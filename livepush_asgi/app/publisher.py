"""Publisher: publishes from code without an event loop, in a process that has no LivePush.

`LivePush.publish_sync` has a Publisher too, over the LivePush's broker, where the LivePush is not started.
"""

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from inspect import isawaitable
from typing import Any, Self, TypeVar
from weakref import WeakSet, finalize

from ..brokers import Broker
from ..process.commands import CONFIRM_TIMEOUT, CommandSender
from ..process.revocation import Disconnected, Revocation
from ..runtime.event_loop import refuse_to_block, result_of, submit_to, threadsafe_caller
from ..wire.cursor import Position
from ..wire.encode import Encode
from .arguments import check_encode
from .namespace import broker_in, check_namespace
from .publishing import prepare, publish_with_retries

# How long the exit of the process waits for open publishers to close, in seconds.
EXIT_TIMEOUT = 2.0

BrokerSource = Broker | AbstractAsyncContextManager[Broker]
MakeBroker = Callable[[], BrokerSource | Awaitable[BrokerSource]]
T = TypeVar("T")


class Publisher:
    """Publishes over any broker that has a server. The methods block. Threads may share a publisher.

    It is for a process that has no LivePush. Where there is one, started or not, call its `publish_sync`.

    `make_broker` returns the broker, or an async context manager of one, which `close` exits:

        @asynccontextmanager
        async def make_broker():
            async with Redis.from_url(url) as redis:
                yield RedisBroker(redis)

    The first publish starts an event loop in a thread and calls `make_broker` there. This happens once per
    process; a forked process starts its own. Keep a publisher for the life of a process, or use it in a
    `with` block. A publisher that is garbage-collected without `close` is closed in its thread, and the exit
    of the process closes the others, within two seconds. If `make_broker` returns a broker that has an
    `aclose`, the publisher closes it, so `lambda: RedisBroker(Redis.from_url(url))` leaks nothing.
    `namespace` and `encode` are those of the application's LivePush.
    """

    def __init__(
        self, make_broker: MakeBroker, *, namespace: str | None = None, encode: Encode | None = None
    ) -> None:
        check_namespace(namespace)
        check_encode(encode)
        if not callable(make_broker):
            raise TypeError(
                "Publisher takes a function that makes a broker: a broker belongs to one event loop"
            )
        self._make_broker = make_broker
        self._namespace = namespace
        self._encode = encode
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None
        _publishers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def publish(
        self,
        channel: str,
        data: object,
        *,
        event: str | None = None,
        id: str | int | None = None,
        retry: int | None = None,
        idempotency_key: str | None = None,
        expected_position: Position | str | None = None,
        retry_for: float = 0.0,
    ) -> str | None:
        """Publish one event and return its event id, as `LivePush.publish` does, with the same errors.

        Raises RuntimeError in the thread of an event loop, which the call would block.
        """
        publication = prepare(
            channel, data, event, id, retry, idempotency_key, expected_position, self._encode
        )
        refuse_to_block("Publisher.publish", "await push.publish(...)")
        return result_of(
            *self.submit(lambda thread: publish_with_retries(thread.broker, publication, retry_for))
        )

    def disconnect(
        self,
        *,
        slot_key: str | None = None,
        channel: str | None = None,
        timeout: float = CONFIRM_TIMEOUT,
        retry_for: float = 0.0,
    ) -> Disconnected:
        """End the streams of a slot key, on a channel, or both, as `LivePush.disconnect` does.

        Blocks until the processes have confirmed, for about `timeout` seconds at most after the command was
        sent. If it raises BrokerUnavailableError, no process is sure to have ended a stream. Raises
        RuntimeError in the thread of an event loop, which the call would block.
        """
        revocation = Revocation(slot_key, channel)
        refuse_to_block("Publisher.disconnect", "await push.disconnect(...)")
        return result_of(
            *self.submit(lambda thread: thread.sender.revoke(thread.broker, revocation, timeout, retry_for))
        )

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop on which the broker is used; None while it is closed."""
        thread = self._thread
        return None if thread is None else thread.loop

    def close(self, timeout: float | None = None) -> None:
        """Wait for other threads that publish, and close the broker. A later publish opens a new one.

        Calls that have not ended after `timeout` seconds raise BrokerUnavailableError.
        """
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._finalizer.detach()
            wait(thread.calls, timeout)
            thread.stop()
            thread.join(timeout)
            if thread.error is not None:
                raise thread.error

    def submit(
        self, function: Callable[["_LoopThread"], Coroutine[Any, Any, T]]
    ) -> tuple[Future[T], asyncio.AbstractEventLoop]:
        """Call an asynchronous function in the event loop of the broker; return its future and the loop."""
        with self._lock:
            if self._thread is None:
                self._thread = _LoopThread(self._make_broker, self._namespace)
                self._finalizer = finalize(self, self._thread.stop)
                self._finalizer.atexit = False
            thread = self._thread
            return thread.submit(function(thread)), thread.loop


class _LoopThread(threading.Thread):
    """An event loop in a daemon thread, and the broker that lives there.

    `start_blocking_portal` of anyio would wait for a broker that hangs, and so hold up the exit.
    """

    def __init__(self, make_broker: MakeBroker, namespace: str | None) -> None:
        super().__init__(name="livepush-publisher", daemon=True)
        self.sender = CommandSender()
        #: The calls that have not returned.
        self.calls: set[Future[Any]] = set()
        #: What closing the broker raised.
        self.error: BaseException | None = None
        self._make_broker = make_broker
        self._opened: Future[Broker] = Future()
        self.start()
        self.broker = broker_in(self._opened.result(), namespace)
        _running.add(self)

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the event loop."""
        future = submit_to(self.loop, call)
        self.calls.add(future)
        future.add_done_callback(self.calls.discard)
        return future

    def stop(self) -> None:
        """Close the broker and end the event loop, soon. Returns at once; any thread may call it."""
        if self in _running:
            self._call_soon(self._closing.set)

    def run(self) -> None:
        """Open the broker, and close it after `stop`."""
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._opened.done():
                self.error = error
            else:
                self._opened.set_exception(error)
        finally:
            _running.discard(self)

    async def _serve(self) -> None:
        self.loop, self._call_soon = asyncio.get_running_loop(), threadsafe_caller()
        self._closing = asyncio.Event()
        async with AsyncExitStack() as stack:
            self._opened.set_result(await _open(self._make_broker, stack))
            await self._closing.wait()


async def _open(make_broker: MakeBroker, stack: AsyncExitStack) -> Broker:
    made: object = make_broker()
    if isawaitable(made):
        made = await made
    if isinstance(made, AbstractAsyncContextManager):
        made = await stack.enter_async_context(made)
    elif hasattr(made, "aclose"):
        # No other code can close this broker on this event loop.
        stack.push_async_callback(made.aclose)
    if not isinstance(made, Broker):
        raise TypeError(f"{type(made).__name__} is no Broker: it needs `publish` and `subscribe`")
    if getattr(made, "in_process", False):
        raise TypeError(
            f"{type(made).__name__} has no server, so no stream would get what a Publisher publishes: use "
            "RedisStreamsBroker or another broker with a server, or `push.publish` of the application"
        )
    return made


_publishers: WeakSet[Publisher] = WeakSet()
_running: set[_LoopThread] = set()
# The threads that a forked process has inherited. They are kept, because closing or collecting them would
# affect sockets and a selector that the parent process uses.
_inherited: list[_LoopThread] = []


def _reset_after_fork() -> None:
    _inherited.extend(_running)
    _running.clear()
    for publisher in list(_publishers):
        # A thread that the fork did not copy may have held the lock.
        publisher._lock, publisher._thread = threading.Lock(), None


def _close_all() -> None:
    """Close all publishers at exit. Daemon threads still run at that time."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    threads = list(_running)
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
