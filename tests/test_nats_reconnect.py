"""What NatsBroker needs beyond the reconnect of nats-py. `brokers/nats/client.py` has the overrides.

The fault contract needs two more, where a server is paused and where it refuses the login: nats-py leaves
the sockets of failed attempts open, which is a ResourceWarning, and it reports a loss only when the old
connection is closed.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest

from livepush_asgi import BrokerTimeouts, BrokerUnavailableError, NatsBroker
from livepush_asgi.brokers import ForwardingSubscription, Subscription

from .nats_server import NatsProcess
from .server_process import free_port
from .subscriptions import LONG, next_loss
from .valkey import until

pytestmark = pytest.mark.real_time


def quick(url: str) -> NatsBroker:
    """A broker that notices within 0.4 s that the server is silent."""
    return NatsBroker(url, timeouts=BrokerTimeouts(ping_interval=0.2, ping=0.2))


async def check_works(broker: NatsBroker, subscription: Subscription, channel: str) -> None:
    await until(lambda: broker.healthy)
    await broker.publish(channel, "after")
    assert await subscription.get_message(timeout=LONG) == b"after"


async def test_a_silent_server_is_given_up_with_unsent_messages_in_the_buffer(own_nats: NatsProcess) -> None:
    """nats-py waits until everything is sent before it closes the socket and reports the loss."""
    own_nats.kill()
    own_nats.configure("max_payload: 8MB")
    own_nats.start()
    broker = quick(own_nats.url)
    subscription = await broker.subscribe("news")
    own_nats.pause()
    with pytest.raises(BrokerUnavailableError):
        await broker.publish("other", b"x" * 8_000_000)
    await until(lambda: not broker.healthy)
    own_nats.resume()
    await next_loss(subscription)
    await check_works(broker, subscription, "news")
    await subscription.close()


async def test_an_error_of_the_server_does_not_end_the_broker(own_nats: NatsProcess) -> None:
    """nats-py closes for good after any error but a permission, as when credentials expire."""
    own_nats.kill()
    own_nats.configure("max_subscriptions: 2")
    own_nats.start()
    broker = quick(own_nats.url)
    subscriptions = [await broker.subscribe(channel) for channel in ("a", "b")]
    with pytest.raises(BrokerUnavailableError, match="maximum subscriptions exceeded"):
        await broker.subscribe("c")
    for channel, subscription in zip("ab", subscriptions, strict=True):
        await next_loss(subscription)
        await check_works(broker, subscription, channel)
        await subscription.close()


async def test_a_withdrawn_login_is_retried_until_it_is_valid_again(own_nats: NatsProcess) -> None:
    login = "authorization {{ user: web, password: {} }}"
    own_nats.configure(login.format("word"))
    broker = NatsBroker(own_nats.url, options={"user": "web", "password": "word"})
    subscription = await broker.subscribe("news")
    own_nats.configure(login.format("other"))
    await until(lambda: not broker.healthy)
    errors = [""]
    while "check the user name" not in errors[-1] and len(errors) < 10:
        # The server may close the connection before its reason is read.
        with pytest.raises(BrokerUnavailableError) as raised:
            await broker.publish("news", "never")
        errors.append(str(raised.value))
    assert "check the user name" in errors[-1]
    own_nats.configure(login.format("word"))
    await next_loss(subscription)
    await check_works(broker, subscription, "news")
    await subscription.close()


async def test_a_cancelled_publish_does_not_disturb_the_connection(own_nats: NatsProcess) -> None:
    """nats-py stops reading when a PONG arrives that nobody waits for any more."""
    broker = NatsBroker(own_nats.url)
    subscription = await broker.subscribe("news")
    own_nats.pause()
    publishing = asyncio.create_task(broker.publish("news", "perhaps"))
    await asyncio.wait({publishing}, timeout=0.2)
    publishing.cancel()
    await asyncio.wait({publishing})
    own_nats.resume()
    await broker.publish("news", "after")
    heard = [await subscription.get_message(timeout=LONG)]
    if heard == [b"perhaps"]:
        heard = [await subscription.get_message(timeout=LONG)]
    assert heard == [b"after"]
    await subscription.close()


class SlowSink:
    """Blocks the process for a moment with each payload. None stands for a loss."""

    def __init__(self) -> None:
        self.heard: list[bytes | None] = []

    def deliver(self, payload: bytes, /) -> None:
        time.sleep(0.005)
        self.heard.append(payload)

    def lost(self) -> None:
        self.heard.append(None)


async def test_a_server_that_sends_is_not_given_up_by_a_process_that_is_slow_to_read(
    own_nats: NatsProcess,
) -> None:
    """The PONG is behind the messages: it comes late, and the server is alive."""
    broker = quick(own_nats.url)
    subscription, sink = await broker.subscribe("news"), SlowSink()
    assert isinstance(subscription, ForwardingSubscription)
    subscription.forward(sink)
    payloads: list[bytes | None] = [b"%d" % number for number in range(500)]
    async with await nats.connect(own_nats.url) as client:
        for payload in payloads:
            await client.publish("livepush.news", payload or b"")
        await client.flush()
    await until(lambda: len(sink.heard) >= len(payloads))
    assert sink.heard == payloads
    await subscription.close()


class SlowServer:
    """Speaks as much of the protocol as a client needs to log in. It reads nothing more until `resume`.

    Then it reads 100 kB in each `pace` seconds.
    """

    def __init__(self, pace: float = 0.0) -> None:
        self.port = free_port()
        self._pace = pace
        self.received = b""
        self.closed = asyncio.Event()
        self._is_resumed = asyncio.Event()

    def resume(self) -> None:
        self._is_resumed.set()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._talk, "127.0.0.1", self.port):
            yield

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"slow","version":"2.15.0","max_payload":8000000,"headers":true}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        await self._is_resumed.wait()
        while chunk := await reader.read(100_000):
            pings = self.received.count(b"PING\r\n")
            self.received += chunk
            writer.write(b"PONG\r\n" * (self.received.count(b"PING\r\n") - pings))
            await asyncio.sleep(self._pace)
        writer.close()
        self.closed.set()


async def test_a_subscription_is_confirmed_behind_what_waits_to_be_sent() -> None:
    """nats-py sends a PING ahead of the commands that its flusher holds back while the socket is full."""
    server = SlowServer()
    async with server.serve():
        broker = NatsBroker(
            f"nats://127.0.0.1:{server.port}", timeouts=BrokerTimeouts(subscribe=LONG), linger=0.1
        )
        publishing = asyncio.create_task(broker.publish("other", b"x" * 7_000_000))
        await asyncio.wait({publishing}, timeout=0.2)
        subscribing = asyncio.create_task(broker.subscribe("news"))
        await asyncio.wait({subscribing}, timeout=0.2)
        server.resume()
        subscription = await subscribing
        await publishing
        commands = re.findall(rb"PING|SUB livepush.news", server.received)
        assert commands[-1] == b"PING"
        assert commands.count(b"SUB livepush.news") == 1
        await subscription.close()
        await server.closed.wait()


async def test_a_server_that_reads_slowly_is_not_given_up() -> None:
    """nats-py sends everything at once. Then the answer to a PING behind it comes too late."""
    server = SlowServer(pace=0.03)
    server.resume()
    async with server.serve():
        timeouts = BrokerTimeouts(publish=LONG, ping_interval=0.5, ping=1.5)
        broker = NatsBroker(f"nats://127.0.0.1:{server.port}", timeouts=timeouts, linger=0.1)
        await asyncio.gather(*(broker.publish("news", b"x" * 200_000) for _ in range(40)))
        await server.closed.wait()


async def test_a_server_that_the_cluster_announces_gets_the_login_too(tmp_path: Path) -> None:
    """A URL that the cluster announces has no user name and password."""
    routes = [free_port(), free_port()]
    servers = [
        NatsProcess(
            tmp_path / str(number),
            "authorization { user: web, password: word }",
            f'cluster {{ name: both, listen: "127.0.0.1:{routes[number]}", '
            f'routes: ["nats://127.0.0.1:{routes[1 - number]}"] }}',
        )
        for number in range(2)
    ]
    with servers[0] as first, servers[1] as second:
        await until(lambda: int(first.monitor("routez")["num_routes"]) > 0)
        broker = NatsBroker(first.url.replace("//", "//web:word@"))
        subscription = await broker.subscribe("news")
        first.kill()
        await next_loss(subscription)
        assert second.connections() == 1
        await check_works(broker, subscription, "news")
        await subscription.close()
        first.start()
