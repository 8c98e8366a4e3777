"""A client that comes back with its last event id, and its connections, block by block."""

import asyncio
import json
from typing import Any, Protocol

import anyio

from livepush_asgi.runtime.asgi import ASGIApp
from livepush_asgi.testing.exchange import Exchange, http_scope
from livepush_asgi.wire.cursor import Cursor
from livepush_asgi.wire.parser import EventStreamParser, ParsedEvent

from .plan import Plan
from .promise import Ledger, Promise, PromiseBroken

#: How long a request may wait for the start of its response, and an application for its end once the client
#: has gone, in seconds.
DEADLINE = 15.0
#: What the errors say that stories raise on purpose: a server may log them.
WANTED = "as the story wants it"


class World(Protocol):
    """What a client needs of its story."""

    ledgers: dict[str, Ledger]

    def tick(self) -> int:
        """Return a number that grows with all that happens."""
        ...

    def now(self) -> float:
        """Return the virtual time."""
        ...

    def judge_gap(self, connection: "Connection", channel: str, reason: str) -> None:
        """Hear of a gap that a client was told."""
        ...

    def lags(self, connection: "Connection", channel: str) -> bool:
        """Return whether a process may receive an event long after it was published."""
        ...

    def is_over(self, connection: "Connection", tick: int, time: float) -> bool:
        """Return whether the right to a stream had ended by then."""
        ...


