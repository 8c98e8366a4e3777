"""The demo in a process of its own, over real sockets."""

import json
import re
import secrets
import signal
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.to_thread
import httpx
import psutil
import pytest
from anyio.abc import TaskStatus

from livepush_asgi.testing import ParsedEvent

from .command import Serving, event_source
from .valkey import ValkeyProcess

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with Serving("demo") as demo:
        yield demo


@pytest.fixture
async def client(demo: Serving) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=demo.url, timeout=10, trust_env=False) as client:
        yield client


def visitor() -> str:
    return secrets.token_hex(16)


async def test_the_page_and_all_that_it_names_are_served(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named, unseen = set(), re.findall(r'(?:href|src)="(/[^"]+)"', page.text)
    while unseen:
        path = unseen.pop()
        if path not in named:
            named.add(path)
            answer = await client.get(path)
            assert answer.status_code == 200, path
            unseen += re.findall(r'from "(/[^"]+)"', answer.text)
    assert named == {
        "/favicon.svg", "/demo.css", "/theme.js", "/demo.js",
        "/board.js", "/charts.js", "/log.js", "/stream.js", "/tape.js",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/demo.js", "/history", "/nothing"])
async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def test_the_page_has_nothing_that_its_policy_would_block(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    assert not re.search(r"<style|style=|\son\w+=|<script>", page)
    # A link to elsewhere is no request of the page.
    assert re.findall(r"\S*https?://", page) == ['href="https://']
    assert re.search(r'<a href="https://pypi\.org/project/livepush_asgi/">', page)


async def test_head_has_no_body_and_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    head = await client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 1000
    refused = await client.delete("/history")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert (await client.get("/board")).headers["allow"] == "POST"


async def test_figures_of_this_machine_arrive(demo: Serving) -> None:
    async with event_source(f"{demo.url}/events?visitor={visitor()}") as source:
        opening = await source.next()
        assert opening is not None
        assert (opening.event, json.loads(opening.data)["resumed"]) == ("livepush.open", False)
        with anyio.fail_after(5):
            events = [await source.next_named("figures") for _ in range(3)]
    figures = [json.loads(event.data) for event in events]
    first = figures[0]["number"]
    assert [each["number"] for each in figures] == [first, first + 1, first + 2]
    # The position in the first channel's log, of the two that the id holds.
    offsets = [int((event.id or "").split(",")[0].split(".")[1]) for event in events]
    assert offsets == [first, first + 1, first + 2]
    for each in figures:
        assert each["memory_total"] == psutil.virtual_memory().total
        assert 0 < each["memory_used"] < each["memory_total"]
        assert len(each["cores"]) == psutil.cpu_count()
        assert all(0 <= share <= 100 for share in [each["cpu"], *each["cores"]])
        assert each["visitors"] == 1
    # The events themselves go over the loopback, so there is something to count.
    assert figures[-1]["received"] > 0


async def test_the_history_is_there_before_the_first_event(demo: Serving, client: httpx.AsyncClient) -> None:
    async with event_source(f"{demo.url}/events?visitor={visitor()}") as source:
        newest = json.loads((await source.next_named("figures")).data)
        history = (await client.get("/history")).json()
    assert newest in history["figures"]
    numbers = [each["number"] for each in history["figures"]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert len(numbers) <= 121
    assert set(history["machine"]) == {"host", "system", "python", "booted"}


async def test_what_one_visitor_writes_the_others_get(demo: Serving, client: httpx.AsyncClient) -> None:
    author, reader = visitor(), visitor()
    text = "<img src=x onerror=alert(1)> & 'ünï'\n\ndata: forged"
    async with (
        event_source(f"{demo.url}/events?visitor={author}") as own,
        event_source(f"{demo.url}/events?visitor={reader}") as other,
    ):
        await own.next()
        await other.next()
        answer = await client.post("/board", json={"visitor": author, "text": f"  {text} "})
        assert answer.status_code == 201
        with anyio.fail_after(5):
            notes = [json.loads((await source.next_named("note")).data) for source in (own, other)]
    assert notes == [answer.json()] * 2
    assert notes[0]["text"] == text
    assert (await client.get("/history")).json()["notes"][-1] == notes[0]
    # With a visitor's id, that visitor's stream could be cut.
    assert author not in json.dumps(notes)
    again = await client.post("/board", json={"visitor": author, "text": "x" * 280})
    assert again.json()["author"] == notes[0]["author"]


@pytest.mark.parametrize(
    ("status", "body", "detail"),
    [
        (413, b'"' + b"x" * 2048 + b'"', "at most 2048 bytes"),
        (400, b"{", "this is not JSON"),
        (400, b"\xff", "this is not JSON"),
        (400, b"[" * 2000, "this is not JSON"),
        (400, b"[]", "send an object with `visitor` and `text`"),
        (400, b'{"text": "x"}', "visitor: 32 hexadecimal digits"),
        (400, b'{"visitor": 7, "text": "x"}', "visitor: 32 hexadecimal digits"),
        (400, b'{"visitor": "%s"}' % (b"a" * 32), "text: something to say"),
        (400, b'{"visitor": "%s", "text": " "}' % (b"a" * 32), "text: something to say"),
        (400, b'{"visitor": "%s", "text": ["x"]}' % (b"a" * 32), "text: something to say"),
        (
            400,
            b'{"visitor": "%s", "text": "%s"}' % (b"a" * 32, b"x" * 281),
            "text: at most 280 characters, these are 281",
        ),
        (400, b'{"visitor": "%s", "text": "\\ud800"}' % (b"a" * 32), "text: this cannot be written as UTF-8"),
    ],
)
async def test_what_cannot_be_written_gives_a_problem(
    client: httpx.AsyncClient, status: int, body: bytes, detail: str
) -> None:
    answer = await client.post("/board", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["detail"]) == (status, detail)


async def test_a_form_of_another_site_cannot_write(client: httpx.AsyncClient) -> None:
    body = json.dumps({"visitor": visitor(), "text": "x"})
    answer = await client.post("/board", content=body, headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["detail"]) == (415, "send it as application/json")


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/", "/history", "/events?visitor=" + "a" * 32])
async def test_a_name_from_outside_is_refused(client: httpx.AsyncClient, path: str, name: str) -> None:
    answer = await client.get(path, headers={"host": name})
    assert answer.status_code == 421
    assert answer.json()["detail"] == "this page is for this machine; open it as localhost or 127.0.0.1"


async def test_the_names_of_this_machine_are_taken(client: httpx.AsyncClient) -> None:
    for name in ("localhost", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1"):
        assert (await client.get("/history", headers={"host": name})).status_code == 200


@pytest.mark.parametrize("query", ["", "?visitor=", "?visitor=" + "g" * 32, "?visitor=" + "a" * 33])
async def test_a_stream_needs_a_visitor(client: httpx.AsyncClient, query: str) -> None:
    for answer in [await client.get(f"/events{query}"), await client.post(f"/cut{query}")]:
        assert answer.status_code == 400
        assert answer.json()["detail"] == "visitor: 32 hexadecimal digits"


async def test_a_cut_stream_says_so_and_comes_back(demo: Serving, client: httpx.AsyncClient) -> None:
    one, other = visitor(), visitor()
    async with event_source(f"{demo.url}/events?visitor={other}") as spared:
        await spared.next()
        async with event_source(f"{demo.url}/events?visitor={one}") as source:
            newest = await source.next_named("figures")
            assert (await client.post(f"/cut?visitor={one}")).status_code == 202
            with anyio.fail_after(5):
                closing = await source.next_named("livepush.close")
                assert await source.next() is None
        assert json.loads(closing.data)["reason"] == "revoked"
        assert closing.retry is not None
        assert 1500 <= closing.retry <= 4500
        # The same visitor comes back, as EventSource does, and goes on where the stream was cut.
        async with event_source(
            f"{demo.url}/events?visitor={one}", **{"last-event-id": newest.last_event_id}
        ) as source:
            with anyio.fail_after(5):
                opening = await source.next()
                following = await source.next()
        assert opening is not None
        assert (opening.event, json.loads(opening.data)["resumed"]) == ("livepush.open", True)
        assert following is not None
        assert json.loads(following.data)["number"] == json.loads(newest.data)["number"] + 1
        with anyio.fail_after(5):
            await spared.next_named("figures")


class Audience:
    """Visitors with open streams, who note how each ends. None stands for an end without a word."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.closed: list[ParsedEvent | None] = []

    async def watch(self, task_status: TaskStatus[None]) -> None:
        async with event_source(f"{self._url}/events?visitor={visitor()}") as source:
            await source.next()
            task_status.started()
            try:
                self.closed.append(await source.next_named("livepush.close"))
                assert await source.next() is None
            except httpx.RemoteProtocolError:
                self.closed.append(None)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ending_the_process_closes_every_stream_with_a_word(number: signal.Signals) -> None:
    with Serving("demo") as demo:
        audience = Audience(demo.url)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                await tasks.start(audience.watch)
            status = await anyio.to_thread.run_sync(demo.end, number)
        assert status == 0
        assert demo.rest().count("draining") == 1
    closed = [event for event in audience.closed if event is not None]
    assert [json.loads(event.data)["reason"] for event in closed] == ["drain"] * 20
    # Each with its own reconnection time, so that they do not all come back at once.
    assert len({event.retry for event in closed}) > 10


async def test_a_second_ctrl_c_does_not_wait_for_the_streams() -> None:
    with Serving("demo") as demo:
        audience = Audience(demo.url)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                await tasks.start(audience.watch)
            demo.process.send_signal(signal.SIGINT)
            assert "draining" in await anyio.to_thread.run_sync(demo.line)
            status = await anyio.to_thread.run_sync(demo.end)
        assert status == 130
        assert demo.rest() == ""
    assert None in audience.closed


async def test_two_processes_share_a_board_over_redis(valkey: ValkeyProcess) -> None:
    with Serving("demo", "--redis", valkey.url) as one, Serving("demo", "--redis", valkey.url) as other:
        async with (
            event_source(f"{one.url}/events?visitor={visitor()}") as source,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            await source.next_named("figures")
            text = "from the other process"
            answer = await client.post(f"{other.url}/board", json={"visitor": visitor(), "text": text})
            assert answer.status_code == 201
            with anyio.fail_after(5):
                note = await source.next_named("note")
            assert json.loads(note.data)["text"] == text
        assert [serving.end() for serving in (one, other)] == [0, 0]
