"""NatsBroker on a real server that is killed, stopped and started again."""

import asyncio
import contextlib
import gc
import itertools
import random
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from livepush_asgi import Broker, BrokerTimeouts, JetStreamBroker, NatsBroker
from livepush_asgi.brokers import ForwardingSubscription, HistoryBroker, Subscription
from livepush_asgi.brokers.nats.subjects import subject_of
from livepush_asgi.errors import BrokerUnavailableError
from livepush_asgi.wire.event import to_payload

from .nats_server import NatsProcess
from .subscriptions import LONG, Transcript, messages, next_loss, transcript_of
from .valkey import until

MARKED = to_payload(b"event: paid\ndata: \xc3\xa9\n\n")

pytestmark = pytest.mark.real_time


def quick(server: NatsProcess) -> NatsBroker:
    """A broker that notices within 0.4 s that the server is silent."""
    return NatsBroker(server.url, timeouts=BrokerTimeouts(ping_interval=0.2, ping=0.2))


def tasks_of_brokers() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("livepush")]


# --- subjects ---------------------------------------------------------------------------------------------

WORD = re.compile(r"[^\s.*>\x00-\x20]+")
HOSTILE = st.text(st.sampled_from(".*> %~\n\t\0aA$é_-:/2E"), max_size=8) | st.text(max_size=600)


@given(HOSTILE)
def test_a_subject_has_no_wildcard_and_no_white_space(channel: str) -> None:
    subject = subject_of("push", channel)
    assert subject.startswith("push.")
    assert all(WORD.fullmatch(word) for word in subject.split("."))
    assert subject.isascii()
    assert len(subject) < 600


@given(HOSTILE, HOSTILE)
def test_no_two_channels_have_the_same_subject(one: str, other: str) -> None:
    assert (subject_of("push", one) == subject_of("push", other)) is (one == other)


def test_plain_names_stay_readable_and_lone_surrogates_are_names_too() -> None:
    assert subject_of("push", "events.42:a/b@c") == "push.events.42:a/b@c"
    assert subject_of("push", ".a..b.") == "push.%2Ea.%2Eb%2E"
    assert subject_of("push", "") == "push.%"
    assert subject_of("push", "\ud800") != subject_of("push", "\ud801")
    assert subject_of("push", "x" * 5000).startswith("push.%~")


@pytest.mark.parametrize("prefix", ["", "a b", "a.*", "a.>", ".a", "a..b", "é", "a" * 600])
def test_a_prefix_is_plain_words(prefix: str) -> None:
    with pytest.raises(ValueError, match="a prefix is letters"):
        NatsBroker(prefix=prefix)


async def test_channels_that_look_like_wildcards_are_none(nats_server: NatsProcess, prefix: str) -> None:
    names = ["*", ">", "a.*", "a.>", "a.b", "a", "", ".", "a b", "a\tb", "é", "%2A", "$SYS.>", "x" * 5000]
    broker = NatsBroker(nats_server.url, prefix=prefix)
    subscriptions = {name: await broker.subscribe(name) for name in names}
    for name in names:
        await broker.publish(name, f"for {name}")
    for name, subscription in subscriptions.items():
        assert await subscription.get_message(timeout=LONG) == f"for {name}".encode()
        assert await subscription.get_message(timeout=0.001) is None
        await subscription.close()


# --- what every broker promises ---------------------------------------------------------------------------


async def test_payloads_arrive_unchanged_and_in_order(nats_server: NatsProcess, prefix: str) -> None:
    broker = NatsBroker(nats_server.url, prefix=prefix)
    assert isinstance(broker, Broker)
    assert not isinstance(broker, HistoryBroker)
    news, other = await broker.subscribe("news"), await broker.subscribe("other")
    sent: list[str | bytes] = [MARKED, "plain é", b"", b"\xff\x00\r\n", *(str(i) for i in range(20))]
    assert [await broker.publish("news", payload) for payload in sent] == [0] * len(sent)
    assert await messages(news, len(sent)) == [p.encode() if isinstance(p, str) else p for p in sent]
    assert await other.get_message(timeout=0.01) is None
    await news.close()
    await other.close()


