"""Every networked broker of the package on the fault contract."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from livepush_asgi import BrokerTimeouts, JetStreamBroker, NatsBroker, RedisBroker, RedisStreamsBroker

from .fault_contract import LONG, PING_INTERVAL, PING_TIMEOUT, TIMEOUT, FaultContract, WatchedBroker
from .nats_server import NatsProcess
from .valkey import ValkeyProcess

TIMEOUTS = BrokerTimeouts(subscribe=TIMEOUT, publish=TIMEOUT, ping_interval=PING_INTERVAL, ping=PING_TIMEOUT)


class ValkeyOfBrokers(ValkeyProcess):
    """Valkey with appendfsync always, which closes a subscriber's connection when 64 KiB wait for it."""

    kind: type[RedisBroker | RedisStreamsBroker] = RedisBroker

    def __init__(self, directory: Path) -> None:
        user = "user web on >word +@all ~* allchannels"
        super().__init__(directory, "client-output-buffer-limit pubsub 65536 65536 1", user, persistent=True)

    def wait_cut(self) -> None:
        # It looks once in a while, unless something is written to the connection.
        with redis.Redis.from_url(self.url) as admin:
            deadline = time.monotonic() + LONG
            while not admin.info("stats")["client_output_buffer_limit_disconnections"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def allow_only(self, channel: str) -> None:
        self._set_user("resetchannels", f"&{channel}", "&livepush.*")

    def allow_all(self) -> None:
        self._set_user("allchannels")

    def _set_user(self, *rules: str) -> None:
        with redis.Redis.from_url(self.url) as admin:
            admin.execute_command("ACL", "SETUSER", "web", *rules)

    @asynccontextmanager
    async def broker(
        self, *, port: int | None = None, is_admin: bool = False
    ) -> AsyncIterator[WatchedBroker]:
        login = "" if is_admin else "web:word@"
        async with Redis.from_url(f"redis://{login}127.0.0.1:{port or self.port}") as client:
            yield self.kind(
                client,
                timeouts=TIMEOUTS,
            )


class ValkeyOfStreams(ValkeyOfBrokers):
    kind = RedisStreamsBroker


class NatsOfBrokers(NatsProcess):
    """NATS with JetStream, which closes a connection when 1 MB waits for it."""

    kind: type[NatsBroker | JetStreamBroker] = NatsBroker

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, *self._options_for(""), jetstream=True)

    def _options_for(self, permissions: str) -> list[str]:
        web = f"{{ user: web, password: word{permissions} }}"
        admin = "{ user: admin, password: word }"
        return [
            "max_pending: 1MB",
            'write_deadline: "1s"',
            f"authorization {{ users: [ {web}, {admin} ] }}",
        ]

    def wait_cut(self) -> None:
        """It closes the connection while the events are published."""

    def allow_only(self, channel: str) -> None:
        subjects = (
            f'["livepush.{channel}", "livepush-log.{channel}", "livepush.livepush.>", "$JS.>", "_INBOX.>"]'
        )
        permissions = f", permissions: {{ publish: {subjects}, subscribe: {subjects} }}"
        self.configure(*self._options_for(permissions))

    def allow_all(self) -> None:
        self.configure(*self._options_for(""))

    @asynccontextmanager
    async def broker(
        self, *, port: int | None = None, is_admin: bool = False
    ) -> AsyncIterator[WatchedBroker]:
        yield self.kind(
            f"nats://127.0.0.1:{port or self.port}",
            options={"user": "admin" if is_admin else "web", "password": "word"},
            timeouts=TIMEOUTS,
            linger=0.1,
        )


class NatsOfStreams(NatsOfBrokers):
    kind = JetStreamBroker


class TestRedisBroker(FaultContract):
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[ValkeyOfBrokers]:
        with ValkeyOfBrokers(tmp_path) as server:
            yield server


class TestRedisStreamsBroker(FaultContract):
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[ValkeyOfBrokers]:
        with ValkeyOfStreams(tmp_path) as server:
            yield server


class TestNatsBroker(FaultContract):
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[NatsOfBrokers]:
        with NatsOfBrokers(tmp_path) as server:
            yield server


class TestJetStreamBroker(FaultContract):
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[NatsOfBrokers]:
        with NatsOfStreams(tmp_path) as server:
            yield server
