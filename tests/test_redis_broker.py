"""RedisBroker on a real server that is killed, stopped, cut off and started again."""

import asyncio
import gc
import random
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
import redis
from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel

from livepush_asgi import Broker, BrokerTimeouts, RedisBroker, RedisStreamsBroker
from livepush_asgi.brokers import ForwardingSubscription, Subscription
from livepush_asgi.brokers.redis.connection import pool_of, unavailable
from livepush_asgi.brokers.redis.pipeline import Pipeline
from livepush_asgi.errors import BrokerUnavailableError
from livepush_asgi.wire.event import to_payload

from .command import complaints
from .relay import Authority, Relay
from .subscriptions import LONG, Transcript, messages, next_loss
from .valkey import ValkeyProcess, until

MARKED = to_payload(b"event: paid\ndata: \xc3\xa9\n\n")

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def broker_on(
    server: ValkeyProcess, *, protocol: int = 3, decode_responses: bool = False, quick: bool = False
) -> AsyncIterator[RedisBroker]:
    """A broker with a client of its own. A `quick` one notices within 0.2 s that the server is silent."""
    client = server.client(protocol=protocol, decode_responses=decode_responses)
    silence = 0.1 if quick else 10.0
    async with client:
        yield RedisBroker(client, timeouts=BrokerTimeouts(ping_interval=silence, ping=silence))


def raw(server: ValkeyProcess) -> redis.Redis:
    """A client as another program would use it."""
    return redis.Redis.from_url(server.url, decode_responses=True)


def channels_on(server: ValkeyProcess) -> set[str]:
    with raw(server) as client:
        return {str(channel) for channel in client.execute_command("PUBSUB", "CHANNELS")}


def connections_on(server: ValkeyProcess) -> int:
    """How many connections the server has, this one not counted."""
    with raw(server) as client:
        return int(client.info("clients")["connected_clients"]) - 1


# --- what every broker promises ---------------------------------------------------------------------------


@pytest.mark.parametrize("decode_responses", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_payloads_arrive_unchanged_and_in_order(
    valkey: ValkeyProcess, protocol: int, decode_responses: bool
) -> None:
    async with broker_on(valkey, protocol=protocol, decode_responses=decode_responses) as broker:
        assert isinstance(broker, Broker)
        news, other = await broker.subscribe("news"), await broker.subscribe("other")
        assert isinstance(news, ForwardingSubscription)
        sent: list[str | bytes] = [MARKED, "plain é", b"", b"\xff\x00\r\n", *(str(i) for i in range(20))]
        counts = [await broker.publish("news", payload) for payload in sent]
        assert counts == [1] * len(sent)
        assert await messages(news, len(sent)) == [p.encode() if isinstance(p, str) else p for p in sent]
        assert await other.get_message(timeout=0.01) is None
        assert await broker.publish("nobody", "x") == 0
        await news.close()
        await other.close()


async def test_what_another_program_publishes_is_delivered(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, decode_responses=True) as broker:
        subscription = await broker.subscribe("naïve channel")
        with raw(valkey) as client:
            assert client.publish("naïve channel", "from redis-cli") == 1
        assert await subscription.get_message(timeout=LONG) == b"from redis-cli"
        await subscription.close()


# --- connections ------------------------------------------------------------------------------------------


async def test_500_channels_need_one_connection_to_listen_and_one_to_publish(valkey: ValkeyProcess) -> None:
    before = connections_on(valkey)
    async with broker_on(valkey) as broker:
        assert broker.healthy
        async with anyio.create_task_group() as tasks:
            subscriptions: list[Subscription] = []

            async def use(channel: str) -> None:
                subscription = await broker.subscribe(channel)
                subscriptions.append(subscription)
                await broker.publish(channel, "hello")
                assert await subscription.get_message(timeout=LONG) == b"hello"

            for number in range(500):
                tasks.start_soon(use, f"channel {number}")
        assert connections_on(valkey) - before == 2
        assert broker.healthy
        for subscription in subscriptions:
            await subscription.close()
        await until(lambda: connections_on(valkey) - before == 1)
        # The one that publishes goes back to the pool, too.
        await until(
            lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("livepush")]
        )
    assert channels_on(valkey) == set()


