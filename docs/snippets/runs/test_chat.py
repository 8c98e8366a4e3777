import pytest
from chat import app

from livepush_asgi.testing import Client

ADA, ALAN = {"user": "ada"}, {"user": "alan"}
QUESTION = {"id": "c1", "messages": [{"role": "user"}]}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_a_page_that_was_loaded_again_goes_on_and_stops_the_answer():
    async with Client(app, lifespan=True) as client:
        idle = await client.request("GET", "/api/chat/c0/stream", cookies=ADA)
        assert idle.status == 404
        async with client.open("/api/chat", method="POST", json=QUESTION, cookies=ADA) as page:
            assert page.headers["x-vercel-ai-ui-message-stream"] == "v1"
            assert (await page.next_event()).json() == {"type": "start", "messageId": "c1"}
        assert (await client.request("GET", "/api/chat/c1/stream", cookies=ALAN)).status == 404
        async with client.open("/api/chat/c1/stream", cookies=ADA) as page:
            assert (await page.next_event()).json() == {"type": "start", "messageId": "c1"}
            stopped = await client.request("DELETE", "/api/chat/c1", cookies=ADA)
            assert stopped.json()["state"] == "cancelled"
            await page.wait_returned()
            assert page.received[-2].json()["type"] == "abort"
        assert (await client.request("GET", "/api/chat/c1/stream", cookies=ADA)).status == 204
