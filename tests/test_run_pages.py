"""The pages of the examples with runs, in two workers: a reload, a second tab, a stop, a killed worker."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from .chromium import Browser, Page
from .programs import NODE_MODULES, need_node_package
from .relay import Relay
from .serving import REPOSITORY, Serving, uvicorn
from .valkey import ValkeyProcess

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

WORDS = [f"word{number}" for number in range(40)]
TEXT = "document.querySelector('#text').textContent"
STATE = "document.querySelector('#state')?.textContent"


@asynccontextmanager
async def two_workers(
    app: str, valkey: ValkeyProcess, folder: Path, **environment: str
) -> AsyncIterator[list[Serving]]:
    async with AsyncExitStack() as stack:
        workers = []
        for number in range(2):
            worker = uvicorn(
                f"tests.apps.{app}:app",
                folder / f"{app}-{number}.log",
                *("--app-dir", "examples"),
                environment={"LIVEPUSH_REDIS": valkey.url, **environment},
            )
            workers.append(await stack.enter_async_context(worker))
        yield workers
        for worker in workers:
            assert "Traceback" not in worker.log, worker.log


@asynccontextmanager
async def one_port(worker: Serving) -> AsyncIterator[Relay]:
    """Pass connections on to a worker: new ones to another, when `target` was changed."""
    async with anyio.create_task_group() as tasks:
        relay = Relay(worker.port)
        await tasks.start(relay.serve)
        yield relay
        tasks.cancel_scope.cancel()


async def shows(page: Page, condition: str) -> None:
    # In a thread: the relay of the page runs in this one.
    await asyncio.to_thread(page.wait_for, condition)


async def open_page(browser: Browser, url: str) -> Page:
    return await asyncio.to_thread(browser.open, url)


async def words_of(page: Page) -> list[str]:
    return (await asyncio.to_thread(page.text, "#text")).split()


async def reload_and_stop(browser: Browser, valkey: ValkeyProcess, folder: Path) -> None:
    async with two_workers("run_page", valkey, folder) as workers:
        page = await open_page(browser, workers[0].url)
        await asyncio.to_thread(page.click, "form button")
        await shows(page, f"{TEXT}.includes('word2 ')")
        await asyncio.to_thread(page.call, "Page.reload")
        await shows(page, f"document.readyState === 'complete' && {TEXT}.includes('word4 ')")
        assert await asyncio.to_thread(page.evaluate, STATE) == "running"
        address = await asyncio.to_thread(page.evaluate, "location.hash")

        other = await open_page(browser, f"{workers[1].url}/{address}")
        await shows(other, f"{TEXT}.includes('word8 ')")
        await asyncio.to_thread(other.click, "#stop")
        for each in (page, other):
            await shows(each, f"{STATE} === 'cancelled'")
        stopped = await words_of(page)
        assert stopped == await words_of(other) == WORDS[: len(stopped)]
        assert len(stopped) < 40

        # The rest of it comes from the other worker, and both pages have each word once.
        for each in (other, page):
            await asyncio.to_thread(each.click, "#more")
        for each in (page, other):
            await shows(each, f"{STATE} === 'done'")
            assert await words_of(each) == WORDS
            assert await asyncio.to_thread(each.text, "#question") == "Why is the sky blue?"
        late = await open_page(browser, f"{workers[0].url}/{address}")
        await shows(late, f"{STATE} === 'done'")
        assert await words_of(late) == WORDS
        nothing = await open_page(browser, f"{workers[0].url}/#nothing")
        await shows(nothing, f"{STATE} === 'none'")


async def kill_and_go_on(browser: Browser, valkey: ValkeyProcess, folder: Path) -> None:
    async with two_workers("run_page", valkey, folder) as workers, one_port(workers[0]) as relay:
        page = await open_page(browser, f"http://127.0.0.1:{relay.port}")
        await asyncio.to_thread(page.click, "form button")
        await shows(page, f"{TEXT}.includes('word2 ')")
        address = await asyncio.to_thread(page.evaluate, "location.hash")
        relay.target = workers[1].port
        other = await open_page(browser, f"{workers[1].url}/{address}")
        await shows(other, f"{TEXT}.includes('word4 ')")
        listen = "source.addEventListener('error', () => window.shown = find('#state').textContent)"
        await asyncio.to_thread(page.evaluate, listen)
        workers[0].kill()
        for each in (page, other):
            await shows(each, f"{STATE} === 'lost'")
        assert await asyncio.to_thread(page.evaluate, "window.shown") == "interrupted"
        begun = await words_of(page)
        assert begun == await words_of(other) == WORDS[: len(begun)]
        assert len(begun) < 40
        for each in (page, other):
            await asyncio.to_thread(each.click, "#more")
        for each in (page, other):
            await shows(each, f"{STATE} === 'done'")
            assert await words_of(each) == WORDS


async def test_an_answer_outlives_its_page_and_its_worker_and_is_stopped_from_another_tab(
    browser: Browser, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    # At the same time, because most of it is waiting.
    async with asyncio.TaskGroup() as tasks:
        for story in (reload_and_stop, kill_and_go_on):
            folder = tmp_path / story.__name__
            folder.mkdir()
            tasks.create_task(story(browser, valkey, folder), name=story.__name__)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the page of the AI SDK as its first lines say."""
    for package in ("@ai-sdk/react", "react", "react-dom"):
        need_node_package(package)
    esbuild = need_node_package("esbuild") / "bin" / "esbuild"
    folder = tmp_path_factory.mktemp("bundle")
    page = REPOSITORY / "examples" / "ai_sdk_chat.jsx"
    _, _, command, *_ = page.read_text().splitlines()
    _, _, _, _, *options, _ = command.split()
    subprocess.run(
        [esbuild, page, page.with_suffix(".html"), *options, f"--outdir={folder}", "--log-level=error"],
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        check=True,
    )
    return folder