async def test_what_another_program_publishes_is_delivered(nats_server: NatsProcess, prefix: str) -> None:
    subscription = await NatsBroker(nats_server.url, prefix=prefix).subscribe("events.42")
    async with await nats.connect(nats_server.url) as client:
        await client.publish(f"{prefix}.events.42", b"from elsewhere")
        await client.publish(f"{prefix}.events.42", b"with headers", headers={"Some": "header"})
    assert await messages(subscription, 2) == [b"from elsewhere", b"with headers"]
    await subscription.close()


# --- connections ------------------------------------------------------------------------------------------


async def test_500_channels_need_one_connection_for_everything(own_nats: NatsProcess) -> None:
    broker = NatsBroker(own_nats.url, linger=0.05)
    assert broker.healthy

    async def use(channel: str) -> Subscription:
        subscription = await broker.subscribe(channel)
        await broker.publish(channel, "hello")
        assert await subscription.get_message(timeout=LONG) == b"hello"
        return subscription

    subscriptions = await asyncio.gather(*(use(f"channel.{number}") for number in range(500)))
    assert own_nats.connections() == 1
    assert own_nats.subjects() == sorted(f"livepush.channel.{number}" for number in range(500))
    assert broker.healthy
    for subscription in subscriptions:
        await subscription.close()
    await until(lambda: own_nats.connections() == 0)
    await until(lambda: not tasks_of_brokers())
    await broker.publish("again", "hello")


async def test_10000_channels_are_subscribed_in_a_moment(own_nats: NatsProcess) -> None:
    broker = NatsBroker(own_nats.url, timeouts=BrokerTimeouts(subscribe=LONG))
    # The time that it takes this process: the machine may have others to serve.
    started = time.process_time()
    subscriptions = await asyncio.gather(*(broker.subscribe(f"channel {n}") for n in range(10_000)))
    assert time.process_time() - started < 3.0
    assert own_nats.monitor("connz")["connections"][0]["subscriptions"] == 10_000
    for subscription in subscriptions:
        await subscription.close()
    await until(lambda: own_nats.monitor("connz")["connections"][0]["subscriptions"] == 0)


async def test_a_storm_of_closing_and_opening_loses_no_subscription(own_nats: NatsProcess) -> None:
    chance = random.Random(1)
    broker = NatsBroker(own_nats.url)
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
            tasks.start_soon(live, f"channel{number}")
    await until(lambda: own_nats.subjects() == sorted(f"livepush.{channel}" for channel in kept))
    for channel, subscription in kept.items():
        await broker.publish(channel, "end")
        assert await subscription.get_message(timeout=LONG) == b"end"
        await subscription.close()
    await until(lambda: own_nats.subjects() == [])


async def test_a_sink_that_raises_costs_the_others_nothing(
    nats_server: NatsProcess, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Transcript):
        def deliver(self, payload: bytes, /) -> None:
            raise ZeroDivisionError

    broker = NatsBroker(nats_server.url, prefix=prefix)
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


async def test_a_burst_of_messages_leaves_others_their_turn(nats_server: NatsProcess, prefix: str) -> None:
    subscription, transcript = await transcript_of(NatsBroker(nats_server.url, prefix=prefix), "news")
    sizes = [0]

    async def look() -> None:
        while sizes[-1] < 5000:
            await anyio.lowlevel.checkpoint()
            sizes.append(len(transcript.heard))

    async with await nats.connect(nats_server.url) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        for number in range(5000):
            await client.publish(f"{prefix}.news", str(number).encode())
        await client.flush()
    assert max(after - before for before, after in pairwise(sizes)) <= 64
    assert transcript.heard == [str(number).encode() for number in range(5000)]
    await subscription.close()


# --- the server goes away ---------------------------------------------------------------------------------


async def test_a_message_that_comes_right_after_a_reconnect_is_delivered_after_the_loss(
    own_nats: NatsProcess,
) -> None:
    broker = NatsBroker(own_nats.url)
    subscription, transcript = await transcript_of(broker, "news")
    for turn in range(3):
        # Its own in each turn: one of the turn before may still be on its way.
        message = b"%d" % turn
        transcript.heard.clear()
        own_nats.kill()
        own_nats.start()
        async with await nats.connect(own_nats.url) as client:
            with anyio.fail_after(LONG):
                while message not in transcript.heard:
                    await client.publish("livepush.news", message)
                    await client.flush()
        assert transcript.heard.index(None) < transcript.heard.index(message)
        assert transcript.heard.count(None) == 1
    await subscription.close()


