"""The official clients, unmodified, read real runs: whole ones, cut ones, and each of their ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import pytest
from openai import AsyncOpenAI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from livepush_asgi import (
    DrainPolicy,
    Grant,
    History,
    LivePush,
    MemoryBroker,
    Refusal,
    Run,
    RunFailedError,
    RunState,
    StreamRequest,
    Timing,
)
from livepush_asgi.contrib.starlette import sse_streaming_response
from livepush_asgi.dialects import GAP_TEXT, TEXTS, ag_ui, ai_sdk, livepush, openai
from livepush_asgi.runs.log import RunLog
from livepush_asgi.runtime.asgi import ASGIApp, Receive, Scope, Send
from livepush_asgi.wire.event import to_payload
from livepush_asgi.wire.run_record import RunRecord

from .apps.frames import Cutting
from .judges import Judges, Said, judges

# A carriage return would come as a line end in the dialect that is not JSON.
PIECES = ["Grüße", ", ", "😀", "\n\n", "as\u2028it\x85 is"]
TEXT = "".join(PIECES)
DIALECTS = {"ai": ai_sdk(), "chat": ai_sdk(), "ag-ui": ag_ui(), "openai": openai(), "eventsource": livepush()}
# How a client names the end of a run that is done, and how many blocks a run of PIECES has for it.
DONE = {"ai": "finish", "chat": None, "ag-ui": "RUN_FINISHED", "openai": "stop", "eventsource": "done"}
BLOCKS = {"ai": 10, "chat": 10, "ag-ui": 9, "openai": 8, "eventsource": 8}
INTERRUPTED = TEXTS[RunState.RUNNING]

every_client = pytest.mark.parametrize("client", DIALECTS)
every_dialect = pytest.mark.parametrize("client", [name for name in DIALECTS if name != "eventsource"])


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def route(push: LivePush, run: Run) -> ASGIApp:
    """Return a route with the stream of a run, for GET and POST."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await push({**scope, "run": run}, receive, send)
            return
        try:
            response = await sse_streaming_response(push, Request(scope), authorize=run.grant)
        except HTTPException as refused:
            await Response(status_code=refused.status_code)(scope, receive, send)
        else:
            await response(scope, receive, send)

    return app


async def authorize(request: StreamRequest) -> Grant | Refusal:
    run: Run = request.scope["run"]
    return await run.grant(request)


@dataclass
class House:
    """The clients, and processes with runs that they read."""

    clients: Judges
    stack: AsyncExitStack
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    push: LivePush = field(init=False)
    numbers: "count[int]" = field(default_factory=count)

    async def start(self, broker: MemoryBroker) -> LivePush:
        """Start a process."""
        push = LivePush(
            broker,
            authorize,
            timing=Timing(retry=0.01),
            drain=DrainPolicy(window=0.2, signals=False),
        )
        await self.stack.enter_async_context(push.lifespan())
        return push

    def run(self, client: str, push: LivePush | None = None) -> tuple[Run, ASGIApp]:
        """Return a run with a new id, and the route that a client reads it from."""
        push = push or self.push
        run = push.run(f"run-{next(self.numbers)}", dialect=DIALECTS[client])
        return run, route(push, run)


@pytest.fixture(scope="module")
async def house() -> AsyncIterator[House]:
    async with judges() as clients, AsyncExitStack() as stack:
        found = House(clients, stack)
        found.push = await found.start(found.broker)
        yield found


async def pieces(
    *, upto: int = len(PIECES), pace: float = 0.0, then: Exception | None = None, waits: bool = False
) -> AsyncIterator[str]:
    """Yield the pieces, and then raise, or wait until the run ends."""
    for piece in PIECES[:upto]:
        yield piece
        await asyncio.sleep(pace)
    if waits:
        await asyncio.Event().wait()
    if then is not None:
        raise then


async def begin(run: Run, source: AsyncIterator[str] | None = None, *, ended: bool = False) -> None:
    """Start a run, or, if it shall have `ended`, wait for its end."""
    await run.start(run.dialect.text(source or pieces(), "text"))
    if ended:
        await run.wait()


