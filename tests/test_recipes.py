"""The recipes for runs: agent frameworks and a model's API as iterators, and producers in other processes."""

import asyncio
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn as uvicorn_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from livepush_asgi import LivePush, MemoryBroker, Received, RedisStreamsBroker, Refusal, RunState, RunStatus
from livepush_asgi.testing import Client, EventStreamParser

from .programs import need_package
from .serving import REPOSITORY, Serving, uvicorn
from .valkey import ValkeyProcess, until

pytestmark = [pytest.mark.real_time, pytest.mark.slow]

RECIPES = REPOSITORY / "docs" / "snippets" / "recipes"
WORDS = ["Short ", "waves ", "are ", "scattered."]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The recipes as modules, which no other test gets."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(RECIPES)
    yield
    for path in RECIPES.glob("*.py"):
        if path.stem not in known:
            sys.modules.pop(path.stem, None)


def make_push() -> LivePush:
    return LivePush(MemoryBroker(), lambda request: Refusal(404))


async def output_of(push: LivePush, id: str) -> list[Any]:
    async with asyncio.timeout(10), push.run(id).read() as items:
        return [item.json() async for item in items if isinstance(item, Received)]


class Model:
    """A stub of a language model, which speaks the streaming protocol of OpenAI."""

    def __init__(self) -> None:
        self.endless = False
        self.closed = asyncio.Event()

    def chunk(self, text: str | None) -> str:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        chunk = {
            "id": "a",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "m",
            "choices": [choice],
        }
        return f"data: {json.dumps(chunk)}\n\n"

    async def answer(self) -> AsyncIterator[str]:
        try:
            for word in WORDS:
                yield self.chunk(word)
            while self.endless:
                await asyncio.sleep(0.01)
                yield self.chunk("more ")
            yield "data: [DONE]\n\n"
        finally:
            self.closed.set()

    async def respond(self, request: Request) -> Response:
        assert (await request.json())["stream"] is True
        return StreamingResponse(self.answer(), media_type="text/event-stream")


