"""Revoker: ends revoked streams in this process and in every other process."""

import logging
from collections.abc import Iterable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ..brokers import Broker
from ..brokers.backoff import retry_unavailable
from ..hub.delivery import Batch
from ..hub.hub import Hub
from ..runtime.event_loop import BackgroundFunction, Caller, now
from ..runtime.failure_log import FailureLog, fields
from ..runtime.scheduler import Scheduler
from ..slots import Lease
from ..wire.cursor import Position
from ..wire.event import COMMAND_CHANNEL, REPLY_CHANNEL
from ..wire.reasons import EndReason, GapReason
from .commands import (
    Confirmations,
    Message,
    MissingLog,
    decode_message,
    new_id,
    send,
    send_bye,
    send_revocation,
)
from .open_streams import EndingStreams, OpenStreams, Reauthorization
from .revocation import Disconnected, Revocation, RevocationLog, deciding

logger = logging.getLogger("livepush_asgi")

# How long the process waits for the broker to deliver its own command, in seconds, before it ends its
# streams.
ECHO_TIMEOUT = 1.0
# A process sends `here` at most once in this time, in seconds, however many processes start together.
HERE_INTERVAL = 1.0
# How long a process that did not confirm is remembered, in seconds: while the broker counts its subscribers,
# and if it does not. It may have been killed, and only a count shows that.
SILENT_TIME, UNCOUNTED_SILENT_TIME = 3600.0, 60.0
# How many other processes are remembered at most: any client of the broker may send `hello`.
MAX_KNOWN = 1000


