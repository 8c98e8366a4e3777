"""What the official clients of each dialect accept: the tests hold what the dialects are built on.

One that fails after an update of a client says that the client accepts other bytes now. The clients read real
runs in test_dialect_runs.py.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
from openai.types.chat import ChatCompletionChunk

from livepush_asgi.dialects import Dialect, RunEnd, ag_ui, ai_sdk, frames, openai
from livepush_asgi.wire.event import HEARTBEAT
from livepush_asgi.wire.reasons import RunState

from .apps.frames import Script
from .judges import Judges, judges

TEXT = "Grüße, 😀\n\nas\u2028it\x85 is\r\x0b"
PIECES = ["Grüße", ", ", "😀", "\n\n", "as\u2028it\x85 is\r\x0b"]
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


def script_of(*blocks: bytes, status: int = 204, cut: int | None = None) -> Script:
    return Script([(str(n), b) for n, b in enumerate(blocks)], idle=status, cut=cut)


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


async def test_use_chat_needs_an_id_to_keep_one_message(clients: Judges) -> None:
    """Agent frameworks start a message without an id, and the client makes one up at each reading."""
    first, *rest = await plain(ai_sdk())
    own = frames({"type": "start"})
    theirs = await clients.ask("chat", script_of(own, *rest), times=2)
    assert (theirs.messages, theirs.text) == (2, f"{TEXT}|{TEXT}")
    both = await clients.ask("chat", script_of(first, own, *rest), times=2)
    assert (both.messages, both.text) == (1, TEXT)
    other = script_of(first, frames({"type": "start", "messageId": "other"}), *rest)
    assert (await clients.ask("chat", other)).messages == 2


async def test_the_chunks_of_the_openai_library_itself(clients: Judges) -> None:
    dialect = openai()
    chunks = [
        ChatCompletionChunk.model_validate_json(str(dialect.event(item).data))
        async for item in dialect.text(pieces(), "t")
    ]
    said = await clients.ask("openai", script_of(*[dialect.event(chunk).encode() for chunk in chunks], DONE))
    assert (said.text, said.finish, said.error) == (TEXT, "stop", None)
