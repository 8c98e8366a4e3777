"""Story: tells one, operation by operation, and raises PromiseBroken where the promise was not kept."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import anyio

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    Event,
    Grant,
    InvalidEventError,
    Limits,
    LivePush,
    MemorySlotCap,
    Timing,
)
from livepush_asgi.brokers import HistoryBroker
from livepush_asgi.brokers.history import History
from livepush_asgi.grant import StreamRequest
from livepush_asgi.runtime.asgi import ASGIApp
from livepush_asgi.wire.event import RESERVED_PREFIX

from ..around import behind_a_middleware
from ..faulty_broker import FaultyBroker, FaultyServer, WrappedBroker
from ..virtual_clock import VirtualClockLoop
from .client import DEADLINE, WANTED, Client, Connection
from .plan import CHANNELS, Operation, Plan, Setup
from .promise import Fate, Ledger, PromiseBroken, Published
from .subscriber import subscriber_app

#: Longer than the component lets a channel look quiet twice, so that whatever was lost has been noticed.
LONG = 100.0
#: Longer than the component waits before it tries again what has failed.
RECOVERY = 12.0
SEND_TIMEOUT = 5.0
HEARTBEAT = 15.0
#: How late a timer may be, in seconds.
LATE = 0.2
#: More turns of the event loop than any operation needs.
TURNS = 30_000
#: More turns than an application needs to return once its stream is closed.
RETURNING = 10
EPOCH = 1_800_000_000.0


class SlowSlots(MemorySlotCap):
    """A cap that needs its time."""

    delay = 0.0

    async def acquire_lease(self, *arguments: Any, **named: Any) -> Any:
        if self.delay:
            await anyio.sleep(self.delay)
        return await super().acquire_lease(*arguments, **named)


@dataclass
class Revocation:
    """One call of `disconnect`."""

    slot_key: str | None
    channel: str | None
    called: int
    #: The processes that could not be reached when it was called.
    deaf: frozenset[int]
    returned: tuple[int, float] | None = None

    def means(self, connection: Connection) -> bool:
        """Return whether the connection is open on a decision that was made before the call."""
        plan, decided = connection.plan, connection.decided
        return (
            decided is not None
            and decided < self.called
            and not plan.subscriber
            and self.slot_key in (None, plan.slot)
            and (self.channel is None or self.channel in plan.channels)
        )


@dataclass
class Outcome:
    """What is counted."""

    gaps: int = 0
    events: int = 0
    streams: int = 0
    resumed: int = 0
    ends: dict[str, int] = field(default_factory=dict)


class Story:
    """The world that operations change: processes, a server, clients."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.server = FaultyServer(History(events=setup.history, age=None))
        self.brokers = [FaultyBroker(self.server) for _ in range(setup.processes)]
        for process in setup.together:
            self.brokers[process].together = True
        self.ledgers = {channel: Ledger() for channel in CHANNELS}
        self.clients = [
            Client(self, number, latest=setup.overflow == "latest") for number in range(setup.clients)
        ]
        self.revocations: list[Revocation] = []
        #: The channels in which something went wrong that a gap may tell of.
        self.harmed: set[str] = set()
        #: The channels whose events may have come late to a process.
        self.late: set[str] = set()
        self.snapshots = 0
        self.calm = asyncio.Event()
        self.slots = self._make_slots()
        self.pushes = [self._make_push(process) for process in range(setup.processes)]
        self.running = [True] * setup.processes
        self._stops: dict[int, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        #: Until when a process may not have heard a command, in virtual seconds.
        self._deaf_until = [0.0] * setup.processes
        #: The processes that refuse new streams until they are started again.
        self._drained: set[int] = set()
        self._ids = 0
        self._ticks = 0
        self._returned_id: str | None = None

    def tick(self) -> int:
        self._ticks += 1
        return self._ticks

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # What clients ask.

    def lags(self, connection: Connection, channel: str) -> bool:
        process, setup = connection.process, self.setup
        return channel in self.late or process in setup.wrapped or process in setup.together

    def is_over(self, connection: Connection, tick: int, time: float) -> bool:
        if connection.expires is not None and time > connection.expires + LATE:
            return True
        return any(
            revocation.returned is not None
            and tick > revocation.returned[0]
            and connection.process not in revocation.deaf
            and revocation.means(connection)
            for revocation in self.revocations
        )

    def judge_gap(self, connection: Connection, channel: str, reason: str) -> None:
        """Raise for a gap where nothing was, or could have been, missed and nothing was faulty."""
        setup, count = self.setup, self.ledgers[channel].count
        foreign = connection.last_id is not None and connection.last_id.startswith("own")
        trimmed = count > min(setup.history, setup.replay_events)
        overflown = setup.overflow == "drop_oldest"
        if channel in self.harmed or foreign or trimmed or overflown:
            return
        raise PromiseBroken(f"a false gap of {channel} ({reason}): nothing was missed and nothing was faulty")

    # The operations.

    async def do(self, operation: Operation) -> None:
        match operation:
            case ("publish", str(channel), int(count), int(process), str(how)):
                for _ in range(count):
                    await self._publish(channel, process, how)
            case ("connect", int(client), int(process), Plan() as plan):
                if self.clients[client].connection is None:
                    self._connect(self.clients[client], process, plan)
            case ("read", int(client), int(blocks)):
                await self.clients[client].read(blocks)
            case ("listen", int(client)):
                await self._listen(self.clients[client])
            case ("cut", int(client), bool(in_the_middle)):
                self.clients[client].cut(in_the_middle=in_the_middle)
            case ("forget", int(client)):
                self.clients[client].forget()
            case ("turns", int(count)):
                for _ in range(count):
                    await asyncio.sleep(0)
            case ("pass", float(seconds)):
                await asyncio.sleep(seconds)
            case ("disconnect", int(process), slot_key, channel):
                self._start(self._disconnect(process, slot_key, channel))
            case ("stop", int(process)):
                self._stop(process)
            case ("start", int(process)):
                await self._restart(process)
            case ("drain", int(process)):
                if self.running[process]:
                    self._drained.add(process)
                    self._start(self.pushes[process].drain())
            case _:
                self._harm(operation)

    def _harm(self, operation: Operation) -> None:
        match operation:
            case ("fault", str(name), int(process), str(channel), value):
                setattr(self.brokers[process].faults[channel], name, value)
                if channel != RESERVED_PREFIX:
                    self.harmed.add(channel)
                    if name not in ("append", "append_unheard", "repeating"):
                        self.late.add(channel)
            case ("heal", int(process)):
                self._heal(process)
            case ("say lost", int(process)):
                self.brokers[process].say_lost()
            case ("away", bool(away)):
                self._reach(away=away)
            case ("calm",):
                self.calm.set()
            case ("lose log", str(channel)):
                self.harmed.add(channel)
                self.server.lose_log(channel)
                self.ledgers[channel].lose_log()
            case (("restart" | "take over") as what, str(channel), int(losing)):
                self.harmed.add(channel)
                fate = Fate.FORGOTTEN if what == "restart" else Fate.DOUBTFUL
                # The tick is that of the loss: what is told later is told after it.
                tick = self.tick()
                lost = self.server.restart(channel, losing, doubtful=what == "take over")
                self.ledgers[channel].lose(lost, fate, tick)
            case _:
                raise ValueError(f"no operation: {operation}")

    # Publishing.

    async def _publish(self, channel: str, process: int, how: str) -> None:
        push, ledger = self.pushes[process], self.ledgers[channel]
        number = ledger.count + 1
        if how == "past":
            self.brokers[process].publish_past_the_log(channel, b'["%s","past"]' % channel.encode())
            return
        if how in ("empty id", "cursor id", "position id"):
            await self._publish_badly(channel, process, how)
            return
        name = {"x": "x", "y": "y"}.get(how)
        event: dict[str, Any] = {"event": name}
        if how == "own id":
            self._ids += 1
            event["id"] = f"own-{self._ids}"
        elif how == "retry":
            event["retry"] = 2000
        # An application writes its state, and then it publishes.
        written = self.tick()
        published = Published(written, self.now(), name or "message", written=written)
        try:
            returned = await push.publish(channel, [channel, number], **event)
        except BrokerUnavailableError:
            if not self.brokers[process].faults[channel].append_unheard or self.server.away:
                return
            published.fate = Fate.UNCERTAIN
        else:
            self._returned_id = self._returned_id if how == "own id" else returned
        published.tick = self.tick()
        ledger.add(published)

    async def _publish_badly(self, channel: str, process: int, how: str) -> None:
        seen = [client.last_id for client in self.clients if client.known and client.last_id]
        bad = {"empty id": "", "cursor id": seen[0] if seen else None, "position id": self._returned_id}[how]
        if bad is None:
            return
        try:
            Event([channel, 0], id=bad)
            await self.pushes[process].publish(channel, [channel, "past"], id=bad)
        except (InvalidEventError, BrokerUnavailableError):
            return
        raise PromiseBroken(f"an event was published with {how!r} as its own")

    # Authorizing.

    def _authorize(self, request: StreamRequest) -> Grant | Awaitable[Grant]:
        connection = cast("Connection", request.scope["connection"])
        connection.decided = self.tick()
        delay = connection.plan.authorize
        if delay is None:
            raise RuntimeError(f"authorize raises, {WANTED}")
        return self._decide_late(connection, delay) if delay else self._grant(connection)

    async def _decide_late(self, connection: Connection, delay: float) -> Grant:
        await asyncio.sleep(delay)
        return self._grant(connection)

    def _grant(self, connection: Connection) -> Grant:
        plan = connection.plan
        expires_at = None
        if plan.expires is not None:
            connection.expires = self.now() + plan.expires
            expires_at = EPOCH + connection.expires
        return Grant(
            channels=plan.channels,
            slot_key=plan.slot,
            expires_at=expires_at,
            control_events=plan.control,
            replay=plan.replay,
            snapshot=None if plan.snapshot is None else lambda: self._snapshot(plan),
        )

    def _snapshot(self, plan: Plan) -> object:
        self.snapshots += 1
        called = self.tick()
        if self.calm.is_set() or plan.snapshot == "sync":
            return self._blocks(plan, called, self.snapshots)
        if plan.snapshot == "raises":
            raise RuntimeError(f"the snapshot raises, {WANTED}")
        return self._snapshot_late(plan, called, self.snapshots)

    async def _snapshot_late(self, plan: Plan, called: int, number: int) -> object:
        if plan.snapshot == "hangs":
            await self.calm.wait()
        else:
            await asyncio.sleep(1.0)
        return self._blocks(plan, called, number)

    def _blocks(self, plan: Plan, called: int, number: int) -> list[Event]:
        returned = self.tick(), self.now()
        data = {"snapshot": number, "blocks": plan.blocks, "called": called, "returned": returned}
        return [Event({**data, "block": block}, event="state") for block in range(plan.blocks)]

    # Ending what is open.

    async def _disconnect(self, process: int, slot_key: str | None, channel: str | None) -> None:
        deaf = frozenset(number for number in range(self.setup.processes) if self._is_deaf(number))
        revocation = Revocation(slot_key, channel, self.tick(), deaf)
        self.revocations.append(revocation)
        try:
            await self.pushes[process].disconnect(slot_key=slot_key, channel=channel)
        except BrokerUnavailableError:
            self.revocations.remove(revocation)
            return
        late = frozenset(number for number in range(self.setup.processes) if self._is_deaf(number))
        revocation.deaf |= late
        revocation.returned = self.tick(), self.now()

    def _is_deaf(self, process: int) -> bool:
        if self.server.away:
            return True
        faults = self.brokers[process].faults[RESERVED_PREFIX]
        return faults.cut or faults.subscribe or faults.append or self.now() < self._deaf_until[process]

    def _stop(self, process: int) -> None:
        if self.running[process]:
            self.running[process] = False
            self._stops[process] = asyncio.get_running_loop().create_task(self.pushes[process].stop())

    async def _restart(self, process: int) -> None:
        if not self.running[process]:
            async with asyncio.timeout(DEADLINE):
                await self._stops.pop(process)
            await self.pushes[process].start()
            self.running[process] = True
            self._drained.discard(process)

    # The end.

    async def finish(self) -> None:
        """Heal all, have every client read what is left, and see that all was kept and nothing is left."""
        self._reach(away=False)
        for process in range(self.setup.processes):
            self._heal(process)
            if process in self._drained:
                self._stop(process)
            await self._restart(process)
        self.calm.set()
        self.slots_are_free()
        await self._read_all()
        await asyncio.sleep(LONG if self.setup.quiet_end else RECOVERY)
        await self._read_all()
        self._check_endings()
        for client in self.clients:
            await self._come_back(client)
        if not self.setup.quiet_end:
            for channel in sorted({name for client in self.clients for name in client.channels}):
                await self._publish_last(channel)
                await self._read_all()
        for client in self.clients:
            await client.read(100_000)
            # Without control events each gap is told by the end of a stream.
            for _ in range(12):
                if client.connection is None:
                    await self._come_back(client)
            self._check_all_came(client)
            client.cut()
        await self._leave_nothing()

    def slots_are_free(self) -> None:
        if self.slots is not None:
            self.slots.delay = 0.0

    async def _read_all(self) -> None:
        for client in self.clients:
            await client.read(100_000)

    async def _come_back(self, client: Client) -> None:
        """Connect a client once more if it is not, and have it read."""
        if client.connection is None:
            plan = replace(
                client.plan,
                snapshot=client.plan.snapshot and "sync",
                slot=None,
                expires=None,
                authorize=0.0,
                window=64.0,
            )
            process = (self.setup.seed + client.number) % self.setup.processes
            self._connect(client, process, plan)
        await client.read(100_000)

    async def _publish_last(self, channel: str) -> None:
        before = self.ledgers[channel].count
        await self._publish(channel, 0, "plain")
        if self.ledgers[channel].count == before:
            raise PromiseBroken(f"nothing is wrong any more, and {channel} cannot be published to")

    def _check_all_came(self, client: Client) -> None:
        connection = client.connection
        if connection is None:
            raise PromiseBroken("nothing is wrong any more, and the client is not left a stream")
        if connection.status is None:
            raise PromiseBroken("nothing is wrong any more, and the response does not start")
        promise = client.promise
        for channel in connection.plan.channels:
            promise.end(channel)
            # Nothing is wrong any more: the newest event has to come, a gap is not enough.
            # Not for a stream that came after it, which may begin behind it.
            claim, ledger = promise.claims[channel], self.ledgers[channel]
            here = ledger.count and (connection.decided or 0) < ledger.of(ledger.count).tick
            here = here and not promise.has(channel, ledger.count)
            if here and claim.last < ledger.count and not self.setup.quiet_end:
                raise PromiseBroken(
                    f"{channel} {ledger.count} does not come, though nothing is wrong any more"
                )
        if connection.state and connection.plan.control:
            promise.check_state(connection.plan.channels, "at the end")

    def _check_endings(self) -> None:
        for client in self.clients:
            for connection in client.connections:
                self._check_ending(connection)

    def _check_ending(self, connection: Connection) -> None:
        late = connection.cut_at is not None and self.now() > connection.cut_at + DEADLINE
        if late and not connection.task.done():
            raise PromiseBroken(f"{DEADLINE} s after the client had left the application was still at it")
        if not connection.streaming:
            return
        self._check_expiry(connection)
        for revocation in self.revocations:
            # A process that had not heard of it has had time to.
            if revocation.returned is not None and revocation.means(connection):
                deaf = connection.process in revocation.deaf
                why = "a process that can hear again" if deaf else "a process that could be reached"
                raise PromiseBroken(f"the stream is open in {why}, though it was revoked")

    def _check_expiry(self, connection: Connection) -> None:
        # A stream in the middle of a send ends when its client has taken that, or after the send timeout.
        over = connection.expires is not None and self.now() > connection.expires + SEND_TIMEOUT + 1
        if over and connection.streaming:
            raise PromiseBroken("the stream is open, though its grant has expired")

    async def check_now(self) -> None:
        """Check what has to hold all the time."""
        for client in self.clients:
            for connection in client.connections:
                self._check_expiry(connection)
        if self.slots is not None and not self.setup.replace:
            for key in ("one", "two"):
                await self._check_cap(key, self.slots.cap)

    async def _check_cap(self, key: str, cap: int) -> None:
        connections = self._open_streams(key)
        if len(connections) <= cap:
            return
        # A slot is free as soon as the component closes a stream whose client takes nothing. The application
        # then has yet to return, and may send nothing more.
        sent = [connection.sent for connection in connections]
        for _ in range(RETURNING):
            await asyncio.sleep(0)
        left = self._open_streams(key)
        open_ = sum(
            connection in left or connection.sent > before
            for connection, before in zip(connections, sent, strict=True)
        )
        if open_ > cap:
            raise PromiseBroken(f"{open_} streams of {key} are open at a cap of {cap}")

    def _open_streams(self, key: str) -> list[Connection]:
        # A client that has just left may leave its application at work for a moment.
        return [
            connection
            for client in self.clients
            for connection in client.connections
            if connection.streaming
            and connection.plan.slot == key
            and (connection.cut_at is None or self.now() > connection.cut_at + 1)
        ]

    async def _leave_nothing(self) -> None:
        for client in self.clients:
            for connection in client.connections:
                await connection.settle()
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*self._tasks)
            await asyncio.gather(*(push.stop() for push in self.pushes))
        await asyncio.sleep(0.5)
        for process, push in enumerate(self.pushes):
            numbers = push.statistics()
            if numbers["streams"] or numbers["channels"]:
                raise PromiseBroken(f"streams or channels are left in process {process}: {numbers}")
            if left := self.brokers[process].subscriptions:
                raise PromiseBroken(f"subscriptions are left in process {process}: {left}")
        if self.slots is not None and (held := [k for k in ("one", "two") if self.slots.held(k)]):
            raise PromiseBroken(f"slots are left: {held}")
        if left_over := asyncio.all_tasks() - {asyncio.current_task()}:
            raise PromiseBroken(f"tasks are left: {[task.get_name() for task in left_over]}")

    # Help.

    async def _listen(self, client: Client) -> None:
        """Read for a while, and see that the stream shows that it is alive."""
        connection = client.connection
        if connection is None or connection.status is None or connection.refused:
            return
        if connection.plan.subscriber:
            return
        begun = self.now()
        while client.connection is connection and self.now() < begun + 2.5 * HEARTBEAT:
            await client.read(100_000)
        if client.connection is connection and connection.heard_at < begun:
            raise PromiseBroken(f"the stream was silent for {2.5 * HEARTBEAT} s")

    def _start(self, work: Coroutine[Any, Any, Any]) -> None:
        async def run() -> None:
            await work

        self._tasks.append(asyncio.get_running_loop().create_task(run()))

    def _heal(self, process: int) -> None:
        faults = self.brokers[process].faults[RESERVED_PREFIX]
        if faults.cut or faults.subscribe or faults.append:
            self._deaf_until[process] = self.now() + RECOVERY
        self.brokers[process].heal()

    def _reach(self, *, away: bool) -> None:
        if self.server.away and not away:
            self._deaf_until = [self.now() + RECOVERY] * self.setup.processes
        self.server.away = away
        if away:
            self.harmed.update(CHANNELS)
            self.late.update(CHANNELS)

    def _connect(self, client: Client, process: int, plan: Plan) -> None:
        client.connect(self._app(process, plan), process, plan)
        if plan.subscriber and client.connection is not None:
            client.connection.decided = self.tick()

    def _app(self, process: int, plan: Plan) -> ASGIApp:
        push = self.pushes[process]
        if plan.subscriber:
            return subscriber_app(push, plan)
        return behind_a_middleware(push) if process in self.setup.behind else push

    def _make_slots(self) -> SlowSlots | None:
        if self.setup.cap is None:
            return None
        slots = SlowSlots(self.setup.cap, on_full="replace_oldest" if self.setup.replace else "refuse")
        slots.delay = self.setup.slot_delay
        return slots

    def _make_push(self, process: int) -> LivePush:
        setup = self.setup
        broker: HistoryBroker = self.brokers[process]
        if process in setup.wrapped:
            broker = WrappedBroker(self.brokers[process])
        return LivePush(
            broker,
            self._authorize,
            slots=self.slots,
            limits=Limits(
                outbox_events=setup.outbox_events,
                message_bytes=setup.message_bytes,
                replay_events=setup.replay_events,
                overflow=setup.overflow,
            ),
            timing=Timing(
                heartbeat_interval=HEARTBEAT,
                send_timeout=SEND_TIMEOUT,
                subscribe_timeout=0.5,
                linger=setup.linger,
            ),
            drain=DrainPolicy(window=0.5, signals=False),
        )


