"""Dialect: how the output of a run is written for one kind of client, and the dialects that are known.

A client of a language model reads an event stream more strictly than a browser does: one fails on a named
event, one on a block without data, one on `[DONE]`. And each of them takes the end of a response for the end
of the answer, so a stream that ends before its run has to say so. A dialect has the blocks that its client
accepts. Whoever sends a run asks it for them and knows no dialect by its name.

    first_block ─ items ─ last_block, and then the end of the response

Between them may be `HEARTBEAT` and `control_block`, and `gap_block` where events are missing.
"""

import re
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

from .errors import InvalidEventError
from .wire.control import id_block
from .wire.encode import to_json
from .wire.event import Event, encode_block, event_of, with_id
from .wire.parser import EventStreamParser
from .wire.reasons import GapReason, RunState

# A coroutine declares `Any` for what its event loop sends into it.
T = TypeVar("T")

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_END_OF_BLOCK = b"\n\n"

#: The text for a client that waits for more of a run, by what has become of it.
TEXTS = MappingProxyType(
    {
        RunState.RUNNING: "The connection was closed before the end. Read it again to go on.",
        RunState.DONE: "The run is done.",
        RunState.FAILED: "The run has failed.",
        RunState.CANCELLED: "The run was cancelled.",
        RunState.LOST: "The run was lost: its producer has stopped.",
    }
)
GAP_TEXT = "A part of the output is missing: it is not stored any more, or was lost."


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The end of a stream of a run. `RunState.RUNNING` says that the stream ends before the run does.

    `error` is the text of the RunFailedError that the iterator has raised, for the client: without one it is
    told the dialect's own text. `count` is how many events the run had, None if that is not known.
    """

    run_id: str
    state: RunState
    error: str | None = None
    count: int | None = None

    @property
    def text(self) -> str:
        """The text for the client."""
        return TEXTS[self.state] if self.error is None else self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a run is written for one kind of client. Write another one with `frames`:

        lines = Dialect(name="lines", last=lambda end: frames({"end": end.state}))

    The functions are pure, and return blocks: bytes that `frames` makes. The methods check them and give the
    id to the last block, so that a client that was cut off among them is sent all of them again.
    """

    name: str
    #: Headers of the response, besides those of every event stream.
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    #: What precedes the first item, for the id of the run. An id alone, where it returns nothing.
    first: Callable[[str], bytes] = lambda run_id: b""
    #: An item of the iterator as an Event; raises for one that the client would fail on. None: an item is an
    #: Event, or data for one as `publish` takes it.
    item: Callable[[object], Event] | None = None
    #: What ends the stream. Where it returns nothing, the client is sent the id alone.
    last: Callable[[RunEnd], bytes] = lambda end: b""
    #: What tells of missing events, for the id of the run.
    gap: Callable[[str, GapReason], bytes] = lambda run_id, reason: b""
    #: Whether the stream ends with the gap: its client cannot go on, or would show a text with a hole in it.
    ends_at_gap: bool = True
    #: The items before a text, for a piece of it and after it, for the id of the text: see `text`.
    text_start: Callable[[str], Sequence[object]] = lambda id: ()
    text_piece: Callable[[str, str], object] = lambda id, piece: piece
    text_end: Callable[[str], Sequence[object]] = lambda id: ()
    #: Whether the client accepts a block that has an id and no data.
    id_alone: bool = True
    #: Whether the client accepts the control events `livepush.open`, `livepush.gap` and `livepush.close`.
    #: Then they tell of a gap and of an early end, and `gap` is not asked.
    control_events: bool = False
    #: Whether a client without an event id gets a run that has ended, as long as it is stored; or `idle`.
    replays_ended: bool = True
    #: The status for a client that has all of a run, and where there is none.
    idle: int = 204

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"a dialect has a name, such as 'ai-sdk', not {self.name!r}")
        object.__setattr__(self, "headers", MappingProxyType(dict(self.headers)))
        for header in self.headers.items():
            _check_header(*header)
        if self.idle != 204 and not 400 <= self.idle < 500:
            raise ValueError(f"idle is 204 or a status from 400 to 499, not {self.idle!r}")

    def first_block(self, run_id: str, id: str | None = None) -> bytes:
        """Return what a client without an event id is sent first, also before a gap."""
        return self._identified(self.first(run_id), id)

    def gap_block(self, run_id: str, reason: GapReason, id: str | None = None) -> bytes:
        """Return what says that events are missing here. With `ends_at_gap` it is the end of the stream."""
        return self._identified(self.gap(run_id, reason), id)

    def last_block(self, end: RunEnd, id: str | None = None) -> bytes:
        """Return what the stream ends with."""
        return self._identified(self.last(end), id)

    def event(self, item: object) -> Event:
        """Return an item of the iterator as an Event. Raises what `item` raises."""
        event = event_of(item, None) if self.item is None else self.item(item)
        if not isinstance(event, Event):
            raise TypeError(f"`item` of the dialect {self.name!r} returns an Event, not {event!r:.100}")
        return event

    def items(self, source: AsyncIterable[object]) -> AsyncGenerator[Event, None]:
        """Yield the items of a source as Events. Raises what `item` raises.

        Closes `source` when it is closed.
        """
        iterator = aiter(source)
        return _Closing(self._items(iterator), iterator)

    async def _items(self, iterator: AsyncIterator[object]) -> AsyncGenerator[Event, None]:
        try:
            async for item in iterator:
                yield self.event(item)
        finally:
            await _close(iterator)

    def text(
        self,
        pieces: AsyncIterable[str] | Callable[[int], AsyncIterable[str]],
        id: str = "0",
        *,
        given: int = 0,
    ) -> AsyncGenerator[object, None]:
        """Yield the items of a text in pieces, to start a run with. Closes `pieces` when it is closed.

        A run that goes on has the first `given` of them already. Then `pieces` is a function of the number of
        pieces that are there, without empty ones, which returns an iterator of those that follow:

            run.finish(lambda given: dialect.text(lambda pieces: answer(pieces), given=given))
        """
        start = self.text_start(id)
        if given and isinstance(pieces, AsyncIterable):
            raise TypeError("a text that goes on is a function of its pieces: lambda pieces: answer(pieces)")
        if not isinstance(pieces, AsyncIterable):
            pieces = pieces(max(0, given - len(start)))
        iterator = aiter(pieces)
        return _Closing(self._text(iterator, id, start[given:]), iterator)

    async def _text(
        self, iterator: AsyncIterator[str], id: str, start: Sequence[object]
    ) -> AsyncGenerator[object, None]:
        try:
            for item in start:
                yield item
            async for piece in iterator:
                # The client of AG-UI refuses an empty one.
                if piece:
                    yield self.text_piece(id, piece)
            for item in self.text_end(id):
                yield item
        finally:
            await _close(iterator)

    def control_block(self, id: str) -> bytes:
        """Return a block that moves the client's last event id and dispatches nothing, or b""."""
        return id_block(id) if self.id_alone else b""

    def _identified(self, blocks: bytes, id: str | None) -> bytes:
        if not isinstance(blocks, bytes) or (blocks and not blocks.endswith(_END_OF_BLOCK)):
            raise InvalidEventError(
                f"the functions of the dialect {self.name!r} return blocks, as `frames` makes them, "
                f"not {blocks!r:.100}"
            )
        if id is None:
            return blocks
        if not blocks:
            return self.control_block(id)
        start = blocks.rfind(_END_OF_BLOCK, 0, -len(_END_OF_BLOCK)) + len(_END_OF_BLOCK)
        start = 0 if start < len(_END_OF_BLOCK) else start
        return blocks[:start] + with_id(blocks[start:], id)