class Revoker:
    """The revocations of a process. It sends commands, executes those of other processes, and confirms them.

    It is a listener of the hub. `call_in_task` schedules a function in a task of the event loop.
    """

    multi_channel = True

    def __init__(
        self,
        broker: Broker,
        hub: Hub,
        scheduler: Scheduler,
        tasks: TaskGroup,
        call_in_task: Caller,
        streams: OpenStreams,
        reauthorization: Reauthorization,
        subscribe_timeout: float,
    ) -> None:
        #: The latest revocations. A revocation may outdate a decision that began before it.
        self.log = RevocationLog()
        #: Whether the command channel was ever subscribed.
        self.listening = False
        self._broker = broker
        self._hub = hub
        self._scheduler = scheduler
        self._tasks = tasks
        self._call_in_task = call_in_task
        self._streams = streams
        self._reauthorization = reauthorization
        self._subscribe_timeout = subscribe_timeout
        self._process = new_id()
        self._known: set[str] = set()
        # The processes that did not confirm and have sent nothing since, and when they were given up.
        self._silent: dict[str, float] = {}
        # Whether the broker counts its subscribers, as far as this process has seen.
        self._counted = False
        self._missing_log = MissingLog()
        self._failures = FailureLog()
        # The revocations of this process that wait for confirmations.
        self._pending: dict[str, _PendingRevocation] = {}
        self._unreadable_logged = self._replacement_logged = False
        self._here_due = False
        self._here_at = -HERE_INTERVAL

    def start_listening(self) -> None:
        """Start to receive commands, as soon as the broker lets this process. Returns at once."""
        self._hub.attach(COMMAND_CHANNEL, self)

    async def listen(self) -> None:
        """Wait until this process receives commands, or until subscribing fails or takes too long."""
        if not self.listening:
            await self._subscribe(COMMAND_CHANNEL)

    async def revoke(self, revocation: Revocation, timeout: float, retry_for: float) -> Disconnected:
        """End the matching streams in every process; wait for confirmations, at most `timeout` seconds.

        The streams of this process end when the broker delivers the command to this process: by then they
        have received the events that were published before. They end at once if this process does not receive
        commands or cannot send them, or if the caller is cancelled; and after ECHO_TIMEOUT in any case.

        Raises BrokerUnavailableError if the command cannot be sent within `retry_for` seconds.
        """
        self.log.add(revocation, deciding.get())
        pending = _PendingRevocation(revocation, {self._process, *self._known}, self._silent_now())
        self._pending[pending.id] = pending
        echo_timer = self._scheduler.call_later(ECHO_TIMEOUT, self._end_local, pending)
        try:
            deadline = await retry_unavailable(partial(self._send, pending, timeout), retry_for)
            await pending.ending.closed.wait()
            pending.confirm(self._process, pending.ending.count)
            await pending.wait(deadline)
        finally:
            echo_timer.cancel()
            self._end_local(pending)
            del self._pending[pending.id]
            if not self._pending:
                self._hub.detach(REPLY_CHANNEL, self)
        self._learn_from(pending)
        done = pending.result()
        self._missing_log.note(done, timeout)
        await send_bye(self._broker, pending.missing)
        return done

    def _learn_from(self, pending: "_PendingRevocation") -> None:
        """Remember which processes confirmed and which did not."""
        self._known = (self._known | pending.confirmed.keys()) - pending.missing - {self._process}
        for process in pending.confirmed:
            self._silent.pop(process, None)
        for process in pending.missing:
            self._note_silent(process)
        if pending.complete:
            # The broker counts no process that did not confirm, so the silent ones have ended.
            self._silent.clear()

    async def _send(self, pending: "_PendingRevocation", timeout: float) -> float:
        """Send the command, and end the streams of this process when the broker delivers it.

        Return when the time for confirmations is over.
        """
        deadline = now() + timeout
        try:
            # Leave half of the time for sending.
            with anyio.move_on_after(timeout / 2):
                await self._subscribe(COMMAND_CHANNEL)
                await self._subscribe(REPLY_CHANNEL)
            count = await send_revocation(self._broker, pending.revocation, pending.id, deadline)
        except Exception:
            self._end_local(pending)
            await pending.ending.closed.wait()
            raise
        self._counted = bool(count)
        # The broker does not count this process if it is not subscribed, but this process confirms too.
        pending.set_count(count if self.listening or not count else count + 1)
        if self.listening:
            # A broker in memory has delivered the command already.
            with anyio.move_on_after(timeout):
                await pending.ended_local.wait()
        self._end_local(pending)
        return deadline

    def _end_local(self, pending: "_PendingRevocation") -> None:
        """End the matching streams of this process, once."""
        if not pending.ended_local.is_set():
            pending.ending = self._streams.revoke(self._hub, pending.revocation)
            pending.ended_local.set()

    async def _subscribe(self, channel: str) -> None:
        self._hub.attach(channel, self)
        with anyio.move_on_after(self._subscribe_timeout):
            await self._hub.wait_attempted([channel])

    async def announce_replaced(self, lease: Lease) -> None:
        """Announce to every process which leases have lost their slots. Ignores errors of the broker."""
        leases = list(lease.replaced)
        try:
            await send(self._broker, {"command": "replaced", "leases": leases, "slot_key": lease.slot_key})
        except Exception as error:
            # The processes that hold those leases notice it at their next renewal.
            if not self._replacement_logged:
                self._replacement_logged = True
                logger.warning(
                    "cannot announce that a slot was replaced (logged once until it works again): %s",
                    error,
                    extra=fields("replacement_unsent", error=str(error)),
                )
        else:
            self._replacement_logged = False

    async def announce_exit(self) -> None:
        """Announce to the other processes that this one will not confirm any more."""
        if self.listening:
            await send_bye(self._broker, [self._process], ending=True)

    # The hub calls these methods, possibly outside of any task.

    def receive(self, batch: Batch, /) -> None:
        """Handle messages at once: the streams receive later events after it."""
        for delivery in batch.deliveries:
            try:
                self._handle(decode_message(delivery.bare or delivery.block))
            except Exception:
                # Any client of the broker may send unreadable messages, so log only the first.
                if not self._unreadable_logged:
                    self._unreadable_logged = True
                    logger.exception(
                        "cannot handle a message of another process (logged once)",
                        extra=fields("message_unreadable"),
                    )

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Called when messages may have been lost."""
        if channel == COMMAND_CHANNEL:
            self.log.add(None)
            self._call_in_task(self._reauthorization.begin)
            self._send_hello()

    def reads_log(self, channel: str, /) -> bool:
        """Return False: it takes what it receives."""
        return False

    def subscribed(self, channel: str, /) -> None:
        """Called when a channel is subscribed."""
        if channel == COMMAND_CHANNEL:
            self.listening = True
            if self._streams.all:
                # These streams were opened while this process received no commands.
                self.gap(channel, GapReason.BROKER)
            else:
                # Some decisions may have begun before commands could be received.
                self.log.add(None)
                self._send_hello()

    def _handle(self, message: Message) -> None:
        match message:
            case {
                "command": "disconnect",
                "slot_key": str() | None as slot_key,
                "channel": str() | None as channel,
                "id": str(id),
                "introduce": bool(introduce),
            }:
                self._on_disconnect(Revocation(slot_key, channel), id, introduce)
            case {"command": "replaced", "leases": list(leases), "slot_key": str(slot_key)}:
                for stream in self._streams.of_key(slot_key):
                    if stream.lease is not None and stream.lease.id in leases:
                        stream.end(EndReason.REPLACED)
            case {"command": "hello" | "here" as command, "process": str(process)}:
                self._on_process(process, answer=command == "hello")
            case {"command": "bye", "processes": list(processes), "ending": bool(ending)}:
                self._on_bye(processes, ending=ending)
            case {"id": str(id)} if id in self._pending:
                self._pending[id].receive(message)

    def _on_disconnect(self, revocation: Revocation, id: str, introduce: bool) -> None:
        if id in self._pending:
            self._end_local(self._pending[id])
            return
        self.log.add(revocation)
        ending = self._streams.revoke(self._hub, revocation)
        known, silent = (list(self._known), self._silent_now()) if introduce else ([], [])
        confirmation = {
            "id": id,
            "process": self._process,
            "streams": ending.count,
            "known": known,
            "silent": silent,
        }
        self._start_soon(partial(self._confirm, ending, confirmation))

    async def _confirm(self, ending: EndingStreams, confirmation: Message) -> None:
        try:
            if ending.remaining:
                # The streams may take a moment to close, and the sender may not know this process.
                await send(self._broker, {**confirmation, "done": False}, REPLY_CHANNEL)
            await ending.closed.wait()
            await send(self._broker, {**confirmation, "done": True}, REPLY_CHANNEL)
        except Exception as error:
            self._failures.log(
                logging.WARNING,
                "streams were revoked, but the confirmation cannot be sent: %s",
                error,
                extra=fields("confirmation_unsent", error=str(error)),
            )

    # The other processes.

    def _on_process(self, process: str, *, answer: bool) -> None:
        if process == self._process:
            return
        self._silent.pop(process, None)
        if len(self._known) < MAX_KNOWN:
            self._known.add(process)
        if answer and not self._here_due:
            self._here_due = True
            self._scheduler.call_later(self._here_at + HERE_INTERVAL - now(), self._send_here)

    def _on_bye(self, processes: list[object], *, ending: bool) -> None:
        for process in map(str, processes):
            self._known.discard(process)
            if not ending:
                # It may still confirm to this process, whose revocations go on waiting for it.
                self._note_silent(process)
                continue
            self._silent.pop(process, None)
            for pending in self._pending.values():
                pending.end(process)
        if self._process in processes:
            # Another process did not receive the confirmation of this one in time.
            self._send_hello()

    def _note_silent(self, process: str) -> None:
        if process != self._process and len(self._silent) < MAX_KNOWN:
            self._silent[process] = now()

    def _silent_now(self) -> list[str]:
        """Forget the processes that have been silent for long, and return the others."""
        since = now() - (SILENT_TIME if self._counted else UNCOUNTED_SILENT_TIME)
        self._silent = {process: at for process, at in self._silent.items() if at > since}
        return list(self._silent)

    def _send_hello(self) -> None:
        self._start_soon(partial(self._announce, "hello"))

    def _send_here(self) -> None:
        self._here_due, self._here_at = False, now()
        self._start_soon(partial(self._announce, "here"))

    def _start_soon(self, function: BackgroundFunction) -> None:
        self._call_in_task(partial(self._tasks.start_soon, function))

    async def _announce(self, command: str) -> None:
        try:
            count = await send(self._broker, {"command": command, "process": self._process})
            self._counted = bool(count)
        except Exception as error:
            logger.debug("cannot announce this process: %s", error)


class _PendingRevocation(Confirmations):
    """A revocation that this process has sent. The local streams end when the broker delivers it."""

    def __init__(self, revocation: Revocation, expected: Iterable[str], silent: Iterable[str]) -> None:
        super().__init__(expected, silent)
        self.revocation = revocation
        self.ended_local = anyio.Event()
        self.ending = EndingStreams(())
