"""The README's broker, written from the port's documentation alone, as the component uses it."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from examples.custom_broker import FolderBroker
from livepush_asgi import LivePush, Timing, public
from livepush_asgi.broker import Broker, ForwardingSubscription, Subscription
from livepush_asgi.testing import Client

from .serving import REPOSITORY

PUBLISHER = """
import asyncio, sys
from examples.custom_broker import FolderBroker
print(asyncio.run(FolderBroker(sys.argv[1]).publish("news", "from another process")))
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the path of a socket has room for about a hundred characters.
    with short_folder() as path:
        yield path


@contextmanager
def short_folder() -> Iterator[Path]:
    with TemporaryDirectory() as path:
        yield Path(path)


async def test_it_is_the_port(folder: Path) -> None:
    broker = FolderBroker(folder)
    assert isinstance(broker, Broker)
    one, two = await broker.subscribe("a"), await broker.subscribe("a")
    other = await broker.subscribe("b/../a")
    assert isinstance(one, Subscription)
    assert not isinstance(one, ForwardingSubscription)
    assert await broker.publish("a", b"\xff1x") == 2
    assert await broker.publish("a", "é") == 2
    for subscription in (one, two):
        assert [await subscription.get_message(timeout=5) for _ in range(2)] == [b"\xff1x", "é".encode()]
    assert await other.get_message(timeout=0.01) is None
    await one.close()
    await one.close()
    assert await broker.publish("a", "x") == 1
    for subscription in (two, other):
        await subscription.close()


async def test_events_of_another_process_reach_a_stream(folder: Path) -> None:
    push = LivePush(FolderBroker(folder), public("news"), timing=Timing(linger=0))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        command = [sys.executable, "-c", PUBLISHER, str(folder)]
        told = await asyncio.to_thread(
            subprocess.run, command, cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert told.stdout == "1\n"
        assert (await stream.next_event(5)).data == "from another process"
        for number in range(200):
            await push.publish("news", {"n": number}, event="count")
        events = [await stream.next_event(5) for _ in range(200)]
    assert [(event.event, event.data) for event in events] == [("count", f'{{"n":{n}}}') for n in range(200)]