def frames(*parts: object) -> bytes:
    """Return the blocks of these parts: each an Event, text, or data that becomes JSON."""
    return b"".join([event_of(part, None).encode() for part in parts])


def parsed(stream: AsyncIterable[str | bytes]) -> AsyncGenerator[Event, None]:
    """Yield the events of an event stream that a library has encoded, as items for the same dialect.

    It leaves out `[DONE]`, which the dialect sends, and each `id` and `retry`. So it is for what agent
    frameworks make for a response of their own, such as `adapter.encode_stream(adapter.run_stream())`. Closes
    `stream` when it is closed.
    """
    iterator = aiter(stream)
    return _Closing(_parsed(iterator), iterator)


async def _parsed(iterator: AsyncIterator[str | bytes]) -> AsyncGenerator[Event, None]:
    parser = EventStreamParser()
    try:
        async for chunk in iterator:
            for event in parser.feed(chunk.encode() if isinstance(chunk, str) else chunk):
                if event.data != "[DONE]":
                    yield Event(event.data, None if event.event == "message" else event.event)
    finally:
        await _close(iterator)


class _Closing(AsyncGenerator[T, None]):
    """A generator over an iterator, which closes the iterator also if it never runs.

    The `finally` of a generator that never ran is not reached.
    """

    def __init__(self, generator: AsyncGenerator[T, None], iterator: AsyncIterator[object]) -> None:
        self._generator = generator
        self._iterator = iterator
        self._has_run = False

    # No coroutines of their own: each item of a run comes through here.

    def __anext__(self) -> Coroutine[Any, Any, T]:
        self._has_run = True
        return self._generator.__anext__()

    def asend(self, value: None) -> Coroutine[Any, Any, T]:
        self._has_run = True
        return self._generator.asend(value)

    def athrow(self, error: BaseException, /) -> Coroutine[Any, Any, T]:  # type: ignore[override]
        self._has_run = True
        return self._generator.athrow(error)

    async def aclose(self) -> None:
        await self._generator.aclose()
        if not self._has_run:
            self._has_run = True
            await _close(self._iterator)


