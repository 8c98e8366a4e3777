"""Commands from process to process, over a reserved channel of the broker, and their confirmations.

disconnect  end these streams, and confirm
replaced    these leases were lost to newer streams
hello       the sender receives commands from now on; the other processes answer `here`
here        the sender is running
bye         these processes end or did not confirm; a process that runs and is named sends `hello`

So each process knows the others and waits until all of them have confirmed. A process that did not confirm is
silent: it counts as missing, and is not waited for until it sends a message again. The subscriber count of a
broker is not enough: NATS counts no subscribers, and several LivePush objects may share one connection.
Confirmations use a channel of their own, which a process subscribes only while it waits for confirmations.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from os import urandom

import anyio

from ..brokers import Broker, Subscription
from ..brokers.backoff import retry_unavailable
from ..errors import BrokerUnavailableError, MessagesLostError
from ..runtime.event_loop import now
from ..runtime.failure_log import fields
from ..wire.event import COMMAND_CHANNEL, REPLY_CHANNEL, data_of, from_payload, split_position
from .revocation import Disconnected, Revocation

logger = logging.getLogger("livepush_asgi")

# How long `disconnect` waits for confirmations by default, in seconds.
CONFIRM_TIMEOUT = 2.0
# How long to wait for another confirmation after the last one, in seconds, if the broker does not count its
# subscribers, or counts silent ones. A known process that has not confirmed is waited for until the timeout.
SETTLE_TIME = 0.2
# How long sending `bye` may take, in seconds, if the broker does not answer.
BYE_TIMEOUT = 0.5

Message = Mapping[str, object]


def new_id() -> str:
    """Return a unique id for a process or a revocation."""
    return urandom(8).hex()


def decode_message(block: bytes) -> Message:
    """Decode a message of another process. Raises ValueError for a block that is no message."""
    text = data_of(block)
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError(f"a message between processes is a JSON object, not {text[:200]!r}")
    return message


async def send(broker: Broker, message: Message, channel: str = COMMAND_CHANNEL) -> int:
    """Send a message to every process. Return the subscriber count of the broker.

    Raises BrokerUnavailableError.
    """
    return await broker.publish(channel, json.dumps(message))


async def send_revocation(
    broker: Broker, revocation: Revocation, id: str, deadline: float, *, introduce: bool = False
) -> int:
    """Send a revocation. With `introduce`, each confirmation names the processes that its sender knows."""
    message = {"command": "disconnect", **asdict(revocation), "id": id, "introduce": introduce}
    with _revoking_until(deadline):
        return await send(broker, message)


async def send_bye(broker: Broker, processes: Iterable[str], *, ending: bool = False) -> None:
    """Announce that these processes do not confirm. Ignores errors of the broker.

    Revocations that are in progress go on waiting for them, unless the processes are `ending`.
    """
    if gone := list(processes):
        with anyio.move_on_after(BYE_TIMEOUT), suppress(Exception):
            await send(broker, {"command": "bye", "processes": gone, "ending": ending})


@contextmanager
def _revoking_until(deadline: float) -> Iterator[None]:
    """Raise BrokerUnavailableError at the deadline, and let each such error say what it means here."""
    text = "cannot end streams in other processes: "
    try:
        with anyio.move_on_after(deadline - now()) as scope:
            yield
    except BrokerUnavailableError as error:
        raise BrokerUnavailableError(text + str(error).removeprefix("cannot publish: ")) from error
    if scope.cancelled_caught:
        raise BrokerUnavailableError(f"{text}the broker did not take the revocation in time")


class Confirmations:
    """The confirmations of one revocation: those received, and those still missing."""

    def __init__(self, expected: Iterable[str] = (), silent: Iterable[str] = ()) -> None:
        self.id = new_id()
        #: The processes that have confirmed, and how many streams ended in each.
        self.confirmed: dict[str, int] = {}
        #: The known processes that have not confirmed.
        self.missing = set(expected)
        #: The processes that did not confirm an earlier revocation. They are not waited for.
        self.silent = set(silent)
        # The processes that have ended since the command was sent. The broker may have counted them.
        self._ended: set[str] = set()
        # The least number of confirmations: 0 if the broker does not count, None before the command is sent.
        self._count: int | None = None
        self._changed = anyio.Event()

    @property
    def complete(self) -> bool:
        """Whether all confirmations have come, by the count of the broker."""
        return bool(self._count) and not self.missing and self._uncounted >= 0

    @property
    def settle_time(self) -> float | None:
        """How long to wait for another confirmation, in seconds; None if one is known to be missing."""
        if self._count is None or not self.confirmed or self.missing:
            return None
        return SETTLE_TIME if self._uncounted + len(self.silent) >= 0 else None

    @property
    def _uncounted(self) -> int:
        """How many processes more than the broker counted have confirmed or ended; negative if fewer."""
        return len(self.confirmed) + len(self._ended) - (self._count or 0)

    def result(self) -> Disconnected:
        """Return what `disconnect` returns."""
        # The count of the broker includes the silent processes that still run.
        named = len(self.missing) if self._count else len(self.missing | self.silent)
        streams = sum(self.confirmed.values())
        return Disconnected(streams, len(self.confirmed), max(named, -self._uncounted, 0))

    def set_count(self, count: int) -> None:
        """Set the least number of confirmations; 0 if the broker does not count its subscribers."""
        self._count = count
        self._changed.set()

    def confirm(self, process: str, streams: int) -> None:
        """Record that a process has executed the command, and how many streams ended there."""
        # A broker may deliver a confirmation twice, and a command that was sent again is confirmed again.
        self.confirmed[process] = max(streams, self.confirmed.get(process, 0))
        self._stop_waiting(process)

    def end(self, process: str) -> None:
        """Record that a process has ended: it has no streams any more."""
        if process not in self.confirmed:
            self._ended.add(process)
        self._stop_waiting(process)

    def _stop_waiting(self, process: str) -> None:
        self.missing.discard(process)
        self.silent.discard(process)
        self._changed.set()

    def receive(self, message: Message) -> None:
        """Record a confirmation. One that is not `done` announces another from the same process."""
        match message:
            case {
                "id": self.id,
                "process": str(process),
                "done": bool(done),
                "streams": int(streams),
                "known": list(known),
                "silent": list(silent),
            }:
                self.silent |= set(map(str, silent)) - self.missing - self.confirmed.keys()
                self.silent.discard(process)
                self.missing |= {process, *map(str, known)} - self.silent - self.confirmed.keys()
                self._changed.set()
                if done:
                    self.confirm(process, streams)

    async def wait(self, deadline: float) -> None:
        """Wait until all confirmations have come, no other is expected, or the deadline has passed."""
        with anyio.move_on_after(deadline - now()):
            while not self.complete:
                self._changed = anyio.Event()
                with anyio.move_on_after(self.settle_time) as scope:
                    await self._changed.wait()
                if scope.cancelled_caught:
                    return


class MissingLog:
    """Logs when processes did not confirm a revocation, once until all have confirmed another."""

    def __init__(self) -> None:
        self._logged = False

    def note(self, done: Disconnected, timeout: float) -> None:
        """Log the missing processes of a result."""
        if done.missing and not self._logged:
            logger.warning(
                "%d of the processes did not confirm a revocation within %g s (logged once until all"
                " confirm): they stand still, cannot reach the broker or were killed; they end the revoked"
                " streams when they receive the command",
                done.missing,
                timeout,
                extra=fields("confirmations_missing", missing=done.missing, seconds=timeout),
            )
        self._logged = bool(done.missing)


class CommandSender:
    """Revokes for a program without streams. It is subscribed to a channel only while it revokes."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._missing_log = MissingLog()

    async def revoke(
        self, broker: Broker, revocation: Revocation, timeout: float, retry_for: float
    ) -> Disconnected:
        """End streams in every process, and wait for confirmations; send for `retry_for` seconds.

        Raises BrokerUnavailableError.
        """
        # A broker has one subscription to a channel, so revoke one at a time.
        async with self._lock:
            done = await retry_unavailable(partial(_revoke, broker, revocation, timeout), retry_for)
        self._missing_log.note(done, timeout)
        return done


