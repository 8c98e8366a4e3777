"""Litestar: what its compression does to a stream, mounted and in a route, and its guards."""

import gc
import zlib
from typing import Any

import pytest
from litestar import Litestar, Request, asgi, get
from litestar.config.compression import CompressionConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.types import Receive, Scope, Send

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.contrib.litestar import EventStreamResponse, sse_streaming_response
from livepush_asgi.testing import Client, Stream

from .valkey import until

pytestmark = pytest.mark.real_time


# A response that is broken off leaves Litestar's file unclosed, of which Python 3.13 complains.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <gzip:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", ["/events", "/route"])
async def test_compression_holds_no_event_back(path: str) -> None:
    """It makes one compressed file of a stream, and flushes after each message: browsers read that."""
    push = LivePush(MemoryBroker(), public("c"))

    @asgi("/events", is_mount=True, copy_scope=True)
    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        await push(scope, receive, send)  # type: ignore[arg-type]

    @get("/route")
    async def route(request: Request[Any, Any, State]) -> EventStreamResponse:
        return await sse_streaming_response(push, request, channel="c")

    app: Any = Litestar(
        [events, route], lifespan=[push.lifespan], compression_config=CompressionConfig("gzip")
    )
    accepted = {"accept-encoding": "gzip"}
    async with Client(app, lifespan=True) as client, client.open(path, headers=accepted) as stream:
        assert stream.headers["content-encoding"] == "gzip"
        await until(lambda: b"livepush.open" in inflated(stream), within=1)
        for line in (b"data: one", b"data: two"):
            await push.publish("c", line.removeprefix(b"data: "))
            await until(lambda line=line: line in inflated(stream), within=1)  # type: ignore[misc]
    # The file is complained of when it is collected: here, and not in another test.
    gc.collect()


async def test_the_openapi_document_names_the_type_of_a_stream() -> None:
    push = LivePush(MemoryBroker(), public("c"))

    @get("/route", media_type="text/event-stream")
    async def route(request: Request[Any, Any, State]) -> EventStreamResponse:
        return await sse_streaming_response(push, request, channel="c")

    app: Any = Litestar([route], lifespan=[push.lifespan])
    responses = app.openapi_schema.to_schema()["paths"]["/route"]["get"]["responses"]
    assert list(responses["200"]["content"]) == ["text/event-stream"]
    async with Client(app, lifespan=True) as client, client.open("/route") as stream:
        assert stream.headers["content-type"] == "text/event-stream"


async def test_a_guard_of_a_mount_denies_its_streams() -> None:
    push = LivePush(MemoryBroker(), public("c"))

    async def only_ada(connection: ASGIConnection[Any, Any, Any, State], _: BaseRouteHandler) -> None:
        if connection.cookies.get("user") != "ada":
            raise NotAuthorizedException("Log in first.")

    @asgi("/events", is_mount=True, copy_scope=True, guards=[only_ada])
    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        await push(scope, receive, send)  # type: ignore[arg-type]

    app: Any = Litestar([events], lifespan=[push.lifespan])
    async with Client(app, lifespan=True) as client:
        assert (await client.request("GET", "/events")).status == 401
        async with client.open("/events", cookies={"user": "ada"}) as stream:
            assert stream.status == 200


def inflated(stream: Stream) -> bytes:
    body = b"".join(message.get("body", b"") for message in stream.messages)
    return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(body)
