"""The examples with a JWT and with tickets in a browser, over two workers: in, a stream, renewed, out."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from .chromium import Browser, Page
from .serving import REPOSITORY, Serving, uvicorn
from .valkey import ValkeyProcess

pytestmark = pytest.mark.real_time

SHOWN = "[...document.querySelectorAll('#log li')].map((line) => line.textContent)"


class Workers:
    """Two processes of one application, each on a port of its own. A browser sends its cookies to both."""

    def __init__(self, one: Serving, other: Serving) -> None:
        self.one, self.other = one, other

    @classmethod
    async def run(
        cls, stack: AsyncExitStack, app: str, folder: Path, valkey: ValkeyProcess, **environment: str
    ) -> "Workers":
        given = {"LIVEPUSH_REDIS": valkey.url, **environment}
        servers = [
            uvicorn(f"{app}:app", folder / name, "--app-dir", "examples", environment=given)
            for name in ("one", "other")
        ]
        one, other = await asyncio.gather(*(stack.enter_async_context(server) for server in servers))
        return cls(one, other)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def shows(page: Page, condition: str) -> None:
    """Wait for a page, in a thread: sockets are closed in the loop's next turn."""
    await asyncio.to_thread(page.wait_for, condition)


async def is_in_state(page: Page, state: str) -> None:
    await shows(page, f"document.querySelector('#state').textContent === '{state}'")


async def publish_until_renewed(page: Page, worker: Serving, path: str) -> list[str]:
    """Publish all the time until a page has its next stream. Return what was published."""
    published: list[str] = []
    number = int(page.text("#number"))
    async with asyncio.timeout(30):
        while int(page.text("#number")) == number:
            published.append(str(len(published)))
            await worker.open(path, method="POST", body=published[-1].encode())
            await asyncio.sleep(0.05)
    return published


def cookies_of(page: Page) -> str:
    """Return what the browser would send, cookies that no script can read among them."""
    found = page.call("Network.getCookies")["cookies"]
    assert isinstance(found, list)
    return "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in found)


async def test_a_login_with_a_token_is_renewed_and_ends_in_every_worker(
    browser: Browser, valkey: ValkeyProcess, tmp_path: Path, stack: AsyncExitStack
) -> None:
    workers = await Workers.run(stack, "jwt_login", tmp_path, valkey, TOKEN_SECONDS="2")
    page = browser.open(workers.one.url)
    await is_in_state(page, "closed")
    page.type("#name", "ada")
    page.click("form button")
    await is_in_state(page, "open")
    other = browser.open(workers.other.url)
    await is_in_state(other, "open")
    await workers.other.open("/news", method="POST", body=b"first")
    # The token expires, and neither page misses what is published meanwhile.
    published = ["first", *await publish_until_renewed(page, workers.one, "/news")]
    for each in (page, other):
        await shows(each, f"JSON.stringify({SHOWN}) === JSON.stringify({published})")
    stolen = cookies_of(page)
    assert "token=" in stolen
    assert (await workers.other.open("/events/", cookie=stolen)).status == 200
    page.click("#out")
    for each in (page, other):
        await is_in_state(each, "closed")
    # Nor does what was copied from them before open a stream, or get a new token.
    assert (await workers.other.open("/events/", cookie=stolen)).status == 401
    assert (await workers.one.open("/token", method="POST", cookie=stolen)).status == 401
    assert "Traceback" not in workers.one.log + workers.other.log


async def test_tickets_open_streams_where_no_cookie_goes_until_the_logout(
    browser: Browser, valkey: ValkeyProcess, tmp_path: Path, stack: AsyncExitStack
) -> None:
    environment = {"STREAMS_HOST": "localhost", "STREAM_SECONDS": "1"}
    workers = await Workers.run(stack, "ticket_login", tmp_path, valkey, **environment)
    page = browser.open("about:blank")
    page.call("Page.navigate", url=f"{workers.one.url}/login/ada")
    await shows(page, "location.pathname === '/orders/ada' && document.querySelector('#state')")
    await is_in_state(page, "open")
    other = browser.open(f"{workers.other.url}/orders/ada")
    await is_in_state(other, "open")
    # Each stream ends after a while, and the page goes on with another ticket.
    published = await publish_until_renewed(page, workers.other, "/orders/ada")
    await shows(page, f"JSON.stringify({SHOWN}) === JSON.stringify({published})")
    used = str(
        page.evaluate(
            "performance.getEntriesByType('resource').findLast(({name}) => name.includes('ticket=')).name"
        )
    )
    assert "ticket=" in used
    path = used.partition("/events/")[2]
    # What an access log shows opens nothing in either worker.
    for worker in (workers.one, workers.other):
        assert (await worker.open(f"/events/{path}")).status == 401
        assert (await worker.open(f"/events/{path}", last_event_id="x~e.1")).status == 401
    # Signed for Ada, with a ticket of Alan.
    alan = (await workers.one.open("/login/alan")).headers["set-cookie"].partition(";")[0]
    ticket = (await (await workers.one.open("/ticket", method="POST", cookie=alan)).read_body()).decode()
    channels = path.partition("channels=")[2].partition("&")[0]
    assert (await workers.other.open(f"/events/?ticket={ticket}&channels={channels}")).status == 403
    page.click("#out")
    for each in (page, other):
        await is_in_state(each, "closed")
    assert "Traceback" not in workers.one.log + workers.other.log


@pytest.mark.parametrize("guide", ["tickets", "jwt"])
def test_the_guide_shows_the_script_of_the_page(guide: str) -> None:
    text = (REPOSITORY / f"docs/guides/{guide}.md").read_text()
    (shown,) = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    app = {"tickets": "ticket_login", "jwt": "jwt_login"}[guide]
    page = (REPOSITORY / f"examples/{app}.py").read_text().splitlines()
    assert {line.strip() for line in shown.splitlines()} <= {line.strip() for line in page}
