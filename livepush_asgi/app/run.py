"""Run and RunStatus: a job that ends, whose output any number of clients follow."""

import inspect
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import anyio

from ..brokers.backoff import retry_unavailable
from ..dialects import Dialect, RunEnd, livepush
from ..errors import (
    BrokerUnavailableError,
    NotRunningError,
    RunNotFoundError,
)
from ..grant import Refusal, RunGrant, StreamRequest, check_channel
from ..process.process import NOT_RUNNING
from ..runs.claim import Claim, Conditions
from ..runs.host import RunHost, send_cancelled
from ..runs.log import CHANNEL_PREFIX, LogState, RunLog
from ..runs.watch import wait_for_sign
from ..runtime.event_loop import refuse_to_block
from ..runtime.failure_log import fields
from ..settings import check_seconds, check_whole
from ..stream.run_stream import has_begun, start_id, was_restarted
from ..stream.source import close_unused, iterator_of
from ..wire.cursor import Cursor, Position, event_id
from ..wire.reasons import GapReason, RunState
from ..wire.run_record import RunFollower
from .publishing import keeps_history
from .run_reader import OpenedRun, RunReader
from .subscriber import Gap

if TYPE_CHECKING:
    from .livepush import LivePush

# Each process with readers looks at the log several times in a lease.
SHORTEST_LEASE = 0.1
UNREADABLE = "The state of this run cannot be read now."


Make = Callable[[int], AsyncIterable[object]]
#: The items of a run: an async iterator, or a function that returns one for the events after so many.
Items = AsyncIterable[object] | Make

# The states of a run that another start continues.
_QUEUED = frozenset({RunState.QUEUED})
_LOST = frozenset({RunState.QUEUED, RunState.LOST})
_RESUMED = frozenset({RunState.QUEUED, RunState.LOST, RunState.FAILED, RunState.CANCELLED})


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What has become of a run, and how far it is.

    `count` is how many events its output has. `last_event_id` is the event id of the newest one: a reader
    that begins there gets what comes next. `error` is the text of the RunFailedError that has ended it.
    """

    id: str
    state: RunState
    count: int
    last_event_id: str
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it is in a state other than `queued` and `running`. It may be started again."""
        return self.state.ended


