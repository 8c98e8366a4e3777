"""Publishing over HTTP by a real server: a crash after the publish, and ten thousand bad requests."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import starmap
from pathlib import Path

import jwt
import pytest

from livepush_asgi import RedisStreamsBroker
from livepush_asgi.http.publish.signature import sign
from livepush_asgi.testing import EventStreamParser
from livepush_asgi.wire.event import from_payload

from .apps.publisher import SECRET
from .command import complaints
from .servers import GRANIAN
from .serving import Serving, uvicorn
from .valkey import ValkeyProcess

APP = "tests.apps.publisher:app"
JSON = "application/json"
pytestmark = pytest.mark.real_time


def event(data: object) -> bytes:
    return json.dumps({"channel": "news", "data": data}).encode()


def request(
    body: bytes,
    *,
    signature: str | None = None,
    key: str = "",
    path: str = "/publish",
    length: int | None = -1,
    **more: str,
) -> bytes:
    """Return an HTTP/1.1 request. A `length` of None sends it in chunks."""
    fields = {"host": "test", "content-type": JSON}
    fields.update((name.replace("_", "-"), value) for name, value in more.items())
    fields["x-signature"] = sign(SECRET, body, idempotency_key=key) if signature is None else signature
    if key:
        fields["idempotency-key"] = key
    if length is None:
        fields["transfer-encoding"] = "chunked"
        sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces(body)) + b"0\r\n\r\n"
    else:
        fields["content-length"] = str(len(body) if length == -1 else length)
        sent = body
    lines = [
        f"POST {path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + sent


def pieces(body: bytes, size: int = 1000) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


class Publisher:
    """A connection that is kept for one request after the other, and is opened anew when it has ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, sent: bytes) -> tuple[int, bytes]:
        """Send a request and return the status and the body of the answer. Raises OSError, EOFError."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        try:
            self._writer.write(sent)
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = re.search(r"content-length: (\d+)", head)
            assert length is not None, head
            body = await self._reader.readexactly(int(length[1]))
        except BaseException:
            self.close()
            raise
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), body

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


async def logged(valkey: ValkeyProcess, channel: str) -> list[str]:
    async with valkey.client() as client:
        broker = RedisStreamsBroker(client)
        page = await broker.read(channel, 0, 1000)
        await broker.aclose()
    parser = EventStreamParser()
    return [event.data for record in page.records for event in parser.feed(from_payload(record.payload))]


@pytest.mark.slow
async def test_a_publisher_that_retries_through_crashes_publishes_once(
    valkey: ValkeyProcess, tmp_path: Path
) -> None:
    """The process is killed when the event is in the log: before its answer, or when that is on the way."""
    environment = {"REDIS_URL": valkey.url}
    async with uvicorn(APP, tmp_path / "log", environment=environment) as server:
        for number, when in enumerate(["before", "after"]):
            body, key = event(number), f"order-{number}"
            publisher = Publisher(server.port)
            try:
                await publisher.post(request(body, key=key, x_kill=when))
            except (OSError, EOFError):
                assert when == "before"
            publisher.close()
            # Whoever has no answer asks again, and does so while the server is away.
            await server.ended(10)
            with pytest.raises(OSError, match="Connect"):
                await publisher.post(request(body, key=key))
            await server.start_again()
            answers = [await publisher.post(request(body, key=key)) for _ in range(3)]
            assert len(set(answers)) == 1
            assert answers[0][0] == 200
            publisher.close()
        assert await logged(valkey, "news") == ["0", "1"]


@pytest.mark.slow
async def test_two_publishers_with_one_key_and_two_workers_publish_once(
    valkey: ValkeyProcess, tmp_path: Path
) -> None:
    batch = json.dumps({"items": [{"channel": "news", "data": n} for n in range(20)]}).encode()
    environment = {"REDIS_URL": valkey.url}
    async with uvicorn(APP, tmp_path / "log", "--workers", "2", environment=environment) as server:
        publishers = [Publisher(server.port) for _ in range(20)]
        answers = await asyncio.gather(*(each.post(request(batch, key="k")) for each in publishers))
        assert {status for status, _ in answers} == {200}
        assert len({body for _, body in answers}) == 1
        for each in publishers:
            each.close()
    # Nobody publishes an item before the one before it is in the log.
    assert list(map(int, await logged(valkey, "news"))) == list(range(20))


# Heads that lie, and bodies that do not come as they were announced: what each server may answer.

GOOD = event("good")


def framed() -> Sequence[tuple[bytes, set[str]]]:
    """Return requests and what may answer them. Their signatures are good for five minutes."""
    return [
        (request(GOOD, length=None), {"200"}),
        (request(GOOD, expect="100-continue"), {"100 200"}),
        (request(GOOD, length=10**9, expect="100-continue"), {"413", "100 413"}),
        # A byte too few, and one too many: that one is the beginning of another request.
        (request(GOOD, length=len(GOOD) + 1), {"408"}),
        (request(GOOD, length=len(GOOD) - 1), {"400", "401", "401 400"}),
        # Granian says that the publisher has left.
        (request(GOOD, length=None).replace(b"\r\n\r\n", b"\r\n\r\nx", 1), {"400", "499"}),
        # What was refused is no beginning of another request.
        (request(b"{" * 70_000) + request(GOOD), {"413 200", "413"}),
        (request(GOOD, signature="none") + request(GOOD), {"401 200"}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    ["uvicorn {app} --port {port}", "hypercorn {app} --bind {host}:{port} -w 0", GRANIAN],
    ids=["uvicorn", "hypercorn", "granian"],
)
async def test_a_body_that_is_not_what_its_head_says(command: str, tmp_path: Path) -> None:
    command = command.replace("{app}", APP).replace("{host}", "127.0.0.1")
    async with Serving(command, tmp_path / "log", environment={"BODY_TIMEOUT": "1"}) as server:

        async def said(sent: bytes, allowed: set[str]) -> str:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            answers, found = b"", ""
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(3):
                    # Unless more may come.
                    while found not in allowed or any(each.startswith(f"{found} ") for each in allowed):
                        answers += (piece := await reader.read(4096))
                        found = " ".join(re.findall(r"HTTP/1\.1 (\d+)", answers.decode()))
                        if not piece:
                            break
            writer.close()
            return found

        sent = framed()
        for found, (_, allowed) in zip(await asyncio.gather(*starmap(said, sent)), sent, strict=True):
            assert found in allowed
        assert [line for line in complaints(server.log) if "Traceback" in line] == []


# Ten thousand bad requests beside good ones.

BODY_LIMIT = 256 * 1024
LONG = b'{"channel":"news","data":"' + b"x" * BODY_LIMIT + b'"}'
OLD = sign(SECRET, event(0), moment=1_000_000_000)
TOKEN = jwt.encode({"mercure": {"publish": ["*"]}}, SECRET, "HS256")
FORGED = jwt.encode({"mercure": {"publish": ["*"]}}, SECRET[::-1], "HS256")
BAD: Sequence[tuple[int, Callable[[int], bytes]]] = [
    (400, lambda n: request(b'{"channel":"news","data":' + b"[" * (n % 5000))),
    (400, lambda n: request(b'{"channel":"news","data":1,"x%d":1}' % n)),
    (400, lambda n: request(b'{"channel":"news","channel":"n%d","data":1}' % n)),
    (400, lambda n: request(event(n), key="not one key")),
    (400, lambda n: request(b"topic=", path="/.well-known/mercure", authorization=f"Bearer {TOKEN}",
                            content_type="application/x-www-form-urlencoded")),
    (401, lambda n: request(event(n), signature=sign(SECRET[::-1], event(n)))),
    (401, lambda n: request(event(n), signature=OLD)),
    (401, lambda n: request(event(n), signature=f"t={n},v1=" + "f" * (n % 200))),
    (401, lambda n: request(event(n) + b" ", signature=sign(SECRET, event(n)))),
    (401, lambda n: request(event(n), path="/.well-known/mercure", authorization=f"Bearer {FORGED}")),
    (405, lambda n: request(b"").replace(b"POST", b"PUT", 1)),
    (413, lambda n: request(b"", length=BODY_LIMIT + 1 + n)),
    (413, lambda n: request(LONG if n % 100 == 0 else b"{", length=None if n % 100 == 0 else BODY_LIMIT * 9)),
    (415, lambda n: request(event(n), content_type=f"text/x{n}")),
]  # fmt: skip


async def abuse(port: int, numbers: Sequence[int], found: Counter[tuple[int, int]]) -> None:
    publisher = Publisher(port)
    for number in numbers:
        expected, make = BAD[number % len(BAD)]
        status, body = await publisher.post(make(number))
        assert len(body) < 500
        found[expected, status] += 1
        if status == 413:
            # The server waits for the rest of the body, to throw it away.
            publisher.close()
    publisher.close()


async def publish(port: int, start: int, count: int) -> set[tuple[int, bytes]]:
    """Publish events, each three times with the same key."""
    publisher = Publisher(port)
    answers = set()
    for number in range(start, start + count):
        for _ in range(3):
            answers.add(await publisher.post(request(event(number), key=f"k{number}")))
    publisher.close()
    return answers


async def stall(port: int) -> int:
    """Send a body but for its last byte, and wait for what the server says to that."""
    publisher = Publisher(port)
    body = event("x" * (BODY_LIMIT - 1000))
    status, _ = await publisher.post(request(body[:-1], length=len(body)))
    publisher.close()
    return status


async def leave(port: int) -> None:
    """Send half of a body, and go."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(event("half"), length=BODY_LIMIT))
    await writer.drain()
    writer.transport.abort()