# What the page has of the newest answer, and of all the chat.
ANSWER = "([...document.querySelectorAll('p.assistant')].at(-1)?.textContent ?? '')"
CHAT = "[...document.querySelectorAll('p[class]')].map((each) => [each.className, each.textContent.trim()])"


async def test_use_chat_resumes_follows_and_is_stopped_from_another_tab(
    browser: Browser, valkey: ValkeyProcess, tmp_path: Path, bundle: Path
) -> None:
    question, whole = ["user", "Why is the sky blue?"], ["assistant", " ".join(WORDS)]
    async with two_workers("ai_sdk_chat", valkey, tmp_path, PAGE=str(bundle)) as workers:
        page = await open_page(browser, f"{workers[0].url}/ai_sdk_chat.html")
        await shows(page, f"{STATE} === 'ready'")
        await asyncio.to_thread(page.click, "form button")
        await shows(page, f"{ANSWER}.includes('word2 ')")
        await asyncio.to_thread(page.call, "Page.reload")
        await shows(page, f"document.readyState === 'complete' && {ANSWER}.includes('word4 ')")
        assert await asyncio.to_thread(page.evaluate, STATE) == "streaming"
        address = await asyncio.to_thread(page.evaluate, "location.hash")
        other = await open_page(browser, f"{workers[1].url}/ai_sdk_chat.html{address}")
        await shows(other, f"{ANSWER}.includes('word8 ')")
        for each in (page, other):
            await shows(each, f"{STATE} === 'ready'")
            assert await asyncio.to_thread(each.evaluate, CHAT) == [question, whole]

        # The next answer is stopped in the second tab, which has loaded it in the middle.
        await asyncio.to_thread(page.click, "form button")
        await shows(page, f"{ANSWER}.includes('word1 ') && !{ANSWER}.includes('word20')")
        await asyncio.to_thread(other.call, "Page.reload")
        await shows(other, f"{STATE} === 'streaming' && {ANSWER}.includes('word3 ')")
        await asyncio.to_thread(other.click, "#stop")
        for each in (page, other):
            await shows(each, f"{STATE} === 'ready'")
        chat = await asyncio.to_thread(page.evaluate, CHAT)
        assert chat == await asyncio.to_thread(other.evaluate, CHAT)
        assert isinstance(chat, list)
        assert chat[:-1] == [question, whole, question]
        stopped = chat[-1][1].split()
        assert stopped == WORDS[: len(stopped)]
        assert len(stopped) < 40
        late = await open_page(browser, f"{workers[0].url}/ai_sdk_chat.html{address}")
        await shows(late, f"{ANSWER}.trim() === {json.dumps(chat[-1][1])}")
        assert chat == await asyncio.to_thread(late.evaluate, CHAT)
