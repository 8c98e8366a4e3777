"""The README's broker, written from the port's documentation alone, as the component uses it."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest

from examples.custom_broker import FolderBroker
from livepush_asgi import BrokerUnavailableError, LivePush, Timing, public
from livepush_asgi.brokers import Broker, ForwardingSubscription, Subscription
from livepush_asgi.testing import Client

from .serving import REPOSITORY

PUBLISHER = """
import asyncio, sys
from examples.custom_broker import FolderBroker
print(asyncio.run(FolderBroker(sys.argv[1]).publish("news", "from another process")))
"""

pytestmark = pytest.mark.real_time


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


async def test_a_payload_arrives_whole_or_not_at_all(folder: Path) -> None:
    broker = FolderBroker(folder)
    subscription = await broker.subscribe("a")
    whole = b"\xff" * 65536
    assert await broker.publish("a", whole) == 1
    assert await subscription.get_message(timeout=5) == whole
    with pytest.raises(ValueError, match="at most 65536 bytes here, not 65537"):
        await broker.publish("a", whole + b"x")
    assert await subscription.get_message(timeout=0.01) is None
    await subscription.close()


async def test_the_socket_of_a_process_that_has_died_is_removed(folder: Path) -> None:
    program = f"""
import asyncio, os
from examples.custom_broker import FolderBroker
asyncio.run(FolderBroker({str(folder)!r}).subscribe("a"))
os._exit(1)
"""
    command = [sys.executable, "-c", program]
    died = await asyncio.to_thread(subprocess.run, command, cwd=REPOSITORY)
    assert died.returncode == 1
    assert len(sockets_in(folder)) == 1
    assert await FolderBroker(folder).publish("a", "x") == 0
    assert sockets_in(folder) == []


@pytest.mark.slow
async def test_a_reader_that_stands_still_makes_publishing_fail_and_not_hang(folder: Path) -> None:
    broker = FolderBroker(folder)
    subscription = await broker.subscribe("a")
    with pytest.raises(BrokerUnavailableError, match="timed out"):
        await publish_forever(broker)
    assert await subscription.get_message(timeout=5) == b"x"
    await subscription.close()


async def publish_forever(broker: FolderBroker) -> NoReturn:
    while True:
        await broker.publish("a", "x")


def sockets_in(folder: Path) -> list[Path]:
    return list(folder.glob("*/*"))