def livepush(*, control_events: bool = True, replays_ended: bool = True) -> Dialect:
    """Return the dialect of an EventSource: items as `publish` takes them, and a `livepush.end` at the end.

    Its data is `{"state": ..., "count": ..., "error": ...}`. After it the browser comes back with the last
    id, and gets a 204, so it stops. Without `control_events` an id alone is in its place, and a stream ends
    at a gap.
    """
    if not control_events:
        return Dialect(name="plain", replays_ended=replays_ended)
    return Dialect(
        name="livepush",
        last=_livepush_end,
        ends_at_gap=False,
        control_events=True,
        replays_ended=replays_ended,
    )


def ai_sdk(
    *, message_id: str | None = None, go_on_at_gap: bool = False, replays_ended: bool = True
) -> Dialect:
    """Return the dialect of the Vercel AI SDK: its UI message stream, for `useChat({resume: true})`.

    An item is a part, such as `{"type": "text-delta", "id": "0", "delta": "Hel"}`. The start part has the id
    of the message: that of the run, unless it is given. The items may have a start and a finish of their own,
    as those of `parsed` do, if that start has no `messageId` or the same.

    `useChat` sends no event id, so it reads a run from its beginning each time, and replaces the message
    that has the id of the start part. So give each answer a run of its own, not one to each chat, and store
    the message under the id of the start part: a page that has it under another id shows it twice.

    A run that has ended is sent again, as long as it is stored. A page that was cut off, and comes back after
    the end, gets the rest. With `replays_ended=False` it gets a 204, and `useChat` shows what it has as a
    message that is ready: then its page has to load the message from elsewhere.

    A run that has failed or was lost, and a stream that ends before its run, end with an error part, which
    `useChat` shows as its `error`. A cancelled run ends with an abort part, after which its status is
    "ready": a page that has not cancelled it is told by a transient `data-livepush` part with the data
    `{"end": "cancelled"}`, in `onData`.

    At a gap the client is sent a transient `data-livepush` part with the data `{"gap": reason}`, and an
    error. With `go_on_at_gap` the error is left out: then `onData` has to tell the user, and deltas of a text
    whose start is missing are an error of the client.
    """
    done = Event("[DONE]")

    def note(data: object) -> object:
        return {"type": "data-livepush", "data": data, "transient": True}

    def last(end: RunEnd) -> bytes:
        match end.state:
            case RunState.DONE:
                return frames({"type": "finish"}, done)
            case RunState.CANCELLED:
                return frames(note({"end": end.state.value}), {"type": "abort", "reason": end.text}, done)
            case RunState.RUNNING:
                return frames({"type": "error", "errorText": end.text})
        return frames({"type": "error", "errorText": end.text}, done)

    def gap(run_id: str, reason: GapReason) -> bytes:
        error = [] if go_on_at_gap else [{"type": "error", "errorText": GAP_TEXT}, done]
        return frames(note({"gap": reason.value}), *error)

    return Dialect(
        name="ai-sdk",
        headers={"x-vercel-ai-ui-message-stream": "v1"},
        first=lambda run_id: frames({"type": "start", "messageId": message_id or run_id}),
        item=_typed_part,
        last=last,
        gap=gap,
        ends_at_gap=not go_on_at_gap,
        text_start=lambda id: [{"type": "text-start", "id": id}],
        text_piece=lambda id, piece: {"type": "text-delta", "id": id, "delta": piece},
        text_end=lambda id: [{"type": "text-end", "id": id}],
        replays_ended=replays_ended,
    )


