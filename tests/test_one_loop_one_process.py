"""MemoryBroker on the wrong event loop and in one of several workers; commands in several databases."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio
from redis.asyncio import Redis

from livepush_asgi import Grant, LivePush, MemoryBroker, RedisBroker, RedisStreamsBroker
from livepush_asgi.brokers.workers import asked_for
from livepush_asgi.testing import Client

from .server_process import free_port
from .serving import REPOSITORY
from .valkey import ValkeyProcess

Act = Callable[[MemoryBroker], Awaitable[object]]
ACTS: list[Act] = [
    lambda broker: broker.publish("news", "x"),
    lambda broker: broker.append("news", b"x"),
    lambda broker: broker.subscribe("news"),
    lambda broker: broker.read("news", 0, 1),
]


class TestOnRealLoops:
    """Another thread knows no virtual time."""

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize("other", [asyncio.run, trio.run], ids=["asyncio", "trio"])
    @pytest.mark.parametrize("act", ACTS, ids=["publish", "append", "subscribe", "read"])
    async def test_another_loop_is_refused_while_there_are_subscriptions(
        self, act: Act, other: Callable[..., object]
    ) -> None:
        broker = MemoryBroker()

        async def use() -> None:
            await act(broker)

        def run() -> None:
            other(use()) if other is asyncio.run else other(use)

        subscription = await broker.subscribe("news")
        with pytest.raises(RuntimeError, match="hand the call over with anyio"):
            await anyio.to_thread.run_sync(run)
        # The loop of the subscriptions goes on, and the way that the error names works.
        await anyio.to_thread.run_sync(anyio.from_thread.run, broker.publish, "news", b"x")
        assert (await subscription.get_message(timeout=5) or b"").endswith(b"x")
        await subscription.close()
        await anyio.to_thread.run_sync(run)


def test_one_loop_after_another_may_use_it() -> None:
    broker = MemoryBroker()

    async def use() -> int:
        await broker.subscribe("news")
        return (await broker.append("news", b"x")).offset

    # The subscription of each loop ends with the loop.
    assert [asyncio.run(use()), trio.run(use), asyncio.run(use())] == [1, 2, 3]


def test_the_loops_of_two_threads_that_run_at_once() -> None:
    broker, listening, done = MemoryBroker(), threading.Event(), threading.Event()

    async def listen() -> None:
        await broker.subscribe("news")
        listening.set()
        await asyncio.to_thread(done.wait, 10)

    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    thread.start()
    listening.wait(10)
    with pytest.raises(RuntimeError, match="MemoryBroker is used on the event loop of its subscriptions"):
        asyncio.run(broker.append("news", b"x"))
    done.set()
    thread.join()


@pytest.mark.parametrize(
    ("line", "variables", "number"),
    [
        ("uvicorn app:app", {}, None),
        ("uvicorn app:app --workers 4", {}, 4),
        ("uvicorn --workers=1 app:app", {}, 1),
        ("gunicorn -w 3 app:app", {}, 3),
        ("gunicorn -w2 app:app", {}, 2),
        ("uvicorn app:app", {"WEB_CONCURRENCY": "2"}, 2),
        ("uvicorn app:app --workers 1", {"WEB_CONCURRENCY": "2"}, 1),
        ("gunicorn app:app", {"GUNICORN_CMD_ARGS": "--workers=5 --bind 0"}, 5),
        ("granian app:app", {"GRANIAN_WORKERS": "2"}, 2),
        ("uvicorn app:app", {"WEB_CONCURRENCY": "many"}, None),
        ("uvicorn app:x--workers-4 --log-w 9", {}, None),
    ],
)
def test_how_many_workers_were_asked_for(line: str, variables: dict[str, str], number: int | None) -> None:
    assert asked_for(line.split(), variables) == number


APPLICATION = """
import logging
from livepush_asgi import Grant, LivePush, MemoryBroker
logging.basicConfig(format="%(message)s")
push = LivePush(MemoryBroker(), lambda request: Grant(channels=("news",)))
app = push
"""
WARNING = "MemoryBroker is used in one of several worker processes"


@pytest.mark.parametrize(("workers", "lines"), [(1, 0), (2, 1)])
def test_one_of_several_workers_warns_once(tmp_path: Path, workers: int, lines: int) -> None:
    (tmp_path / "application.py").write_text(APPLICATION)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "application:app", "--port", str(port)]
    command += ["--workers", str(workers)] if workers > 1 else []
    script = textwrap.dedent(f"""
        import http.client, time
        def open():
            for _ in range(200):
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", {port}, timeout=5)
                    connection.request("GET", "/", headers={{"accept": "text/event-stream"}})
                    return connection.getresponse().read(10), connection
                except OSError:
                    time.sleep(0.05)
        kept = [open() for _ in range(1)]
        kept += [open() for _ in range(1 if {workers} > 1 else 3)]
    """)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, stdout=log, stderr=log
        )
        try:
            subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
        finally:
            server.terminate()
            server.wait(20)
    found = (tmp_path / "log").read_text().count(WARNING)
    # Either worker may have got both streams.
    assert lines <= found <= lines * workers


@pytest.mark.real_time
class TestOnAServer:
    @pytest.mark.parametrize("kind", [RedisBroker, RedisStreamsBroker])
    async def test_commands_stay_in_their_database(
        self, valkey: ValkeyProcess, kind: type[RedisBroker] | type[RedisStreamsBroker]
    ) -> None:
        def application(redis: Redis, channel: str) -> LivePush:
            return LivePush(kind(redis), lambda request: Grant(channels=(channel,), slot_key="42"))

        async with (
            Redis(port=valkey.port) as first,
            Redis(port=valkey.port, db=1) as second,
        ):
            production, beside = application(first, "production"), application(first, "production")
            staging = application(second, "staging")
            async with (
                production.lifespan(),
                beside.lifespan(),
                staging.lifespan(),
                Client(production) as of_production,
                Client(beside) as of_beside,
                Client(staging) as of_staging,
                of_production.open("/") as stays,
                of_beside.open("/") as stays_too,
                of_staging.open("/") as ends,
            ):
                for stream in (stays, stays_too, ends):
                    await stream.next_event(10, name="livepush.open")
                # Until the commands are listened to.
                for push, channel, stream in (
                    (production, "production", stays),
                    (staging, "staging", ends),
                ):
                    await push.publish(channel, "open")
                    assert (await stream.next_event(10)).data == "open"
                await staging.disconnect(slot_key="42")
                assert "revoked" in (await ends.next_event(10, name="livepush.close")).data
                await production.publish("production", "goes on")
                assert (await stays.next_event(10)).data == "goes on"
                await production.disconnect(slot_key="42")
                assert "revoked" in (await stays_too.next_event(5, name="livepush.close")).data
