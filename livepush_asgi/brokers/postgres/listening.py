"""The subscriptions of a process, and the one connection that LISTENs for all of them.

A notification has the key of a channel and no event, so that payloads may have any size and a repeated or
lost notification does no harm. The events are read from the log, on the same connection, from the last offset
on. Besides, the ends of all logs are compared every `ping_interval`: a server that does not answer is given
up, and events are found whose notification was lost.

After an outage the mailboxes report that they may have missed payloads, and the hub reads the logs.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TypeVar

from ...runtime.event_loop import start_task
from ...runtime.failure_log import fields
from ...wire.cursor import MAX_OFFSET, Position
from .. import Page
from ..backoff import Backoff
from ..faults import Fault
from ..mailbox import MESSAGES_BETWEEN_PAUSES, Mailbox
from ..timeouts import no_answer
from .failures import FAILURES, POOLER, explain
from .pool import Connection, Server
from .schema import Row, page_of

logger = logging.getLogger("livepush_asgi")

T = TypeVar("T")

# How many channels one query reads, and how much of each.
_CHANNELS, _EVENTS, _BYTES = 100, 100, 64 * 1024


class Channel:
    """A channel to which the process listens.

    `mailboxes` has the offset after which each mailbox gets events. The mailboxes in `waiting` join them when
    the log was read. `position` is that of the last delivered event, None if the connection is new.
    """

    __slots__ = ("key", "mailboxes", "position", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.mailboxes: dict[Mailbox, int] = {}
        self.waiting: dict[Mailbox, asyncio.Future[None]] = {}
        self.position: Position | None = None

    @property
    def known(self) -> list[Mailbox]:
        """The mailboxes that get events, or will."""
        return [*self.mailboxes, *self.waiting]

    async def take(self, page: Page, waiting: Iterable[Mailbox]) -> bool:
        """Deliver the new events of a page. Return whether the log has more.

        `waiting` are the mailboxes that waited when the page was asked for.
        """
        end = Position(page.epoch, page.last)
        placed = None if self.position is None else page.locate(self.position)
        if placed is None or page.first - 1 > placed.offset:
            self._lose()
            self.position = placed = end
        self._admit(waiting, page.last)
        for number, record in enumerate(page.records, 1):
            if record.offset > placed.offset:
                self.position = placed = placed.at(record.offset)
                self._deliver(placed, record.payload)
            if number % MESSAGES_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)
        # The page may be of a new epoch that has lost nothing.
        self.position = placed
        return placed.offset < page.last

    def _admit(self, waiting: Iterable[Mailbox], last: int) -> None:
        for mailbox in waiting:
            admitted = self.waiting.pop(mailbox, None)
            # A cancelled caller has left.
            if admitted is not None and not admitted.done():
                self.mailboxes[mailbox] = last
                admitted.set_result(None)

    def _lose(self) -> None:
        for mailbox in list(self.mailboxes):
            self.mailboxes[mailbox] = 0
            with _logged(mailbox):
                mailbox.lost()

    def _deliver(self, position: Position, payload: bytes) -> None:
        for mailbox, start in list(self.mailboxes.items()):
            if position.offset > start:
                with _logged(mailbox):
                    mailbox.deliver_at(position, payload)


class Listener:
    """Connects for the first channel, and again after each failure, until there is no channel.

    `tend` is called every now and then with the keys of all channels.
    """

    def __init__(self, server: Server, address: str, tend: Callable[[list[str]], object]) -> None:
        self.loop = asyncio.get_running_loop()
        self.channels: dict[str, Channel] = {}
        #: Why the connection was lost or could not be opened; None when it is up.
        self.fault: Exception | None = None
        #: How often the connection was up again after it had been lost.
        self.reconnects = 0
        self._server = server
        self._address = address
        self._tend = tend
        # The channels whose logs have to be read.
        self._due: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._lost_at: float | None = None
        # How often an event was found before its notification came, which one that is on its way explains.
        self._unannounced = 0
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why events may be missing; empty while the connection is up."""
        # A copy: another thread may ask for it.
        fault, lost_at, channels = self.fault, self._lost_at, list(self.channels.values())
        if fault is None:
            return ()
        return (
            Fault(
                cause=explain(fault, self._server.schema.grant),
                seconds=0.0 if lost_at is None else self.loop.time() - lost_at,
                where=self._address,
                channels=len(channels),
                channel=next((mailbox.channel for each in channels for mailbox in each.known), ""),
            ),
        )

    def add(self, key: str, mailbox: Mailbox) -> asyncio.Future[None]:
        """Add a mailbox. The future is done when it gets every later event."""
        channel = self.channels.setdefault(key, Channel(key))
        admitted = channel.waiting[mailbox] = self.loop.create_future()
        self._notice(key)
        if self._task is None or self._task.done():
            self._task = start_task(self._run(), "livepush postgres listener")
        return admitted

    def remove(self, key: str, mailbox: Mailbox) -> None:
        """Remove a mailbox. The connection is closed after the last one."""
        channel = self.channels.get(key)
        if channel is None:
            return
        channel.waiting.pop(mailbox, None)
        channel.mailboxes.pop(mailbox, None)
        if not (channel.waiting or channel.mailboxes):
            del self.channels[key]
            if not self.channels:
                self._wake.set()

    async def aclose(self) -> None:
        """End the subscriptions and close the connection."""
        self.channels.clear()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._server.timeouts.ping)
            self._task.cancel()

    def _notice(self, key: str) -> None:
        self._due[key] = None
        self._wake.set()

    async def _run(self) -> None:
        while self.channels:
            try:
                await self._use_connection()
            except Exception as error:
                if not isinstance(error, FAILURES):
                    # A defect of this package is logged, and the listener goes on.
                    logger.exception(
                        "the listener of %s failed, reconnecting",
                        self._address,
                        extra=fields("listener_failed", server=self._address),
                    )
                self._note_lost(error)
                self._wake.clear()
                if self.channels:
                    await asyncio.sleep(self._backoff.next_delay())
        self.fault = self._lost_at = None

    async def _use_connection(self) -> None:
        for channel in self.channels.values():
            channel.position = None
        connection = await self._server.connect()
        try:
            await self._listen(connection)
        except BaseException:
            connection.terminate()
            raise
        await connection.close(timeout=self._server.timeouts.ping)

    async def _listen(self, connection: Connection) -> None:
        interval, ping = self._server.timeouts.ping_interval, self._server.timeouts.ping
        connection.add_termination_listener(lambda _: self._wake.set())
        async with asyncio.timeout(ping):
            await connection.execute(self._server.schema.begin)
            await connection.add_listener(self._server.schema.topic, self._hear)
            has_pooler = await connection.fetchval("SELECT pg_backend_pid()") != connection.get_server_pid()
        # After LISTEN, so that no event comes unnoticed.
        self._due = dict.fromkeys(self.channels)
        check_at = self.loop.time() + interval
        while self.channels:
            self._wake.clear()
            if connection.is_closed():
                raise ConnectionResetError("the connection was closed")
            if self.loop.time() >= check_at:
                check_at = self.loop.time() + interval
                await self._check_ends(connection, has_pooler=has_pooler)
                self._tend(list(self.channels))
            if self._due:
                await self._read_due(connection)
                # Where much is published there is always a log to read.
                if self.fault is not None and self._all_read:
                    self._note_back()
                continue
            self._note_back()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(check_at):
                    await self._wake.wait()

    @property
    def _all_read(self) -> bool:
        """Whether each log was read on this connection, so that no lost event is unknown any more."""
        return all(channel.position is not None for channel in self.channels.values())

    def _hear(self, connection: object, pid: int, topic: str, key: object) -> None:
        if isinstance(key, str) and key in self.channels:
            self._notice(key)

    async def _read_due(self, connection: Connection) -> None:
        """Read the logs that have grown, a part of each, and deliver the events."""
        keys = list(islice(self._due, _CHANNELS))
        for key in keys:
            del self._due[key]
        asked = {
            channel: tuple(channel.waiting) for key in keys if (channel := self.channels.get(key)) is not None
        }
        pages = await self._pages(connection, asked)
        for channel, waiting in asked.items():
            # Other channels of the batch may have gone while one was delivered.
            if self.channels.get(channel.key) is channel and await channel.take(pages[channel.key], waiting):
                self._due[channel.key] = None

    async def _pages(self, connection: Connection, channels: Iterable[Channel]) -> dict[str, Page]:
        """Return the next page of each channel; the ends of those that have no position."""
        schema, ping = self._server.schema, self._server.timeouts.ping
        asked = {
            channel.key: (MAX_OFFSET, 0) if channel.position is None else (channel.position.offset, _EVENTS)
            for channel in channels
        }
        while True:
            found: dict[str, list[Row]] = {key: [] for key in asked}
            for key, *row in await _within(
                ping,
                connection.fetch(
                    schema.read,
                    list(asked),
                    [after for after, _ in asked.values()],
                    [most for _, most in asked.values()],
                    _BYTES,
                    *schema.bounds,
                ),
            ):
                found[key].append(Row(*row))
            pages = {key: page_of(rows) for key, rows in found.items()}
            if None not in pages.values():
                return {key: page for key, page in pages.items() if page is not None}
            await _within(ping, connection.execute(schema.begin))

    async def _check_ends(self, connection: Connection, *, has_pooler: bool) -> None:
        """Find the channels whose logs do not end where they were last seen to end."""
        rows = await _within(
            self._server.timeouts.ping, connection.fetch(self._server.schema.ends, list(self.channels))
        )
        ends = {key: (epoch, last) for key, epoch, last in rows}
        for key, channel in self.channels.items():
            position = channel.position
            is_there = position is not None and (position.epoch, position.offset) == ends.get(key)
            if not is_there and (key in ends or (position is not None and position.offset)):
                if key not in self._due:
                    self._unannounced += 1
                    if has_pooler and self._unannounced == 2:
                        logger.error(
                            "%s sent no notification of an event, and there is a pooler in front of it: %s",
                            self._address,
                            POOLER,
                            extra=fields("pooler_in_the_way", server=self._address),
                        )
                self._due[key] = None

    def _note_back(self) -> None:
        self.fault = None
        self._backoff.reset()
        if self._lost_at is not None:
            away, self._lost_at = self.loop.time() - self._lost_at, None
            self.reconnects += 1
            number = len(self.channels)
            logger.warning(
                "connected to %s again after %.1f s, %d channels",
                self._address,
                away,
                number,
                extra=fields("broker_back", server=self._address, seconds=away, channels=number),
            )

    def _note_lost(self, error: Exception) -> None:
        self.fault = error if str(error) else no_answer(self._server.timeouts.ping)
        if self._lost_at is None and self.channels:
            self._lost_at = self.loop.time()
            reason = explain(self.fault, self._server.schema.grant)
            logger.warning(
                "no connection to %s, trying until it works: %s",
                self._address,
                reason,
                extra=fields("broker_lost", server=self._address, error=reason, channels=len(self.channels)),
            )


@contextmanager
def _logged(mailbox: Mailbox) -> Iterator[None]:
    # The error of one sink does not affect the others.
    try:
        yield
    except Exception:
        logger.exception(
            "the sink of channel %r raised",
            mailbox.channel,
            extra=fields("sink_failed", channel=mailbox.channel),
        )


async def _within(timeout: float, answer: Awaitable[T]) -> T:
    async with asyncio.timeout(timeout):
        return await answer