def ag_ui(
    *, thread_id: str | None = None, own_start_and_end: bool = False, go_on_at_gap: bool = False
) -> Dialect:
    """Return the dialect of AG-UI: its events, from RUN_STARTED to RUN_FINISHED or RUN_ERROR.

    An item is an event, such as `{"type": "TEXT_MESSAGE_CONTENT", ...}` or a model of `ag_ui.core`. The id of
    the thread is that of the run, unless it is given. With `own_start_and_end` the items have a RUN_STARTED
    and a RUN_FINISHED of their own: the client refuses a second RUN_STARTED.

    A cancelled run ends with RUN_ERROR, as one that has failed or was lost: RUN_FINISHED may not end a
    message that is not complete. At a gap the run ends with RUN_ERROR too. With `go_on_at_gap` it goes on
    after a CUSTOM event `livepush.gap`. `runAgent` resolves after a RUN_ERROR, so the page has to have an
    `onRunErrorEvent`, or it shows a part of a message as the whole.

    The client sends no event id, and reads a run from its beginning each time.
    """

    def bound(kind: str, run_id: str) -> bytes:
        if own_start_and_end:
            return b""
        return frames({"type": kind, "threadId": thread_id or run_id, "runId": run_id})

    def last(end: RunEnd) -> bytes:
        if end.state is RunState.DONE:
            return bound("RUN_FINISHED", end.run_id)
        return frames({"type": "RUN_ERROR", "message": end.text, "code": _code_of(end)})

    def gap(run_id: str, reason: GapReason) -> bytes:
        if go_on_at_gap:
            return frames({"type": "CUSTOM", "name": "livepush.gap", "value": {"reason": reason.value}})
        return frames({"type": "RUN_ERROR", "message": GAP_TEXT, "code": "gap"})

    return Dialect(
        name="ag-ui",
        first=lambda run_id: bound("RUN_STARTED", run_id),
        item=_typed_part,
        last=last,
        gap=gap,
        ends_at_gap=not go_on_at_gap,
        text_start=lambda id: [{"type": "TEXT_MESSAGE_START", "messageId": id, "role": "assistant"}],
        text_piece=lambda id, piece: {"type": "TEXT_MESSAGE_CONTENT", "messageId": id, "delta": piece},
        text_end=lambda id: [{"type": "TEXT_MESSAGE_END", "messageId": id}],
        # A 204 is an error without a reason to this client.
        idle=404,
    )