class Complaints(logging.Handler):
    """Keeps what the component logs that it should not have to."""

    SIGNS = ("a defect of livepush_asgi", "a timed call raised", "cannot handle a message")

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if any(sign in record.msg for sign in self.SIGNS):
            self.heard.append(f"{record.getMessage()} ({record.exc_info and record.exc_info[1]!r})")


def transcript(story: Story) -> str:
    """Return what the clients saw."""
    lines = []
    for client in story.clients:
        for connection in client.connections:
            lines.append(
                f"client {client.number} at process {connection.process} with {connection.last_id!r}: "
                f"{connection.status}, {connection.plan!r}"
            )
            lines += [f"    {line}" for line in connection.transcript]
    return "\n".join(lines)


def tell(setup: Setup, operations: list[Operation], stories: list[Story] | None = None) -> None:
    """Tell a story. Raises PromiseBroken, or whatever should not have been raised."""
    complaints, unhandled = Complaints(), list[str]()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        loop.set_exception_handler(lambda _, context: unhandled.append(str(context)))
        story = Story(setup)
        if stories is not None:
            stories.append(story)
        async with asyncio.timeout(3600):
            for push in story.pushes:
                await push.start()
            for operation in operations:
                loop.bound(TURNS)
                await story.do(operation)
                await story.check_now()
            loop.bound(TURNS)
            await story.finish()

    random.seed(setup.seed)
    logger = logging.getLogger("livepush_asgi")
    with (
        _quiet(logger, complaints),
        asyncio.Runner(loop_factory=VirtualClockLoop) as runner,
        _virtual_time(runner.get_loop()),
    ):
        runner.run(run())
    if complaints.heard or unhandled:
        raise PromiseBroken(f"the component complains: {[*complaints.heard, *unhandled]}")


@contextmanager
def _quiet(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


@contextmanager
def _virtual_time(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have the calendar go with the virtual clock, for grants that expire."""
    calendar = time.time
    time.time = lambda: EPOCH + loop.time()
    try:
        yield
    finally:
        time.time = calendar