async def test_10000_channels_are_subscribed_in_few_writes(valkey: ValkeyProcess) -> None:
    async with valkey.client() as client:
        broker = RedisBroker(client, timeouts=BrokerTimeouts(subscribe=LONG))
        await client.config_resetstat()
        subscriptions = await asyncio.gather(*(broker.subscribe(f"channel {n}") for n in range(10_000)))
        assert len(channels_on(valkey)) == 10_000
        for subscription in subscriptions:
            await subscription.close()
        await until(lambda: not channels_on(valkey))
        # How often the server has read from a connection.
        assert (await client.info("stats"))["total_reads_processed"] < 500


async def test_a_storm_of_closing_and_opening_loses_no_subscription(valkey: ValkeyProcess) -> None:
    chance = random.Random(1)
    async with broker_on(valkey) as broker:
        kept: dict[str, Subscription] = {}

        async def live(channel: str) -> None:
            for _ in range(30):
                subscription = await broker.subscribe(channel)
                if chance.random() < 0.5:
                    await broker.publish(channel, "now")
                    assert await subscription.get_message(timeout=LONG) == b"now"
                if chance.random() < 0.5:
                    await anyio.lowlevel.checkpoint()
                await subscription.close()
            kept[channel] = await broker.subscribe(channel)

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(live, f"channel {number}")
        assert channels_on(valkey) == set(kept)
        for channel, subscription in kept.items():
            assert await broker.publish(channel, "end") == 1
            assert await subscription.get_message(timeout=LONG) == b"end"
            await subscription.close()
        await until(lambda: not channels_on(valkey))