@asynccontextmanager
async def serving(model: Model) -> AsyncIterator[str]:
    app = Starlette(routes=[Route("/v1/chat/completions", model.respond, methods=["POST"])])
    server = uvicorn_server.Server(uvicorn_server.Config(app, log_config=None, lifespan="off", ws="none"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        task = asyncio.create_task(server.serve(sockets=[listening]))
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        await task


async def test_a_model_with_the_api_of_openai(monkeypatch: pytest.MonkeyPatch, recipes: None) -> None:
    model = Model()
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    push = make_push()
    async with serving(model) as url, push.lifespan():
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        recipe: Any = import_module("with_openai")
        async with recipe.client:
            assert await recipe.start_for_openai_clients(push, "a", "why?")
            chunks = await output_of(push, "a")
            assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == WORDS

            # When the run is cancelled, the request to the model ends.
            model.endless = True
            model.closed.clear()
            assert await recipe.start_for_use_chat(push, "b", "why?")
            async with push.run("b").read() as items:
                parts = [(await anext(items)).json() for _ in range(5)]  # type: ignore[union-attr]
            assert [part.get("delta") for part in parts] == [None, *WORDS]
            await push.run("b").cancel()
            async with asyncio.timeout(5):
                await model.closed.wait()


async def test_pydantic_ai(recipes: None) -> None:
    need_package("pydantic_ai")
    recipe: Any = import_module("with_pydantic_ai")
    push = make_push()

    async def for_use_chat(request: Request) -> Response:
        response: Response = await recipe.for_use_chat(push, request)
        return response

    async def for_ag_ui(request: Request) -> Response:
        response: Response = await recipe.for_ag_ui(push, request)
        return response

    routes = [Route("/chat", for_use_chat, methods=["POST"]), Route("/agent", for_ag_ui, methods=["POST"])]
    app = Starlette(routes=routes, lifespan=push.lifespan)
    text = "success (no tool calls)"
    asked = {"id": "q", "role": "user", "parts": [{"type": "text", "text": "why?"}]}
    chat = {"id": "c", "trigger": "submit-message", "messages": [asked]}
    messages = [{"id": "q", "role": "user", "content": "why?"}]
    agent = {"threadId": "t", "runId": "r", "state": {}, "messages": messages, "tools": [], "context": []}
    async with Client(app, lifespan=True) as client:
        events = await posted(client, "/chat", chat)
        assert events[0] == {"type": "start", "messageId": "answer-q"}
        assert "".join(event.get("delta", "") for event in events) == text
        assert events[-1]["type"] == "finish"
        events = await posted(client, "/agent", {**agent, "forwardedProps": {}})
        assert (events[0]["type"], events[-1]["type"]) == ("RUN_STARTED", "RUN_FINISHED")
        assert "".join(event.get("delta", "") for event in events) == text


async def posted(client: Client, path: str, body: object) -> list[Any]:
    answer = await client.request("POST", path, json=body)
    data = [event.data for event in EventStreamParser().feed(answer.body)]
    return [json.loads(each) for each in data if each != "[DONE]"]


async def test_langgraph(recipes: None) -> None:
    need_package("langgraph")
    recipe: Any = import_module("with_langgraph")
    models: Any = import_module("langchain_core.language_models.fake_chat_models")
    push = make_push()
    async with push.lifespan():
        graph = recipe.make_graph(models.GenericFakeChatModel(messages=iter(["Short waves are scattered."])))
        assert await recipe.start(push, graph, "a", "why?")
        parts = await output_of(push, "a")
        assert [part["type"] for part in parts] == ["text-start", *["text-delta"] * 7, "text-end"]
        assert "".join(part.get("delta", "") for part in parts) == "Short waves are scattered."


async def test_a_synchronous_generator(recipes: None, caplog: pytest.LogCaptureFixture) -> None:
    recipe: Any = import_module("in_steps")
    closed = threading.Event()
    step = threading.Semaphore(3)
    begun: list[int] = []

    def numbers() -> Iterator[int]:
        try:
            for number in range(100):
                begun.append(number)
                step.acquire()
                yield number
        finally:
            closed.set()

    push = make_push()
    async with push.lifespan():
        await push.run("a").start(recipe.in_steps(numbers()))
        async with push.run("a").read() as items:
            assert [(await anext(items)).data for _ in range(3)] == ["0", "1", "2"]  # type: ignore[union-attr]
        # Its thread cannot be interrupted: the generator is closed after the step that it makes.
        await until(lambda: begun == [0, 1, 2, 3])
        await push.run("a").cancel()
        assert not closed.is_set()
        step.release()
        await until(closed.is_set)
    assert not caplog.records


@asynccontextmanager
async def program(
    command: str, log: Path, ready: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a recipe as a program, until the end of the block."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command.split()),
            stdout=output,
            stderr=output,
            env=environment,
            cwd=RECIPES,
            start_new_session=True,
        )
    try:
        await until(lambda: ready in log.read_text(), within=30)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def whole(server: Serving, id: str) -> tuple[str, str]:
    """Return the text of a run from its beginning, and its state at the end."""
    page = await server.open(f"/answers/{id}")
    end = json.loads((await page.next_event("livepush.end")).data)
    return " ".join(event.data for event in page.events if event.event == "message"), end["state"]


async def test_celery_produces_for_readers_elsewhere(valkey: ValkeyProcess, tmp_path: Path) -> None:
    need_package("celery")
    environment = {"LIVEPUSH_REDIS": valkey.url, "LEASE": "0.5"}
    log, options = (
        tmp_path / "celery",
        "--without-gossip --without-mingle --without-heartbeat --concurrency=2",
    )
    async with (
        uvicorn("web:app", tmp_path / "web", "--app-dir", str(RECIPES), environment=environment) as server,
        program(f"-m celery -A tasks worker -l INFO {options}", log, " ready.", **environment) as worker,
    ):
        question = "%20".join(str(number) for number in range(60))
        text = f"You have asked: {question}".replace("%20", " ")
        for id in ("stopped", "killed"):
            await server.open(f"/answers/{id}?question={question}", method="POST")
        stopped, killed = [await server.open(f"/answers/{id}") for id in ("stopped", "killed")]
        for page in (stopped, killed):
            for _ in range(4):
                await page.next_event()
        await server.open("/answers/stopped", method="DELETE")
        end = json.loads((await stopped.next_event("livepush.end")).data)
        assert end["state"] == "cancelled"
        await until(lambda: log.read_text().count(" succeeded in ") == 1)

        for process in psutil.Process(worker.pid).children():
            process.kill()
        end = json.loads((await killed.next_event("livepush.end")).data)
        assert end["state"] == "lost"
        begun = " ".join(event.data for event in killed.events if event.event == "message")
        assert text.startswith(begun)
        assert len(begun) < len(text)
        # The task is run again, and goes on.
        await until(lambda: log.read_text().count(" succeeded in ") == 2, within=30)
        assert await whole(server, "killed") == (text, "done")


async def until_status(push: LivePush, condition: Callable[[RunStatus], bool]) -> None:
    async with asyncio.timeout(20):
        while (status := await push.run("a").status()) is None or not condition(status):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_worker_goes_on_where_another_has_stopped(valkey: ValkeyProcess, tmp_path: Path) -> None:
    environment = {"LIVEPUSH_REDIS": valkey.url}
    words = [f"word{number}" for number in range(20)]
    async with valkey.client() as redis:
        push = LivePush(RedisStreamsBroker(redis), lambda request: Refusal(404))
        async with push.lifespan():
            await redis.rpush("answers", json.dumps({"id": "a", "question": " ".join(words)}))
            async with program("worker.py", tmp_path / "first", "", **environment) as first:
                await until_status(push, lambda status: status.count >= 5)
                first.terminate()
                assert await first.wait() == 0
            # At once, and not after the lease.
            status = await push.run("a").status()
            assert status is not None
            assert status.state is RunState.LOST
            async with program("worker.py", tmp_path / "second", "", **environment) as second:
                await until_status(push, lambda status: status.state is not RunState.LOST)
                async with push.run("a").read() as items:
                    found = [item.data async for item in items if isinstance(item, Received)]
                    assert (found, items.state) == (["You", "have", "asked:", *words], RunState.DONE)
                second.terminate()
                assert await second.wait() == 0
            assert [(tmp_path / name).read_text() for name in ("first", "second")] == ["", ""]
