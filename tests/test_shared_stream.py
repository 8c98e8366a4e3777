"""The example that shares one stream between tabs, in several tabs of a real browser."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from .chromium import Browser, Page
from .serving import Serving, uvicorn
from .valkey import until

pytestmark = pytest.mark.real_time


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with uvicorn("tests.apps.browser:app", tmp_path / "log") as server:
        yield server


async def publish(server: Serving, data: str, *, event: str = "message") -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        answer = await client.post(f"{server.url}/publish?channel=c&event={event}", content=data)
        assert answer.status_code == 200


async def streams_asked_for(server: Serving) -> object:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return (await client.get(f"{server.url}/asked")).json()[""]


SHOWN = "[...document.querySelectorAll('#log li')].map((line) => line.textContent)"


def tab(browser: Browser, server: Serving) -> Page:
    """Open the example that shares a stream, and wait until it has one, its own or another's."""
    page = browser.open(f"{server.url}/shared_stream.html?stream=/events?channel=c")
    page.wait_for("document.querySelector('#state').textContent.startsWith('open')")
    return page


async def test_tabs_share_a_stream_and_pass_it_on_without_loss(browser: Browser, server: Serving) -> None:
    tabs = [tab(browser, server) for _ in range(4)]
    assert [page.text("#state") for page in tabs] == ["open, in this tab", "open", "open", "open"]
    published: list[str] = []

    async def publish_five() -> None:
        for number in range(len(published), len(published) + 5):
            published.append(f"news: {number}")
            await publish(server, str(number), event="news")

    leaving: list[Callable[[Page], None]] = [
        lambda page: page.close(),
        lambda page: page.click("#stop"),
        lambda page: page.go("about:blank"),
    ]
    for leave in leaving:
        await publish_five()
        # At once: what has not come by now is for the one that takes over.
        leave(tabs.pop(0))
        await publish_five()
        for page in tabs:
            page.wait_for(f"{SHOWN}.length === {len(published)}")
            assert page.evaluate(SHOWN) == published
            assert page.complaints == []
        tabs[0].wait_for("document.querySelector('#state').textContent === 'open, in this tab'")
    # One stream at a time, each by another tab.
    assert await streams_asked_for(server) == 4


async def test_a_tab_that_is_shown_again_begins_anew(browser: Browser, server: Serving) -> None:
    first, second = tab(browser, server), tab(browser, server)
    await publish(server, "to both")
    first.go("about:blank")
    await publish(server, "to one")
    second.wait_for(f"{SHOWN}.length === 2")
    first.back()
    # It may be in between two documents.
    await until(lambda: first.tried("document.querySelector('#state').textContent") == "open", within=60)
    await publish(server, "to both again")
    second.wait_for(f"{SHOWN}.length === 3")
    assert second.evaluate(SHOWN) == ["message: to both", "message: to one", "message: to both again"]
    first.wait_for(f"{SHOWN}.length === 1")
    assert first.evaluate(SHOWN) == ["message: to both again"]
