"""The example that renews a stream with a new token, in a browser: alone, and under the shared stream."""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest

from .chromium import Browser, Page
from .serving import REPOSITORY, Serving, uvicorn

pytestmark = pytest.mark.real_time

SHOWN = "[...document.querySelectorAll('#log li')].map((line) => line.textContent)"
OPEN = "document.querySelector('#state').textContent === 'open'"
CLOSED = "document.querySelector('#state').textContent === 'closed'"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with uvicorn("tests.apps.browser:app", tmp_path / "log") as server:
        yield server


@pytest.fixture
async def client(server: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, content: str = "") -> str:
    answer = await client.post(path, content=content)
    assert answer.status_code == 200
    return answer.text


async def tokens(client: httpx.AsyncClient) -> int:
    return Counter(json.loads(await post(client, "/asked")))["tokens"]


def renewing(browser: Browser, server: Serving, *, lasts: float, **query: str) -> Page:
    words = {"path": "/events", "more": "", "lasts": str(lasts), **query}
    return browser.open(f"{server.url}/renewal.html?{httpx.QueryParams(words)}")


async def publish_until(client: httpx.AsyncClient, wanted: int) -> list[str]:
    """Publish until so many tokens were asked for, and once more. Return what was published."""
    published: list[str] = []
    while True:
        done = await tokens(client) >= wanted
        published.append(str(len(published)))
        await post(client, "/publish?channel=c", published[-1])
        if done:
            return published
        await anyio.sleep(0.02)


def reasons(page: Page) -> list[str]:
    return page.text("#reasons").split()


def check_shown(page: Page, published: list[str]) -> None:
    page.wait_for(f"{SHOWN}.length >= {len(published)}")
    assert page.evaluate(SHOWN) == published


KINDS = pytest.mark.parametrize("shared", [{}, {"shared": "1"}], ids=["alone", "shared"])


@KINDS
async def test_a_stream_goes_on_with_a_new_token(
    shared: dict[str, str], browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = renewing(browser, server, lasts=2, **shared)
    page.wait_for(OPEN)
    check_shown(page, await publish_until(client, 4))
    assert reasons(page)[:4] == ["null", *3 * ["expired"]]


@KINDS
async def test_a_revoked_stream_goes_on_if_its_user_gets_a_new_token(
    shared: dict[str, str], browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = renewing(browser, server, lasts=60, **shared)
    page.wait_for(OPEN)
    await post(client, "/publish?channel=c", "before")
    await post(client, "/forget")
    await post(client, "/disconnect?channel=c")
    await post(client, "/publish?channel=c", "meanwhile")
    page.wait_for(f"{SHOWN}.length >= 2")
    await post(client, "/publish?channel=c", "after")
    check_shown(page, ["before", "meanwhile", "after"])
    assert reasons(page) == ["null", "revoked"]


@KINDS
async def test_a_user_that_has_logged_out_gets_no_stream(
    shared: dict[str, str], browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = renewing(browser, server, lasts=60, **shared)
    page.wait_for(OPEN)
    await post(client, "/forget?log_out=1")
    await post(client, "/disconnect?channel=c")
    page.wait_for(CLOSED)
    assert reasons(page) == ["null", "revoked"]


@pytest.mark.parametrize("more", ["once=1", "once=1&softly=1"], ids=["401", "a soft 401"])
async def test_a_client_that_comes_back_after_its_tokens_end_gets_a_new_one(
    more: str, browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = renewing(browser, server, lasts=60, path="/short", more=more)
    page.wait_for(OPEN)
    check_shown(page, await publish_until(client, 4))
    assert reasons(page)[:4] == ["null", *3 * ["refused"]]


@KINDS
async def test_an_address_that_opens_one_stream_is_asked_for_before_each(
    shared: dict[str, str], browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = renewing(browser, server, lasts=60, path="/short", more="once=1", used_once="1", **shared)
    page.wait_for(OPEN)
    check_shown(page, await publish_until(client, 4))
    # The server ends each after its time, and no used address was tried: that would be a refusal.
    assert set(reasons(page)[1:]) == {"lifetime"}


async def test_what_was_published_while_no_stream_was_open_arrives(
    browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = renewing(browser, server, lasts=60)
    page.wait_for(OPEN)
    await post(client, "/disconnect?channel=c")
    published = [str(number) for number in range(20)]
    for each in published:
        await post(client, "/publish?channel=c", each)
    check_shown(page, published)


@pytest.mark.parametrize("more", ["", "softly=1"], ids=["401", "a soft 401"])
async def test_a_token_that_is_refused_at_once_is_the_end(
    more: str, browser: Browser, server: Serving
) -> None:
    page = renewing(browser, server, lasts=-1, more=more)
    page.wait_for(CLOSED)
    assert reasons(page) == ["null"]


async def test_an_address_that_fails_is_asked_for_again(
    browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = renewing(browser, server, lasts=60, failures="1")
    page.wait_for(OPEN)
    await post(client, "/publish?channel=c", "hello")
    check_shown(page, ["hello"])
    assert reasons(page) == ["null", "null"]


async def test_the_example_page_goes_on_too(
    browser: Browser, server: Serving, client: httpx.AsyncClient
) -> None:
    page = browser.open(f"{server.url}/renewing_stream.html")
    page.wait_for(OPEN)
    await post(client, "/forget")
    await post(client, "/disconnect?channel=news")
    await post(client, "/publish?channel=news", "meanwhile")
    check_shown(page, ["meanwhile"])
    assert page.complaints == []


def test_the_guide_shows_the_example_page() -> None:
    guide = next((REPOSITORY / "docs").glob("**/clients.md")).read_text()
    section = guide.partition("## Renew a stream")[2].partition("\n## ")[0]
    (shown,) = re.findall(r"```js\n(.*?)```", section, re.DOTALL)
    page = (REPOSITORY / "examples/renewing_stream.html").read_text().splitlines()
    assert {line.strip() for line in shown.splitlines()} <= {line.strip() for line in page}
