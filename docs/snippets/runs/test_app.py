import pytest
from app import app, push
from worker import work

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_a_page_follows_an_answer_and_is_not_sent_it_again():
    async with Client(app, lifespan=True) as client:
        async with client.open("/answers/1") as page:
            assert page.status == 204
        started = await client.request("PUT", "/answers/1", query={"question": "why?"})
        assert started.json() == {"started": True}
        async with client.open("/answers/1") as page:
            events = await page.events(4)
            assert [event.json()["word"] for event in events] == ["You", "have", "asked:", "why?"]
            end = await page.next_event(name="livepush.end")
            assert end.json() == {"state": "done", "count": 4, "error": None}
        async with client.open("/answers/1", last_event_id=page.last_event_id) as page:
            assert page.status == 204


@pytest.mark.anyio
async def test_an_answer_is_cancelled():
    async with Client(app, lifespan=True) as client:
        await client.request("PUT", "/answers/2", query={"question": "how long is a long answer?"})
        async with client.open("/answers/2") as page:
            await page.next_event()
            assert (await client.request("DELETE", "/answers/2")).json() == {"state": "cancelled"}
            assert (await page.next_event(name="livepush.end")).json()["state"] == "cancelled"


@pytest.mark.anyio
async def test_a_worker_waits_for_the_end():
    assert (await work("3", "why?")).state == "done"
    assert push.run("3").channel == "run:3"
