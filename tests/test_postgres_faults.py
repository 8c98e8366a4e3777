"""PostgresBroker on the fault contract of the networked brokers."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import anyio
import psycopg
import pytest

from livepush_asgi import Broker, BrokerTimeouts, BrokerUnavailableError, PostgresBroker

from .fault_contract import (
    PING_INTERVAL,
    PING_TIMEOUT,
    TIMEOUT,
    BrokerServer,
    FaultContract,
    Log,
    WatchedBroker,
    by_way_of,
    house,
    publish_when_it_can,
)
from .postgres_server import PostgresProcess
from .relay import Relay
from .valkey import until

TIMEOUTS = BrokerTimeouts(subscribe=TIMEOUT, publish=TIMEOUT, ping_interval=PING_INTERVAL, ping=PING_TIMEOUT)
TABLES = "livepush_channel, livepush_event, livepush_key"


class PostgresOfBrokers(PostgresProcess):
    """PostgreSQL with a user who may use the tables and not create any."""

    def begin_anew(self) -> None:
        """Run without events, with all permissions."""
        if not self.is_running:
            self.start()
        self.ask("DROP OWNED BY web; DROP USER web")
        self.ask(f"DROP TABLE IF EXISTS {TABLES}", PostgresBroker.schema(), "CREATE USER web")
        self.allow_all()

    def wait_cut(self) -> None:
        """It closes no connection: the broker finds that its own has not answered."""

    def allow_only(self, channel: str) -> None:
        # The tables have all channels.
        self.ask(f"REVOKE ALL ON {TABLES} FROM web")

    def allow_all(self) -> None:
        self.ask(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLES} TO web")

    def ask(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            for statement in statements:
                admin.execute(statement.encode())

    @asynccontextmanager
    async def broker(
        self, *, port: int | None = None, is_admin: bool = False
    ) -> AsyncIterator[WatchedBroker]:
        user = "postgres" if is_admin else "web"
        dsn = f"postgresql://{user}@127.0.0.1:{port or self.port}/postgres?sslmode=disable"
        async with PostgresBroker(dsn, timeouts=TIMEOUTS, linger=1.0) as broker:
            yield broker


@pytest.fixture(scope="module")
def running_server() -> Iterator[PostgresOfBrokers]:
    with PostgresOfBrokers() as server:
        server.ask("CREATE USER web")
        yield server


@pytest.mark.slow
class TestPostgresBroker(FaultContract):
    @pytest.fixture
    def server(self, running_server: PostgresOfBrokers) -> PostgresOfBrokers:
        running_server.begin_anew()
        return running_server

    # PostgreSQL gives a permission for a table, and so for all channels or none.

    async def test_a_channel_that_is_not_allowed_disturbs_no_other_and_lives_when_it_is(
        self, server: BrokerServer
    ) -> None:
        server.allow_only("nothing")
        async with server.broker() as broker:
            with pytest.raises(BrokerUnavailableError, match=r"permission denied.*GRANT"):
                await broker.subscribe("news")
            async with house(broker) as here:
                assert not here.push.statistics()["healthy"]
                with pytest.raises(BrokerUnavailableError, match=r"permission denied.*GRANT"):
                    await here.publish("news", "never")
                server.allow_all()
                await here.back()
                await here.publish("news", "after")
                assert (await here.up_to("after"))[-1:] == ["after"]

    async def test_a_channel_that_is_forbidden_while_it_is_open_is_told_and_goes_on(
        self, server: BrokerServer, log: Log
    ) -> None:
        async with (
            server.broker() as broker,
            server.broker(is_admin=True) as other,
            house(broker, "open", "news") as here,
        ):
            await here.publish("news", "before")
            assert await here.up_to("before") == ["before"]
            server.allow_only("nothing")
            await until(lambda: log.lines)
            await publish_when_it_can(other, "news", "missed")
            assert not broker.healthy
            server.allow_all()
            await here.back()
            await publish_when_it_can(broker, "news", "after")
            assert await here.up_to("after") == ["missed", "after"]
        assert "permission denied" in log.lines[0]
        log.says_away_and_back_once()

    async def test_it_is_healthy_again_while_much_is_published(self, server: BrokerServer) -> None:
        """There is always a log to read then, and every event that was missed has been read all the same."""
        stopped = False

        async def publish(broker: Broker, channel: str) -> None:
            while not stopped:
                with suppress(BrokerUnavailableError):
                    await broker.publish(channel, b"x")

        channels, relay = [f"c{number}" for number in range(4)], Relay(server.port)
        # More comes while a log is read.
        relay.delay = 0.02
        async with (
            by_way_of(relay),
            server.broker(port=relay.port) as broker,
            server.broker(is_admin=True) as other,
            house(broker, *channels) as here,
            anyio.create_task_group() as tasks,
        ):
            for channel in channels:
                tasks.start_soon(publish, other, channel)
            with relay.cut():
                await here.gone()
            await here.back()
            stopped = True