def is_whole(client: str, said: Said) -> bool:
    """Whether a client shows a text as one that is complete."""
    if client == "chat":
        return (
            said.errors[-1] is None
            and said.statuses[-1] == "ready"
            and {"end": "cancelled"} not in notes(said)
        )
    return said.error is None and said.finish == DONE[client]


def notes(said: Said) -> list[object]:
    """Return the data of our own parts."""
    return [part["data"] for part in said.data if part.get("type") == "data-livepush"]


@every_client
async def test_a_whole_run_while_it_runs_and_after_it(house: House, client: str) -> None:
    run, app = house.run(client)
    await begin(run, pieces(pace=0.01))
    live, later = await house.clients.ask(client, app), await house.clients.ask(client, app)
    for said in (live, later):
        assert (said.text, said.error, is_whole(client, said)) == (TEXT, None, True)


async def taken_up(house: House, client: str, cut: int, pace: float) -> tuple[Said, list[str]]:
    """Let a client read a run that is cut after so many blocks, and come back for the rest."""
    run, app = house.run(client)
    await begin(run, pieces(pace=pace), ended=not pace)
    cutting = Cutting(app, cuts=[cut])
    if client != "openai":
        said = await house.clients.ask(client, cutting, times=2)
        if client != "eventsource":
            # It is told that it does not have all, whatever it has of it.
            assert said.errors[0] is not None
        return said, cutting.asked
    url = house.clients.serve(cutting)
    begun = await house.clients.ask_openai(url)
    if cut < BLOCKS[client]:
        assert begun.error is not None
    # The client does not show ids: its user has them from elsewhere, or reads the run from its beginning.
    rest = await house.clients.ask_openai(url, cutting.last_id)
    return Said(begun.text + rest.text, rest.error, rest.finish or begun.finish), cutting.asked


@pytest.mark.parametrize("client", ["chat", "ag-ui", "openai", "eventsource"])
@pytest.mark.parametrize("pace", [0.0, 0.02], ids=["over", "live"])
async def test_a_run_that_is_cut_at_each_of_its_blocks_and_taken_up_again(
    house: House, client: str, pace: float
) -> None:
    # Before the first block an EventSource knows no reconnection time, and waits for three seconds.
    cuts = range(int(client == "eventsource"), BLOCKS[client])
    found = await asyncio.gather(*(taken_up(house, client, cut, pace) for cut in cuts))
    for cut, (said, asked) in zip(cuts, found, strict=True):
        assert (said.text, said.error) == (TEXT, None), cut
        assert is_whole(client, said), cut
        assert len(asked) >= 2, cut


async def read_into(house: House, client: str, app: ASGIApp, *, blocks: int, times: int = 1) -> "Reading":
    """Let a client begin to read, and return when it was sent so many blocks."""
    cutting = Cutting(app)
    said = asyncio.ensure_future(house.clients.ask(client, cutting, times=times))
    await cutting.wait_sent(blocks)
    return said


Reading = asyncio.Future[Said]


async def fail(error: Exception, house: House, client: str) -> Said:
    run, app = house.run(client)
    await begin(run, pieces(upto=2, then=error))
    return await house.clients.ask(client, app)


async def cancel(house: House, client: str) -> Said:
    run, app = house.run(client)
    await begin(run, pieces(upto=2, waits=True))
    said = await read_into(house, client, app, blocks=3)
    await run.cancel()
    return await said


async def lose(house: House, client: str) -> Said:
    """Let the run be found lost, as by a process that has watched it for its lease."""
    run, app = house.run(client)
    await begin(run, pieces(upto=2, waits=True))
    said = await read_into(house, client, app, blocks=3)
    log = RunLog(house.broker, run.channel)
    state, end = await log.state()
    assert state is not None
    await log.append(state.make("end", RunState.LOST), end)
    return await said


