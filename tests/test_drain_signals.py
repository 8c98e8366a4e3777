"""Signals: heard by the drain and by the handler that was there, which is put back in the end."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import anyio
import pytest

from livepush_asgi import DrainPolicy, LivePush, MemoryBroker, public
from livepush_asgi.process.signals import REPEAT_TIME, SIGNALS, SignalWatch, _warn_undrained
from livepush_asgi.testing import Client

from .valkey import until

# A program that has no handler of its own, and a stream open.
PROGRAM = """
import anyio
from livepush_asgi import DrainPolicy, LivePush, MemoryBroker, public
from livepush_asgi.testing import Client

async def main():
    push = LivePush(MemoryBroker(), public("news"), drain=DrainPolicy(window=2))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        print("open", flush=True)
        print(await stream.wait_ended(timeout=60), flush=True)
        await anyio.sleep(60)

anyio.run(main, backend="BACKEND")
"""


# On trio, Ctrl+C comes while a stream is in the middle of a send.
INTERRUPTED = """
import signal, trio
from livepush_asgi import DrainPolicy, EndReason, LivePush, MemoryBroker, public
from livepush_asgi.testing.exchange import http_scope

SCOPE = http_scope(
    "GET", "/", root_path="", spec_version="2.4", headers=(), query="", cookies={}, last_event_id=None
)

async def receive():
    await trio.sleep_forever()

async def send(message):
    if b"now" in message.get("body", b""):
        print("interrupted", flush=True)
        signal.raise_signal(signal.SIGINT)
    if not message.get("more_body", True):
        print("complete", flush=True)

async def main():
    push = LivePush(MemoryBroker(), public("news"), drain=DrainPolicy(window=2))
    async with push.lifespan(), trio.open_nursery() as nursery:
        nursery.start_soon(push, SCOPE, receive, send)
        await trio.testing.wait_all_tasks_blocked()
        await push.publish("news", "now")
        try:
            await trio.sleep_forever()
        except KeyboardInterrupt:
            print("told", flush=True)
        while push.statistics()["streams"]:
            await trio.testing.wait_all_tasks_blocked()
        print(push.statistics()["ended"][EndReason.DRAIN], flush=True)
        nursery.cancel_scope.cancel()

import trio.testing
trio.run(main)
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pushing(window: float, *, signals: bool = True, hold: bool = False, delay: float = 0.0) -> LivePush:
    drain = DrainPolicy(window=window, signals=signals, hold=hold, delay=delay)
    return LivePush(MemoryBroker(), public("news"), drain=drain)


def listen(number: signal.Signals) -> list[int]:
    """Install a handler, and return the list in which it notes what it hears."""
    heard: list[int] = []
    signal.signal(number, lambda found, frame: heard.append(found))
    return heard


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_starts_the_drain_and_reaches_the_handler_that_was_there(
    number: signal.Signals,
) -> None:
    heard = listen(number)
    found = signal.getsignal(number)
    push = pushing(1)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        signal.raise_signal(number)
        assert heard == [number]
        assert await stream.wait_ended(timeout=5) == "drain"
        assert push.statistics()["draining"]
    assert signal.getsignal(number) is found


async def test_signals_can_be_left_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    async with pushing(1, signals=False).lifespan():
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_handler_installed_over_ours_stays_and_ours_only_passes_on() -> None:
    heard: list[str] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append("found"))
    watch = SignalWatch(lambda: heard.append("drain"))
    watch.install()
    ours = signal.getsignal(signal.SIGTERM)
    assert callable(ours)

    def chained(number: int, frame: FrameType | None) -> None:
        heard.append("later")
        ours(number, frame)

    signal.signal(signal.SIGTERM, chained)
    later = signal.getsignal(signal.SIGTERM)
    watch.remove()
    assert signal.getsignal(signal.SIGTERM) is later
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["later", "found"]


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = SignalWatch(lambda: None)
    watch.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    watch.remove()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


async def test_another_thread_cannot_install_and_nothing_breaks() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    await anyio.to_thread.run_sync(SignalWatch(lambda: None).install)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
async def test_without_a_lifespan_the_first_request_installs_the_handlers(number: signal.Signals) -> None:
    heard = listen(number)
    found = signal.getsignal(number)
    push = pushing(1)
    async with Client(push) as client:
        assert signal.getsignal(number) is found
        async with client.open("/") as stream:
            await stream.next_event(control=True)
            signal.raise_signal(number)
            assert heard == [number]
            assert await stream.wait_ended(timeout=5) == "drain"
        async with client.open("/") as refused:
            assert await refused.next_event(name="livepush.refused")
        await push.stop()
    assert signal.getsignal(number) is found


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_held_signal_reaches_the_handler_when_the_streams_have_ended(number: signal.Signals) -> None:
    heard = listen(number)
    found = signal.getsignal(number)
    push = pushing(1, hold=True)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        signal.raise_signal(number)
        assert heard == []
        assert await stream.wait_ended(timeout=5) == "drain"
        await push.drain()
        # A moment later: a server that cuts its connections has bytes of the last streams to send.
        await until(lambda: heard)
        assert heard == [number]
        assert signal.getsignal(number) is found