class Connection:
    """One request, and what came of it."""

    def __init__(self, app: ASGIApp, process: int, plan: Plan, last_id: str | None) -> None:
        self.process = process
        self.plan = plan
        self.last_id = last_id
        #: When `authorize` was called last, as a tick; None before that.
        self.decided: int | None = None
        #: When the grant ends, in virtual seconds.
        self.expires: float | None = None
        self.status: int | None = None
        self.refused = False
        self.opened = False
        self.resumed = False
        self.cut_at: float | None = None
        self.reason: str | None = None
        #: The claims that hold on this connection alone, from the start of the response to the first id.
        self.floors: dict[str, int] = {}
        #: The last number of each channel that came on this connection.
        self.numbers: dict[str, int] = {}
        #: The snapshot that is being received, and which of its blocks comes next.
        self.snapshot: tuple[int, int] = (-1, 0)
        #: When the last bytes came, in virtual seconds.
        self.heard_at = 0.0
        #: Whether the next id that comes is one behind which a state is owed.
        self.owes = False
        #: Whether a state was had whole here, and a replay follows it.
        self.replays = False
        #: Whether the start of the stream, or a gap, has asked for a state that was not had whole yet.
        self.asked = False
        self.transcript: list[str] = []
        self._exchange = Exchange(window=plan.window, after_disconnect="ignore")
        self._parser = EventStreamParser()
        self._buffer = b""
        scope = http_scope(
            "GET",
            "/",
            root_path="",
            spec_version="2.3",
            headers=(),
            query="",
            cookies={},
            last_event_id=last_id,
        )
        scope["connection"] = self
        self.task = asyncio.get_running_loop().create_task(self._exchange.run(app, scope))

    @property
    def last_event_id(self) -> str:
        return self._parser.last_event_id

    @property
    def started(self) -> bool:
        """Whether the application has begun a stream, though the client may not have heard of it."""
        start, *rest = self._exchange.messages[:2] or [{}]
        # A soft refusal is a response with status 200, too.
        refused = any(b"event: livepush.refused" in message["body"] for message in rest)
        return start.get("status") == 200 and not refused

    @property
    def streaming(self) -> bool:
        """Whether the application is at work on a stream: it has sent more than the start, not the end."""
        messages = self._exchange.messages
        begun = self.started and len(messages) > 1 and messages[-1]["more_body"]
        return begun and not self.refused and not self.task.done()

    @property
    def sent(self) -> int:
        """How many messages the application has sent, taken or not."""
        return len(self._exchange.messages)

    @property
    def state(self) -> bool:
        return self.plan.snapshot is not None

    async def take(self, timeout: float) -> bytes | None:
        """Return the next block, b"" after `timeout` seconds without one, None at the end."""
        with anyio.move_on_after(timeout):
            while b"\n\n" not in self._buffer:
                message = await self._exchange.take()
                if message is None:
                    await self.settle()
                    return None
                self.heard_at = asyncio.get_running_loop().time()
                if self.status is None:
                    self.status = message["status"]
                    return b""
                self._buffer += message.get("body", b"")
            block, _, self._buffer = self._buffer.partition(b"\n\n")
            return block + b"\n\n"
        return b""

    def parse(self, block: bytes) -> list[ParsedEvent]:
        return self._parser.feed(block)

    def leave(self, *, in_the_middle: bool) -> None:
        """Disconnect, after half of what has come and was not looked at if that is wanted."""
        if in_the_middle and len(self._buffer) > 1:
            half = self._buffer.partition(b"\n\n")[0]
            self.parse(half[: max(1, len(half) // 2)])
        self.cut_at = asyncio.get_running_loop().time()
        self._exchange.leave()

    async def settle(self) -> None:
        """Wait for the application to return, and raise what it should not have raised."""
        try:
            await self._exchange.settle(DEADLINE)
        except RuntimeError as error:
            if WANTED not in str(error):
                raise


class Client:
    """Somebody who reads, is cut off and comes back."""

    def __init__(self, world: World, number: int, *, latest: bool) -> None:
        self.number = number
        self.promise = Promise(world.ledgers, latest=latest)
        self.last_id: str | None = None
        #: Whether the last id is one of the component's, and not of a publisher's own.
        self.known = False
        #: The channels that the stream of the last id was granted: the id has a position in each.
        self.known_channels: tuple[str, ...] = ()
        self.connection: Connection | None = None
        self.connections: list[Connection] = []
        #: What it was granted last.
        self.plan = Plan()
        self.gaps = 0
        self._world = world

    @property
    def channels(self) -> tuple[str, ...]:
        """What its stream is granted."""
        return () if self.connection is None else self.connection.plan.channels

    def connect(self, app: ASGIApp, process: int, plan: Plan) -> None:
        if self.connection is None:
            self.connection = Connection(app, process, plan, self.last_id)
            self.connections.append(self.connection)

    def cut(self, *, in_the_middle: bool = False) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        connection.leave(in_the_middle=in_the_middle)
        if connection.started and not connection.opened and not connection.refused:
            # A stream was granted, and the client has not heard of it. Its claim to channels that the stream
            # was not granted ends all the same.
            self._open(connection)
        if connection.opened and not connection.plan.control:
            self._tell_all(connection)

    def forget(self) -> None:
        self.cut()
        self.last_id, self.known, self.known_channels = None, False, ()
        self.promise.forget()

    async def read(self, blocks: int, quiet: float = 1.0) -> None:
        """Read so many blocks, or until nothing has come for `quiet` seconds; 0 is the response's start."""
        while self.connection is not None and (blocks or self.connection.status is None):
            connection, started = self.connection, self.connection.status
            block = await connection.take(quiet if started is not None else max(quiet, 0.5))
            if block is None:
                self._ended(connection)
                return
            if connection.status is not None and started is None:
                self._response_started(connection)
                continue
            if not block:
                return
            blocks -= 1
            events = connection.parse(block)
            if not events and connection.last_event_id not in ("", self.last_id):
                # A block without data: a browser takes the id of it and dispatches nothing.
                connection.transcript.append(f"[{connection.last_event_id}]")
                self._begin(connection)
                self._take_id(connection, connection.last_event_id)
            for event in events:
                connection.transcript.append(_short(event))
                self._take(connection, event)

    def _response_started(self, connection: Connection) -> None:
        if connection.status != 200:
            connection.refused = True
            return
        # The response starts when the stream listens: what is published from now on is for it.
        connection.floors = {
            channel: self._floor(channel, connection) for channel in connection.plan.channels
        }

    def _floor(self, channel: str, connection: Connection) -> int:
        ledger = self._world.ledgers[channel]
        is_new = connection.last_id is None or channel not in self.known_channels
        return ledger.before_log if is_new and connection.plan.replay == "all" else ledger.count

    def _open(self, connection: Connection) -> None:
        connection.opened = True
        self.plan = connection.plan
        self.promise.open(
            connection.plan.channels,
            known=self.known and connection.last_id is not None,
            mute=not connection.plan.control,
        )
        if not connection.state:
            # This client has no state to replace, so a gap tells it enough.
            self.promise.owed = False
            for claim in self.promise.claims.values():
                claim.missing.clear()
                claim.gap_owes = False

    def _ended(self, connection: Connection) -> None:
        self.connection = None
        if connection.opened and not connection.plan.control:
            self._tell_all(connection)
            cursor = Cursor.parse(connection.last_id or "")
            for channel in connection.plan.channels:
                if cursor is not None and cursor.knows(channel) and not cursor.positions_in(channel):
                    # It came without a place in the channel, and is told of all that it may have missed.
                    self.promise.claims[channel].gap_tick = self._world.tick()

    def _tell_all(self, connection: Connection) -> None:
        for channel in connection.plan.channels:
            claim = self.promise.claims[channel]
            claim.gap, claim.gap_owes = True, False

    def _begin(self, connection: Connection) -> None:
        if not connection.opened:
            self._open(connection)

    def _take(self, connection: Connection, event: ParsedEvent) -> None:
        if event.event == "livepush.refused":
            connection.refused = True
            return
        if not connection.opened and connection.plan.control and event.event != "livepush.open":
            raise PromiseBroken(f"a stream begins with {event.event}, and not with livepush.open")
        self._begin(connection)
        if event.event.startswith("livepush.") and not connection.plan.control:
            raise PromiseBroken(f"{event.event} on a stream without control events")
        if event.event == "livepush.open":
            self._take_open(connection, json.loads(event.data))
        elif event.event == "livepush.gap":
            self._take_gap(connection, json.loads(event.data))
        self._take_id(connection, event.id)
        match event.event:
            case "livepush.open" | "livepush.gap":
                pass
            case "livepush.close":
                connection.reason = json.loads(event.data)["reason"]
            case "state":
                self._take_state(connection, json.loads(event.data))
            case _:
                self._take_event(connection, *json.loads(event.data))

    def _take_id(self, connection: Connection, id: str | None) -> None:
        if id is None:
            return
        if not id:
            raise PromiseBroken("an empty id has made the client forget its place")
        self.last_id, self.known = id, not id.startswith("own")
        self.known_channels = connection.plan.channels if self.known else ()
        if connection.owes:
            # With an older id the client would get all that is missing, and need no state.
            connection.owes, self.promise.owed = False, True
        for channel in connection.plan.channels:
            # The events that come with the id itself are part of the claim.
            self.promise.start(channel, connection.floors[channel])

    def _take_open(self, connection: Connection, data: dict[str, Any]) -> None:
        connection.resumed = data["resumed"]
        if connection.resumed and connection.last_id is None:
            raise PromiseBroken("resumed, though the client has brought no id")
        if not connection.state:
            return
        if connection.resumed:
            self.promise.check_state(connection.plan.channels, "and it was told that it has resumed")
        else:
            connection.owes = connection.asked = True

    def _take_gap(self, connection: Connection, data: dict[str, Any]) -> None:
        channel, reason = data["channel"], data["reason"]
        if channel not in connection.plan.channels:
            raise PromiseBroken(f"a gap of {channel}, which was not granted")
        self.gaps += 1
        self.promise.gap(channel, self._world.tick(), owes=connection.state)
        connection.asked = connection.state
        # Events that are missing in a replay may be in the state.
        connection.owes = connection.state and not connection.replays
        self._world.judge_gap(connection, channel, reason)

    def _take_state(self, connection: Connection, data: dict[str, Any]) -> None:
        number, block, called = data["snapshot"], data["block"], data["called"]
        if not connection.asked and connection.plan.control:
            raise PromiseBroken(f"snapshot {number} came, and nothing has asked for it")
        if (number, block) != connection.snapshot and block:
            raise PromiseBroken(f"block {block} of snapshot {number} came after {connection.snapshot}")
        connection.snapshot = number, block + 1
        if self._world.is_over(connection, *data["returned"]):
            raise PromiseBroken(
                "the state was sent, though the right to the stream had ended before it was read"
            )
        if not block:
            self._check_nothing_newer(connection, called)
        if block + 1 == data["blocks"]:
            connection.owes = connection.asked = False
            connection.replays = connection.plan.replay != "new"
            channels = connection.plan.channels
            # An event that comes late to this process may come again in another one.
            late = any(self._world.lags(connection, channel) for channel in channels)
            replaces = connection.plan.replay == "new" and not late
            self.promise.state(channels, called, replaces=replaces)

    def _check_nothing_newer(self, connection: Connection, called: int) -> None:
        for channel, number in connection.numbers.items():
            if self._world.ledgers[channel].of(number).written > called:
                raise PromiseBroken(f"{channel} {number} came before the state, which has it not")

    def _take_event(self, connection: Connection, channel: str, number: object) -> None:
        if not isinstance(number, int):
            raise PromiseBroken(f"what was published past the log of {channel} was delivered")
        if channel not in connection.plan.channels:
            raise PromiseBroken(f"an event of {channel}, which was not granted")
        event = self._world.ledgers[channel].of(number)
        if self._world.is_over(connection, event.tick, event.time):
            raise PromiseBroken(
                f"{channel} {number} was published after the right to the stream had ended, and came"
            )
        connection.numbers[channel] = number
        lags = self._world.lags(connection, channel)
        self.promise.event(channel, number, connection.floors.get(channel), lags=lags)


def _short(event: ParsedEvent) -> str:
    name = "" if event.event == "message" else f"{event.event.removeprefix('livepush.')}: "
    return f"{name}{event.data}" + ("" if event.id is None else f" [{event.id}]")
