"""Dialects as values: the bytes of each, and what they refuse. test_dialect_clients.py has the clients."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from types import MappingProxyType

import anyio.lowlevel
import pytest
from pydantic import BaseModel, Field

from livepush_asgi import Event, InvalidEventError
from livepush_asgi.dialects import Dialect, RunEnd, ag_ui, ai_sdk, frames, livepush, openai, parsed
from livepush_asgi.testing import EventStreamParser
from livepush_asgi.wire.reasons import GapReason, RunState

DIALECTS = [livepush(), ai_sdk(), ag_ui(), openai()]
# How a stream of a run may end.
STATES = [RunState.RUNNING, *[state for state in RunState if state.ended]]
every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: str(dialect.name))


def data_of(blocks: bytes) -> list[object]:
    """Return the data of each event, from JSON where it is."""
    parser = EventStreamParser()
    events = parser.feed(blocks)
    assert (parser.ignored, parser.empty_blocks) == ([], 0)
    return [event.data if event.data == "[DONE]" else event.json() for event in events]


def end_of(dialect: Dialect, state: RunState) -> list[object]:
    return data_of(dialect.last_block(RunEnd("run", state)))


def test_the_first_and_the_last_block() -> None:
    bounds = {each.name: (data_of(each.first_block("run")), end_of(each, RunState.DONE)) for each in DIALECTS}
    ids = {"threadId": "run", "runId": "run"}
    assert bounds == {
        "livepush": ([], [{"state": "done", "count": None, "error": None}]),
        "ai-sdk": ([{"type": "start", "messageId": "run"}], [{"type": "finish"}, "[DONE]"]),
        "ag-ui": ([{"type": "RUN_STARTED", **ids}], [{"type": "RUN_FINISHED", **ids}]),
        "openai": ([], ["[DONE]"]),
    }


def test_items_of_ag_ui_with_a_start_and_an_end_of_their_own() -> None:
    dialect = ag_ui(own_start_and_end=True)
    assert dialect.first_block("run", "0") == b"id: 0\n\n"
    assert end_of(dialect, RunState.DONE) == []
    assert end_of(dialect, RunState.FAILED) == end_of(ag_ui(), RunState.FAILED)


def test_a_message_of_the_ai_sdk() -> None:
    assert data_of(ai_sdk(message_id="m").first_block("run")) == [{"type": "start", "messageId": "m"}]


def test_a_thread_of_ag_ui() -> None:
    (started,) = data_of(ag_ui(thread_id="t").first_block("run"))
    assert started == {"type": "RUN_STARTED", "threadId": "t", "runId": "run"}


@every_dialect
@pytest.mark.parametrize("state", STATES)
def test_the_id_is_on_the_last_event_alone(dialect: Dialect, state: RunState) -> None:
    """A client that was cut off among several is sent all of them again."""
    end = RunEnd("run", state)
    for plain, identified in [
        (dialect.last_block(end), dialect.last_block(end, "7")),
        (dialect.gap_block("run", GapReason.EXPIRED), dialect.gap_block("run", GapReason.EXPIRED, "7")),
        (dialect.first_block("run"), dialect.first_block("run", "7")),
    ]:
        if not plain:
            assert identified == (b"id: 7\n\n" if dialect.id_alone else b"")
            continue
        ids = [event.id for event in EventStreamParser().feed(identified)]
        assert ids == [*[None] * (len(ids) - 1), "7"]
        assert identified.replace(b"id: 7\n", b"") == plain


@every_dialect
def test_an_end_that_is_not_done_is_told(dialect: Dialect) -> None:
    done = end_of(dialect, RunState.DONE)
    for state in set(STATES) - {RunState.DONE}:
        if dialect.control_events and state is RunState.RUNNING:
            continue
        text = json.dumps(end_of(dialect, state))
        assert text != json.dumps(done)
    told = dialect.last_block(RunEnd("run", RunState.FAILED, "two\nlines"))
    assert b"two\\nlines" in told


class Model(BaseModel):
    type: str | None = None
    tool_name: str | None = Field(default=None, serialization_alias="toolName")


def test_items() -> None:
    for dialect in (ai_sdk(), ag_ui(), openai()):
        assert dialect.event({"type": "x", "n": None}).encode() == b'data: {"type":"x","n":null}\n\n'
        assert dialect.event(MappingProxyType({"type": "x"})).encode() == b'data: {"type":"x"}\n\n'
        assert (
            dialect.event(Model(type="x", tool_name="y")).encode() == b'data: {"type":"x","toolName":"y"}\n\n'
        )
        assert dialect.event(Model(type="x")).encode() == b'data: {"type":"x"}\n\n'
        assert dialect.event(Event("as it is", "name")).encode() == b"event: name\ndata: as it is\n\n"
    assert livepush().event("as it is").encode() == b"data: as it is\n\n"
    assert openai().event({"choices": []}).encode() == b'data: {"choices":[]}\n\n'


@pytest.mark.parametrize("make", [ai_sdk, ag_ui, openai])
def test_an_item_on_which_the_client_would_fail_is_refused(make: Callable[[], Dialect]) -> None:
    dialect = make()
    for item, error in {
        "a piece": r"dialect\.text\(pieces, id\)",
        b"{}": "a part is a mapping, a model or an Event",
        None: "a part is a mapping, a model or an Event",
        3: "a part is a mapping, a model or an Event",
    }.items():
        with pytest.raises(TypeError, match=error):
            dialect.event(item).encode()
    with pytest.raises(InvalidEventError):
        dialect.event({"type": "x", "n": float("nan")}).encode()
    if make is openai:
        return
    for untyped in ({"n": 1}, {"type": ""}, {"type": 3}, Model()):
        with pytest.raises(TypeError, match="has none: the client would fail on it"):
            dialect.event(untyped).encode()


async def pieces() -> AsyncIterator[str]:
    for piece in ("a", "", "b"):
        yield piece


@every_dialect
async def test_a_text_in_pieces(dialect: Dialect) -> None:
    items = [dialect.event(item).encode() async for item in dialect.text(pieces(), "t")]
    texts = {
        "ai-sdk": [None, "a", "b", None],
        "ag-ui": [None, "a", "b", None],
        "openai": ["", "a", "b", None],
    }
    if dialect.name == "livepush":
        assert items == [b"data: a\n\n", b"data: b\n\n"]
        return
    found = []
    for block in items:
        (item,) = data_of(block)
        assert isinstance(item, dict)
        choices = item.get("choices")
        found.append(choices[0]["delta"].get("content") if choices else item.get("delta"))
    assert found == texts[dialect.name]


@pytest.mark.parametrize(
    "items_of",
    [lambda source: ai_sdk().text(source, "t"), livepush().items, parsed],
    ids=["text", "items", "parsed"],
)
async def test_a_source_is_closed_with_its_items(
    items_of: Callable[[AsyncIterator[str]], AsyncGenerator[object, None]],
) -> None:
    told = []

    async def generator() -> AsyncIterator[str]:
        try:
            while True:
                yield "data: x\n\n"
        finally:
            await anyio.lowlevel.checkpoint()
            told.append("closed")

    async with aclosing(items_of(generator())) as items:
        assert [await anext(items), await anext(items)] != []
        assert told == []
    assert told == ["closed"]


async def test_an_item_that_is_refused_ends_the_items() -> None:
    async def source() -> AsyncIterator[object]:
        yield {"type": "a"}
        yield {"n": 1}

    items = ai_sdk().items(source())
    assert (await anext(items)).data == '{"type":"a"}'
    with pytest.raises(TypeError, match="the client would fail on it"):
        await anext(items)


@every_dialect
async def test_a_text_that_goes_on_has_each_piece_once(dialect: Dialect) -> None:
    async def pieces(given: int) -> AsyncIterator[str]:
        for piece in ["a", "b", "c"][given:]:
            yield piece

    whole = [dialect.event(item) async for item in dialect.text(pieces, "t")]
    # Up to the last piece: the items after it are not told apart from one.
    for given in range(len(dialect.text_start("t")) + 4):
        rest = [dialect.event(item) async for item in dialect.text(pieces, "t", given=given)]
        assert whole[:given] + rest == whole
    with pytest.raises(TypeError, match="a text that goes on is a function of its pieces"):
        await anext(dialect.text(pieces(0), given=1))


async def test_a_stream_that_somebody_else_has_encoded() -> None:
    async def encoded() -> AsyncIterator[str | bytes]:
        yield 'data: {"type":"start"}\n\nda'
        yield b'ta: {"type":"a"}\r\nid: 7\r\nevent: name\r\n\r\n: ping\n\n'
        yield "data: [DONE]\n\n"

    items = [ai_sdk().event(event).encode() async for event in parsed(encoded())]
    assert items == [b'data: {"type":"start"}\n\n', b'event: name\ndata: {"type":"a"}\n\n']


def test_a_dialect_of_somebody_else() -> None:
    lines = Dialect(
        name="lines",
        headers={"x-lines": "1"},
        first=lambda run_id: frames(Event(run_id, "begin")),
        last=lambda end: frames({"end": end.state}, "."),
    )
    blocks = (
        lines.first_block("17", "a")
        + lines.event(3).encode()
        + lines.last_block(RunEnd("17", RunState.DONE), "b")
    )
    assert (
        blocks
        == b"id: a\nevent: begin\ndata: 17\n\ndata: 3\n\n" + b'data: {"end":"done"}\n\nid: b\ndata: .\n\n'
    )


def test_a_dialect_that_is_wrong() -> None:
    for wrong in ({"name": ""}, {"idle": 200}, {"idle": 500}):
        with pytest.raises(ValueError, match=r"a name|idle is 204"):
            Dialect(**{"name": "n", **wrong})  # type: ignore[arg-type]
    for name, value in [
        ("x y", "1"),
        ("x", "1\r\nset-cookie: a"),
        ("x", "ü"),
        ("Content-Type", "text/plain"),
    ]:
        with pytest.raises(ValueError, match=r"is no header|is set by the component"):
            Dialect(name="n", headers={name: value})
    headers = {"x": "1"}
    dialect = Dialect(
        name="n",
        headers=headers,
        last=lambda end: b"data: x\n",
        item=lambda item: "x",  # type: ignore[arg-type, return-value]
    )
    headers["x"] = "2"
    assert (dialect.headers, {dialect: "hashable"}[dialect]) == ({"x": "1"}, "hashable")
    with pytest.raises(InvalidEventError, match="the dialect 'n' return blocks, as `frames` makes them"):
        dialect.last_block(RunEnd("run", RunState.DONE))
    with pytest.raises(TypeError, match="returns an Event, not 'x'"):
        dialect.event(3).encode()