@pytest.mark.real_time
@pytest.mark.parametrize("policy", [{"hold": True}, {"delay": 60}])
async def test_a_second_signal_is_not_held_and_one_that_a_server_passes_on_is_no_second(policy: Any) -> None:
    heard = listen(signal.SIGTERM)
    push = pushing(0.5, **policy)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        # As systemd and a terminal do, which tell all processes of a server, and then its parent.
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert heard == []
        if "delay" in policy:
            await anyio.sleep(REPEAT_TIME)
            assert heard == []
            signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM]
        assert await stream.wait_ended(timeout=5) == "drain"
        await until(lambda: heard)
    # What was passed on is not sent again.
    assert heard == [signal.SIGTERM]


async def test_a_signal_is_not_held_for_good_where_nothing_is_left_to_drain() -> None:
    heard = listen(signal.SIGTERM)
    push = pushing(1, hold=True)
    async with push.lifespan():
        await push.drain()
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: heard)
    assert heard == [signal.SIGTERM]


async def test_until_the_delay_is_over_the_process_serves_and_is_not_ready() -> None:
    heard = listen(signal.SIGTERM)
    push = pushing(1, delay=5)
    async with push.lifespan(), Client(push) as client, client.open("/") as first:
        await first.next_event(control=True)
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: push.statistics()["draining"])
        async with client.open("/") as second:
            assert (await second.next_event(control=True)).event == "livepush.open"
            await push.publish("news", "still here")
            assert (await second.next_event()).data == (await first.next_event()).data == "still here"
            await anyio.sleep(4.8)
            assert heard == []
            await anyio.sleep(0.4)
            # The server closes its port now. What came through it before is still let in.
            assert heard == [signal.SIGTERM]
            async with client.open("/") as third:
                for stream in (first, second, third):
                    assert await stream.wait_ended(timeout=5) == "drain"
        async with client.open("/") as refused:
            assert await refused.next_event(name="livepush.refused")
    assert heard == [signal.SIGTERM]
    assert push.statistics()["refused"]["drain"] == 1


async def test_a_server_that_cuts_its_streams_hears_of_the_signal_after_delay_and_drain() -> None:
    heard = listen(signal.SIGTERM)
    push = pushing(1, hold=True, delay=5)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        signal.raise_signal(signal.SIGTERM)
        assert await stream.wait_ended(timeout=10) == "drain"
        assert heard == []
        await until(lambda: heard)


async def test_a_stop_does_not_wait_for_the_delay() -> None:
    heard = listen(signal.SIGTERM)
    push = pushing(1, delay=60)
    async with push.lifespan():
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: push.statistics()["draining"])
        start = anyio.current_time()
    assert anyio.current_time() - start < 5
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize(("backend", "delay"), [("asyncio", 0), ("trio", 0), ("asyncio", 0.2)])
def test_a_signal_that_nobody_handles_ends_the_process_after_the_drain(backend: str, delay: float) -> None:
    source = PROGRAM.replace("BACKEND", backend).replace("window=2", f"window=2, delay={delay}")
    command = [sys.executable, "-c", source]
    # Measuring the coverage of a process installs a handler of SIGTERM.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        # Twice, as a server does that tells each of its processes after somebody told them all.
        program.terminate()
        program.terminate()
        assert program.stdout.read() == "drain\n"
        assert program.wait(timeout=60) == -signal.SIGTERM


@pytest.mark.parametrize("delay", [0, 0.2])
def test_ctrl_c_on_trio_reaches_the_main_task_and_ends_no_stream_in_the_middle(delay: float) -> None:
    program = INTERRUPTED.replace("window=2", f"window=2, delay={delay}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["interrupted", "told", "complete", "1"], done.stderr
    assert done.returncode == 0


def test_a_server_in_a_thread_is_told_that_it_drains_at_no_signal(caplog: pytest.LogCaptureFixture) -> None:
    async def main(policy: DrainPolicy) -> None:
        async with LivePush(MemoryBroker(), public("c"), drain=policy).lifespan():
            pass

    _warn_undrained.cache_clear()
    # Once per process, however many threads do: those of tests, for example.
    for policy in (DrainPolicy(), DrainPolicy(), DrainPolicy(signals=False)):
        thread = threading.Thread(target=anyio.run, args=(main, policy))
        thread.start()
        thread.join()
    anyio.run(main, DrainPolicy())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "main thread" in record.message
    assert "DrainPolicy(signals=False)" in record.message
