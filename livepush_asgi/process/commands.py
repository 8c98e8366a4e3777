"""Commands from process to process, over a channel of the broker: end these streams, give up these slots.

A command may ask for confirmations. They come on the reply channel, to which a process is subscribed only
while it waits for some.
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import urandom

import anyio

from ..brokers import Broker
from ..errors import BrokerUnavailableError, MessagesLostError
from ..hub.coalescing import Batch
from ..runtime.event_loop import Waker, now
from ..wire.cursor import Position
from ..wire.event import COMMAND_CHANNEL, REPLY_CHANNEL, data_of, from_payload, split_position
from ..wire.reasons import GapReason
from .revocation import Disconnected, Revocation

logger = logging.getLogger("livepush_asgi")

# How long to wait for confirmations by default, in seconds.
CONFIRM_TIMEOUT = 2.0
# How long to wait for another reply after the last one, in seconds, where the broker does not count its
# subscribers. A process that has said that it is carrying the command out is waited for all the same.
SETTLE_TIME = 0.2

Arguments = dict[str, object]


def new_process() -> str:
    """Return a name for this process, or for a component in it, that no other has."""
    return urandom(8).hex()


async def tell(broker: Broker, command: str, **arguments: object) -> int:
    """Publish a command to every process, this one included; return how many subscribers the broker counted.

    Raises BrokerUnavailableError.
    """
    return await broker.publish(COMMAND_CHANNEL, json.dumps({"command": command, **arguments}))


async def tell_revocation(broker: Broker, revocation: Revocation, id: str, process: str) -> int:
    """Publish a revocation to every process; return how many subscribers the broker counted."""
    return await tell(
        broker,
        "disconnect",
        slot_key=revocation.slot_key,
        channel=revocation.channel,
        id=id,
        process=process,
        reply=REPLY_CHANNEL,
    )


async def confirm(broker: Broker, reply: str, id: str, process: str, *, done: bool = True) -> None:
    """Tell the sender of a command that it is carried out here, or was. Raises BrokerUnavailableError."""
    await broker.publish(reply, json.dumps({"id": id, "process": process, "done": done}))


def read(text: str) -> Arguments:
    """Return what a process has sent. Raises ValueError if it cannot be read."""
    arguments = json.loads(text)
    if not isinstance(arguments, dict):
        raise ValueError(f"a message between processes is a JSON object, not {text[:200]!r}")
    return arguments


@contextmanager
def unavailable_after(seconds: float) -> Iterator[None]:
    """Give up after so many seconds, with BrokerUnavailableError."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise BrokerUnavailableError(
            "the broker did not take the revocation in time; other processes may not have heard of it"
        )


class Call:
    """A command that waits for confirmations: from all known processes, and as many as are counted."""

    def __init__(self, known: Iterable[str]) -> None:
        self.id = urandom(8).hex()
        self.confirmed: set[str] = set()
        #: The known processes that have not confirmed yet.
        self.missing = set(known)
        self._count: int | None = None
        self._changed = anyio.Event()

    def expect(self, count: int, *, itself: bool) -> None:
        """Take note of how many subscribers the broker counted, and whether the sender is one of them.

        None at all may mean that the broker does not count.
        """
        self._count = count if itself or not count else count + 1
        self._changed.set()

    def hear(self, reply: Arguments) -> None:
        """Take note of what a process has replied: that it is carrying the command out, or has done so."""
        process = str(reply.get("process"))
        if reply.get("done"):
            self.confirm(process)
        elif process not in self.confirmed:
            self.missing.add(process)
            self._changed.set()

    def confirm(self, process: str) -> None:
        """Take note that a process has carried the command out."""
        self.confirmed.add(process)
        self.missing.discard(process)
        self._changed.set()

    def left(self, process: str) -> None:
        """Take note that a process has ended: it will not confirm."""
        self.missing.discard(process)
        self._changed.set()

    @property
    def complete(self) -> bool:
        """Whether everybody has confirmed."""
        return bool(self._count) and not self.missing and len(self.confirmed) >= (self._count or 0)

    @property
    def patience(self) -> float | None:
        """How long to wait for another confirmation, in seconds; None where one is known to be missing."""
        return SETTLE_TIME if self._count == 0 and not self.missing else None

    async def wait(self, timeout: float) -> None:
        """Wait until it is complete, nobody else is likely to confirm, or the time is over."""
        with anyio.move_on_after(timeout):
            while not self.complete:
                self._changed = anyio.Event()
                with anyio.move_on_after(self.patience) as scope:
                    await self._changed.wait()
                if scope.cancelled_caught:
                    return


class CommandSender:
    """Sends revocations for a program that runs no streams. It has no subscription between two of them."""

    def __init__(self) -> None:
        self._process = new_process()
        # The processes that confirmed the last command. The next command waits for them.
        self._known: set[str] = set()
        self._lock = anyio.Lock()

    async def revoke(self, broker: Broker, revocation: Revocation, timeout: float) -> Disconnected:
        """Have every process end streams, and wait for confirmations. Raises BrokerUnavailableError."""
        # One at a time: a broker has one subscription to a channel.
        async with self._lock:
            call, deadline = Call(self._known), now() + timeout
            with unavailable_after(timeout):
                subscription = await broker.subscribe(REPLY_CHANNEL)
            try:
                with unavailable_after(deadline - now()):
                    count = await tell_revocation(broker, revocation, call.id, self._process)
                call.expect(count, itself=True)
                while not call.complete and (left := deadline - now()) > 0:
                    patience = call.patience
                    try:
                        payload = await subscription.get_message(timeout=min(left, patience or left))
                    except MessagesLostError:
                        continue
                    if payload is not None:
                        _hear(payload, call)
                    elif patience is not None:
                        break
            finally:
                with anyio.move_on_after(timeout, shield=True):
                    await subscription.close()
            self._known = set(call.confirmed)
        return Disconnected(0, len(call.confirmed))


def _hear(payload: bytes, call: Call) -> None:
    try:
        arguments = read(data_of(from_payload(split_position(payload)[1])))
    except ValueError:
        logger.exception("a message of another process cannot be read")
        return
    if arguments.get("id") == call.id:
        call.hear(arguments)


class MessageListener:
    """A listener of the hub that reads messages of other processes; the first unreadable one is logged."""

    several = False

    def __init__(
        self,
        obey: Callable[[Arguments], None],
        subscribed: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._obey = obey
        self._subscribed = subscribed
        self._lost = lost
        self._waiting: deque[bytes] = deque()
        self._waker = Waker()
        self._complained = False

    def receive(self, batch: Batch, /) -> None:
        """Keep messages for `catch_up`: what this turn has brought for the streams comes first."""
        self._waiting.extend(delivery.bare or delivery.block for delivery in batch.deliveries)
        self._waker.wake()

    async def serve(self) -> None:
        """Carry out what comes, until cancelled."""
        while True:
            self.catch_up()
            await self._waker.wait()

    def catch_up(self) -> None:
        """Carry out what has come."""
        while self._waiting:
            try:
                self._obey(read(data_of(self._waiting.popleft())))
            except Exception:
                # Any client of the broker may send an unreadable message, as often as it likes.
                if not self._complained:
                    self._complained = True
                    logger.exception("a message of another process cannot be carried out (told once)")

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Hear that messages may have been lost."""
        self._lost()

    def subscribed(self, channel: str, /) -> None:
        """Hear that messages are heard from now on."""
        self._subscribed()
