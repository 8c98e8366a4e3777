"""Whatever clients do leaves a handful of lines in the log, and each line says how many were left out."""

import asyncio
import contextlib
import itertools
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    ProcessFullError,
    SSEStreamService,
    StreamRequest,
    Timing,
    public,
)
from livepush_asgi.brokers import Subscription
from livepush_asgi.http.publish.signature import sign
from livepush_asgi.runtime.failure_log import FailureLog, fields
from livepush_asgi.testing import Client

from .serving import Serving, uvicorn
from .virtual_clock import let_pass

REQUESTS = 10_000
AT_ONCE = 50


def request(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"host": "test", "content-length": str(len(body)), **headers}
    lines = [f"{method} {target} HTTP/1.1", *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


STREAM = "/events?channel=news"
PUBLISH = {"content_type": "application/json", "x_signature": "t=1,v1=00"}


def abuses() -> Iterator[bytes]:
    """Yield one request of each kind, again and again, each a little different."""
    for number in itertools.count():
        event = json.dumps({"channel": "news", "data": number}).encode()
        yield request(("POST", "DELETE", "PURGE", "BREW")[number % 4], STREAM)
        yield request("GET", STREAM, last_event_id="~9." * 2500 + str(number))
        yield request("HEAD", STREAM, last_event_id="\x07\x7f!~~,," + str(number))
        yield request("GET", f"{STREAM}&key=slow0", origin="null, javascript:")
        yield request("GET", f"{STREAM}&{'%41=%41&' * 2000}{number}")
        yield request("GET", "/events?channel=")
        yield request("GET", f"/events?channel=livepush.{number}")
        yield request("GET", f"/events?channel=c&key={number}")
        yield request("GET", f"/events?nothing={number}")
        for way in ("key", "number", "none", "refused"):
            yield request("GET", f"{STREAM}&fail={way}&value=x{number}")
        # Each is refused in another line of the parser.
        for value in ("{", "[", '"', "nul", "{1:1}", '{"a"}', '{"a":1,}', "[1,]", "1 1", '"\\x"', '"\\u12'):
            yield request("GET", f"{STREAM}&fail=json&value={value.encode().hex('%')}{number}")
        yield request("GET", f"{STREAM}&livepush_probe=1-1-{number}")
        yield request("GET", f"{STREAM}&livepush_probe=1-1-1", x_probe="{")
        yield request("GET", f"/eventsX/{number}")
        yield request("POST", "/health/ready", b"x" * 100)
        yield request("GET", "/health/../../etc/passwd")
        yield request("POST", "/publish", event, **PUBLISH)
        yield request("POST", "/publish", event[:-3], **PUBLISH)
        yield request("POST", "/publish", event, content_type="text/html")
        yield request(
            "POST",
            "/publish",
            b"[" * 4000,
            **(PUBLISH | {"x_signature": sign("the secret of somebody else", b"[")}),
        )
        yield request("POST", "/publish", b"x" * 5000, **PUBLISH)
        yield request("GET", STREAM, connection="upgrade", upgrade="websocket", sec_websocket_version="13")
        # Half of a request, and something else.
        yield request("GET", STREAM)[:40]
        yield b"\x16\x03\x01\x02\x00" + number.to_bytes(4)


async def abuse(server: Serving, requests: Iterator[bytes], count: int, statuses: Counter[str]) -> None:
    for sent in itertools.islice(requests, count):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        way = random.random()
        try:
            if way < 0.1:
                continue
            async with asyncio.timeout(0.02 if way < 0.15 or b"\r\n\r\n" not in sent else 5):
                head = await reader.read(1000)
                statuses[head[9:12].decode()] += 1
        except (TimeoutError, ConnectionError):
            statuses["none"] += 1
        finally:
            writer.transport.abort()


async def open_when_it_can(server: Serving) -> None:
    """Open a stream when the streams that were reset have closed."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(EOFError):
                await (await server.open(STREAM)).next_event("livepush.open")
                return


@pytest.mark.real_time
@pytest.mark.slow
async def test_ten_thousand_abusive_requests_leave_a_handful_of_lines(tmp_path: Path) -> None:
    statuses, began = Counter[str](), time.monotonic()
    async with uvicorn("tests.apps.abused:app", tmp_path / "log") as server:
        # They read nothing, and have all slots of their keys. The process is full from time to time.
        slow = [await server.open(f"{STREAM}&key=slow{number // 2}") for number in range(30)]
        for stream in slow:
            stream.shrink()
        requests = abuses()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(abuse(server, requests, REQUESTS // AT_ONCE, statuses))
        for stream in slow:
            stream.abort()
        await open_when_it_can(server)
        assert (await server.open("/health/ready")).status == 200
    lines = re.findall(r"^OURS livepush_asgi\S* \w+ (.*)$", server.log, re.MULTILINE)
    # On a machine that is busy it takes several minutes.
    assert 0 < len(lines) <= 12 * (1 + (time.monotonic() - began) // 60), lines
    assert "Exception in ASGI application" not in server.log
    assert {"200", "400", "401", "403", "404", "405", "413", "414", "415", "429", "500"} <= {*statuses}


# What clients can cause one by one, each in a process of its own.


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Unclosable:
    """A subscription that cannot be closed."""

    async def get_message(self, *, timeout: float) -> bytes | None:
        await anyio.sleep(timeout)
        return None

    async def close(self) -> None:
        await fail("closing")


class FragileBroker:
    """Refuses the channel `secret`."""

    async def publish(self, channel: str, payload: str | bytes) -> int:
        return 0

    async def subscribe(self, channel: str) -> Subscription:
        if channel == "secret":
            error = BrokerUnavailableError("the user may not have it")
            error.refused = True
            raise error
        return Unclosable()


async def fail(what: str) -> None:
    raise RuntimeError(f"{what} fails")


@pytest.mark.virtual_time
async def test_channels_that_clients_choose_leave_one_line_in_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = LivePush(
        FragileBroker(),
        lambda request: Grant(channels=request.query["channel"]),
        timing=Timing(linger=0, subscribe_timeout=0.1),
    )
    async with push.lifespan(), Client(push) as client:
        for number in range(40):
            for channel in ("secret", f"c{number}"):
                async with client.open(f"/?channel={channel}") as stream:
                    await stream.next_event(control=True)
                await let_pass(0.2)
    lines = Counter(line.partition(" (")[0] for line in texts(caplog))
    assert lines.pop("cannot subscribe at the broker, trying until it works: the user may not have it") == 1
    assert lines == {"closing the subscription to 'c0' failed": 1}


@pytest.mark.virtual_time
async def test_snapshots_that_fail_for_every_second_client_do_not_take_turns_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def state() -> str:
        return "state"

    def authorize(request: StreamRequest) -> Grant:
        return Grant(channels="c", snapshot=partial(fail, "it") if request.query["who"] == "bad" else state)

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        for minute in range(3):
            for who in ("bad", "good") * 10:
                async with client.open(f"/?who={who}") as stream:
                    await stream.next_event(control=True)
                    await let_pass(0.1)
            assert len(texts(caplog)) == 2 * (minute + 1)
            await let_pass(60)
        # In the end they fail for all, which is what the last line says.
        for _ in range(2):
            async with client.open("/?who=bad") as stream:
                await stream.next_event(control=True)
                await let_pass(60)
    assert "a snapshot failed" in texts(caplog)[-1]


@pytest.mark.virtual_time
async def test_a_process_at_its_limit_does_not_take_turns_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = LivePush(MemoryBroker(), public("c"), limits=Limits(streams=2))
    service = SSEStreamService.of(push)
    async with push.lifespan():
        for _ in range(20):
            streams = [await service.open_stream(channel="c") for _ in range(2)]
            with pytest.raises(ProcessFullError):
                await service.open_stream(channel="c")
            for stream in streams:
                await stream.body.aclose()
    assert len(texts(caplog)) == 2
    assert [getattr(record, "livepush_event", None) for record in caplog.records[:2]] == [
        "process_full",
        "process_has_room",
    ]
    assert vars(caplog.records[0])["livepush_limit"] == 2


@pytest.mark.virtual_time
async def test_failures_of_many_kinds_are_a_few_lines_in_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    for _ in range(10):
        for channel in range(100):
            failures.log(logging.ERROR, "%d fails", channel, about=channel, extra=fields("failed"))
    assert texts(caplog) == [f"{channel} fails" for channel in range(5)]
    await let_pass(61)
    for channel in (99, 0):
        failures.log(logging.ERROR, "%d fails", channel, about=channel)
    assert texts(caplog)[5:] == ["99 fails", "0 fails (9 more of these since the last line)"]
    assert [vars(record)["livepush_more"] for record in caplog.records] == [0] * 6 + [9]
    assert vars(caplog.records[0])["livepush_event"] == "failed"


async def test_fields_collide_with_nothing_of_the_standard_library() -> None:
    made = logging.makeLogRecord({})
    assert not {*fields("event", name=1, args=2, message=3)} & {*vars(made), "message", "asctime"}
    json.dumps(fields("event", name=1))