@pytest.mark.slow
async def test_ten_thousand_bad_requests_beside_good_ones(tmp_path: Path) -> None:
    # Without the checks of Python's development mode, which take several times the memory.
    environment = {"MAX_BODY": str(BODY_LIMIT), "BODY_TIMEOUT": "3", "PYTHONMALLOC": "pymalloc"}
    found: Counter[tuple[int, int]] = Counter()
    async with uvicorn(APP, tmp_path / "log", environment=environment) as server:
        stream = await server.open("/events")
        await stream.next_event("livepush.open")
        await publish(server.port, 0, 5)
        before = await facts(server)
        async with asyncio.timeout(90), asyncio.TaskGroup() as tasks:
            abusers = [tasks.create_task(abuse(server.port, range(n, 9_000, 30), found)) for n in range(30)]
            stalled = [tasks.create_task(stall(server.port)) for _ in range(300)]
            for _ in range(700):
                tasks.create_task(leave(server.port))
            good = [tasks.create_task(publish(server.port, 5 + 50 * n, 50)) for n in range(4)]
        assert len(abusers) == 30
        # Together they are more than the process may hold.
        assert {503} <= {task.result() for task in stalled} <= {408, 503}
        assert sum(found.values()) == 9_000
        assert {pair for pair in found if pair[0] != pair[1]} == set()
        answers = [answer for task in good for answer in task.result()]
        assert [status for status, _ in answers] == [200] * 200
        data = [int((await stream.next_event()).data) for _ in range(205)]
        assert sorted(data) == list(range(205))
        after = await facts(server)
        # Most of it is what uvicorn keeps for a thousand connections.
        assert after["kib"] - before["kib"] < 200 * 1024, (before, after)
        lines = [line for line in complaints(server.log) if "INFO" not in line]
        assert len(lines) <= 5, lines[:20]


async def facts(server: Serving) -> dict[str, int]:
    answer: dict[str, int] = json.loads(await (await server.open("/facts")).read_body())
    return answer
