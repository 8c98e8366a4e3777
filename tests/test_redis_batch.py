"""The way of commands to a server: as bytes, over all kinds of connections, and how long one is kept."""

import asyncio
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis

from livepush_asgi import BrokerTimeouts, BrokerUnavailableError, History, RedisBroker, RedisStreamsBroker
from livepush_asgi.brokers.redis.pipeline import Pipeline, pack

from .relay import Authority, Relay
from .valkey import ValkeyProcess, until

# More than the kernel takes at once, so that the rest waits in the process.
LARGE = b"\r\n$3\r\n\x00\xff" * 800_000

pytestmark = pytest.mark.real_time


def batches() -> list[str]:
    return [name for task in asyncio.all_tasks() if (name := task.get_name()) == "livepush redis pipeline"]


def test_a_command_is_lengths_and_bytes() -> None:
    assert pack(("SET", "é", 1)) == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$1\r\n1\r\n"
    assert pack((b"EVAL", "", b"\r\n", -20)) == b"*4\r\n$4\r\nEVAL\r\n$0\r\n\r\n$2\r\n\r\n\r\n$3\r\n-20\r\n"


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode_responses", [False, True])
async def test_what_is_larger_than_a_socket_takes_arrives_whole(
    valkey: ValkeyProcess, protocol: int, decode_responses: bool
) -> None:
    async with valkey.client(protocol=protocol, decode_responses=decode_responses) as client:
        batch = Pipeline(client, timeout=30.0)
        calls = [batch.submit("SET", "large", LARGE), batch.submit("GET", "large"), batch.submit("GET", "no")]
        assert await asyncio.gather(*calls) == [b"OK", LARGE, None]


async def test_what_is_large_arrives_whole_by_a_unix_socket(valkey: ValkeyProcess) -> None:
    async with Redis.from_url(f"unix://{valkey.unix_socket}") as client:
        batch = Pipeline(client, timeout=30.0)
        calls = [batch.submit("SET", "large", LARGE), batch.submit("GET", "large")]
        assert await asyncio.gather(*calls) == [b"OK", LARGE]


async def test_what_is_large_arrives_whole_by_tls(valkey: ValkeyProcess, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    relay = Relay(valkey.port, tls=authority.server_context)
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve)
        url = f"rediss://localhost:{relay.port}"
        async with Redis.from_url(url, ssl_ca_certs=str(authority.ca_file)) as client:
            batch = Pipeline(client, timeout=30.0)
            calls = [batch.submit("SET", "large", LARGE), batch.submit("GET", "large")]
            assert await asyncio.gather(*calls) == [b"OK", LARGE]
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("kind", [RedisBroker, RedisStreamsBroker])
async def test_who_publishes_one_after_the_other_takes_one_connection_and_gives_it_back(
    valkey: ValkeyProcess, kind: type[RedisBroker | RedisStreamsBroker]
) -> None:
    async with valkey.client() as client:
        broker = kind(client)
        # This client's one, and perhaps some that earlier tests have left behind.
        before = len(await client.client_list())
        for _ in range(300):
            assert await broker.publish("one by one", "x") == 0
        await until(lambda: not batches())
        assert len(await client.client_list()) <= before


@pytest.mark.parametrize("pool", [ConnectionPool, BlockingConnectionPool])
async def test_a_pool_of_one_connection_has_it_back_when_a_publish_is_done(
    valkey: ValkeyProcess, pool: type[ConnectionPool]
) -> None:
    async with Redis.from_pool(pool.from_url(valkey.url, max_connections=1)) as client:
        broker = RedisStreamsBroker(client)
        for number in range(20):
            await broker.publish("alone", str(number))
            assert await client.incr("between") == number + 1


async def test_scripts_that_are_forgotten_in_between_append_each_event_once(
    valkey: ValkeyProcess,
) -> None:
    async with valkey.client() as client:
        broker = RedisStreamsBroker(client)

        async def publish(channel: str) -> None:
            for number in range(50):
                await broker.publish(channel, str(number))
                if number % 10 == 0:
                    await client.script_flush()

        channels = [f"forgotten {number}" for number in range(5)]
        await asyncio.gather(*map(publish, channels))
        for channel in channels:
            page = await broker.read(channel, 0, 1000)
            assert [record.payload for record in page.records] == [b"%d" % number for number in range(50)]


async def test_more_than_goes_into_one_call_stays_in_order(valkey: ValkeyProcess) -> None:
    async with valkey.client() as client:
        broker = RedisStreamsBroker(client, history=History(events=3000))
        payloads = [b"%d" % number for number in range(1500)]
        positions = await asyncio.gather(*[broker.append("many", payload) for payload in payloads])
        assert [position.offset for position in positions] == list(range(1, 1501))
        assert len({position.epoch for position in positions}) == 1
        assert [record.payload for record in (await broker.read("many", 0, 2000)).records] == payloads


async def test_a_log_that_is_something_else_fails_those_who_wait_and_nobody_else(
    valkey: ValkeyProcess,
) -> None:
    async with valkey.client() as client:
        broker = RedisStreamsBroker(client)
        await Pipeline(client, timeout=30.0).submit("LPUSH", "livepush:log:{spoilt}:head", "no text")
        spoilt = [broker.append("spoilt", b"%d" % number) for number in range(3)]
        sound = [broker.append("sound", b"%d" % number) for number in range(3)]
        results = await asyncio.gather(*spoilt, *sound, return_exceptions=True)
        assert [type(result) for result in results[:3]] == [BrokerUnavailableError] * 3
        assert [result.offset for result in results[3:] if not isinstance(result, BaseException)] == [1, 2, 3]


async def test_the_timeout_is_for_each_call_and_not_for_all_that_share_a_connection(
    own_valkey: ValkeyProcess,
) -> None:
    timeout = 0.5
    async with own_valkey.client() as client:
        broker = RedisStreamsBroker(client, timeouts=BrokerTimeouts(publish=timeout))
        with anyio.move_on_after(3 * timeout) as busy:
            while True:
                with anyio.CancelScope(shield=True):
                    await broker.publish("busy", "x")
                await anyio.lowlevel.checkpoint_if_cancelled()
        assert busy.cancelled_caught
        await broker.publish("busy", "x")
        own_valkey.pause()
        with anyio.fail_after(10), pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.5 s"):
            await broker.publish("busy", "x")
        own_valkey.resume()
        await broker.publish("busy", "x")


@pytest.mark.parametrize(
    ("own", "publish_timeout", "told"),
    [
        (1.0, 30.0, "Timeout reading from"),
        (30.0, 1.0, "no answer within 1 s"),
        (None, 1.0, "no answer within"),
    ],
)
async def test_the_shorter_timeout_counts_the_clients_own_or_that_of_the_broker(
    own_valkey: ValkeyProcess, own: float | None, publish_timeout: float, told: str
) -> None:
    async with Redis.from_url(own_valkey.url, socket_timeout=own) as client:
        broker = RedisStreamsBroker(client, timeouts=BrokerTimeouts(publish=publish_timeout))
        await broker.publish("slow", "1")
        own_valkey.pause()
        with anyio.fail_after(20), pytest.raises(BrokerUnavailableError, match=told):
            await broker.publish("slow", "2")
        own_valkey.resume()
        await broker.publish("slow", "3")
