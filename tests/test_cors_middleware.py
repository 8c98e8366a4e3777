"""A CORSMiddleware of Starlette around a LivePush, with `Cors` and without it."""

import pytest
from starlette.middleware.cors import CORSMiddleware

from livepush_asgi import Cors, LivePush, MemoryBroker, public
from livepush_asgi.testing import Client

ORIGIN = "https://app.example"
ASKING = {"origin": ORIGIN, "access-control-request-method": "GET"}


def push(cors: Cors | None) -> LivePush:
    return LivePush(MemoryBroker(), public("news"), cors=cors)


@pytest.mark.parametrize("cors", [None, Cors([ORIGIN], credentials=True)], ids=["alone", "with Cors"])
async def test_a_page_may_read_a_stream_behind_a_middleware(cors: Cors | None) -> None:
    inner = push(cors)
    app = CORSMiddleware(inner, allow_origins=[ORIGIN], allow_credentials=True)
    async with inner.lifespan(), Client(app) as client:
        async with client.open("/", headers={"origin": ORIGIN}) as stream:
            headers = stream.messages[0]["headers"]
            names = [name for name, _ in headers]
        # Once: a browser refuses a field that is there twice.
        assert names.count(b"access-control-allow-origin") == 1
        assert names.count(b"access-control-allow-credentials") == 1
        assert (b"access-control-allow-origin", ORIGIN.encode()) in headers


@pytest.mark.parametrize(
    ("app", "status"),
    [
        (push(Cors([ORIGIN])), 204),
        (CORSMiddleware(push(Cors([ORIGIN])), allow_origins=[ORIGIN]), 400),
        (CORSMiddleware(push(None), allow_origins=[ORIGIN], allow_headers=["last-event-id"]), 200),
    ],
    ids=["Cors", "both", "a middleware that allows it"],
)
async def test_the_preflight_of_the_middleware_wins(app: LivePush | CORSMiddleware, status: int) -> None:
    async with Client(app) as client:
        headers = {**ASKING, "access-control-request-headers": "last-event-id"}
        assert (await client.request("OPTIONS", "/", headers=headers)).status == status
