"""Each example is served and used once. Those of the frameworks are in `test_frameworks.py`, the quickstart
and the custom broker in files of their own.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from livepush_asgi import DrainPolicy, LivePush, Received, RedisBroker, RedisStreamsBroker, public
from livepush_asgi.wire.event import from_payload, split_position

from .chromium import Browser
from .command import complaints
from .serving import REPOSITORY, uvicorn
from .valkey import ValkeyProcess

if TYPE_CHECKING:
    # Imported, it would mark every test here as one with a database: see selection.py.
    from .postgres_server import PostgresProcess

EXAMPLES = Path(__file__).parent.parent / "examples"
USED_ELSEWHERE = {
    "custom_broker.py": "test_custom_broker.py",
    "presence.py": "test_examples.py",
    "quickstart.py": "test_quickstart.py",
    "worker.py": "test_subscriber_servers.py",
    "publisher.py": "test_frameworks.py",
    "resumable_job.py": "test_examples.py",
    **dict.fromkeys(("run_page.py", "ai_sdk_chat.py"), "test_run_pages.py"),
    "postgres_orders.py": "test_examples.py",
    "plain_asgi.py": "test_frameworks.py",
    "starlette_app.py": "test_frameworks.py",
    "fastapi_app.py": "test_frameworks.py",
    "fastapi_rooms.py": "test_examples.py",
    **dict.fromkeys(("starlette_login.py", "fastapi_login.py", "django_login.py"), "test_login_examples.py"),
    "generator.py": "test_examples.py",
    "django_app.py": "test_frameworks.py",
    "quart_app.py": "test_frameworks.py",
    "litestar_app.py": "test_frameworks.py",
    **dict.fromkeys(("jwt_login.py", "ticket_login.py"), "test_token_login_examples.py"),
}

pytestmark = pytest.mark.real_time


async def test_the_fifteen_lines_push_to_a_page(tmp_path: Path) -> None:
    async with uvicorn("fifteen_lines:app", tmp_path / "log", "--app-dir", "examples") as server:
        stream = await server.open("/events/")
        await stream.next_event("livepush.open")
        assert (await server.open("/", method="POST")).status == 200
        assert (await stream.next_event()).data == '{"hello":"127.0.0.1"}'


async def test_plain_asgi_lets_in_who_has_the_token(tmp_path: Path) -> None:
    async with uvicorn("plain_asgi:app", tmp_path / "log", "--app-dir", "examples") as server:
        refused = await server.open("/events?token=wrong")
        assert (refused.status, refused.headers["content-type"]) == (401, "application/problem+json")
        stream = await server.open("/events?token=let-me-in")
        await stream.next_event("livepush.open")
        await server.open("/", method="POST", body=b"x" * 100_000)
        assert (await stream.next_event()).data == "x" * 100_000


async def test_a_member_who_is_removed_from_a_room_loses_the_stream_and_gets_no_other(tmp_path: Path) -> None:
    async with uvicorn("fastapi_rooms:app", tmp_path / "log", "--app-dir", "examples") as server:
        assert (await server.open("/rooms/garden/events?user=1")).status == 403
        removed, other = [await server.open(f"/rooms/kitchen/events?user={user}") for user in (1, 2)]
        for stream in (removed, other):
            await stream.next_event("livepush.open")
        await server.open("/rooms/kitchen", method="POST", body=b"tea", content_type="text/plain")
        assert [(await stream.next_event()).data for stream in (removed, other)] == ["tea", "tea"]
        answer = await server.open("/rooms/kitchen/members/1", method="DELETE")
        assert json.loads(await answer.read_body()) == {"streams": 1, "processes": 1, "missing": 0}
        assert json.loads((await removed.next_event("livepush.close")).data)["reason"] == "revoked"
        assert (await server.open("/rooms/kitchen/events?user=1")).status == 403
        await server.open("/rooms/kitchen", method="POST", body=b"coffee", content_type="text/plain")
        assert (await other.next_event()).data == "coffee"


async def test_an_order_and_its_event_are_there_both_or_neither(
    postgres_server: "PostgresProcess", tmp_path: Path
) -> None:
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE shop")
    environment = {"DATABASE_URL": postgres_server.dsn.replace("/postgres?", "/shop?")}
    options = ("--app-dir", "examples")
    async with uvicorn("postgres_orders:app", tmp_path / "log", *options, environment=environment) as server:
        stream = await server.open("/events/")
        await stream.next_event("livepush.open")
        statuses = [(await server.open("/orders/tea", method="POST")).status for _ in range(4)]
        assert statuses == [201, 201, 201, 409]
        assert (await server.open("/orders/coffee", method="POST")).status == 409
        events = [await stream.next_event() for _ in range(3)]
        orders = [json.loads(event.data) for event in events]
        assert orders == [{"order": number, "item": "tea"} for number in (1, 2, 3)]
        back = await server.open("/events/", last_event_id=events[1].last_event_id)
        assert json.loads((await back.next_event()).data) == orders[2]


async def test_a_generator_answers_one_client_and_is_closed_when_that_leaves(tmp_path: Path) -> None:
    async with uvicorn("generator:app", tmp_path / "log", "--app-dir", "examples") as server:
        stream = await server.open("/answer?question=Why%20not%3F")
        await stream.read_to_end()
        assert [(event.event, event.data) for event in stream.events] == [
            *(("word", word) for word in ("You", "asked:", "Why", "not?")),
            ("end", '{"words":2}'),
        ]
        leaving, staying = [
            await server.open(f"/users/1/answer?question={'long+' * 100}{name}") for name in "ab"
        ]
        for stream in (leaving, staying):
            await stream.next_event("word")
        refused = await server.open("/users/1/answer?question=third")
        await refused.read_to_end()
        assert (refused.status, refused.headers["retry-after"]) == (200, "5")
        assert [event.event for event in refused.events] == ["livepush.refused"]
        page = await (await server.open("/")).read_body()
        assert b'addEventListener("livepush.refused"' in page
        leaving.abort()
        async with asyncio.timeout(10):
            while len(json.loads(await (await server.open("/thinking")).read_body())) > 1:
                pass
        third = await server.open("/users/1/answer?question=third")
        assert (await third.next_event("word")).data == "You"
        server.send_signal(signal.SIGTERM)
        await staying.read_to_end()
        await server.ended(timeout=10)
        assert "Traceback" not in server.log


async def test_the_page_of_a_generator_shows_that_it_waits(browser: Browser, tmp_path: Path) -> None:
    async with uvicorn("generator:app", tmp_path / "log", "--app-dir", "examples") as server:
        taken = [await server.open(f"/users/1/answer?question={'long+' * 300}") for _ in range(2)]
        for stream in taken:
            await stream.next_event("word")
        page = browser.open(server.url)
        page.wait_for("document.querySelector('#text').textContent.startsWith('Waiting')")
        taken[0].abort()
        # In a thread: the socket is closed in the loop's next turn.
        answer = "document.querySelector('#text').textContent === 'You asked: What is it? '"
        await asyncio.to_thread(page.wait_for, answer)


async def test_a_room_is_told_who_comes_and_who_goes(tmp_path: Path) -> None:
    async with uvicorn("presence:app", tmp_path / "log", "--app-dir", "examples") as server:
        ann = await server.open("/events/?user=ann")
        assert (await ann.next_event("here")).data == '["ann"]'
        bob, again = [await server.open("/events/?user=bob") for _ in range(2)]
        assert (await again.next_event("here")).data == '["ann","bob"]'
        while (event := await ann.next_event("join")).data != "bob":
            assert event.data == "ann"
        bob.abort()
        again.abort()
        assert (await ann.next_event("leave")).data == "bob"
        names = [(event.event, event.data) for event in ann.events if not event.event.startswith("livepush.")]
        assert names[-2:] == [("join", "bob"), ("leave", "bob")]
        assert (await server.open("/")).status == 200


async def test_a_job_survives_a_reload_and_is_not_run_twice(tmp_path: Path) -> None:
    text = [
        "Every",
        "word",
        "comes",
        "once",
        "and",
        "in",
        "order,",
        "however",
        "often",
        "the",
        "page",
        "is",
        "loaded",
        "again.",
    ]
    text = (
        "Every word comes once and in order, however often the page is loaded again.".split()  # noqa: SIM905
    )
    async with uvicorn("resumable_job:app", tmp_path / "log", "--app-dir", "examples") as server:
        assert (await server.open("/job/a", method="POST")).status == 202
        page = await server.open("/events/?job=a")
        await page.next_event("start")
        assert [(await page.next_event("word")).data for _ in range(3)] == text[:3]
        position = page.events[-1].last_event_id
        page.close()
        assert (await server.open("/job/a", method="POST")).status == 202
        cut = await server.open("/events/?job=a", last_event_id=position)
        reloaded = await server.open("/events/?job=a")
        end = '{"count":14,"error":null}'
        assert (await cut.next_event("end")).data == (await reloaded.next_event("end")).data == end
    assert [event.data for event in reloaded.events if event.event == "word"] == text
    assert [event.data for event in cut.events if event.event == "word"] == text[3:]


async def test_a_stop_in_the_middle_of_a_job_takes_no_longer_than_a_drain_and_is_told(
    tmp_path: Path, valkey: ValkeyProcess
) -> None:
    command = ("tests.apps.long_job:app", tmp_path / "log", "--app-dir", "examples")
    async with uvicorn(*command, environment={"LIVEPUSH_REDIS": valkey.url}) as server:
        assert (await server.open("/job/long", method="POST")).status == 202
        page = await server.open("/events/?job=long")
        assert [(await page.next_event("word")).data for _ in range(3)] == ["word"] * 3
        begun = time.monotonic()
        server.send_signal(signal.SIGTERM)
        await page.read_to_end()
        await server.ended(timeout=20)
        assert time.monotonic() - begun < DrainPolicy().window + 3
        assert "Traceback" not in server.log
    # Another process tells the readers who come to it.
    async with valkey.client() as client:
        push = LivePush(RedisStreamsBroker(client), public("news"))
        async with (
            push.lifespan(),
            push.subscribe("job:long", last_event_id=page.events[-1].last_event_id) as events,
            asyncio.timeout(10),
        ):
            async for item in events:
                assert isinstance(item, Received)
                if item.event.event == "end":
                    assert item.json()["error"] == "cancelled"
                    break


async def test_the_page_of_a_job_shows_that_words_are_missing(
    browser: Browser, tmp_path: Path, valkey: ValkeyProcess
) -> None:
    command = ("tests.apps.long_job:app", tmp_path / "log", "--app-dir", "examples")
    environment = {"LIVEPUSH_REDIS": valkey.url, "HISTORY": "5"}
    async with uvicorn(*command, environment=environment) as server:
        assert (await server.open("/job/z", method="POST")).status == 202
        stream = await server.open("/events/?job=z")
        for _ in range(8):
            await stream.next_event("word")
        page = browser.open(f"{server.url}/#z")
        begin = "[words are missing] word word"
        page.wait_for(f"document.querySelector('#text').textContent.startsWith('{begin}')")


async def test_a_job_that_fails_is_told_and_stops_nothing_else(tmp_path: Path, valkey: ValkeyProcess) -> None:
    command = ("tests.apps.long_job:app", tmp_path / "log", "--app-dir", "examples")
    async with uvicorn(*command, environment={"LIVEPUSH_REDIS": valkey.url, "FAIL": "1"}) as server:
        for job in "xy":
            assert (await server.open(f"/job/{job}", method="POST")).status == 202
            page = await server.open(f"/events/?job={job}")
            assert json.loads((await page.next_event("end")).data)["error"] == "failed"


async def test_the_publisher_leaves_nothing_open(valkey: ValkeyProcess) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "examples/publisher.py", "news", "hello"]
    environment = {"LIVEPUSH_REDIS": valkey.url, "PYTHONPATH": str(REPOSITORY)}

    def act() -> tuple[int, str, str]:
        ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        return ran.returncode, ran.stdout, ran.stderr

    async with valkey.client() as client:
        subscription = await RedisBroker(client).subscribe("news")
        code, output, errors = await asyncio.to_thread(act)
        assert (code, output, complaints(errors)) == (0, "", [])
        payload = await subscription.get_message(timeout=10)
        assert payload is not None
        assert from_payload(split_position(payload)[1]) == b"data: hello\n\n"
        await subscription.close()


def test_no_example_is_left_out() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")} - {"fifteen_lines.py"}
    assert names == set(USED_ELSEWHERE)
    for name, test in USED_ELSEWHERE.items():
        assert name.removesuffix(".py") in (Path(__file__).parent / test).read_text()