async def test_a_subscription_made_right_after_a_close_gets_what_is_published(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        other = await broker.subscribe("other")
        for number in range(100):
            subscription = await broker.subscribe("news")
            assert await broker.publish("news", str(number)) == 1
            assert await subscription.get_message(timeout=LONG) == str(number).encode()
            await subscription.close()
        await other.close()


async def test_a_sink_that_raises_costs_the_others_nothing(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Transcript):
        def deliver(self, payload: bytes, /) -> None:
            raise ZeroDivisionError

    async with broker_on(valkey) as broker:
        faulty, sound = await broker.subscribe("news"), await broker.subscribe("news")
        assert isinstance(faulty, ForwardingSubscription)
        faulty.forward(Faulty())
        await broker.publish("news", "1")
        await broker.publish("news", "2")
        assert await messages(sound, 2) == [b"1", b"2"]
        assert broker.healthy
        await faulty.close()
        await sound.close()
    assert [bool(record.exc_info) for record in caplog.records] == [True, True]


async def test_a_burst_of_messages_leaves_others_their_turn(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        subscription = await broker.subscribe("news")
        assert isinstance(subscription, ForwardingSubscription)
        transcript = Transcript()
        subscription.forward(transcript)
        with raw(valkey) as client, client.pipeline(transaction=False) as pipeline:
            for number in range(5000):
                pipeline.publish("news", number)
            pipeline.execute()
        sizes = [0]
        with anyio.fail_after(LONG):
            while sizes[-1] < 5000:
                await anyio.lowlevel.checkpoint()
                sizes.append(len(transcript.heard))
        assert max(after - before for before, after in pairwise(sizes)) <= 32
        assert transcript.heard == [str(number).encode() for number in range(5000)]
        await subscription.close()


class FaultyConnection(Connection):
    """Raises what no server can cause, once, when a message comes."""

    faults: ClassVar[list[Exception]] = [ZeroDivisionError("a fault")]

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        reply = await super().read_response(*arguments, **options)
        if isinstance(reply, list) and reply[0] == b"message" and self.faults:
            raise self.faults.pop()
        return reply


async def test_a_fault_in_the_reader_is_heard_of_and_does_not_end_it(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ConnectionPool.from_url(valkey.url, connection_class=FaultyConnection)
    async with Redis.from_pool(pool) as client:
        broker = RedisBroker(client)
        subscription = await broker.subscribe("news")
        await broker.publish("news", "lost")
        await next_loss(subscription)
        await broker.publish("news", "after")
        assert await subscription.get_message(timeout=LONG) == b"after"
        await subscription.close()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        f"the reader of Redis at 127.0.0.1:{valkey.port} failed, reconnecting"
    ]


# --- the server goes away ---------------------------------------------------------------------------------


async def test_silence_is_no_loss_over_resp2_either(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, protocol=2, quick=True) as broker:
        subscription = await broker.subscribe("news")
        assert await subscription.get_message(timeout=0.5) is None
        assert await broker.publish("news", "after") == 1
        assert await subscription.get_message(timeout=LONG) == b"after"
        await subscription.close()


async def test_without_a_server_subscribing_raises_in_time_and_leaves_nothing(tmp_path: Path) -> None:
    server = ValkeyProcess(tmp_path, "requirepass secret-word")
    client = Redis.from_url(f"redis://:secret-word@127.0.0.1:{server.port}")
    broker = RedisBroker(client, timeouts=BrokerTimeouts(subscribe=0.3))
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError) as raised:
        await broker.subscribe("news")
    assert 0.2 < time.monotonic() - started < 1.0
    assert f"127.0.0.1:{server.port}" in str(raised.value)
    assert "is it running" in str(raised.value)
    assert "secret-word" not in str(raised.value)
    assert broker.healthy
    with server:
        subscription = await broker.subscribe("news")
        await broker.publish("news", "there")
        assert await subscription.get_message(timeout=0.5) == b"there"
        await subscription.close()
        await client.aclose()


async def test_a_subscription_that_is_cancelled_leaves_nothing(own_valkey: ValkeyProcess) -> None:
    async with broker_on(own_valkey) as broker:
        kept = await broker.subscribe("kept")
        own_valkey.pause()
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(broker.subscribe, f"channel {number}")
                tasks.start_soon(broker.subscribe, "same")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        own_valkey.resume()
        await until(lambda: channels_on(own_valkey) == {"kept"})
        await broker.publish("kept", "still")
        assert await kept.get_message(timeout=LONG) == b"still"
        await kept.close()


async def test_publishing_without_a_server_raises_in_time(own_valkey: ValkeyProcess) -> None:
    async with own_valkey.client() as client:
        broker = RedisBroker(client, timeouts=BrokerTimeouts(publish=0.3))
        assert await broker.publish("news", "x") == 0
        own_valkey.pause()
        with anyio.fail_after(1), pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.3 s"):
            await broker.publish("news", "x")
        own_valkey.resume()
        assert await broker.publish("news", "x") == 0
        own_valkey.kill()
        with anyio.fail_after(1), pytest.raises(BrokerUnavailableError, match="is it running"):
            await broker.publish("news", "x")
        own_valkey.start()
        assert await broker.publish("news", "x") == 0


async def test_a_wrong_password_is_named_and_not_shown(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path, "requirepass the-right-one") as server:
        async with Redis.from_url(f"redis://:the-wrong-one@127.0.0.1:{server.port}") as client:
            broker = RedisBroker(client, timeouts=BrokerTimeouts(subscribe=2.0, publish=2.0))
            for attempt in (broker.subscribe("news"), broker.publish("news", "x")):
                with pytest.raises(
                    BrokerUnavailableError, match="check the user name and the password"
                ) as raised:
                    await attempt
                assert "the-wrong-one" not in str(raised.value)


async def test_a_channel_that_is_not_permitted_disturbs_no_other(own_valkey: ValkeyProcess) -> None:
    with raw(own_valkey) as admin:
        admin.execute_command("ACL", "SETUSER", "web", "on", ">pw", "+@all", "resetchannels", "&open:*")
        async with Redis.from_url(f"redis://web:pw@127.0.0.1:{own_valkey.port}") as client:
            broker = RedisBroker(client, timeouts=BrokerTimeouts(ping_interval=0.1, ping=1.0))
            outcomes = await asyncio.gather(
                broker.subscribe("open:1"),
                broker.subscribe("secret"),
                broker.subscribe("open:2"),
                broker.publish("secret", "x"),
                return_exceptions=True,
            )
            first, refused, second, unpublished = outcomes
            for error in (refused, unpublished):
                assert isinstance(error, BrokerUnavailableError)
                assert "NOPERM" in str(error) or "permission" in str(error)
                assert "ACL SETUSER" in str(error)
            assert not isinstance(first, BaseException | int)
            assert not isinstance(second, BaseException | int)
            assert broker.healthy
            await first.close()
            await second.close()


# --- other ways to a server -------------------------------------------------------------------------------


async def test_tls(own_valkey: ValkeyProcess, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    relay = Relay(own_valkey.port, tls=authority.server_context)
    url = f"rediss://localhost:{relay.port}"
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve)
        async with Redis.from_url(url, ssl_ca_certs=str(authority.ca_file)) as client:
            broker = RedisBroker(client)
            subscription = await broker.subscribe("news")
            await broker.publish("news", MARKED)
            assert await subscription.get_message(timeout=LONG) == MARKED
            own_valkey.kill()
            await until(lambda: not broker.healthy)
            own_valkey.start()
            await next_loss(subscription)
            assert await broker.publish("news", "after") == 1
            await subscription.close()
        async with Redis.from_url(url) as distrusting:
            with pytest.raises(BrokerUnavailableError, match="certificate"):
                await RedisBroker(distrusting, timeouts=BrokerTimeouts(subscribe=0.5)).subscribe("news")
        tasks.cancel_scope.cancel()


async def test_unix_socket(valkey: ValkeyProcess) -> None:
    async with Redis.from_url(f"unix://{valkey.unix_socket}") as client:
        broker = RedisBroker(client)
        subscription = await broker.subscribe("news")
        await broker.publish("news", MARKED)
        assert await subscription.get_message(timeout=LONG) == MARKED
        await subscription.close()


@pytest.mark.slow
async def test_sentinel_moves_the_broker_to_the_new_master(tmp_path: Path) -> None:
    with (
        ValkeyProcess(tmp_path / "1", "repl-diskless-sync-delay 0") as master,
        ValkeyProcess(tmp_path / "2", f"replicaof 127.0.0.1 {master.port}") as replica,
    ):
        with raw(replica) as client:
            await until(lambda: client.info("replication")["master_link_status"] == "up")
        with ValkeyProcess(
            tmp_path / "s",
            f"sentinel monitor news 127.0.0.1 {master.port} 1",
            "sentinel down-after-milliseconds news 200",
            "sentinel failover-timeout news 2000",
            sentinel=True,
        ) as watcher:
            with redis.Redis(port=watcher.port, decode_responses=True) as client:
                await until(lambda: client.sentinel_slaves("news"))
            async with master_by(watcher) as client:
                broker = RedisBroker(client)
                subscription = await broker.subscribe("news")
                assert await broker.publish("news", "1") == 1
                assert await subscription.get_message(timeout=LONG) == b"1"
                master.kill()
                with pytest.raises(BrokerUnavailableError, match="Redis service 'news'"):
                    await broker.publish("news", "nowhere")
                await next_loss(subscription)
                # Sentinel itself has a channel there, too.
                assert "news" in channels_on(replica)
                assert await broker.publish("news", "2") == 1
                assert await subscription.get_message(timeout=LONG) == b"2"
                await subscription.close()


@asynccontextmanager
async def master_by(watcher: ValkeyProcess) -> AsyncIterator[Redis]:
    make: Callable[..., Sentinel] = Sentinel
    sentinel = make([("127.0.0.1", watcher.port)])
    async with sentinel.master_for("news") as client:
        yield client
    for connection in sentinel.sentinels:
        await connection.aclose()


# --- once and no more -------------------------------------------------------------------------------------


async def test_in_a_batch_each_caller_has_an_answer_of_its_own(valkey: ValkeyProcess) -> None:
    async with valkey.client() as client:
        batch = Pipeline(client, timeout=2.0)
        calls = [
            batch.submit("SET", "é", 1),
            batch.submit("LPUSH", "é", "not a list"),
            batch.submit("INCR", "é"),
            batch.submit("GET", "é"),
        ]
        cancelled = batch.submit("INCR", "é")
        cancelled.cancel()
        value, error, raised, text = await asyncio.gather(*calls, return_exceptions=True)
        assert (value, raised, text) == (b"OK", 2, b"2")
        assert isinstance(error, redis.ResponseError)
        assert await batch.submit("GET", "é") == b"2"


async def test_a_caller_that_is_cancelled_in_flight_disturbs_no_other(own_valkey: ValkeyProcess) -> None:
    async with own_valkey.client() as client:
        batch = Pipeline(client, timeout=5.0)
        assert await batch.submit("INCR", "n") == 1
        own_valkey.pause()
        calls = [batch.submit("INCR", "n") for _ in range(3)]
        await anyio.wait_all_tasks_blocked()
        calls[1].cancel()
        late = batch.submit("INCR", "n")
        own_valkey.resume()
        first, third, last = await calls[0], await calls[2], await late
        # Whether the cancelled one had left already is nobody's promise; the answers of the others are.
        assert (first, last) in ((2, 4), (2, 5))
        assert third == int(str(last)) - 1


# --- event loops ------------------------------------------------------------------------------------------


def test_one_broker_serves_one_event_loop_after_another(valkey: ValkeyProcess) -> None:
    client = valkey.client()
    broker = RedisBroker(client)

    async def use(number: int) -> list[bytes | None]:
        # The last loop left its subscription open, without a word.
        subscription = await broker.subscribe("news")
        await broker.publish("news", str(number))
        received = await messages(subscription, 1)
        await client.aclose()
        return received

    assert [asyncio.run(use(number)) for number in range(3)] == [[b"0"], [b"1"], [b"2"]]
    gc.collect()


def test_a_client_with_connections_of_an_earlier_loop_publishes_once(valkey: ValkeyProcess) -> None:
    """Such a connection still sends, but its replies cannot be read."""
    code = f"""
    import asyncio, warnings
    from redis.asyncio import Redis
    from livepush_asgi import RedisBroker
    warnings.simplefilter("ignore")
    client = Redis.from_url({valkey.url!r})
    broker = RedisBroker(client)
    asyncio.run(client.ping())
    for number in range(3):
        print(asyncio.run(broker.publish("news", str(number))))
    """
    with raw(valkey) as client, client.pubsub() as listening:
        listening.subscribe("news")
        assert listening.get_message(timeout=LONG) is not None
        run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
        assert run.stdout.split() == ["1", "1", "1"], run.stderr
        heard = [listening.get_message(timeout=LONG) for _ in range(3)]
        assert [message and message["data"] for message in heard] == ["0", "1", "2"]
        assert listening.get_message(timeout=0.01) is None


def test_an_event_loop_that_stops_without_a_word_leaves_no_trace_in_the_next(valkey: ValkeyProcess) -> None:
    code = f"""
    import asyncio, gc, warnings
    from redis.asyncio import Redis
    from livepush_asgi import RedisBroker
    gc.disable()  # It would close the connection that the first loop leaves open.
    warnings.simplefilter("ignore")
    client = Redis.from_url({valkey.url!r})
    broker = RedisBroker(client)
    async def use():
        subscription = await broker.subscribe("news")
        count = await broker.publish("news", "x")
        asyncio.ensure_future(broker.publish("news", "never sent"))
        return count, await subscription.get_message(timeout=5)
    loops = [asyncio.new_event_loop() for _ in range(3)]
    print(loops[0].run_until_complete(use()))
    try:
        loops[1].run_until_complete(use())
    except RuntimeError as error:
        print(error)
    for loop in loops[:2]:
        loop.close()
    print(loops[2].run_until_complete(use()))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    # The connection that the first loop left open is still there for the server to count.
    assert run.stdout.splitlines() == [
        "(1, b'x')",
        "a RedisBroker is used on one event loop at a time; make one for each",
        "(2, b'x')",
    ], run.stderr


@pytest.mark.parametrize("state", ["up", "away", "stopped"])
def test_when_the_event_loop_ends_nothing_is_left_open(own_valkey: ValkeyProcess, state: str) -> None:
    # Only a server that is stopped has to be found silent. A busy machine is silent for a while, too.
    silence = 0.5 if state == "stopped" else 10.0
    code = f"""
    import asyncio, gc, os, signal
    from redis.asyncio import Redis
    from livepush_asgi import BrokerTimeouts, RedisBroker
    async def main():
        client = Redis.from_url({own_valkey.url!r})
        broker = RedisBroker(client, timeouts=BrokerTimeouts(ping_interval={silence}, ping={silence}))
        await asyncio.gather(*(broker.subscribe(f"channel {{n}}") for n in range(100)))
        await broker.publish("channel 1", "x")
        await client.aclose()
        if {state!r} != "up":
            os.kill({own_valkey.pid}, signal.SIGKILL if {state!r} == "away" else signal.SIGSTOP)
            while broker.healthy:
                await asyncio.sleep(0.01)
    asyncio.run(main())
    gc.collect()
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True)
    unexpected = [line for line in complaints(run.stderr) if "no listening connection" not in line]
    assert (run.returncode, unexpected) == (0, [])


