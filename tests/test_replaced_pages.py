"""Pages that end when their stream was replaced, and that come back after a 502 of a proxy, in a browser.

The proxy answers 502 while no process of the application listens, as nginx does unless it is told otherwise.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from .chromium import Browser, Page
from .proxies import nginx
from .serving import REPOSITORY, Serving, uvicorn
from .valkey import until

SHARED = "/shared_stream.html?stream="
RENEWING = "/renewal.html?url="
FETCHED = "/fetched.html?stream="
TOKENS = "/renewal.html?path=/events&more=&lasts=60"
SHARED_TOKENS = f"{TOKENS}&shared=1"
CLOSING = """\
source.addEventListener("livepush.close", ({data}) => {
  if (JSON.parse(data).reason === "replaced") source.close();
});
"""
# Locks and messages take different ways through a browser, and a lock may come first.
SLOW_MESSAGES = """\
(() => {
  const post = BroadcastChannel.prototype.postMessage;
  BroadcastChannel.prototype.postMessage = function (message) {
    setTimeout(() => post.call(this, message), 300);
  };
})()
"""

pytestmark = pytest.mark.real_time


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with uvicorn("tests.apps.browser:app", tmp_path / "log") as server:
        yield server


async def post(server: Serving, path: str, body: str = "") -> None:
    assert (await server.open(path, method="POST", body=body.encode())).status == 200


async def asked(server: Serving, name: str) -> object:
    return json.loads(await (await server.open("/asked")).read_body())[name]


def wait_for_state(page: Page, *states: str) -> None:
    page.wait_for(f"{json.dumps(states)}.includes(document.querySelector('#state').textContent)")


def saw_502(page: Page) -> bool:
    """Look at what the browser has complained of. It tells that with its answer to any call."""
    page.evaluate("null")
    return any("502" in each for each in page.complaints)


def stream(name: str) -> str:
    return str(httpx.QueryParams({"": f"/replacing?channel=c&key=anna&name={name}"}))[1:]


def replace(browser: Browser, server: Serving) -> Page:
    """Open another stream of the same user."""
    page = browser.open(f"{server.url}/recorder.html")
    page.evaluate("void (window.s = listen('/replacing?channel=c&key=anna&name=newer'))")
    page.wait_for("s.data('livepush.open').length === 1")
    return page


async def let_come_back(page: Page, server: Serving) -> None:
    """Give a page of the browser the time in which another one could have come back several times."""
    page.evaluate("void (window.beat = listen('/events?channel=beat'))")
    for number in range(1, 5):
        page.wait_for(f"beat.data('livepush.open').length === {number}")
        await post(server, "/disconnect?channel=beat")


@pytest.mark.parametrize("path", [RENEWING, SHARED, FETCHED], ids=["renewing", "shared", "fetched"])
async def test_a_replaced_page_does_not_replace_the_newer_one(
    path: str, browser: Browser, server: Serving
) -> None:
    page = browser.open(f"{server.url}{path}{stream('older')}")
    wait_for_state(page, "open", "open, in this tab")
    newer = replace(browser, server)
    wait_for_state(page, "replaced", "replaced, in this tab")
    await let_come_back(newer, server)
    assert newer.evaluate("s.data('livepush.open').length") == 1
    assert await asked(server, "older") == 1


async def test_a_replaced_stream_ends_in_all_tabs_and_begins_in_a_new_one(
    browser: Browser, server: Serving
) -> None:
    url = f"{server.url}{SHARED}{stream('older')}"
    first, second = browser.open(url), browser.open(url)
    wait_for_state(first, "open, in this tab")
    wait_for_state(second, "open")
    newer = replace(browser, server)
    wait_for_state(first, "replaced, in this tab")
    wait_for_state(second, "replaced")
    await let_come_back(newer, server)
    assert newer.evaluate("s.data('livepush.open').length") == 1
    newer.evaluate("s.source.close()")
    third = browser.open(url)
    wait_for_state(third, "open, in this tab")
    assert await asked(server, "older") == 2


async def test_a_tab_gives_the_stream_back_when_the_others_have_heard_that_it_was_replaced(
    browser: Browser, server: Serving
) -> None:
    url = f"{server.url}{SHARED}{stream('older')}"
    first, second = browser.open(url), browser.open(url)
    wait_for_state(first, "open, in this tab")
    wait_for_state(second, "open")
    first.evaluate(SLOW_MESSAGES)
    newer = replace(browser, server)
    wait_for_state(second, "replaced")
    wait_for_state(first, "replaced, in this tab")
    await let_come_back(newer, server)
    assert await asked(server, "older") == 1


async def test_the_listener_of_the_guide_closes_a_replaced_event_source(
    browser: Browser, server: Serving
) -> None:
    assert CLOSING in (REPOSITORY / "docs/guides/clients.md").read_text()
    page = browser.open(f"{server.url}/recorder.html")
    page.evaluate(
        "(() => { window.s = listen('/replacing?channel=c&key=anna&name=older'); const {source} = s;"
        f"{CLOSING} }})()"
    )
    page.wait_for("s.data('livepush.open').length === 1")
    newer = replace(browser, server)
    page.wait_for("s.source.readyState === 2")
    await let_come_back(newer, server)
    assert await asked(server, "older") == 1


@pytest.mark.parametrize(
    "path",
    [
        RENEWING + "/events?channel=c",
        TOKENS,
        SHARED_TOKENS,
        SHARED + "/events?channel=c",
        FETCHED + "/events?channel=c",
    ],
    ids=["renewing", "tokens", "shared tokens", "shared", "fetched"],
)
async def test_a_page_comes_back_after_a_502(
    path: str, browser: Browser, server: Serving, tmp_path: Path
) -> None:
    async with nginx(server.port, "default/nginx.conf", tmp_path) as proxy:
        page = browser.open(proxy.url + path)
        wait_for_state(page, "open", "open, in this tab")
        server.kill()
        await until(lambda: saw_502(page), within=60)
        wait_for_state(page, "waiting", "waiting, in this tab")
        await server.start_again()
        wait_for_state(page, "open", "open, in this tab")
        await post(server, "/publish?channel=c", "after")
        page.wait_for("document.querySelector('#log li')?.textContent.endsWith('after')")


async def test_a_refusal_is_still_the_end(browser: Browser, server: Serving) -> None:
    page = browser.open(f"{server.url}{RENEWING}/events?refuse=401")
    wait_for_state(page, "closed")
