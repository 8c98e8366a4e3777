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
        idle = await client.request("GET", "/api/answers/c0-1/stream", cookies=ADA)
        assert idle.status == 204
        async with client.open("/api/chat", method="POST", json=QUESTION, cookies=ADA) as page:
            assert page.headers["x-vercel-ai-ui-message-stream"] == "v1"
            assert (await page.next_event()).json() == {"type": "start", "messageId": "c1-1"}
        assert (await client.request("GET", "/api/answers/c1-1/stream", cookies=ALAN)).status == 204
        assert (await client.request("DELETE", "/api/answers/c1-1", cookies=ALAN)).status == 403
        async with client.open("/api/answers/c1-1/stream", cookies=ADA) as page:
            assert (await page.next_event()).json() == {"type": "start", "messageId": "c1-1"}
            stopped = await client.request("DELETE", "/api/answers/c1-1", cookies=ADA)
            assert stopped.json()["state"] == "cancelled"
            await page.wait_returned()
            assert page.received[-2].json()["type"] == "abort"
        assert (await client.request("GET", "/api/answers/c1-1/stream", cookies=ADA)).status == 204
