"""Revoker: ends the streams whose grant was taken back, here and in every other process."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ..brokers import Broker
from ..grant import StreamRequest
from ..hub.hub import Hub
from ..runtime.event_loop import now, spawn
from ..slots import Lease
from ..stream.stream import Stream
from ..wire.event import COMMAND_CHANNEL, REPLY_CHANNEL
from ..wire.reasons import EndReason
from .commands import (
    Arguments,
    Call,
    MessageListener,
    confirm,
    new_process,
    tell,
    tell_revocation,
    unavailable_after,
)
from .open_streams import Ending, OpenStreams
from .review import Review
from .revocation import Disconnected, Revocation, RevocationLog

logger = logging.getLogger("livepush_asgi")

# How long the process waits for its own command, in seconds, before it ends its streams without it.
ECHO_TIMEOUT = 1.0
# How long saying goodbye may take at the end, in seconds, when the broker does not answer.
LEAVE_TIMEOUT = 0.5
# At most so many processes are remembered. The next revocation forgets those that crashed.
MOST_KNOWN = 1000


class Revoker:
    """The revocations of one run: it sends commands, obeys those of other processes, and confirms them."""

    def __init__(
        self,
        broker: Broker,
        hub: Hub,
        tasks: TaskGroup,
        streams: OpenStreams,
        review: Review,
        subscribe_timeout: float,
    ) -> None:
        #: What has been revoked lately. A decision that was begun before has to look there.
        self.log = RevocationLog()
        #: Whether the command channel is, or once was, subscribed.
        self.listening = False
        self._broker = broker
        self._hub = hub
        self._tasks = tasks
        self._streams = streams
        self._subscribe_timeout = subscribe_timeout
        self._review = review
        # There no command is lost. Keeping the request costs 0.75 KiB for each stream.
        self._in_process = getattr(broker, "in_process", False)
        self._process = new_process()
        self._known: set[str] = set()
        # The calls that wait for confirmations, and for their own commands to come back.
        self._calls: dict[str, Call] = {}
        self._echoes: dict[str, _Echo] = {}
        self._attached = False
        # Whether the last replaced slot could not be announced.
        self._untold = False
        self._commands = MessageListener(self._obey, self._subscribed, self._lost)
        self._replies = MessageListener(self._hear_reply)

    async def listen(self) -> None:
        """Return when commands are heard, or when it is clear that they are not for now."""
        if not self.listening:
            self._attach()
            await self._attempted(COMMAND_CHANNEL)

    def opened(self, stream: Stream, request: StreamRequest | None) -> None:
        """Take note of an open stream, and of the request by which it can be authorized again."""
        if request is not None and not self._in_process:
            self._review.keep(stream, request)

    async def revoke(self, revocation: Revocation, timeout: float) -> Disconnected:
        """End the matching streams in every process; wait for confirmations, at most `timeout` seconds.

        The streams of this process end when its own command has come back, behind what was published before
        it: at once where this process hears no commands or cannot send them, and after ECHO_TIMEOUT whatever
        the broker does. They end also when the caller is cancelled. Raises BrokerUnavailableError if the
        other processes cannot be told.
        """
        deadline = now() + timeout
        self.log.add(revocation)
        call, echo = Call({self._process, *self._known}), _Echo()
        self._calls[call.id], self._echoes[call.id] = call, echo
        # A task of the loop: the caller may be cancelled, the run may end, and the broker may hang.
        spawn(partial(self._end_here, revocation, echo), "livepush revocation")
        try:
            async with self._hearing_replies(timeout):
                try:
                    with unavailable_after(deadline - now()):
                        count = await tell_revocation(self._broker, revocation, call.id, self._process)
                except Exception:
                    echo.heard.set()
                    await echo.closed.wait()
                    raise
                call.expect(count, itself=self.listening)
                if self.listening:
                    # In memory it is there already.
                    self._hub.flush()
                    self._commands.catch_up()
                    with anyio.move_on_after(min(ECHO_TIMEOUT, timeout)):
                        await echo.heard.wait()
                echo.heard.set()
                await echo.closed.wait()
                call.confirm(self._process)
                await call.wait(deadline - now())
        finally:
            del self._calls[call.id], self._echoes[call.id]
            echo.heard.set()
        # A process that did not confirm is not waited for again, until it is heard of.
        self._known = (self._known | call.confirmed) - call.missing - {self._process}
        return Disconnected(echo.count, len(call.confirmed))

    async def tell_replaced(self, lease: Lease) -> None:
        """Tell every process that streams have lost their slots. Never raises for a broker that is away."""
        try:
            await tell(self._broker, "replaced", leases=list(lease.replaced), slot_key=lease.slot_key)
        except Exception as error:
            # The processes that hold those slots learn it at their next renewal.
            if not self._untold:
                self._untold = True
                logger.warning(
                    "cannot announce that a slot was replaced (logged once until it works again): %s", error
                )
        else:
            self._untold = False

    async def leave(self) -> None:
        """Tell the other processes not to wait for confirmations from this one."""
        if self.listening:
            with anyio.move_on_after(LEAVE_TIMEOUT):
                await self._announce("bye")

    async def _announce(self, what: str) -> None:
        try:
            await tell(self._broker, what, process=self._process)
        except Exception as error:
            logger.debug("cannot announce this process: %s", error)

    def _attach(self) -> None:
        if not self._attached:
            self._attached = True
            self._tasks.start_soon(self._commands.serve, name="livepush commands")
            self._tasks.start_soon(self._replies.serve, name="livepush replies")
            self._hub.attach(COMMAND_CHANNEL, self._commands)

    async def _attempted(self, channel: str) -> None:
        with anyio.move_on_after(self._subscribe_timeout):
            await self._hub.wait_attempted([channel])

    @asynccontextmanager
    async def _hearing_replies(self, timeout: float) -> AsyncIterator[None]:
        self._attach()
        self._hub.attach(REPLY_CHANNEL, self._replies)
        try:
            # Half of the time is left to send the command.
            with anyio.move_on_after(timeout / 2):
                await self._attempted(COMMAND_CHANNEL)
                await self._attempted(REPLY_CHANNEL)
            yield
        finally:
            # The last of several concurrent calls unsubscribes.
            if len(self._calls) <= 1:
                self._hub.detach(REPLY_CHANNEL, self._replies)

    async def _end_here(self, revocation: Revocation, echo: "_Echo") -> None:
        """End the matching streams of this process when its command is back, or will not be waited for."""
        try:
            with anyio.move_on_after(ECHO_TIMEOUT):
                await echo.heard.wait()
            ending = echo.ending or self._streams.revoke(self._hub, revocation)
            echo.ending, echo.count = ending, ending.count
            echo.heard.set()
            await self._streams.closed(ending)
        finally:
            echo.closed.set()

    # Messages from the command and reply channels.

    def _obey(self, arguments: Arguments) -> None:
        command, process = arguments.get("command"), str(arguments.get("process"))
        if command == "disconnect":
            self._on_disconnect(arguments)
        elif command == "replaced":
            self._on_replaced(arguments)
        elif command == "hello":
            if process != self._process and len(self._known) < MOST_KNOWN:
                self._known.add(process)
        elif command == "bye":
            self._known.discard(process)
            for call in self._calls.values():
                call.left(process)

    def _on_disconnect(self, arguments: Arguments) -> None:
        slot_key, channel = arguments.get("slot_key"), arguments.get("channel")
        assert slot_key is None or isinstance(slot_key, str)
        assert channel is None or isinstance(channel, str)
        revocation = Revocation(slot_key, channel)
        ending = self._streams.revoke(self._hub, revocation)
        id, reply = str(arguments.get("id")), arguments.get("reply")
        if (echo := self._echoes.get(id)) is not None:
            echo.ending = ending
            echo.heard.set()
            return
        self.log.add(revocation)
        if not isinstance(reply, str):
            reply = None
        elif ending.left:
            # Their clients may take a moment, and the sender may not know that there is this process.
            self._tasks.start_soon(self._reply, reply, id, False)
        self._tasks.start_soon(self._carry_through, ending, reply, id)

    async def _carry_through(self, ending: Ending, reply: str | None, id: str) -> None:
        await self._streams.closed(ending)
        if reply is not None:
            await self._reply(reply, id, True)

    async def _reply(self, reply: str, id: str, done: bool) -> None:
        try:
            await confirm(self._broker, reply, id, self._process, done=done)
        except Exception as error:
            logger.warning("streams were revoked, and the sender cannot be told: %s", error)

    def _on_replaced(self, arguments: Arguments) -> None:
        leases = arguments["leases"]
        assert isinstance(leases, list)
        for stream in self._streams.of_key(str(arguments.get("slot_key"))):
            if stream.lease is not None and stream.lease.id in leases:
                stream.end(EndReason.REPLACED)

    def _hear_reply(self, arguments: Arguments) -> None:
        if (call := self._calls.get(str(arguments.get("id")))) is not None:
            call.hear(arguments)

    def _subscribed(self) -> None:
        self.listening = True
        self._tasks.start_soon(self._announce, "hello")
        if self._streams.all:
            # They were opened when no command could be heard.
            self._lost()

    def _lost(self) -> None:
        self.log.add(None)
        self._review.begin()


class _Echo:
    """The command of this process, on its way back through the broker, and what it ends here."""

    def __init__(self) -> None:
        #: Set when the command is back, or will not be waited for.
        self.heard = anyio.Event()
        self.ending: Ending | None = None
        #: How many streams of this process it ended.
        self.count = 0
        #: Set when they have closed.
        self.closed = anyio.Event()
