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
from livepush_asgi.types import ASGIApp

from .around import behind_a_middleware
from .faulty_broker import FaultyBroker, FaultyServer
from .virtual_clock import VirtualClockLoop, let_pass

CHANNELS = ["a", "b"]
PROCESSES = 2
# Longer than the component lets a channel look quiet, so that whatever was lost has been noticed.
LONG = 120.0


@dataclass
class Follower:
    """A client that comes back with its last event id, and what it has seen over all its connections."""

    clients: list[Client]
    last_id: str | None = None
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    stream: Stream | None = None
    #: For each channel the numbers of its events as they came, None where a gap was told.
    seen: dict[str, list[int | None]] = field(default_factory=lambda: {name: [] for name in CHANNELS})

    async def connect(self, window: float, process: int = 0) -> None:
        if self.stream is None:
            self.stream = await self.stack.enter_async_context(
                self.clients[process].open("/", last_event_id=self.last_id, window=window)
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


def check(seen: list[int | None], last: int, lost: set[int]) -> None:
    """Each number follows the one before, or comes later behind a gap; the end is reached, or a gap told.

    What a server that started again has `lost` although it had taken it need not come.
    """
    expected, gap = 1, False
    for number in [*seen, last + 1]:
        if number is None:
            gap = True
            continue
        assert number >= expected, f"{number} came twice or out of order: {seen}"
        while expected < number and expected in lost:
            expected += 1
        assert number == expected or gap, f"a hole before {number} that nothing tells of: {seen}"
        expected, gap = number + 1, False


OPERATIONS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(CHANNELS), st.integers(1, 12)),
    st.tuples(st.just("read"), st.integers(1, 6)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("connect"), st.sampled_from([0, 1, 8]), st.integers(0, PROCESSES - 1)),
    st.tuples(st.just("lose live"), st.integers(0, PROCESSES - 1), st.integers(1, 4)),
    st.tuples(st.just("repeat live"), st.booleans()),
    st.tuples(st.just("say lost")),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("lose log"), st.sampled_from(CHANNELS)),
    st.tuples(st.just("restart"), st.sampled_from(CHANNELS), st.sampled_from([0, 0, 1, 5])),
    st.tuples(st.just("take over"), st.sampled_from(CHANNELS), st.sampled_from([0, 1, 5])),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.2, 3.0, 60.0])),
)


