"""A stream that has ended is gone: nothing of it waits for the cyclic garbage collector."""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterator

import anyio
import pytest

from livepush_asgi import EndReason, Grant, LivePush, MemoryBroker, MemorySlotCap, StreamRequest
from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from livepush_asgi.runtime.event_loop import on_asyncio
from livepush_asgi.testing import Client

from .around import behind_a_middleware

STREAMS = 20


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def authorize(request: StreamRequest) -> Grant:
    return Grant(channels=["a", "b"], slot_key="k", snapshot=lambda: "state")


def garbage() -> Counter[str]:
    """Return how many objects of each kind of the package only the collector can free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    kinds = Counter(
        type(found).__qualname__ for found in gc.garbage if type(found).__module__.startswith("livepush_asgi")
    )
    gc.set_debug(0)
    gc.garbage.clear()
    return kinds


def stepped(app: ASGIApp) -> ASGIApp:
    """Return the application as it is under a server whose `send` and `receive` may both be stepped."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.Event() if on_asyncio() else anyio.Event()

        async def hear() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        async def receive_here() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        receive_here.livepush_inline = True  # type: ignore[attr-defined]
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hear)
            await app(scope, receive_here, send)
            tasks.cancel_scope.cancel()

    return serve


@pytest.mark.parametrize(
    "way", [stepped, behind_a_middleware, lambda app: app], ids=["stepped", "around", "plain"]
)
async def test_streams_leave_nothing(way: Callable[[ASGIApp], ASGIApp]) -> None:
    push = LivePush(MemoryBroker(), authorize, slots=MemorySlotCap(STREAMS))
    async with push.lifespan(), Client(way(push)) as client:
        for _ in range(STREAMS):
            async with client.open("/") as stream:
                await stream.next_event(control=True)
                assert (await stream.next_event()).data == "state"
                await push.publish("a", 1)
                assert (await stream.next_event()).data == "1"
        while push.statistics()["streams"]:
            await anyio.lowlevel.checkpoint()
        assert push.statistics()["ended"][EndReason.DISCONNECT] == STREAMS
        assert garbage() == {}
