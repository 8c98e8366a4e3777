"""Publisher: publishes from code without an event loop, such as Celery tasks, sync views and scripts."""

import asyncio
import atexit
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from inspect import isawaitable
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakSet, finalize

import anyio
from anyio.from_thread import BlockingPortal

from ..brokers import Broker
from ..process.commands import CONFIRM_TIMEOUT, CommandSender
from ..process.revocation import Disconnected, Revocation
from ..runtime.event_loop import threadsafe_caller
from ..wire.cursor import Position
from .namespace import broker_in, check_namespace
from .publishing import prepare, publish_with_retries

# How long the exit of the process waits for open publishers to close, in seconds.
EXIT_TIMEOUT = 2.0

BrokerSource = Broker | AbstractAsyncContextManager[Broker]
MakeBroker = Callable[[], BrokerSource | Awaitable[BrokerSource]]
T = TypeVar("T")


class Publisher:
    """Publishes over any broker that has a server. The methods block. Threads may share a publisher.

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
    `namespace` is that of the application's LivePush.
    """

    def __init__(self, make_broker: MakeBroker, *, namespace: str | None = None) -> None:
        check_namespace(namespace)
        if not callable(make_broker):
            raise TypeError(
                "Publisher takes a function that makes a broker: a broker belongs to one event loop"
            )
        self._make_broker = make_broker
        self._namespace = namespace
        self._changed = threading.Condition()
        self._thread: _LoopThread | None = None
        _publishers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        publication = prepare(channel, data, event, id, retry, idempotency_key, expected_position)
        return self._call(
            "publish", lambda thread: publish_with_retries(thread.broker, publication, retry_for)
        )

    def disconnect(
        self, *, slot_key: str | None = None, channel: str | None = None, timeout: float = CONFIRM_TIMEOUT
    ) -> Disconnected:
        """End the streams of a slot key, on a channel, or both, as `LivePush.disconnect` does.

        Blocks until the processes have confirmed, for about `timeout` seconds at most. `streams` is 0,
        because a publisher has no streams. Raises RuntimeError in the thread of an event loop, which the call
        would block.
        """
        revocation = Revocation(slot_key, channel)
        return self._call(
            "disconnect", lambda thread: thread.sender.revoke(thread.broker, revocation, timeout)
        )

    def close(self) -> None:
        """Wait for other threads that publish, and close the broker. A later publish opens a new one."""
        with self._changed:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._finalizer.detach()
            self._changed.wait_for(lambda: not thread.users)
        thread.stop()
        thread.wait_ended()

    def _call(self, name: str, function: Callable[["_LoopThread"], Awaitable[T]]) -> T:
        """Call a function with the loop thread, and await its result in the event loop."""
        if _in_event_loop():
            raise RuntimeError(
                f"Publisher.{name} blocks, and this thread runs an event loop: use `await push.{name}(...)`"
            )
        thread = self._acquire_thread()
        try:
            return thread.call(partial(function, thread))
        finally:
            self._release_thread(thread)

    def _acquire_thread(self) -> "_LoopThread":
        with self._changed:
            if self._thread is None:
                self._thread = _LoopThread(self._make_broker, self._namespace)
                self._finalizer = finalize(self, self._thread.stop)
                self._finalizer.atexit = False
            self._thread.users += 1
            return self._thread

    def _release_thread(self, thread: "_LoopThread") -> None:
        with self._changed:
            thread.users -= 1
            self._changed.notify_all()

    def _forget_thread(self) -> None:
        # A thread that the fork did not copy may have held the lock.
        self._changed = threading.Condition()
        if self._thread is not None:
            self._finalizer.detach()
        self._thread = None


class _LoopThread:
    """An event loop in a daemon thread, and the broker that lives there."""

    def __init__(self, make_broker: MakeBroker, namespace: str | None) -> None:
        #: How many threads are using it now.
        self.users = 0
        self.sender = CommandSender()
        self._started: Future[tuple[BlockingPortal, Broker, Callable[[], None]]] = Future()
        self._ended: Future[None] = Future()
        # `start_blocking_portal` of anyio is a generator. If it were collected at exit, it would wait for a
        # thread that has ended.
        self._thread = threading.Thread(
            target=self._run, args=(make_broker,), name="livepush-publisher", daemon=True
        )
        self._thread.start()
        self._portal, broker, self._stop = self._started.result()
        self.broker = broker_in(broker, namespace)
        _running.add(self)

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Call a function in the event loop, and wait for its result."""
        return self._portal.call(function)

    def stop(self) -> None:
        """Close the broker and end the event loop, soon. Returns at once; any thread may call it."""
        self._stop()

    def wait_ended(self, timeout: float | None = None) -> None:
        """Wait until the event loop has ended. Raises the exception of closing the broker, if any."""
        self._ended.result(timeout)
        self._thread.join()

    def _run(self, make_broker: MakeBroker) -> None:
        try:
            anyio.run(self._serve, make_broker)
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            elif not self._ended.done():
                self._ended.set_exception(error)
        else:
            self._ended.set_result(None)
        finally:
            _running.discard(self)

    async def _serve(self, make_broker: MakeBroker) -> None:
        stopped = anyio.Event()
        call_soon = threadsafe_caller()
        async with AsyncExitStack() as stack:
            broker = await _open(make_broker, stack)
            async with BlockingPortal() as portal:
                self._started.set_result((portal, broker, partial(call_soon, stopped.set)))
                await stopped.wait()


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
    return made


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # If trio is not imported, it cannot be running.
        trio = sys.modules.get("trio")
        return trio is not None and bool(trio.lowlevel.in_trio_run())
    return True


_publishers: WeakSet[Publisher] = WeakSet()
_running: set[_LoopThread] = set()
# The threads that a forked process has inherited. They are kept, because closing or collecting them would
# affect sockets and a selector that the parent process uses.
_inherited: list[_LoopThread] = []


def _reset_after_fork() -> None:
    _inherited.extend(_running)
    _running.clear()
    for publisher in list(_publishers):
        publisher._forget_thread()


def _close_all() -> None:
    """Close all publishers at exit. Daemon threads still run at that time."""
    threads = list(_running)
    for thread in threads:
        thread.stop()
    deadline = time.monotonic() + EXIT_TIMEOUT
    for thread in threads:
        # From Python 3.12 on, an event loop cannot start the thread that shuts down its executor at exit.
        with suppress(TimeoutError, Exception):
            thread.wait_ended(max(0.0, deadline - time.monotonic()))


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
