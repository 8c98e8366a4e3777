"""Compression by the application's own middleware, and SvelteKit's forward by Node's fetch."""

from pathlib import Path

import django
import pytest

from .proxies import sveltekit
from .recording import ENCODINGS, Recording
from .serving import Serving, WireStream, uvicorn
from .valkey import until

APP = "tests.apps.proxied:app"
DJANGO = "tests.apps.gzip_django:app"
JSON = "application/json"
DEADLINE = 30.0

pytestmark = pytest.mark.real_time


async def publish(server: Serving, data: bytes) -> None:
    assert (await server.open("/publish", method="POST", body=data)).status == 200


async def first_event(stream: WireStream, server: Serving) -> str:
    """Return the data of an event that is published when the stream has begun."""
    await stream.next_event("livepush.open", timeout=DEADLINE)
    await publish(server, b"hello")
    return (await stream.next_event(timeout=DEADLINE)).data


@pytest.mark.parametrize(("gzip", "query"), [("default", ""), ("everything", "&identity=1")])
async def test_starlette_leaves_streams_alone_by_its_list_or_by_their_encoding(
    gzip: str, query: str, tmp_path: Path
) -> None:
    async with uvicorn(APP, tmp_path / "log", environment={"GZIP": gzip}) as server:
        stream = await server.open(f"/events?pad=2000{query}", accept_encoding=ENCODINGS)
        assert stream.headers.get("content-encoding") in (None, "identity")
        assert await first_event(stream, server) == "hello"


async def test_starlette_without_its_list_compresses_and_holds_nothing_back(tmp_path: Path) -> None:
    settings = {"GZIP": "everything", "HEARTBEAT": "600"}
    async with (
        uvicorn(APP, tmp_path / "log", environment=settings) as server,
        Recording(server.port, "/events?pad=2000") as recording,
    ):
        await recording.until("livepush.open", timeout=DEADLINE)
        await publish(server, b"hello")
        await recording.until("data: hello\n\n", timeout=DEADLINE)
        assert recording.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("path", ["/events", "/own?identity=1"])
async def test_django_leaves_our_responses_alone_and_what_has_an_encoding(path: str, tmp_path: Path) -> None:
    async with uvicorn(DJANGO, tmp_path / "log", "--lifespan", "off") as server:
        stream = await server.open(path, accept_encoding=ENCODINGS)
        assert stream.headers.get("content-encoding") in (None, "identity")
        assert await first_event(stream, server) == "hello"


async def test_django_made_each_piece_a_file_of_which_browsers_read_the_first(tmp_path: Path) -> None:
    async with (
        uvicorn(DJANGO, tmp_path / "log", "--lifespan", "off") as server,
        Recording(server.port, "/own") as recording,
    ):
        await recording.until("livepush.open", timeout=DEADLINE)
        size = len(recording.body)
        await publish(server, b"hello")
        if django.VERSION >= (6,):
            # It makes one file of them, and flushes it.
            await recording.until("data: hello\n\n", timeout=DEADLINE)
        else:
            await until(lambda: len(recording.body) > size, within=DEADLINE)
            assert "hello" not in recording.text
        assert recording.headers["content-encoding"] == "gzip"


async def test_a_body_that_node_forwards_has_to_be_half_duplex(tmp_path: Path) -> None:
    async with uvicorn(APP, tmp_path / "log", environment={"HEARTBEAT": "600"}) as server:
        async with sveltekit(server.port, "default/+server.js", tmp_path) as naive:
            assert (await naive.open("/publish", method="POST", body=b"1", content_type=JSON)).status == 500
            assert "duplex" in naive.log
            # SvelteKit changes the headers of the answer, and an answer of fetch's own cannot be changed. In
            # this version the error is nobody's, and ends the process.
            with pytest.raises(EOFError):
                await naive.open("/events")
            assert "immutable" in naive.log
        async with sveltekit(server.port, "mended/+server.js", tmp_path) as mended:
            stream = await mended.open("/events", accept_encoding=ENCODINGS)
            await stream.next_event("livepush.open", timeout=DEADLINE)
            assert (await mended.open("/publish", method="POST", body=b"2", content_type=JSON)).status == 200
            assert (await stream.next_event(timeout=DEADLINE)).data == "2"