ENDS: dict[str, tuple[Callable[[House, str], Awaitable[Said]], str, str]] = {
    "failed": (partial(fail, ZeroDivisionError("a password")), "failed", TEXTS[RunState.FAILED]),
    "failed with a text": (
        partial(fail, RunFailedError("The model is busy.")),
        "failed",
        "The model is busy.",
    ),
    "cancelled": (cancel, "cancelled", TEXTS[RunState.CANCELLED]),
    "lost": (lose, "lost", TEXTS[RunState.LOST]),
}


@every_client
async def test_each_end_of_a_run_that_has_a_part_of_its_text(house: House, client: str) -> None:
    found = await asyncio.gather(*(end(house, client) for end, _, _ in ENDS.values()))
    for (name, (_, state, text)), said in zip(ENDS.items(), found, strict=True):
        assert said.text == "".join(PIECES[:2]), name
        assert not is_whole(client, said), name
        if client == "eventsource":
            assert said.finish == state
            assert said.error == (text if name == "failed with a text" else None)
        elif client in ("ai", "chat") and name == "cancelled":
            assert (said.error, notes(said)) == (None, [{"end": "cancelled"}])
            assert said.finish == ("abort" if client == "ai" else None)
        else:
            assert text in str(said.error), name
            assert "password" not in str(said.error)
            assert said.statuses == (["error"] if client == "chat" else [])


@every_client
async def test_a_drain_in_the_middle(house: House, client: str) -> None:
    """The client is told that it does not have all, and reads on from another process."""
    leaving, staying = await house.start(house.broker), house.push
    run, _ = house.run(client, staying)
    source = asyncio.Event()

    async def until_drained() -> AsyncIterator[str]:
        for number, piece in enumerate(PIECES):
            if number == 3:
                await source.wait()
            yield piece

    await begin(run, until_drained())
    app = Cutting(route(leaving, leaving.run(run.id, dialect=run.dialect)), route(staying, run))
    said = asyncio.ensure_future(house.clients.ask(client, app, times=2))
    await app.wait_sent(4)
    await leaving.drain()
    source.set()
    found = await said
    if client == "openai":
        # It does not come back by itself.
        assert (found.text, found.error) == ("".join(PIECES[:3]), f"APIError: {INTERRUPTED}")
        found = await house.clients.ask_openai(house.clients.serve(app), app.last_id)
        assert found.text == "".join(PIECES[3:])
        return
    if client == "ai":
        assert INTERRUPTED in str(found.error)
        return
    assert (found.text, found.error, is_whole(client, found)) == (TEXT, None, True)
    if client != "eventsource":
        assert INTERRUPTED in str(found.errors[0])
        assert found.statuses == (["error", "ready"] if client == "chat" else [])


async def trimmed(house: House, client: str) -> Said:
    """Read a run whose history was too short for it."""
    push = await house.start(MemoryBroker(History(events=4)))
    run, app = house.run(client, push)
    await begin(run, ended=True)
    return await house.clients.ask(client, app)


async def log_lost(house: House, client: str) -> Said:
    """Read a run whose log was lost with the server, and begun again by its producer."""
    run, app = house.run(client)
    log = RunLog(house.broker, run.channel)
    _, end = await log.state()
    start = RunRecord(kind="start", attempt="x", begin=1, lease=15, at=time.time(), count=3)
    end = await log.append(start, end)
    async for item in run.dialect.text(pieces(), "text"):
        end = await log.append_batch([to_payload(run.dialect.event(item).encode())], end)
    await log.append(replace(start, kind="end", state=RunState.DONE), end)
    return await house.clients.ask(client, app)


@every_client
async def test_a_gap(house: House, client: str) -> None:
    found = await asyncio.gather(trimmed(house, client), log_lost(house, client))
    for said, reason in zip(found, ("expired", "epoch"), strict=True):
        if client == "eventsource":
            assert TEXT.endswith(said.text)
            assert [gap["reason"] for gap in said.data] == [reason]
            continue
        assert (said.text, is_whole(client, said)) == ("", False)
        assert GAP_TEXT in str(said.error)
        if client in ("ai", "chat"):
            assert notes(said) == [{"gap": reason}]


