import asyncio

import pytest
from app import SharedRead, push, sell, stock

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Page:
    """What the script of the page does."""

    def __init__(self):
        self.rows = {}

    def take(self, event):
        if event.event == "stock":
            self.rows = {row["item"]: row for row in event.json()}
        elif event.json()["version"] > self.rows[event.json()["item"]]["version"]:
            self.rows[event.json()["item"]] = event.json()


@pytest.mark.anyio
async def test_the_state_comes_first_and_then_the_changes():
    page = Page()
    async with Client(push, lifespan=True) as client:
        await sell("tea")
        async with client.open("/") as stream:
            page.take(await stream.next_event(name="stock"))
            await sell("milk")
            page.take(await stream.next_event(name="item"))
        assert page.rows == stock
        await sell("tea")
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            page.take(await stream.next_event(name="item"))
        assert page.rows == stock
        # After a gap the state comes again.
        async with client.open("/", last_event_id="of a log that is gone") as stream:
            await stream.next_event(name="livepush.gap")
            page.take(await stream.next_event(name="stock"))
        assert page.rows == stock


@pytest.mark.anyio
async def test_one_read_answers_all_that_wait_and_none_is_older_than_its_call():
    reads, reading = [], asyncio.Event()

    async def read():
        reading.set()
        begun = len(reads)
        reads.append(begun)
        await asyncio.sleep(0.01)
        return begun

    shared = SharedRead(read)
    first = [asyncio.create_task(shared()) for _ in range(100)]
    await reading.wait()
    second = [asyncio.create_task(shared()) for _ in range(100)]
    assert set(await asyncio.gather(*first)) == {0}
    assert set(await asyncio.gather(*second)) == {1}
    assert await shared() == 2
