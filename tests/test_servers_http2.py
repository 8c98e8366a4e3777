"""HTTP/2: thirty streams on one connection, one of which leaves, and the end of the process."""

import asyncio
import json
import signal
import ssl
from pathlib import Path

import pytest
import trustme

from .http2 import Http2Client
from .servers import SERVERS, Server

PATIENCE = 60.0
STREAMS = 30
BETWEEN_LOOKS = 0.05

pytestmark = pytest.mark.real_time


def certified(pem: Path) -> ssl.SSLContext:
    """Write a key with its certificate, and return what trusts it and asks for HTTP/2."""
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    return context


async def count_streams(client: Http2Client) -> int:
    answer = await client.request("/statistics").read_to_end()
    found = json.loads(answer)["streams"]
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("server", [server for server in SERVERS if server.http2], ids=str)
async def test_thirty_streams_share_one_connection(server: Server, tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    tls = certified(pem) if "{pem}" in server.http2 else None
    serving = server.serve(tmp_path / "log", command=server.http2.replace("{pem}", str(pem)))
    async with serving, Http2Client(serving.port, tls) as client:
        streams = [client.request("/events") for _ in range(STREAMS)]
        await asyncio.gather(*(stream.until("livepush.open") for stream in streams))
        await client.request("/publish", method="POST", body=b"to all").read_to_end()
        events = await asyncio.gather(*(stream.until("message") for stream in streams))
        assert [event.data for event in events] == ["to all"] * STREAMS
        client.leave(streams.pop())
        async with asyncio.timeout(PATIENCE):
            while await count_streams(client) != STREAMS - 1:  # noqa: ASYNC110
                await asyncio.sleep(BETWEEN_LOOKS)
        serving.send_signal(signal.SIGTERM)
        await asyncio.gather(*(stream.read_to_end() for stream in streams))
        await serving.ended(timeout=PATIENCE)
    closing = [stream.events[-1] for stream in streams]
    assert {event.event for event in closing} == {"livepush.close"}
    assert {json.loads(event.data)["reason"] for event in closing} == {"drain"}