async def test_a_publish_that_a_silent_server_has_not_confirmed_raises(own_nats: NatsProcess) -> None:
    broker = quick(own_nats)
    await broker.publish("news", "before")
    own_nats.pause()

    async def publish_for_ever() -> None:
        # Pausing takes a moment, so the first ones may still arrive.
        while True:
            await broker.publish("news", "x" * 100_000)

    with anyio.fail_after(2), pytest.raises(BrokerUnavailableError):
        await publish_for_ever()


async def test_without_a_server_every_call_raises_in_time_and_leaves_nothing(tmp_path: Path) -> None:
    port = NatsProcess(tmp_path).port
    broker = NatsBroker(
        f"nats://someone:secret-word@127.0.0.1:{port}", timeouts=BrokerTimeouts(subscribe=0.3)
    )
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError) as raised:
        await broker.subscribe("news")
    assert 0.2 < time.monotonic() - started < 1.0
    assert f"NATS at 127.0.0.1:{port}" in str(raised.value)
    assert "secret-word" not in str(raised.value)
    with pytest.raises(BrokerUnavailableError, match="cannot publish"):
        await broker.publish("news", "x")
    await until(lambda: not tasks_of_brokers())
    assert broker.healthy


async def test_a_cancelled_subscribe_leaves_nothing(tmp_path: Path) -> None:
    broker = NatsBroker(
        f"nats://127.0.0.1:{NatsProcess(tmp_path).port}", timeouts=BrokerTimeouts(subscribe=LONG)
    )
    with anyio.move_on_after(0.1):
        await broker.subscribe("news")
    await until(lambda: not tasks_of_brokers())


async def test_a_cancellation_that_the_standard_library_swallows_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `asyncio.wait_for` of Python 3.11 does when it is cancelled at the moment at which the attempt fails.
    broker = NatsBroker(
        f"nats://127.0.0.1:{NatsProcess(tmp_path).port}", timeouts=BrokerTimeouts(subscribe=LONG)
    )
    attempts = itertools.count(1)
    wait_for = asyncio.wait_for

    async def swallowing(attempt: Coroutine[Any, Any, Any], timeout: float) -> Any:
        if next(attempts) != 3:
            return await wait_for(attempt, timeout)
        attempt.close()
        subscribing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(asyncio, "wait_for", swallowing)
    subscribing = asyncio.create_task(broker.subscribe("news"))
    await asyncio.wait([subscribing])
    assert subscribing.cancelled()
    await until(lambda: not tasks_of_brokers())


async def test_the_next_server_of_several_is_tried(own_nats: NatsProcess, tmp_path: Path) -> None:
    away = NatsProcess(tmp_path / "away")
    broker = NatsBroker([away.url, own_nats.url])
    subscription = await broker.subscribe("news")
    await broker.publish("news", "1")
    assert await messages(subscription, 1) == [b"1"]
    own_nats.kill()
    with away:
        await next_loss(subscription)
        await broker.publish("news", "2")
        assert await messages(subscription, 1) == [b"2"]
        await subscription.close()


# --- what the server refuses ------------------------------------------------------------------------------

ALLOWED = """
authorization {{ users: [
  {{ user: someone, password: word, permissions: {{ publish: [{0}, "_INBOX.>"], subscribe: [{0}] }} }}
] }}
"""


async def test_wrong_credentials_are_told(own_nats: NatsProcess) -> None:
    own_nats.kill()
    own_nats.configure("authorization { user: someone, password: word }")
    own_nats.start()
    broker = NatsBroker(
        own_nats.url, options={"user": "someone", "password": "wrong"}, timeouts=BrokerTimeouts(subscribe=0.5)
    )
    with pytest.raises(BrokerUnavailableError, match="check the user name"):
        await broker.publish("news", "x")
    with pytest.raises(BrokerUnavailableError, match="check the user name"):
        await broker.subscribe("news")