async def _revoke(broker: Broker, revocation: Revocation, timeout: float) -> Disconnected:
    confirmations, deadline = Confirmations(), now() + timeout
    with _revoking_until(deadline):
        subscription = await broker.subscribe(REPLY_CHANNEL)
    try:
        count = await send_revocation(broker, revocation, confirmations.id, deadline, introduce=True)
        confirmations.set_count(count)
        # A count of 0 means that no process runs or that the broker does not count. Tell them apart by the
        # reply channel, to which this program itself is subscribed.
        if count or not await send(broker, {}, REPLY_CHANNEL):
            await _collect(subscription, confirmations, deadline)
    finally:
        with anyio.move_on_after(timeout, shield=True):
            await subscription.close()
    await send_bye(broker, confirmations.missing)
    return confirmations.result()


async def _collect(subscription: Subscription, confirmations: Confirmations, deadline: float) -> None:
    while not confirmations.complete and (left := deadline - now()) > 0:
        settle_time = confirmations.settle_time
        try:
            payload = await subscription.get_message(timeout=min(left, settle_time or left))
            if payload is not None:
                confirmations.receive(decode_message(from_payload(split_position(payload)[1])))
            elif settle_time is not None:
                return
        except (MessagesLostError, ValueError):
            # Any client of the broker may send an unreadable message.
            continue
