"""Publisher: publishing from code that has no event loop, such as Celery tasks, sync views and scripts."""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import Self, TypeVar
from weakref import WeakSet

import anyio
from anyio.from_thread import BlockingPortal

from .broker import Broker
from .commands import CONFIRM_TIMEOUT, CommandSender
from .cursor import Position
from .namespace import broker_in, check_namespace
from .publishing import event_of, publish_event
from .request import check_channel
from .revocation import Disconnected, Revocation

Opened = Broker | AbstractAsyncContextManager[Broker]
MakeBroker = Callable[[], Opened | Awaitable[Opened]]
T = TypeVar("T")


class Publisher:
    """Publishes over any broker that has a server, and blocks until it is done. Threads may share it.

    `make_broker` makes the broker, or an async context manager of one, which `close` then leaves:

        @asynccontextmanager
        async def make_broker():
            async with Redis.from_url(url) as redis:
                yield RedisBroker(redis)

    It is called in the thread of an event loop that begins with the first publish, once per process: a
    fork begins anew. Keep a publisher for the life of a process, or use it in a `with` block; a process
    may end without closing it. With a plain `lambda: RedisBroker(Redis.from_url(url))` nobody closes the
    client, which suits a publisher that is kept. `namespace` is that of the application's LivePush.
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
        self._desk: _Desk | None = None
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
        expected: Position | str | None = None,
        patience: float = 0.0,
    ) -> str | None:
        """Publish one event and return its event id, as `LivePush.publish` does, with the same errors.

        Raises RuntimeError on the thread of an event loop, which it would stop.
        """
        check_channel(channel)
        item = event_of(data, event, id, retry)
        publish = partial(
            publish_event, idempotency_key=idempotency_key, expected=expected, patience=patience
        )
        return self._call("publish", lambda desk: publish(desk.broker, channel, item))

    def disconnect(
        self, *, slot_key: str | None = None, channel: str | None = None, timeout: float = CONFIRM_TIMEOUT
    ) -> Disconnected:
        """End the streams of a slot key, or on a channel (or both), as `LivePush.disconnect` does.

        Blocks until the processes have confirmed, at most about `timeout` seconds. `streams` is 0: none is
        here. Raises RuntimeError on the thread of an event loop, which it would stop.
        """
        revocation = Revocation(slot_key, channel)
        return self._call("disconnect", lambda desk: desk.sender.revoke(desk.broker, revocation, timeout))

    def close(self) -> None:
        """Wait for what other threads publish, and end the event loop. The next publish begins anew."""
        with self._changed:
            desk, self._desk = self._desk, None
            if desk is None:
                return
            self._changed.wait_for(lambda: not desk.borrowed)
        desk.close()

    def _call(self, name: str, function: Callable[["_Desk"], Awaitable[T]]) -> T:
        """Await what the function returns for the desk, in its event loop."""
        if _in_event_loop():
            raise RuntimeError(
                f"Publisher.{name} blocks, and this thread runs an event loop: use `await push.{name}(...)`"
            )
        desk = self._borrow()
        try:
            return desk.call(partial(function, desk))
        finally:
            self._give_back(desk)

    def _borrow(self) -> "_Desk":
        with self._changed:
            if self._desk is None:
                self._desk = _Desk(self._make_broker, self._namespace)
            self._desk.borrowed += 1
            return self._desk

    def _give_back(self, desk: "_Desk") -> None:
        with self._changed:
            desk.borrowed -= 1
            self._changed.notify_all()

    def _leave_to_parent(self) -> None:
        # A thread that did not come along may have held the lock.
        self._changed = threading.Condition()
        if self._desk is not None:
            _parents.append(self._desk)
        self._desk = None


class _Desk:
    """An event loop in a daemon thread, and the broker that lives there."""

    def __init__(self, make_broker: MakeBroker, namespace: str | None) -> None:
        #: How many threads are publishing.
        self.borrowed = 0
        self.sender = CommandSender()
        with ExitStack() as stack:
            self._portal = self._start()
            stack.callback(self._stop)
            made: object = self._portal.call(make_broker)
            if isinstance(made, AbstractAsyncContextManager):
                made = stack.enter_context(self._portal.wrap_async_context_manager(made))
            if not isinstance(made, Broker):
                raise TypeError(f"{type(made).__name__} is no Broker: it needs `publish` and `subscribe`")
            self.broker: Broker = broker_in(made, namespace)
            self._stack = stack.pop_all()

    def _start(self) -> BlockingPortal:
        # anyio's start_blocking_portal is a generator. Collected while the process ends, it would wait for
        # a thread that runs no more.
        started: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(target=_run, args=(started,), name="livepush-publisher", daemon=True)
        self._thread.start()
        return started.result()

    def _stop(self) -> None:
        self._portal.call(self._portal.stop)
        self._thread.join()

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Call a function in the event loop, and wait for what it returns."""
        return self._portal.call(function)

    def close(self) -> None:
        """Leave the broker and end the event loop."""
        self._stack.close()


def _run(started: Future[BlockingPortal]) -> None:
    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    try:
        anyio.run(serve)
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Whoever runs trio has imported it.
        trio = sys.modules.get("trio")
        return trio is not None and bool(trio.lowlevel.in_trio_run())
    return True


_publishers: WeakSet[Publisher] = WeakSet()
# What a forked process has inherited is kept as it is: closing or collecting it here would act upon
# sockets and a selector that the parent uses.
_parents: list[_Desk] = []


def _begin_anew() -> None:
    for publisher in list(_publishers):
        publisher._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