class Run:
    """A run: `push.run(id)` returns it. It holds nothing, so make one where it is needed, in any process.

    `start` gives it an async iterator; `queue` makes it known before a worker does so, and `finish` is for
    workers. `read` and `grant` are for its readers, `cancel` and `status` for everybody. Its output is the
    channel `channel`, in a broker with history, which keeps each event for `History.age`, and the state of
    the run for as long after its end.
    """

    def __init__(self, push: "LivePush", id: str, dialect: Dialect | None = None) -> None:
        if not isinstance(id, str):
            raise TypeError(f"the id of a run is a str, not {type(id).__name__}")
        self.id = id
        self.channel = CHANNEL_PREFIX + id
        if not id:
            raise ValueError("the id of a run is not empty")
        check_channel(self.channel)
        broker = push.broker
        if not keeps_history(broker):
            raise TypeError(
                f"{type(broker).__name__} keeps no history, so it can keep no run; "
                "MemoryBroker, RedisStreamsBroker, JetStreamBroker and PostgresBroker keep one"
            )
        #: How its output is written for its clients.
        self.dialect = livepush(control_events=push.control_events) if dialect is None else dialect
        self._push = push
        self._broker = broker
        self._log = RunLog(broker, self.channel)

    async def start(
        self,
        items: Items,
        *,
        join: bool = True,
        restart: bool = False,
        resume: bool = False,
        lease: float = 15.0,
        retry_for: float = 60.0,
        ahead: int = 100,
    ) -> bool:
        """Start the run: this process reads the iterator, and publishes its items, until it ends.

        The items are those of the dialect. For an EventSource they are Events, or data for one as `publish`
        takes it. They should have no id of their own. Instead of an iterator, `items` may be a function that
        returns one: it is called when the run has begun, with the number of events that are there already.

        Returns True as soon as the run has begun; it goes on when the caller has ended, as long as this
        LivePush runs. Of several processes that start a run, one does. The others get False, and their
        iterator is closed unread; with `join=False` they get RunExistsError.

        A run that has ended counts as started too. With `restart=True` it begins again, and readers get the
        new output alone. With `resume=True` the output of a run that was lost, failed or cancelled goes on,
        and readers get one text: then `items` has to be a function. With both, one that is done begins again,
        and another one goes on. A run whose producer is silent is first watched for its lease.

        The `lease` is in seconds, from 0.1 to 3600. If the process is killed, or does not reach the broker
        for that time, the run is `lost` to all readers. The iterator may run `ahead` events or 1 MiB ahead of
        the broker, and then waits. No reader ever slows it. While the broker is unavailable, this call tries
        for `retry_for` seconds, and so does the producer later.

        When the iterator raises, the run has `failed`, and the log has the error; the readers get the text of
        a RunFailedError, and of no other. When the run is cancelled or found lost, the iterator is closed
        where it is, and its `finally` runs. When this LivePush stops, its runs go on for `DrainPolicy.runs`
        seconds, and are lost then.

        Raises NotRunningError in a drain, BrokerUnavailableError if the broker is away for all that time (the
        run may exist, and is then lost after the lease), and RuntimeError if this LivePush runs on another
        event loop.
        """
        if resume:
            _check_goes_on(items, "start with resume=True")
        conditions = Conditions(_RESUMED if resume else _QUEUED, restart, join)
        return await self._start(items, conditions, lease, retry_for, ahead)

    async def finish(
        self, items: Make, *, lease: float = 15.0, retry_for: float = 60.0, ahead: int = 100
    ) -> RunStatus:
        """Have the run end, and return how: produce it here, or wait while another process does.

        This is the whole of a worker's job, also of one that is given the job again because its process was
        killed. If the producer of the run is lost, this process goes on: `items` is a function of the number
        of events that are there already, which returns an iterator of those that follow. A run that is done,
        failed or cancelled stays so. If this process has lost it twice at the same event, which the broker
        may refuse, `lost` is returned. For the arguments, and what it raises, see `start` and `wait`.
        """
        _check_goes_on(items, "finish")
        lost_at = -1
        while True:
            is_own = await self._start(items, Conditions(_LOST), lease, retry_for, ahead)
            status = await self._wait(retry_for)
            if status.state is not RunState.LOST or (is_own and status.count == lost_at):
                return status
            lost_at = status.count if is_own else lost_at

    async def queue(self, *, start_within: float = 300.0, restart: bool = False) -> bool:
        """Make the run known before a worker starts it: readers wait for its output, and `cancel` ends it.

        Call it where the job is given to the worker, before. Returns False if there is a run under this id
        already; with `restart=True` one that has ended is begun again. The worker's `start` or `finish`
        begins it, unless it was cancelled meanwhile. If nobody does within `start_within` seconds, at most
        `History.age`, the run is `lost` to its readers; `finish` begins it even then. Raises
        BrokerUnavailableError.
        """
        check_seconds("start_within", start_within, self._log.history.age or 7 * 86400.0)
        claim = self._claim(Conditions(frozenset(), restart), RunState.QUEUED, start_within)
        return await self._push._on_own_loop(claim.make) is not None

    async def _start(
        self, items: Items, conditions: Conditions, lease: float, retry_for: float, ahead: int
    ) -> bool:
        make = None if isinstance(items, AsyncIterable) else _checked_function(items)
        iterator = self._in_dialect(items) if make is None else None
        claim = self._claim(conditions, RunState.RUNNING, lease)
        try:
            check_seconds("lease", lease, 3600.0, SHORTEST_LEASE)
            check_whole("ahead", ahead)
            host = await self._push._run_host()

            async def begin() -> LogState | None:
                if not host.process.accepting:
                    raise NotRunningError(NOT_RUNNING)
                return await claim.make()

            start = await retry_unavailable(begin, retry_for)
            if start is not None:
                self._push._tell_unstopped(host)
                iterator = await self._begun(claim, start, iterator, make, host)
                host.start(self._log, start, iterator, retry_for, ahead)
                return True
        except BaseException as error:
            if iterator is not None:
                await close_unused(iterator)
            if isinstance(error, anyio.get_cancelled_exc_class()):
                await claim.withdraw()
            raise
        if iterator is not None:
            await close_unused(iterator)
        return False

    def _claim(self, conditions: Conditions, state: RunState, lease: float) -> Claim:
        return Claim(self._log, self.id, conditions, state, lease, self.dialect.name)

    async def _begun(
        self,
        claim: Claim,
        start: LogState,
        iterator: AsyncIterator[object] | None,
        make: Make | None,
        host: RunHost,
    ) -> AsyncIterator[object]:
        """Return the iterator for an attempt that has begun, or end the attempt and raise."""
        try:
            if host.process.stopping:
                raise NotRunningError(NOT_RUNNING)
            if iterator is None:
                assert make is not None
                iterator = self._in_dialect(make(start.count))
        except BaseException:
            await claim.give_up(start)
            raise
        return iterator

    def _in_dialect(self, items: object) -> AsyncIterator[object]:
        iterator = iterator_of(items)
        return iterator if self.dialect.item is None else self.dialect.items(iterator)

    async def status(self) -> RunStatus | None:
        """Return the state of the run, or None if there is none under this id.

        Any process may ask. If the producer seems to be silent, this call watches the run for its lease
        before it returns `lost`. Raises BrokerUnavailableError.
        """
        return self._status_of(await self._push._on_own_loop(self._state))

    async def cancel(self) -> RunStatus | None:
        """End the run, from any process, and return its state: `cancelled`, unless it had ended before.

        Returns None if there is no run under this id. When it returns, the end is in the log: the readers
        get what was published before, and end. The iterator is closed where it is, within milliseconds if
        its process can be reached, and otherwise at its next event or within a third of the lease. Raises
        BrokerUnavailableError: the run may go on.
        """
        return self._status_of(await self._push._on_own_loop(self._cancel))

    def status_sync(self) -> RunStatus | None:
        """Return what `status` does, from a thread without an event loop. Blocks."""
        refuse_to_block("run.status_sync", "await run.status()")
        return self._status_of(self._push._call_from_thread(self._state))

    def cancel_sync(self) -> RunStatus | None:
        """End the run as `cancel` does, from a thread without an event loop. Blocks."""
        refuse_to_block("run.cancel_sync", "await run.cancel()")
        return self._status_of(self._push._call_from_thread(self._cancel))

    async def wait(self) -> RunStatus:
        """Wait until the run has ended, and return its state.

        Raises RunNotFoundError, BrokerUnavailableError, and NotRunningError in a drain.
        """
        return await self._wait(0.0)

    async def _wait(self, retry_for: float) -> RunStatus:
        while True:
            status = await retry_unavailable(self.status, retry_for)
            if status is None:
                raise RunNotFoundError(self.id)
            if status.ended:
                return status
            async with AsyncExitStack() as stack:
                enter = partial(self._enter, stack, status.last_event_id)
                async for _ in await retry_unavailable(enter, retry_for):
                    pass

    async def _enter(self, stack: AsyncExitStack, last_event_id: str) -> RunReader:
        return await stack.enter_async_context(self.read(last_event_id=last_event_id))

    def read(self, *, last_event_id: str | None = None) -> RunReader:
        """Return a RunReader, for `async with run.read() as items: async for item in items`.

        It yields the output from the beginning, or after `last_event_id`: a Received for each event, and a
        Gap where events are missing, as `LivePush.subscribe` does. The iteration ends with the run. Entering
        raises RunNotFoundError and BrokerUnavailableError.
        """
        return RunReader(self._open_reader, last_event_id)

    async def grant(
        self,
        request: StreamRequest | str | None = None,
        *,
        slot_key: str | None = None,
        expires_at: datetime | float | None = None,
    ) -> RunGrant | Refusal:
        """Return what `authorize` returns for a client that may read this run.

        `request` is the client's, or its last event id. Its stream has the output from the beginning, or
        from where the client was, then what the dialect has for the end of the run, and ends. For an
        EventSource that is an event `livepush.end` with the data `{"state": "done", "count": 3}`.

        Returns a Refusal with the status `dialect.idle`, 204 for example, after which `EventSource` stops,
        if there is no such run, and if the client has met its end before; and one with 503 while the broker
        is away, after which `EventSource` comes back. Does not wait for a lease.
        """
        try:
            found = await self._push._on_own_loop(partial(self._found_for, request))
        except BrokerUnavailableError:
            # After a status other than 200 an EventSource would stop.
            return Refusal(503, UNREADABLE, soft=self.dialect.control_events)
        if found is None:
            return Refusal(self.dialect.idle)
        grant = await self._grant(found, slot_key, expires_at)
        if found.state is not RunState.QUEUED and found.dialect not in (None, self.dialect.name):
            await self._tell_dialects(found.dialect)
        return grant

    async def _tell_dialects(self, written: str | None) -> None:
        """Log that the client of this run cannot read its output."""
        host = await self._push._run_host()
        host.process.context.failures.log(
            logging.WARNING,
            "the run on %r is written in the dialect %r and read in the dialect %r: give the same one to "
            "push.run of who starts it and to push.runs or push.run of who serves it",
            self.channel,
            written,
            self.dialect.name,
            extra=fields("run_dialects", channel=self.channel, written=written, read=self.dialect.name),
        )

    async def _found_for(self, request: StreamRequest | str | None) -> LogState | None:
        """Return the state of the run, or None if there is nothing for this client."""
        found, _ = await self._log.state()
        if found is None or (found.ended and await self._needs_nothing(found, request)):
            return None
        return found

    async def _needs_nothing(self, found: LogState, request: StreamRequest | str | None) -> bool:
        """Return whether a client of a run that has ended has all of it."""
        last_event_id = request.last_event_id if isinstance(request, StreamRequest) else request
        if not last_event_id:
            # A POST has started the run, and a short one has ended before its response.
            has_started_it = isinstance(request, StreamRequest) and request.scope["method"] == "POST"
            return not self.dialect.replays_ended and not has_started_it
        return await self._is_past_end(found, last_event_id)

    async def _is_past_end(self, found: LogState, last_event_id: str | None) -> bool:
        """Return whether a client has met the end of a run, by its last event id."""
        positions = self._positions_in(last_event_id)
        if any(at.epoch == found.end.epoch and at.offset >= found.ended_at for at in positions):
            return True
        if all(at.epoch == found.end.epoch for at in positions):
            return False
        # The server has started again since, and has begun another epoch.
        page = await self._log.bounds()
        places = [at if page.has(at) else page.start_after_loss(at) for at in positions]
        return any(place.offset >= found.ended_at for place in places)

    def _positions_in(self, last_event_id: str | None) -> tuple[Position, ...]:
        cursor = Cursor.parse(last_event_id) if last_event_id else None
        return () if cursor is None else cursor.positions_in(self.channel)

    async def _grant(
        self,
        found: LogState,
        slot_key: str | None = None,
        expires_at: datetime | float | None = None,
    ) -> RunGrant:
        host = await self._push._run_host()
        return RunGrant(
            channels=self.channel,
            slot_key=slot_key,
            expires_at=expires_at,
            run_id=self.id,
            dialect=self.dialect,
            attempt=found.attempt,
            begin=found.end.at(found.begin - 1),
            follow=partial(host.follow, found, self._log),
            end=RunEnd(self.id, found.state, found.error, found.count) if found.ended else None,
            ended_at=found.ended_at,
        )

    async def _open_reader(self, last_event_id: str | None) -> OpenedRun:
        found, _ = await self._log.state()
        if found is None:
            raise RunNotFoundError(self.id)
        grant = await self._grant(found)
        if found.ended and await self._is_past_end(found, last_event_id):
            # The end comes once more: nothing else would end this reader.
            last_event_id = event_id(self.channel, found.end.at(found.ended_at - 1))
        id, gap = start_id(grant, last_event_id), None
        if was_restarted(grant, last_event_id):
            gap = Gap(self.channel, GapReason.EPOCH, id or "")
        stream = await self._push._open_subscriber(grant, id)
        follower = RunFollower(found.attempt, found.begin, met=has_begun(grant, last_event_id))
        return OpenedRun(stream, follower, grant, grant.follow(), gap)

    async def _state(self) -> LogState | None:
        found, _ = await self._log.state()
        while found is not None and found.seems_silent:
            if found.state is RunState.QUEUED:
                # Its readers find that nobody has begun it. By a clock, this process cannot know.
                break
            earlier, found = found, await wait_for_sign(self._log, found)
            if found is not None and not found.ended and found.end != earlier.end:
                # It is alive, whatever the clocks say.
                break
        return found

    async def _cancel(self) -> LogState | None:
        attempt, (found, _) = "", await self._log.state()
        # The attempt may have ended meanwhile, and the next one have begun.
        while found is not None and not found.ended and found.attempt != attempt:
            attempt = found.attempt
            await self._log.append_cancelled(found)
            await send_cancelled(self._broker, self.channel)
            found, _ = await self._log.state()
        return found

    def _status_of(self, found: LogState | None) -> RunStatus | None:
        if found is None:
            return None
        id = event_id(self.channel, found.end)
        return RunStatus(self.id, found.state, found.count, id, found.error)


def _check_goes_on(items: object, name: str) -> None:
    """Raise TypeError for an iterator: it begins again, and not behind the events that are there."""
    if isinstance(items, AsyncIterable):
        raise TypeError(
            f"{name} takes a function of the number of events that are there already, which returns an "
            "iterator of those that follow: lambda count: answer(count)"
        )


def _checked_function(items: object) -> Make:
    """Return the function that makes the iterator. Raises TypeError for anything else, with the fix."""
    if not callable(items):
        # It raises.
        iterator_of(items)
    assert callable(items)
    try:
        inspect.signature(items).bind(0)
    except TypeError as error:
        name = getattr(items, "__name__", "items")
        raise TypeError(
            f"a run takes an async iterator, such as {name}(), or a function of the number of events that "
            f"are there already: lambda count: {name}()"
        ) from error
    return items
