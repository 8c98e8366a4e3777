"""The official clients of the dialects as judges: they read what uvicorn serves, and say what they got."""

import asyncio
import json
import socket
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import openai
import uvicorn

from livepush_asgi.runtime.asgi import ASGIApp

from .apps.frames import Script, Scripts
from .programs import need, need_node_package

JUDGES = Path(__file__).parent / "node" / "judges.mjs"
PATIENCE = 60.0


@dataclass
class Said:
    """What a client made of an answer: its text, the error that it gave its user, and what ended the run."""

    text: str
    error: str | None = None
    finish: str | None = None
    # Parts of the dialect's own, as JSON has them.
    data: list[Any] = field(default_factory=list)
    #: For a client that came several times, the error each time.
    errors: list[str | None] = field(default_factory=list)
    messages: int = 1
    #: The status that `useChat` shows, each time.
    statuses: list[str] = field(default_factory=list)


class Judges:
    """The clients, and the server that they read from."""

    def __init__(self, process: asyncio.subprocess.Process, scripts: Scripts, url: str) -> None:
        self._process = process
        self._scripts = scripts
        self._url = url
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    def serve(self, script: Script | ASGIApp) -> str:
        """Serve a script or an application, and return its URL."""
        name = f"script{next(self._numbers)}"
        self._scripts.by_name[name] = script
        return f"{self._url}/{name}"

    async def ask(
        self, client: str, script: Script | ASGIApp, *, times: int = 1, messages: Sequence[object] = ()
    ) -> Said:
        """Let a client read a script or an application, so many times.

        `messages` are those that the page of `chat` has loaded before.
        """
        if client == "openai":
            return await self.ask_openai(self.serve(script))
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        question: dict[str, object] = {
            "number": number,
            "client": client,
            "url": self.serve(script),
            "times": times,
        }
        question["messages"] = list(messages)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(question)}\n".encode())
        async with asyncio.timeout(PATIENCE):
            said = await answer
        known = Said.__dataclass_fields__
        return Said(**{name: value for name, value in said.items() if name in known})

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            self._asked.pop(said["number"]).set_result(said)

    async def ask_openai(self, url: str, last_event_id: str | None = None) -> Said:
        """Let the Python client of OpenAI read a URL, after an event id."""
        said = Said("")
        headers = {} if last_event_id is None else {"last-event-id": last_event_id}
        async with openai.AsyncOpenAI(base_url=url, api_key="key", max_retries=0) as client:
            try:
                stream = await client.chat.completions.create(
                    model="m", messages=[], stream=True, extra_headers=headers
                )
                async for chunk in stream:
                    if not chunk.choices:
                        said.data.append(chunk.to_dict())
                        continue
                    said.text += chunk.choices[0].delta.content or ""
                    said.finish = chunk.choices[0].finish_reason or said.finish
            except (openai.OpenAIError, ValueError) as error:
                said.error = f"{type(error).__name__}: {error}"
        return said

    async def close(self) -> None:
        """Let the clients go."""
        self._process.kill()
        await self._process.wait()
        await self._reading


@asynccontextmanager
async def judges() -> AsyncIterator[Judges]:
    """Run the clients, and uvicorn in this process. A connection waits at the socket until it accepts."""
    for package in ("ai", "@ai-sdk/react", "@ag-ui/client", "eventsource"):
        need_node_package(package)
    scripts = Scripts()
    config = uvicorn.Config(scripts, log_config=None, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        process = await asyncio.create_subprocess_exec(need("node"), str(JUDGES), stdin=PIPE, stdout=PIPE)
        found = Judges(process, scripts, url)
        try:
            yield found
        finally:
            await found.close()
            server.should_exit = True
            await serving
            # The sockets are closed in the loop's next turn.
            await asyncio.sleep(0)