class Story:
    """One interleaving, told operation by operation, with two processes that share a server."""

    def __init__(self, overflow: Overflow, channels: int) -> None:
        self.server = FaultyServer(History(events=8))
        self.brokers = [FaultyBroker(self.server) for _ in range(PROCESSES)]
        self.channels = CHANNELS[:channels]
        self.numbers = dict.fromkeys(CHANNELS, 0)
        self.lost: dict[str, set[int]] = {channel: set() for channel in CHANNELS}
        #: What servers that took over had not got, and how much the client had seen by then.
        self.taken_over: list[tuple[str, set[int], int]] = []
        self.follower: Follower
        self.pushes = [
            LivePush(
                broker,
                lambda request: Grant(channels=self.channels),
                limits=Limits(outbox_events=4, replay_events=6, message_bytes=40, overflow=overflow),
                timing=Timing(linger=1.0, subscribe_timeout=0.5),
                drain=DrainPolicy(window=0.0, signals=False),
            )
            for broker in self.brokers
        ]

    async def tell(self, operations: list[tuple[object, ...]]) -> None:
        async with AsyncExitStack() as stack:
            for push in self.pushes:
                await stack.enter_async_context(push.lifespan())
            # One sends directly, the other by its task, as behind a middleware.
            apps: list[ASGIApp] = [self.pushes[0], behind_a_middleware(self.pushes[1])]
            clients = [await stack.enter_async_context(Client(app, deadline=60)) for app in apps]
            self.follower = follower = Follower(clients)
            await follower.connect(8)
            # From the first event on, which says where it begins, it has a claim to all.
            await follower.read(1)
            for operation in operations:
                await self._do(follower, *operation)
            self.server.away = False
            await let_pass(LONG)
            await follower.read(10_000)
            await follower.connect(8)
            await follower.read(10_000, timeout=LONG)
            await follower.cut()
        for channel in self.channels:
            seen = follower.seen[channel]
            # A gap that is told after the loss is the word of it, if what is left is behind the gap.
            told = [lost for name, lost, since in self.taken_over if name == channel and None in seen[since:]]
            check(seen, self.numbers[channel], self.lost[channel].union(*told))

    async def _do(self, follower: Follower, name: object, *arguments: object) -> None:
        match name, *arguments:
            case "publish", str(channel), int(count):
                for _ in range(count):
                    await self._publish(channel)
            case "read", int(most):
                await follower.read(most)
            case ("cut",):
                await follower.cut()
            case "connect", int(window), int(process):
                await follower.connect(window, process)
            case "pass", float(seconds):
                await let_pass(seconds)
            case _:
                self._harm(name, *arguments)

    def _harm(self, name: object, *arguments: object) -> None:
        match name, *arguments:
            case "lose live", int(process), int(count):
                self.brokers[process].losing = count
            case "repeat live", bool(repeating):
                for broker in self.brokers:
                    broker.repeating = repeating
            case ("say lost",):
                for broker in self.brokers:
                    broker.say_lost()
            case "away", bool(away):
                self.server.away = away
            case "lose log", str(channel):
                self.server.lose_log(channel)
            case "restart", str(channel), int(losing):
                self.lost[channel].update(self._newest(channel, self.server.restart(channel, losing)))
            case "take over", str(channel), int(losing):
                # What it had not got is lost, and whoever has not passed the place yet is told.
                lost = self._newest(channel, self.server.restart(channel, losing, doubtful=True))
                self.taken_over.append((channel, lost, len(self.follower.seen[channel])))
            case _:
                raise AssertionError(name)

    def _newest(self, channel: str, count: int) -> set[int]:
        gone = self.lost[channel].union(*[lost for name, lost, _ in self.taken_over if name == channel])
        left = sorted(set(range(1, self.numbers[channel] + 1)) - gone)
        return set(left[len(left) - count :])

    async def _publish(self, channel: str) -> None:
        try:
            await self.pushes[0].publish(channel, [channel, self.numbers[channel] + 1])
        except BrokerUnavailableError:
            return
        self.numbers[channel] += 1


def run(overflow: Overflow, channels: int, operations: list[tuple[object, ...]]) -> None:
    async def tell() -> None:
        await Story(overflow, channels).tell(operations)

    anyio.run(tell, backend="asyncio", backend_options={"loop_factory": VirtualClockLoop})


#: What was wrong once, each by the sentence that says how.
FOUND: dict[str, tuple[Overflow, int, list[tuple[object, ...]]]] = {
    # A client that history had brought further than the hub got a part twice when the epoch changed.
    "ahead of the hub": (
        "resume",
        1,
        [("publish", "a", 2), ("restart", "a", 1), ("publish", "a", 6), ("restart", "a", 1), ("say lost",)],
    ),
    # The id of the open event was beyond the gap that followed it.
    "cut between the open event and the gap": (
        "drop_oldest",
        1,
        [("cut",), ("publish", "a", 9), ("connect", 0, 1), ("read", 1), ("cut",)],
    ),
    # A page cut to the size of a message had forgotten the earlier epochs.
    "a page cut short": (
        "resume",
        2,
        [("publish", "b", 5), ("read", 2), ("publish", "b", 2), ("restart", "b", 0), ("pass", 60.0)],
    ),
    # A channel that was not there when the stream opened fell out of the cursor.
    "a channel that comes late": (
        "resume",
        2,
        [
            ("publish", "b", 9),
            ("publish", "a", 8),
            ("lose log", "a"),
            ("publish", "b", 7),
            ("cut",),
            ("away", True),
            ("connect", 1, 1),
            ("lose log", "b"),
            ("pass", 0.2),
            ("away", False),
        ],
    ),
    # The gap of a channel that came late went out behind the events that followed it.
    "a gap told late": (
        "drop_oldest",
        1,
        [("publish", "a", 7), ("away", True), ("cut",), ("connect", 8, 1), ("pass", 3.0)],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_wrong_once(name: str) -> None:
    run(*FOUND[name])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("overflow", ["resume", "close", "drop_oldest"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, max_size=40))
def test_contiguous_or_told(overflow: Overflow, channels: int, operations: list[tuple[object, ...]]) -> None:
    run(overflow, channels, operations)
