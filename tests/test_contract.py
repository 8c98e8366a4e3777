"""Every broker of the package on the rules that the package publishes for brokers."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from examples.custom_broker import FolderBroker
from livepush_asgi import (
    JetStreamBroker,
    MemoryBroker,
    NatsBroker,
    PostgresBroker,
    RedisBroker,
    RedisStreamsBroker,
)
from livepush_asgi.brokers import Broker, HistoryBroker
from livepush_asgi.brokers.history import History
from livepush_asgi.testing import BrokerContract, HistoryBrokerContract, MockBroker

from .nats_server import NatsProcess
from .pull_broker import PullBroker, PullHistoryBroker
from .typing_api import OwnBroker
from .valkey import ValkeyProcess

if TYPE_CHECKING:
    # Imported, it would mark every test here as one with a database: see selection.py.
    from .postgres_server import PostgresProcess

TEN = History(events=10)


class TestMemoryBroker(HistoryBrokerContract):
    @pytest.fixture
    def broker(self) -> HistoryBroker:
        return MemoryBroker()

    @pytest.fixture
    def bounded_broker(self) -> HistoryBroker:
        return MemoryBroker(TEN)


class TestMockBroker(BrokerContract):
    @pytest.fixture
    def broker(self) -> Broker:
        return MockBroker()


class TestPullBroker(BrokerContract):
    @pytest.fixture
    def broker(self) -> Broker:
        return PullBroker()


class TestPullHistoryBroker(HistoryBrokerContract):
    @pytest.fixture
    def broker(self) -> HistoryBroker:
        return PullHistoryBroker()

    @pytest.fixture
    def bounded_broker(self) -> HistoryBroker:
        return PullHistoryBroker(TEN)


class TestOwnBroker(BrokerContract):
    @pytest.fixture
    def broker(self) -> Broker:
        return OwnBroker()


# Sockets know no virtual time, and the client libraries no trio.
@pytest.mark.real_time
class TestFolderBroker(BrokerContract):
    @pytest.fixture
    def broker(self) -> Iterator[Broker]:
        # Not tmp_path: the path of a socket has room for about a hundred characters.
        with TemporaryDirectory() as path:
            yield FolderBroker(Path(path))


@pytest.mark.real_time
class TestRedisBroker(BrokerContract):
    @pytest.fixture
    async def broker(self, valkey: ValkeyProcess) -> AsyncIterator[Broker]:
        async with valkey.client() as client:
            yield RedisBroker(client)


@pytest.mark.real_time
class TestRedisStreamsBroker(HistoryBrokerContract):
    @pytest.fixture
    async def broker(self, valkey: ValkeyProcess) -> AsyncIterator[HistoryBroker]:
        async with valkey.client() as client:
            yield RedisStreamsBroker(client)

    @pytest.fixture
    async def bounded_broker(self, valkey: ValkeyProcess) -> AsyncIterator[HistoryBroker]:
        async with valkey.client() as client:
            yield RedisStreamsBroker(client, history=TEN)


@pytest.mark.real_time
class TestNatsBroker(BrokerContract):
    @pytest.fixture
    def broker(self, nats_server: NatsProcess) -> Broker:
        return NatsBroker(nats_server.url)


@pytest.mark.real_time
class TestJetStreamBroker(HistoryBrokerContract):
    @pytest.fixture
    def broker(self, nats_server: NatsProcess) -> HistoryBroker:
        return JetStreamBroker(nats_server.url, prefix=f"test-{uuid4().hex}")

    @pytest.fixture
    def bounded_broker(self, nats_server: NatsProcess) -> HistoryBroker:
        return JetStreamBroker(nats_server.url, prefix=f"test-{uuid4().hex}", history=TEN)


@pytest.mark.real_time
class TestPostgresBroker(HistoryBrokerContract):
    @pytest.fixture
    async def broker(self, postgres_server: "PostgresProcess") -> AsyncIterator[HistoryBroker]:
        async with PostgresBroker(postgres_server.dsn) as broker:
            yield broker

    @pytest.fixture
    async def bounded_broker(self, postgres_server: "PostgresProcess") -> AsyncIterator[HistoryBroker]:
        async with PostgresBroker(postgres_server.dsn, history=TEN) as broker:
            yield broker


def test_the_rules_need_no_pytest_and_each_is_written_down() -> None:
    program = "import sys, livepush_asgi.testing\nassert 'pytest' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", program], check=True)
    for name, rule in vars(HistoryBrokerContract).items() | vars(BrokerContract).items():
        assert not name.startswith("test_") or rule.__doc__, name