async def test_a_refused_channel_raises_and_costs_the_others_nothing(own_nats: NatsProcess) -> None:
    own_nats.kill()
    own_nats.configure(ALLOWED.format('"livepush.News"'))
    own_nats.start()
    broker = NatsBroker(own_nats.url, options={"user": "someone", "password": "word"})
    subscription = await broker.subscribe("News")
    for channel in ("Other", "news"):
        with pytest.raises(BrokerUnavailableError, match="allow the user this subject"):
            await broker.subscribe(channel)
        with pytest.raises(BrokerUnavailableError, match="allow the user this subject"):
            await broker.publish(channel, "x")
    await broker.publish("News", "x")
    assert await messages(subscription, 1) == [b"x"]
    await subscription.close()


async def test_a_payload_that_is_too_long_is_refused_alone(nats_server: NatsProcess, prefix: str) -> None:
    broker = NatsBroker(nats_server.url, prefix=prefix)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.publish, "news", "x")
        with pytest.raises(BrokerUnavailableError, match="2000000 bytes are more than the server takes"):
            await broker.publish("news", b"x" * 2_000_000)


async def test_headers_count_against_what_the_server_takes(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    first = await broker.append("news", b"x")
    with pytest.raises(BrokerUnavailableError, match="more than the server takes"):
        await broker.append("news", b"x" * (2**20 - 30))
    # The connection has been kept.
    assert await broker.append("news", b"y") == first.at(2)


@pytest.mark.parametrize("options", [{"allow_reconnect": True}, {"closed_cb": None}, {"colour": "red"}])
def test_options_that_would_do_nothing_good_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        NatsBroker(options=options)


def test_times_are_more_than_nothing_and_in_seconds() -> None:
    with pytest.raises(ValueError, match="linger is in seconds"):
        NatsBroker(linger=-1)
    with pytest.raises(ValueError, match="divide by 1000"):
        NatsBroker(linger=10_000)
    with pytest.raises(TypeError, match="BrokerTimeouts"):
        NatsBroker(timeouts=5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("servers", [[], [""], None, Client, Client()], ids=str)
def test_a_broker_needs_a_server(servers: Any) -> None:
    with pytest.raises(ValueError, match="servers are a URL or several"):
        NatsBroker(servers)


# --- event loops ------------------------------------------------------------------------------------------


def test_one_broker_serves_one_event_loop_after_another(nats_server: NatsProcess, prefix: str) -> None:
    broker = NatsBroker(nats_server.url, prefix=prefix)

    async def use() -> bytes | None:
        subscription = await broker.subscribe("news")
        await broker.publish("news", "x")
        return await subscription.get_message(timeout=LONG)

    for _ in range(3):
        assert asyncio.run(use()) == b"x"
    gc.collect()


def test_a_loop_that_stops_without_a_word_leaves_no_trace_in_the_next(nats_server: NatsProcess) -> None:
    code = f"""
    import asyncio, warnings
    from livepush_asgi import NatsBroker
    warnings.simplefilter("ignore")
    broker = NatsBroker({nats_server.url!r}, prefix="test-loops")
    async def use():
        subscription = await broker.subscribe("news")
        await broker.publish("news", "x")
        asyncio.ensure_future(broker.publish("news", "never sent"))
        return await subscription.get_message(timeout=5)
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
    assert run.stdout.splitlines() == [
        "b'x'",
        "a NATS broker is used on one event loop at a time; make one for each",
        "b'x'",
    ], run.stderr


@pytest.mark.parametrize("state", ["up", "away", "stopped"])
def test_when_the_event_loop_ends_nothing_is_left_open(own_nats: NatsProcess, state: str) -> None:
    code = f"""
    import asyncio, gc, sys
    from livepush_asgi import BrokerTimeouts, NatsBroker
    broker = NatsBroker({own_nats.url!r}, timeouts=BrokerTimeouts(ping_interval=0.2, ping=0.2))
    async def use():
        subscription = await broker.subscribe("news")
        await broker.publish("news", "x")
        print(await subscription.get_message(timeout=5), flush=True)
        sys.stdin.readline()
        asyncio.ensure_future(broker.publish("news", "y"))
        await asyncio.sleep(0.3)
    asyncio.run(use())
    gc.collect()
    """
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "b'x'\n"
        if state == "away":
            own_nats.kill()
        elif state == "stopped":
            own_nats.pause()
        _, errors = process.communicate("\n", timeout=LONG)
    assert process.returncode == 0, errors
    assert "ResourceWarning" not in errors
    assert "Task was destroyed" not in errors
    assert "never retrieved" not in errors or state != "up", errors
