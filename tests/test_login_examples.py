"""The examples with a login, each in two workers and a browser: in, stream, refresh, out, gone, expired."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from .chromium import Browser, Page
from .serving import Serving, WireStream, uvicorn
from .valkey import ValkeyProcess

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

EXAMPLES = ("starlette_login", "fastapi_login", "django_login")
STATE = "document.querySelector('#state').textContent"


@asynccontextmanager
async def two_workers(name: str, valkey: ValkeyProcess, folder: Path) -> AsyncIterator[list[Serving]]:
    environment = {
        "LIVEPUSH_REDIS": f"{valkey.url}/{EXAMPLES.index(name) + 1}",
        "DATABASE": str(folder / f"{name}.sqlite3"),
        "LOGIN_SECONDS": "3",
    }
    async with AsyncExitStack() as stack:
        workers = []
        for number in range(2):
            log = folder / f"{name}-{number}.log"
            worker = uvicorn(f"{name}:app", log, "--app-dir", "examples", environment=environment)
            workers.append(await stack.enter_async_context(worker))
        yield workers
        for worker in workers:
            assert "Traceback" not in worker.log, worker.log


async def shows(page: Page, condition: str) -> None:
    # In a thread: the pages of the other examples wait at the same time.
    await asyncio.to_thread(page.wait_for, condition)


async def visit(name: str, workers: list[Serving], browser: Browser) -> None:
    page = await asyncio.to_thread(browser.open, workers[0].url)
    await shows(page, f"{STATE} === 'out'")
    assert (await workers[1].open("/events/")).status == 401

    await asyncio.to_thread(page.click, "form button")
    await shows(page, f"{STATE} === 'in'")
    other = await asyncio.to_thread(browser.open, workers[1].url)
    await shows(other, f"{STATE} === 'in'")
    publish = "[1, 2, 3].reduce((last, n) => last.then(() => post('/publish', n)), Promise.resolve())"
    await asyncio.to_thread(other.evaluate, publish)
    await shows(page, "document.querySelectorAll('#log li').length === 3")

    # The login expires and is prolonged: the streams go on, and nothing is lost or doubled.
    await asyncio.to_thread(
        page.evaluate, "stream.addEventListener('livepush.open', () => window.again = true)"
    )
    await asyncio.to_thread(
        page.evaluate,
        "stream.addEventListener('livepush.close', (e) => window.why = JSON.parse(e.data).reason)",
    )
    await shows(page, "window.why === 'expired'")
    await asyncio.to_thread(other.evaluate, "post('/publish', 4)")
    await shows(page, "window.again && document.querySelectorAll('#log li').length === 4")

    program = await listen_with_a_token(workers[0], page) if name == "django_login" else None

    # A logout in one worker ends the streams in both.
    await asyncio.to_thread(other.click, "#logout")
    for each in (page, other):
        await shows(each, f"{STATE} === 'out'")
    assert await asyncio.to_thread(page.evaluate, "window.why") == "revoked"
    assert await asyncio.to_thread(page.evaluate, "post('/refresh').then((answer) => answer.status)") == 401

    if program is not None:
        await program.read_to_end()
        assert json.loads(program.events[-1].data)["reason"] == "revoked"

    # A login that is not prolonged ends by itself.
    await asyncio.to_thread(page.click, "#stay")
    await asyncio.to_thread(page.click, "form button")
    await shows(page, f"{STATE} === 'in'")
    await shows(page, f"{STATE} === 'out'")
    shown = await asyncio.to_thread(page.text, "#log")
    assert shown == "1234"


async def listen_with_a_token(worker: Serving, page: Page) -> WireStream:
    """Open the stream of a program, which sends a token of Django REST framework."""
    token = "post('/token').then((answer) => answer.json()).then(({token}) => token)"
    key = await asyncio.to_thread(page.evaluate, token)
    refused = await worker.open("/events", authorization="Token wrong")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Token")
    stream = await worker.open("/events", authorization=f"Token {key}")
    await stream.next_event("livepush.open")
    return stream


async def test_a_browser_logs_in_listens_and_logs_out(
    browser: Browser, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    # At the same time, because most of it is waiting. The names of their cookies differ.
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for name in EXAMPLES:
            workers = await stack.enter_async_context(two_workers(name, valkey, tmp_path))
            tasks.create_task(visit(name, workers, browser), name=name)