# --- what an error says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        (redis.ConnectionError("Error 111"), "is it running"),
        (redis.AuthenticationError("WRONGPASS"), "check the user name and the password"),
        (redis.exceptions.NoPermissionError("NOPERM"), "ACL SETUSER"),
        (redis.BusyLoadingError("LOADING"), "will be there soon"),
        (redis.ResponseError("ERR"), "the server is there and refuses"),
        (redis.ConnectionError("Too many connections"), "raise its max_connections"),
        (TimeoutError(), "TimeoutError; is it running"),
    ],
)
@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://me:secret@example.org:6380/1", "Redis at example.org:6380"),
        ("unix://me:secret@/run/redis.sock", "Redis at /run/redis.sock"),
    ],
)
def test_an_error_says_what_failed_where_and_what_may_help(
    url: str, place: str, cause: Exception, remedy: str
) -> None:
    text = str(unavailable("publish", pool_of(Redis.from_url(url)), cause))
    assert text.startswith(f"cannot publish: {place}: ")
    assert remedy in text
    assert "secret" not in text


# --- wrong arguments --------------------------------------------------------------------------------------


def test_only_an_asyncio_client_of_one_server_will_do() -> None:
    with pytest.raises(TypeError, match=r"redis\.asyncio\.Redis is needed"):
        RedisBroker(redis.Redis())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass a Redis to one of its nodes"):
        RedisBroker(RedisCluster(host="localhost"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "client", "options", "fix"),
    [
        (RedisBroker, "redis://:secret@localhost", {}, "not a URL: pass Redis.from_url(url)"),
        (RedisBroker, Redis, {}, "Redis is a class: pass Redis.from_url('redis://localhost')"),
        (RedisBroker, redis.Redis(), {}, "import its class from redis.asyncio"),
        (RedisBroker, None, {}, "not a builtins.NoneType"),
        (RedisStreamsBroker, RedisCluster, {}, "RedisCluster is a class: pass RedisCluster.from_url("),
        (RedisStreamsBroker, Redis(), {"history": 1000}, "history is a History(...), not 1000"),
        (RedisBroker, Redis(), {"timeouts": 5.0}, "timeouts is a BrokerTimeouts(...), not 5.0"),
        (RedisBroker, Redis(), {"timeouts": BrokerTimeouts}, "timeouts is a BrokerTimeouts(...)"),
    ],
)
def test_a_wrong_object_is_refused_with_the_fix(
    kind: Any, client: Any, options: dict[str, Any], fix: str
) -> None:
    with pytest.raises(TypeError, match=re.escape(fix)) as raised:
        kind(client, **options)
    assert "secret" not in str(raised.value)