def openai(*, model: str = "livepush", created: int = 0) -> Dialect:
    """Return the dialect of the OpenAI API: chunks, and `[DONE]` at the end.

    An item is a chunk, such as `{"object": "chat.completion.chunk", "choices": [...]}` or a model of the
    `openai` library. The protocol has one way to say that a text is not whole, an error: for every end but
    `done`, and for a gap. The clients raise it, and an error of their own for a connection that was cut.
    `model` and `created` are those of the chunks that `text` makes.

    The clients do not come back by themselves. A program that reads the run again gets it from the beginning,
    or after the id that it gives in `extra_headers={"Last-Event-ID": id}`.
    """
    done = Event("[DONE]")

    def error(message: str, code: str) -> dict[str, object]:
        return {"error": {"message": message, "type": "run_error", "code": code}}

    def last(end: RunEnd) -> bytes:
        if end.state is RunState.DONE:
            return frames(done)
        return frames(error(end.text, _code_of(end)))

    def chunk(id: str, delta: object, finish_reason: str | None) -> object:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        kind = "chat.completion.chunk"
        return {"id": id, "object": kind, "created": created, "model": model, "choices": [choice]}

    return Dialect(
        name="openai",
        item=_part,
        last=last,
        gap=lambda run_id, reason: frames(error(GAP_TEXT, "gap")),
        # Once: the helpers of the Python client join the roles as they join the texts.
        text_start=lambda id: [chunk(id, {"role": "assistant", "content": ""}, None)],
        text_piece=lambda id, piece: chunk(id, {"content": piece}, None),
        text_end=lambda id: [chunk(id, {}, "stop")],
        # The Python client reads JSON from a block that has nothing but an id.
        id_alone=False,
        # A 204 is an empty answer to this client, without an error.
        idle=404,
    )


async def _close(iterator: AsyncIterator[object]) -> None:
    """Close a generator, which an `async for` that is left does not: its `finally` would run at some time."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()


def _livepush_end(end: RunEnd) -> bytes:
    if end.state is RunState.RUNNING:
        # `livepush.close` says that.
        return b""
    data = {"state": end.state.value, "count": end.count, "error": end.error}
    return encode_block(to_json(data), event="livepush.end")


def _code_of(end: RunEnd) -> str:
    return "interrupted" if end.state is RunState.RUNNING else end.state.value


@runtime_checkable
class _Model(Protocol):
    """A model of Pydantic, of which agent frameworks and the official libraries make their parts."""

    def model_dump_json(self, *, by_alias: bool, exclude_none: bool) -> str: ...


def _typed_part(item: object) -> Event:
    """Return a part as an Event. Raises TypeError for one without a type, on which the client fails."""
    event = _part(item)
    kind = item.get("type") if isinstance(item, Mapping) else getattr(item, "type", None)
    if not isinstance(item, Event) and not (isinstance(kind, str) and kind):
        raise TypeError(f"a part has a `type`, and {item!r:.100} has none: the client would fail on it")
    return event


def _part(item: object) -> Event:
    """Return a mapping or a model as an Event. An Event is returned as it is."""
    # In the order of how often they come: to ask for a protocol takes longer than all the rest.
    if isinstance(item, dict):
        return Event(item)
    if isinstance(item, Event):
        return item
    if isinstance(item, _Model):
        # The clients refuse many a field that is null.
        return Event(item.model_dump_json(by_alias=True, exclude_none=True))
    if isinstance(item, Mapping):
        return Event(dict(item))
    hint = ": give the pieces of a text to `dialect.text(pieces, id)`" if isinstance(item, str) else ""
    raise TypeError(f"a part is a mapping, a model or an Event, not {item!r:.100}{hint}")


def _check_header(name: str, value: str) -> None:
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"{name!r}: {value!r} is no header")
    if name.lower() in ("content-type", "content-length", "transfer-encoding", "connection"):
        raise ValueError(f"the header {name!r} is set by the component or the server: leave it out")