@pytest.mark.parametrize("client", ["openai", "eventsource"])
async def test_a_gap_in_the_middle_for_a_client_that_has_an_id(house: House, client: str) -> None:
    push = await house.start(MemoryBroker(History(events=5)))
    run, app = house.run(client, push)
    read = asyncio.Event()

    async def ahead() -> AsyncIterator[str]:
        yield PIECES[0]
        await read.wait()
        for piece in PIECES[1:]:
            yield piece

    await begin(run, ahead())
    blocks = 2
    cutting = Cutting(app, waiting(run, app), cuts=[blocks])
    said = asyncio.ensure_future(house.clients.ask(client, cutting))
    await cutting.wait_sent(blocks)
    read.set()
    found = await said
    if client == "openai":
        assert (found.text, found.error) == (PIECES[0], "APIConnectionError: Connection error.")
        found = await house.clients.ask_openai(house.clients.serve(cutting), cutting.last_id)
        assert (found.text, found.error) == ("", f"APIError: {GAP_TEXT}")
    else:
        assert [gap["reason"] for gap in found.data] == ["expired"]
        assert (found.text, found.finish) == (PIECES[0] + "".join(PIECES[2:]), "done")


def waiting(run: Run, app: ASGIApp) -> ASGIApp:
    """Return an application that answers when a run has ended."""

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await run.wait()
        await app(scope, receive, send)

    return wait


@every_client
async def test_where_there_is_no_run_and_nothing_more_of_it(house: House, client: str) -> None:
    run, app = house.run(client)
    none = await house.clients.ask(client, app)
    error = {"ag-ui": "Error: HTTP 404:", "openai": "NotFoundError: Error code: 404"}.get(client)
    assert (none.text, none.finish) == ("", None)
    assert none.error == error or (error and str(none.error).startswith(error))
    if client == "openai":
        await begin(run, ended=True)
        status = await run.status()
        assert status is not None
        over = await house.clients.ask_openai(house.clients.serve(app), status.last_event_id)
        assert str(over.error).startswith(str(error))


async def test_use_chat_after_the_end_of_a_run(house: House) -> None:
    """What `replays_ended` is for: a page that was cut off, and one that has the message from elsewhere."""
    run, app = house.run("chat")
    await begin(run, ended=True)
    question = {"id": "q", "role": "user", "parts": [{"type": "text", "text": "?"}]}

    def stored(id: str, text: str = TEXT) -> dict[str, object]:
        return {"id": id, "role": "assistant", "parts": [{"type": "text", "text": text, "state": "done"}]}

    # It replaces the message that has the id of the run, wherever that is.
    pages: list[tuple[list[object], list[str]]] = [
        ([stored(run.id)], [TEXT]),
        ([stored(run.id, "Grü")], [TEXT]),
        ([question, stored(run.id), question | {"id": "q2"}], ["?", TEXT, "?"]),
        ([question, stored("other")], ["?", TEXT, TEXT]),
    ]
    for loaded, texts in pages:
        said = await house.clients.ask("chat", app, times=2, messages=loaded)
        assert (said.text.split("|"), said.errors, said.statuses) == (texts, [None, None], ["ready", "ready"])
    # With a 204 a page that was cut off takes what it has for the whole.
    quiet = house.push.run(run.id, dialect=ai_sdk(replays_ended=False))
    cutting = Cutting(app, route(house.push, quiet), cuts=[4])
    said = await house.clients.ask("chat", cutting, times=2)
    assert (said.text, said.errors[1], said.statuses) == ("Grüße, ", None, ["error", "ready"])


async def test_the_helper_of_openai_joins_a_message(house: House) -> None:
    run, app = house.run("openai")
    await begin(run)
    async with (
        AsyncOpenAI(base_url=house.clients.serve(app), api_key="key", max_retries=0) as client,
        client.chat.completions.stream(model="livepush", messages=[]) as stream,
    ):
        completion = await stream.get_final_completion()
    message = completion.choices[0].message
    assert (completion.id, completion.model) == ("text", "livepush")
    assert (message.role, message.content) == ("assistant", TEXT)
