"""Commands from process to process, over a reserved channel of the broker, and their confirmations.

disconnect  end these streams, and confirm it
replaced    these leases were lost to newer streams
hello       a process hears commands from now on; the others answer `here`
here        a process is there
bye         these processes end, or have not confirmed; one that is alive says `hello` again

So each process knows the others and waits until all of them have confirmed. What a broker counts is not
enough: NATS counts nothing, and several LivePush objects may share one connection. Confirmations come on a
channel of their own, to which a process is subscribed only while it waits for some.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from os import urandom

import anyio

from ..brokers import Broker, Subscription
from ..errors import BrokerUnavailableError, MessagesLostError
from ..runtime.event_loop import now
from ..wire.event import COMMAND_CHANNEL, REPLY_CHANNEL, data_of, from_payload, split_position
from .revocation import Disconnected, Revocation

# How long `disconnect` waits for confirmations by default, in seconds.
CONFIRM_TIMEOUT = 2.0
# How long to wait for another confirmation after the last one, in seconds, where the broker does not count
# its subscribers. A process that is known is waited for all the same.
SETTLE_TIME = 0.2
# How long saying `bye` may take, in seconds, when the broker does not answer.
BYE_TIMEOUT = 0.5

Message = Mapping[str, object]


def new_id() -> str:
    """Return a name for a process, or for a revocation, that no other has."""
    return urandom(8).hex()


def message_of(block: bytes) -> Message:
    """Return what a process has sent. Raises ValueError for what is no message."""
    text = data_of(block)
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError(f"a message between processes is a JSON object, not {text[:200]!r}")
    return message


async def send(broker: Broker, message: Message, channel: str = COMMAND_CHANNEL) -> int:
    """Send a message to every process that listens; return how many subscribers the broker counted.

    Raises BrokerUnavailableError.
    """
    return await broker.publish(channel, json.dumps(message))


async def send_revocation(
    broker: Broker, revocation: Revocation, id: str, deadline: float, *, introduce: bool = False
) -> int:
    """Send a revocation. With `introduce` each confirmation names the processes that its sender knows."""
    message = {"command": "disconnect", **asdict(revocation), "id": id, "introduce": introduce}
    with _unavailable_at(deadline):
        return await send(broker, message)


async def say_bye(broker: Broker, processes: Iterable[str], *, ending: bool = False) -> None:
    """Have no process expect a confirmation of these any more. Never raises for a broker that is away.

    Revocations that are under way wait on, unless the processes are `ending`.
    """
    if gone := list(processes):
        with anyio.move_on_after(BYE_TIMEOUT), suppress(Exception):
            await send(broker, {"command": "bye", "processes": gone, "ending": ending})


@contextmanager
def _unavailable_at(deadline: float) -> Iterator[None]:
    with anyio.move_on_after(deadline - now()) as scope:
        yield
    if scope.cancelled_caught:
        raise BrokerUnavailableError(
            "the broker did not take the revocation in time; other processes may not have heard of it"
        )


class Confirmations:
    """The confirmations of one revocation: those that have come, and those that are still expected."""

    def __init__(self, expected: Iterable[str] = ()) -> None:
        self.id = new_id()
        self.confirmed: set[str] = set()
        #: The processes that are known to be there and have not confirmed.
        self.missing = set(expected)
        # How many have to come at least, 0 where the broker does not count, None before the command is sent.
        self._count: int | None = None
        self._changed = anyio.Event()

    @property
    def complete(self) -> bool:
        """Whether all have come."""
        return bool(self._count) and not self.missing and len(self.confirmed) >= (self._count or 0)

    @property
    def settle_time(self) -> float | None:
        """How long to wait for another one, in seconds; None where one is known to be missing."""
        settled = self._count == 0 and self.confirmed and not self.missing
        return SETTLE_TIME if settled else None

    def set_count(self, count: int) -> None:
        """Set how many have to come at least; 0 where the broker does not count."""
        self._count = count
        self._changed.set()

    def confirm(self, process: str) -> None:
        """Take note that a process has carried the command out."""
        self.confirmed.add(process)
        self.forget(process)

    def forget(self, process: str) -> None:
        """Wait for a process no more."""
        self.missing.discard(process)
        self._changed.set()

    def hear(self, message: Message) -> None:
        """Take a confirmation. One that is not `done` says that the process will send another."""
        match message:
            case {"id": self.id, "process": str(process), "done": bool(done), "known": list(known)}:
                self.missing |= {process, *map(str, known)} - self.confirmed
                self._changed.set()
                if done:
                    self.confirm(process)

    async def wait(self, deadline: float) -> None:
        """Wait until all have come, another one is unlikely to come, or the time is over."""
        with anyio.move_on_after(deadline - now()):
            while not self.complete:
                self._changed = anyio.Event()
                with anyio.move_on_after(self.settle_time) as scope:
                    await self._changed.wait()
                if scope.cancelled_caught:
                    return


class CommandSender:
    """Revokes for a program that runs no streams. It is subscribed to nothing between two revocations."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()

    async def revoke(self, broker: Broker, revocation: Revocation, timeout: float) -> Disconnected:
        """Have every process end streams, and wait for confirmations. Raises BrokerUnavailableError."""
        # One at a time: a broker has one subscription to a channel.
        async with self._lock:
            confirmations, deadline = Confirmations(), now() + timeout
            with _unavailable_at(deadline):
                subscription = await broker.subscribe(REPLY_CHANNEL)
            try:
                id = confirmations.id
                count = await send_revocation(broker, revocation, id, deadline, introduce=True)
                confirmations.set_count(count)
                # A broker that counts would count the program itself, which is subscribed to this channel.
                if count or not await send(broker, {}, REPLY_CHANNEL):
                    await _gather(subscription, confirmations, deadline)
            finally:
                with anyio.move_on_after(timeout, shield=True):
                    await subscription.close()
        await say_bye(broker, confirmations.missing)
        return Disconnected(0, len(confirmations.confirmed))


async def _gather(subscription: Subscription, confirmations: Confirmations, deadline: float) -> None:
    while not confirmations.complete and (left := deadline - now()) > 0:
        settle_time = confirmations.settle_time
        try:
            payload = await subscription.get_message(timeout=min(left, settle_time or left))
            if payload is not None:
                confirmations.hear(message_of(from_payload(split_position(payload)[1])))
            elif settle_time is not None:
                return
        except (MessagesLostError, ValueError):
            # Any client of the broker may send an unreadable message.
            continue
