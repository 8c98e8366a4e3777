"""What the official clients of each dialect accept, and that they read the runs which the dialects write.

The first tests hold what the dialects are built on. One that fails after an update of a client says that the
client accepts other bytes now.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from livepush_asgi.dialects import GAP_TEXT, Dialect, RunEnd, ag_ui, ai_sdk, frames, livepush, openai
from livepush_asgi.wire.event import HEARTBEAT, with_id
from livepush_asgi.wire.reasons import GapReason, RunState

from .apps.frames import Script
from .judges import Judges, judges

TEXT = "Grüße, 😀\n\nas\u2028it\x85 is\r\x0b"
PIECES = ["Grüße", ", ", "😀", "\n\n", "as\u2028it\x85 is\r\x0b"]
DIALECTS = {"ai": ai_sdk(), "ag-ui": ag_ui(), "openai": openai()}
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def clients() -> AsyncIterator[Judges]:
    async with judges() as found:
        yield found


async def pieces() -> AsyncIterator[str]:
    for piece in PIECES:
        yield piece


async def items_of(dialect: Dialect) -> list[bytes]:
    return [dialect.event(item).encode() async for item in dialect.text(pieces(), "text")]


async def run_of(dialect: Dialect, end: RunEnd | None = None, *, items: int | None = None) -> Script:
    """Return a run as the core sends it: each of its blocks with the id after it."""
    blocks = [("0", dialect.first_block("run", "0"))]
    for number, block in enumerate((await items_of(dialect))[:items], 1):
        blocks.append((str(number), with_id(block, str(number))))
    if end is not None:
        blocks.append(("end", dialect.last_block(end, "end")))
    sent = [(id, block) for id, block in blocks if block]
    return Script(sent, headers=dict(dialect.headers), idle=dialect.idle)


def script_of(*blocks: bytes, status: int = 204, cut: int | None = None) -> Script:
    return Script([(str(n), b) for n, b in enumerate(blocks)], idle=status, cuts=[] if cut is None else [cut])


async def ask_all(
    clients: Judges, client: str, scripts: Mapping[str, Script]
) -> dict[str, tuple[str, str | None]]:
    """Return the text, and the first words of the error, that a client got from each script."""
    said = await asyncio.gather(*(clients.ask(client, script) for script in scripts.values()))
    return {name: (one.text, first_words(one.error)) for name, one in zip(scripts, said, strict=True)}


def first_words(error: str | None) -> str | None:
    return None if error is None else " ".join(error.split()[:4])


def lines(block: bytes, *more: str) -> bytes:
    """Return a block with more field lines in front."""
    return "".join(f"{line}\n" for line in more).encode() + block


async def plain(dialect: Dialect) -> list[bytes]:
    """Return the blocks of a run without ids."""
    end = dialect.last(RunEnd("run", RunState.DONE))
    return [block for block in (dialect.first("run"), *await items_of(dialect), end) if block]


async def accepted_by_all(dialect: Dialect) -> dict[str, Script]:
    """Return the scripts that every client has to read as the whole text."""
    first, *rest = await plain(dialect)
    named = [lines(block, f"id: {n}", "event: any", "retry: 5") for n, block in enumerate([first, *rest])]
    return {
        "plain": script_of(first, *rest),
        "ids, names and reconnection times": script_of(*named),
        "heartbeats": script_of(HEARTBEAT, lines(first, "id: 1"), HEARTBEAT, HEARTBEAT, *rest),
        "a reconnection time on its own line": script_of(b"retry: 5\n", first, *rest),
        "comments": script_of(lines(first, ": before"), *rest),
    }


async def test_what_the_ai_sdk_accepts(clients: Judges) -> None:
    first, *rest = await plain(ai_sdk())
    control = {"type": "data-livepush", "data": {"gap": "expired"}, "transient": True}
    good = await accepted_by_all(ai_sdk()) | {
        "an end without [DONE]": script_of(first, *rest[:-1]),
        "an id alone": script_of(b"id: 1\n\n", first, b"id: 2\n\n", *rest, b"id: 3\n\n"),
        "a comment that is a block": script_of(lines(first, "id: 1"), b": x\n\n", *rest),
        "a part of data": script_of(first, frames(control), *rest),
        "two starts": script_of(first, first, *rest),
    }
    assert await ask_all(clients, "ai", good) == dict.fromkeys(good, (TEXT, None))
    bad = {
        "a named event": script_of(lines(frames({"resumed": True}), "event: livepush.open"), first, *rest),
        "a named event without data": script_of(b"event: livepush.open\ndata: \n\n", first, *rest),
        "the start of publish_job": script_of(lines(frames({}), "event: start"), first, *rest),
        "data after [DONE]": script_of(first, *rest, frames({"count": 1})),
        "a gap before its text": script_of(first, frames(control), *rest[1:]),
        "404": script_of(status=404),
    }
    assert await ask_all(clients, "ai", bad) == {
        "a named event": ("", "AI_TypeValidationError: Type validation failed:"),
        "a named event without data": ("", "AI_JSONParseError: JSON parsing failed:"),
        "the start of publish_job": ("", "AI_TypeValidationError: Type validation failed:"),
        "data after [DONE]": (TEXT, "AI_TypeValidationError: Type validation failed:"),
        "a gap before its text": ("", "AI_UIMessageStreamError: Received text-delta for"),
        "404": ("", "AI_APICallError: Failed to fetch"),
    }
    # The error may overtake what came before it.
    cut_off = await clients.ask("ai", script_of(first, *rest, cut=3))
    assert (cut_off.error, "Grüße".startswith(cut_off.text)) == ("TypeError: terminated", True)
    # Here the client cannot tell a part of the text from the whole. So the dialects end with an error.
    ends = {"an end in the middle": script_of(first, *rest[:2]), "204": script_of()}
    assert await ask_all(clients, "ai", ends) == {"an end in the middle": ("Grüße", None), "204": ("", None)}


async def test_what_ag_ui_accepts(clients: Judges) -> None:
    first, *rest = await plain(ag_ui())
    custom = frames({"type": "CUSTOM", "name": "livepush.gap", "value": {}})
    good = await accepted_by_all(ag_ui()) | {
        "an id alone": script_of(b"id: 1\n\n", first, b"id: 2\n\n", *rest, b"id: 3\n\n"),
        "a comment that is a block": script_of(lines(first, "id: 1"), b": x\n\n", *rest),
        "a custom event": script_of(first, custom, *rest),
        "an end without RUN_FINISHED": script_of(first, *rest[:-1]),
    }
    assert await ask_all(clients, "ag-ui", good) == dict.fromkeys(good, (TEXT, None))
    bad = {
        "a named event": script_of(lines(frames({"resumed": True}), "event: livepush.open"), first, *rest),
        # In one piece: the client reads no further than RUN_FINISHED if it has the time.
        "[DONE]": script_of(first, *rest[:-1], rest[-1] + DONE),
        "a custom event first": script_of(custom, first, *rest),
        "two starts": script_of(first, first, *rest),
        "RUN_FINISHED in a message": script_of(first, *rest[:2], rest[-1]),
        "a gap before its text": script_of(first, custom, *rest[1:]),
        "204": script_of(),
        "404": script_of(status=404),
    }
    assert {name: error for name, (_, error) in (await ask_all(clients, "ag-ui", bad)).items()} == {
        "a named event": "Error: Invalid event: the",
        "[DONE]": "SyntaxError: Unexpected token 'D',",
        "a custom event first": "Error: First event must",
        "two starts": "Error: Cannot send 'RUN_STARTED'",
        "RUN_FINISHED in a message": "Error: Cannot send 'RUN_FINISHED'",
        "a gap before its text": "Error: Cannot send 'TEXT_MESSAGE_CONTENT'",
        "204": "Error: Failed to getReader()",
        "404": "Error: HTTP 404:",
    }
    cut_off = await clients.ask("ag-ui", script_of(first, *rest, cut=3))
    assert (cut_off.error, "Grüße".startswith(cut_off.text)) == ("TypeError: terminated", True)
    early = {"an end in the middle": script_of(first, *rest[:2])}
    assert await ask_all(clients, "ag-ui", early) == {"an end in the middle": ("Grüße", None)}


async def test_what_openai_accepts(clients: Judges) -> None:
    first, *rest = await plain(openai())
    good = await accepted_by_all(openai()) | {
        "an end without [DONE]": script_of(first, *rest[:-1]),
        "data after [DONE]": script_of(first, *rest, frames("none of it is read")),
    }
    assert await ask_all(clients, "openai", good) == dict.fromkeys(good, (TEXT, None))
    named = await clients.ask(
        "openai", script_of(first, lines(frames({"a": 1}), "event: livepush.gap"), *rest)
    )
    # A chunk without choices: what most programs do with one is an IndexError or TypeError of their own.
    assert (named.text, named.data) == (TEXT, [{"a": 1}])
    bad = {
        "an id alone": script_of(b"id: 1\n\n", first, *rest),
        "a reconnection time as a block": script_of(b"retry: 5\n\n", first, *rest),
        "a comment that is a block, after an id": script_of(
            first, lines(rest[0], "id: 1"), b": x\n\n", *rest[1:]
        ),
        "404": script_of(status=404),
        "cut off": script_of(first, *rest, cut=2),
    }
    assert await ask_all(clients, "openai", bad) == {
        "an id alone": ("", "JSONDecodeError: Expecting value: line"),
        "a reconnection time as a block": ("", "JSONDecodeError: Expecting value: line"),
        "a comment that is a block, after an id": ("Grüße", "JSONDecodeError: Expecting value: line"),
        "404": ("", "NotFoundError: Error code: 404"),
        "cut off": ("Grüße", "APIConnectionError: Connection error."),
    }
    ends = {"an end in the middle": script_of(first, rest[0]), "204": script_of()}
    assert await ask_all(clients, "openai", ends) == {
        "an end in the middle": ("Grüße", None),
        "204": ("", None),
    }


@pytest.mark.parametrize("client", DIALECTS)
async def test_a_run_and_each_of_its_ends(clients: Judges, client: str) -> None:
    dialect = DIALECTS[client]
    ends = {state: RunEnd("run", state) for state in RunState} | {
        "own": RunEnd("run", RunState.FAILED, "It broke")
    }
    runs = {
        name: await run_of(dialect, end, items=None if name == "done" else 3) for name, end in ends.items()
    }
    said = dict(
        zip(runs, await asyncio.gather(*(clients.ask(client, run) for run in runs.values())), strict=True)
    )
    done = said.pop(RunState.DONE)
    assert (done.text, done.error) == (TEXT, None)
    assert done.finish == {"ai": "finish", "ag-ui": "RUN_FINISHED", "openai": "stop"}[client]
    # The user of the client is told that there should be more, whatever he has of it.
    for name, one in said.items():
        assert TEXT.startswith(one.text), name
        assert one.text, name
        assert one.finish not in ("finish", "RUN_FINISHED", "stop"), name
        if name == RunState.CANCELLED and client == "ai":
            assert (one.error, one.finish) == (None, "abort")
        else:
            assert ends[name].text in str(one.error)


@pytest.mark.parametrize("client", DIALECTS)
async def test_a_gap(clients: Judges, client: str) -> None:
    dialect = DIALECTS[client]
    gap = dialect.gap_block("run", GapReason.EXPIRED, "5")
    at_once = script_of(dialect.first_block("run", "0"), gap)
    midway = await run_of(dialect, items=2)
    midway.blocks.append(("5", gap))
    for script, text in [
        (at_once, ""),
        (midway, PIECES[0]),
    ]:
        script.blocks = [(id, block) for id, block in script.blocks if block]
        said = await clients.ask(client, script)
        assert (said.text, said.finish) == (text, "RUN_ERROR" if client == "ag-ui" else None)
        assert GAP_TEXT in str(said.error)
        if client == "ai":
            assert said.data == [{"type": "data-livepush", "data": {"gap": "expired"}, "transient": True}]


@pytest.mark.parametrize(
    ("client", "dialect"), [("ai", ai_sdk(go_on_at_gap=True)), ("ag-ui", ag_ui(go_on_at_gap=True))]
)
async def test_a_gap_that_the_page_is_told_of(clients: Judges, client: str, dialect: Dialect) -> None:
    run = await run_of(dialect, RunEnd("run", RunState.DONE))
    run.blocks[3] = ("3", dialect.gap_block("run", GapReason.OVERFLOW, "3"))
    said = await clients.ask(client, run)
    assert (said.text, said.error) == ("".join([PIECES[0], *PIECES[2:]]), None)
    assert "overflow" in json.dumps(said.data)


async def test_use_chat_takes_up_a_run_that_was_cut_at_each_block(clients: Judges) -> None:
    """It reads the run from its start, and replaces the message that it had."""
    run = await run_of(ai_sdk(), RunEnd("run", RunState.DONE))
    cuts = range(len(run.blocks) + 1)
    scripts = [replace(run, cuts=[cut], asked=[]) for cut in cuts]
    said = await asyncio.gather(*(clients.ask("chat", script, times=2) for script in scripts))
    assert [(one.text, one.messages, one.errors) for one in said] == [
        (TEXT, 1, ["TypeError: terminated", None])
    ] * len(cuts)
    assert {tuple(script.asked) for script in scripts} == {("", "")}


async def test_use_chat_and_a_run_that_is_over(clients: Judges) -> None:
    run = await run_of(ai_sdk(), RunEnd("run", RunState.DONE))
    again = await clients.ask("chat", run, times=2)
    assert (again.text, again.messages, again.errors) == (TEXT, 1, [None, None])
    over = await clients.ask("chat", script_of(status=ai_sdk().idle))
    assert (over.text, over.messages, over.errors) == ("", 0, [None])
    # One that was cut off, and comes back when the run has ended, is content with what it has. So a dialect
    # has `replays_ended`.
    cut_off = await clients.ask("chat", replace(run, cuts=[4], goodbye=b"", requests=1, asked=[]), times=2)
    assert (cut_off.text, cut_off.status, cut_off.errors[1]) == ("Grüße, ", "ready", None)


async def test_use_chat_needs_an_id_to_keep_one_message(clients: Judges) -> None:
    """Agent frameworks start a message without an id, and the client makes one up at each reading."""
    first, *rest = await plain(ai_sdk())
    own = frames({"type": "start"})
    begun = replace(script_of(own, *rest, cut=3), goodbye=b"")
    theirs = await clients.ask("chat", begun, times=2)
    assert (theirs.messages, theirs.text) == (2, f"Grüße|{TEXT}")
    both = await clients.ask("chat", script_of(first, own, *rest, cut=4), times=2)
    assert (both.messages, both.text) == (1, TEXT)
    other = script_of(first, frames({"type": "start", "messageId": "other"}), *rest)
    assert (await clients.ask("chat", other)).messages == 2


async def test_ag_ui_reads_a_run_that_was_cut_at_each_block_again(clients: Judges) -> None:
    run = await run_of(ag_ui(), RunEnd("run", RunState.DONE))
    cuts = range(len(run.blocks))
    scripts = [replace(run, cuts=[cut], asked=[]) for cut in cuts]
    said = await asyncio.gather(*(clients.ask("ag-ui", script, times=2) for script in scripts))
    assert [(one.text, one.errors[1:]) for one in said] == [(TEXT, [None])] * len(cuts)


@pytest.mark.parametrize("client", ["chat", "ag-ui"])
async def test_a_client_is_told_of_a_stream_that_ends_before_its_run_and_reads_it_again(
    clients: Judges, client: str
) -> None:
    """As at a drain: without an error it would take what it has for the whole."""
    dialect = DIALECTS["ai" if client == "chat" else client]
    run = await run_of(dialect, RunEnd("run", RunState.DONE))
    goodbye = dialect.last_block(RunEnd("run", RunState.RUNNING))
    said = await clients.ask(client, replace(run, cuts=[4], goodbye=goodbye), times=2)
    assert (said.text, said.errors[1]) == (TEXT, None)
    assert "Read it again" in str(said.errors[0])


async def test_openai_takes_up_a_run_that_was_cut_at_each_block(clients: Judges) -> None:
    run = await run_of(openai(), RunEnd("run", RunState.DONE))
    for cut, (id, _) in enumerate(run.blocks[:-1], 1):
        url = clients.serve(replace(run, cuts=[cut]))
        begun, rest = await clients.ask_openai(url), await clients.ask_openai(url, id)
        assert (begun.text + rest.text, rest.error) == (TEXT, None)
        assert "APIConnectionError" in str(begun.error)
    over = await clients.ask_openai(clients.serve(run), "end")
    assert (over.text, first_words(over.error)) == ("", "NotFoundError: Error code: 404")


async def test_the_helper_of_openai_joins_a_message(clients: Judges) -> None:
    url = clients.serve(await run_of(openai(model="stub"), RunEnd("run", RunState.DONE)))
    async with (
        AsyncOpenAI(base_url=url, api_key="key", max_retries=0) as client,
        client.chat.completions.stream(model="stub", messages=[]) as stream,
    ):
        completion = await stream.get_final_completion()
    message = completion.choices[0].message
    assert (completion.id, completion.model) == ("text", "stub")
    assert (message.role, message.content) == ("assistant", TEXT)


async def test_the_chunks_of_the_openai_library_itself(clients: Judges) -> None:
    dialect = openai()
    chunks = [
        ChatCompletionChunk.model_validate_json(str(dialect.event(item).data))
        async for item in dialect.text(pieces(), "t")
    ]
    said = await clients.ask("openai", script_of(*[dialect.event(chunk).encode() for chunk in chunks], DONE))
    assert (said.text, said.finish, said.error) == (TEXT, "stop", None)


async def test_eventsource_takes_up_a_run_at_each_block_and_stops_after_it(clients: Judges) -> None:
    run = await run_of(livepush(), RunEnd("run", RunState.FAILED, "It broke", 5))
    # This client, unlike a browser, forgets an id that comes alone.
    assert run.blocks.pop(0) == ("0", b"id: 0\n\n")
    run.blocks.insert(3, ("gap", livepush().gap_block("run", GapReason.EXPIRED, "gap")))
    script = replace(run, cuts=[1] * len(run.blocks), retry=b"retry: 1\n")
    said = await clients.ask("eventsource", script)
    # An event stream has one kind of line end, and this text is not JSON.
    assert (said.text, said.finish, said.error) == (TEXT.replace("\r", "\n"), "failed", "It broke")
    assert said.data == [{"channel": "run", "reason": "expired"}]
    assert script.asked == ["", *(id for id, _ in run.blocks)]
