"""The seam between history and live, under any interleaving: what a client gets is contiguous, or the stream
says where it is not; and nothing comes twice.

Everything runs in memory and in virtual time, so each case is the same each time it is run.
"""

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livepush_asgi import BrokerUnavailableError, DrainPolicy, Grant, Limits, LivePush, Timing
from livepush_asgi.brokers.history import History
from livepush_asgi.settings import Overflow
from livepush_asgi.testing import Client, ParsedEvent, Stream, StreamEnded

from .faulty_broker import FaultyBroker
from .virtual_clock import VirtualClockLoop, let_pass

CHANNELS = ["a", "b"]
# Longer than the component lets a channel look quiet, so that whatever was lost has been noticed.
LONG = 120.0


@dataclass
class Follower:
    """A client that comes back with its last event id, and what it has seen over all its connections."""

    client: Client
    last_id: str | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    stream: Stream | None = None
    #: For each channel the numbers of its events as they came, None where a gap was told.
    seen: dict[str, list[int | None]] = field(default_factory=lambda: {name: [] for name in CHANNELS})

    async def connect(self, window: float) -> None:
        if self.stream is None:
            self.stream = await self.stack.enter_async_context(
                self.client.open("/", last_event_id=self.last_id, window=window)
            )

    async def cut(self) -> None:
        if self.stream is not None:
            self.stream = None
            await self.stack.aclose()
            self.stack = AsyncExitStack()

    async def read(self, most: int, timeout: float = 1.0) -> None:
        """Read until nothing more comes, or so many events."""
        for _ in range(most):
            if self.stream is None:
                return
            try:
                self._take(await self.stream.next_event(timeout, control=True))
            except TimeoutError:
                return
            except StreamEnded:
                await self.cut()

    def _take(self, event: ParsedEvent) -> None:
        if event.id is not None:
            self.last_id = event.id
        if event.event == "livepush.gap":
            self.seen[json.loads(event.data)["channel"]].append(None)
        elif event.event == "message":
            channel, number = json.loads(event.data)
            self.seen[channel].append(number)


def check(seen: list[int | None], first: int, last: int) -> None:
    """Each number follows the one before, or comes later behind a gap; the end is reached, or a gap told."""
    expected, gap = first, False
    for number in seen:
        if number is None:
            gap = True
            continue
        assert number >= expected, f"{number} came twice or out of order: {seen}"
        assert number == expected or gap, f"a hole before {number} that nothing tells of: {seen}"
        expected, gap = number + 1, False
    assert expected == last + 1 or gap, f"the end, {last}, did not come, and nothing tells of it: {seen}"


OPERATIONS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.integers(1, 12)),
    st.tuples(st.just("read"), st.integers(1, 6)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("connect"), st.sampled_from([0, 1, 8])),
    st.tuples(st.just("lose live"), st.integers(1, 4)),
    st.tuples(st.just("repeat live"), st.booleans()),
    st.tuples(st.just("say lost")),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("lose log"), st.sampled_from(CHANNELS)),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.2, 3.0, 60.0])),
)


class Story:
    """One interleaving, told operation by operation."""

    def __init__(self, overflow: Overflow, channels: int) -> None:
        self.broker = FaultyBroker(History(events=8))
        self.channels = CHANNELS[:channels]
        self.numbers = dict.fromkeys(CHANNELS, 0)
        self.push = LivePush(
            self.broker,
            lambda request: Grant(channels=self.channels),
            limits=Limits(outbox_events=4, replay_events=6, message_bytes=40, overflow=overflow),
            timing=Timing(linger=1.0, subscribe_timeout=0.5),
            drain=DrainPolicy(window=0.0, signals=False),
        )

    async def tell(self, operations: list[tuple[object, ...]]) -> None:
        async with self.push.lifespan(), Client(self.push, deadline=60) as client:
            follower = Follower(client)
            await follower.connect(8)
            # From the first event on, which says where it begins, it has a claim to all.
            await follower.read(1)
            for operation in operations:
                await self._do(follower, *operation)
            self.broker.away = False
            await let_pass(LONG)
            await follower.read(10_000)
            await follower.connect(8)
            await follower.read(10_000, timeout=LONG)
            await follower.cut()
        for channel in self.channels:
            check(follower.seen[channel], 1, self.numbers[channel])

    async def _do(self, follower: Follower, name: object, *arguments: object) -> None:
        match name, *arguments:
            case "publish", str(channel), int(count):
                for _ in range(count):
                    await self._publish(channel)
            case "read", int(most):
                await follower.read(most)
            case ("cut",):
                await follower.cut()
            case "connect", int(window):
                await follower.connect(window)
            case "lose live", int(count):
                self.broker.losing = count
            case "repeat live", bool(repeating):
                self.broker.repeating = repeating
            case ("say lost",):
                self.broker.say_lost()
            case "away", bool(away):
                self.broker.away = away
            case "lose log", str(channel):
                self.broker.lose_log(channel)
            case "pass", float(seconds):
                await let_pass(seconds)

    async def _publish(self, channel: str) -> None:
        try:
            await self.push.publish(channel, [channel, self.numbers[channel] + 1])
        except BrokerUnavailableError:
            return
        self.numbers[channel] += 1


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("overflow", ["resume", "close", "drop_oldest"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, max_size=40))
def test_contiguous_or_told(overflow: Overflow, channels: int, operations: list[tuple[object, ...]]) -> None:
    async def run() -> None:
        await Story(overflow, channels).tell(operations)

    anyio.run(run, backend="asyncio", backend_options={"loop_factory": VirtualClockLoop})
