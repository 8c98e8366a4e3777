import pytest
from htmx import htmx

from livepush_asgi import LivePush, MemoryBroker, Refusal, RunAccess
from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def answer(mood):
    yield "2 < 3"
    if mood == "bad":
        raise RuntimeError("this text reaches nobody")


@pytest.mark.anyio
@pytest.mark.parametrize(("mood", "texts"), [("good", []), ("bad", ["<p>The run has failed.</p>"])])
async def test_a_page_of_htmx_gets_paragraphs_and_an_end(mood, texts):
    push = LivePush(MemoryBroker(), lambda request: Refusal(404))
    runs = push.runs(lambda request, run: RunAccess(), dialect=htmx)
    async with push.lifespan():
        await push.run("1", dialect=htmx).start(answer(mood))
        async with Client(runs).open("/1") as page:
            events = await page.events(2 + len(texts))
        assert [event.data for event in events] == ["<p>2 &lt; 3</p>", *texts, ""]
        assert events[-1].event == "end"
        again = await Client(runs).request("GET", "/1", last_event_id=page.last_event_id)
        assert again.status == 204
