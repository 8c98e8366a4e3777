"""The stream of a run in each dialect: what a client is sent, cut anywhere, compared with the log."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    Event,
    Grant,
    History,
    Limits,
    LivePush,
    MemoryBroker,
    Position,
    Refusal,
    RunFailedError,
    RunState,
    StreamRequest,
)
from livepush_asgi.dialects import Dialect, RunEnd, ag_ui, ai_sdk, frames, livepush, openai
from livepush_asgi.testing import Client, EventStreamParser, ParsedEvent
from livepush_asgi.wire.event import from_payload, split_position
from livepush_asgi.wire.run_record import record_of

CHANNEL = "run:a"
DONE = "[DONE]"


def several() -> Dialect:
    """Return a dialect of somebody else, in which everything has several blocks."""

    def last(end: RunEnd) -> bytes:
        return frames({"type": "last", "state": end.state}, Event("bye", "last"))

    return Dialect(
        name="several",
        first=lambda run_id: frames({"type": "first", "part": 1}, {"type": "first", "part": 2}),
        last=last,
        gap=lambda run_id, reason: frames({"type": "gap"}),
        ends_at_gap=False,
    )


DIALECTS: dict[str, Callable[[], Dialect]] = {
    "livepush": livepush,
    "plain": lambda: livepush(control_events=False),
    "ai-sdk": ai_sdk,
    "ai-sdk that goes on": lambda: ai_sdk(go_on_at_gap=True),
    "ag-ui": ag_ui,
    "ag-ui that goes on": lambda: ag_ui(go_on_at_gap=True),
    "openai": openai,
    "several": several,
}
every_dialect = pytest.mark.parametrize("name", DIALECTS)


def item_of(number: int) -> dict[str, object]:
    """Return an item that every dialect accepts."""
    return {"type": "item", "n": number}


def token_of(event: ParsedEvent) -> str:
    """Return what an event of any of the dialects says: an item, or what the dialect has made."""
    if event.event == "livepush.end":
        return str(event.json()["state"])
    if event.event.startswith("livepush.") or event.event == "last" or event.data == DONE:
        return event.event if event.data != DONE else DONE
    part = event.json()
    match part.get("type"):
        case "item":
            return f"item {part['n']}"
        case "first":
            return f"first {part['part']}"
        case "start" | "RUN_STARTED":
            return "first"
        case "finish" | "RUN_FINISHED":
            return "done"
        case "abort":
            return "cancelled"
        case "last":
            return str(part["state"])
        case "gap" | "CUSTOM":
            return "gap"
        case "data-livepush":
            return "gap" if "gap" in part["data"] else "data"
    text = part.get("errorText") or part.get("message") or part["error"]["message"]
    return {
        "The run has failed.": "failed",
        "The run was lost: its producer has stopped.": "lost",
        "The run was cancelled.": "cancelled",
        "The connection was closed before the end. Read it again to go on.": "running",
    }.get(text, "gap" if "is missing" in text else text)


def serving(broker: MemoryBroker, dialect: Dialect, limits: Limits | None = None) -> LivePush:
    async def authorize(request: StreamRequest) -> Grant | Refusal:
        return await push.run("a", dialect=dialect).grant(request)

    push = LivePush(broker, authorize, limits=limits)
    return push


def tokens_of(body: bytes) -> list[str]:
    """Return what is in a whole response, without what opens and closes a stream of ours."""
    events = EventStreamParser().feed(body)
    return [token for token in map(token_of, events) if token not in ("livepush.open", "livepush.close")]


FIRSTS = {"several": ["first 1", "first 2"], "livepush": [], "plain": [], "openai": []}


def firsts_of(name: str) -> list[str]:
    return FIRSTS.get(name, ["first"])


def end_of(name: str, state: str) -> list[str]:
    """Return the tokens of the end of a stream."""
    if name == "plain" or (name == "livepush" and state == "running"):
        return []
    if name.startswith("ai-sdk"):
        before = ["data"] if state == "cancelled" else []
        return [*before, state, *([] if state == "running" else [DONE])]
    if name == "openai" and state == "done":
        return [DONE]
    return [state, "last"] if name == "several" else [state]


async def numbers(first: int, last: int, pace: float = 1.0) -> AsyncIterator[object]:
    for number in range(first, last + 1):
        yield item_of(number)
        await anyio.sleep(pace)


async def failing() -> AsyncIterator[object]:
    raise RunFailedError("The run has failed.")
    yield


@every_dialect
async def test_a_whole_run_an_empty_one_and_one_that_failed_at_once(name: str) -> None:
    dialect = DIALECTS[name]()
    push = serving(MemoryBroker(), dialect)
    async with push.lifespan(), Client(push) as client:
        for items, found in [
            (numbers(1, 3), ["item 1", "item 2", "item 3", *end_of(name, "done")]),
            (numbers(1, 0), end_of(name, "done")),
            (failing(), end_of(name, "failed")),
        ]:
            await push.run("a", dialect=dialect).start(items, restart=True)
            for _ in ("while it runs", "after it"):
                async with client.open("/") as page:
                    body = await page.read_body(timeout=60)
                    assert tokens_of(body) == [*firsts_of(name), *found]
                parser = EventStreamParser()
                counted = [event for event in parser.feed(body) if not event.event.startswith("livepush.")]
                assert push.statistics()["streams"] == 0
                if name == "openai":
                    assert parser.empty_blocks == 0
                if name != "openai" or counted:
                    async with client.open("/", last_event_id=parser.last_event_id) as page:
                        assert page.status == dialect.idle
