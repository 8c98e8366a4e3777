"""LivePush: the ASGI application, and the object through which a program publishes."""

import logging
from collections.abc import AsyncIterable, AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from threading import get_ident
from typing import Any

from ..brokers import Broker, HistoryBroker
from ..errors import NotRunningError
from ..grant import Authorize, Grant, StreamRequest, check_channel
from ..http.authorize import ALWAYS_SOFT, REFUSED_ERRORS, Refused, check_expiry, refused_for
from ..http.cors import Cors
from ..http.driver import drive
from ..http.endpoint import Endpoint
from ..http.probe import ProbeRule, Probes
from ..process.commands import CONFIRM_TIMEOUT, CommandSender
from ..process.revocation import Disconnected, Revocation
from ..process.run import NOT_RUNNING, Run
from ..process.statistics import Counters, Statistics
from ..runtime.asgi import Receive, Scope, Send
from ..runtime.event_loop import is_running, loop_identity, run_on
from ..settings import DrainPolicy, Limits, Timing
from ..slots import Slots
from ..stream.stream import Stream
from ..wire.cursor import Position
from ..wire.reasons import RefusalCause
from .arguments import check_broker, check_callbacks, check_settings, check_slots, check_soft_refusals
from .namespace import broker_in, slots_in
from .publishing import prepare, publish, publish_job, publish_with_retries

logger = logging.getLogger("livepush_asgi")


class LivePush:
    """Server push as an ASGI application: mount it, or put it in front of another with LivePushMiddleware.

    `authorize` decides about each request: it gets a StreamRequest and returns (or raises) a Grant
    or a Refusal; it may be `async`. The HTTP errors of Starlette, FastAPI, Litestar, Quart and Django
    mean what they say when it raises one. `slots` caps the open streams of a key. `soft_refusals` names
    the causes, of those that are not `authorize`'s own, which are answered 200 with a
    `livepush.refused` event, so that `EventSource` comes back; among them `RefusalCause.ERROR`, for an
    `authorize` that raises or takes too long, otherwise a 500 or 503. A drain always is soft, and a full
    process where a full cap is. Without
    `control_events` no `livepush.*` event is sent, and what they would tell ends the stream.
    `probe` decides, like `authorize` or with True and False, who may measure the way to a client
    with `python -m livepush_asgi doctor`; without it nobody may. `namespace` keeps applications apart that
    share a server, such as "staging" and "production": channels, logs, slot keys and `disconnect` of one
    never meet those of another. At the broker a channel is then named `<namespace>:<channel>`.
    Under the versions of uvicorn that it was tested with, an event is sent without waking the stream's task,
    which is several times cheaper; `inline_send=False` has the task send always: for a patched server, or
    to rule this out as the cause of something.

    It starts with the ASGI lifespan (`lifespan`, or by itself as the outermost application), or with
    the first request where no lifespan reaches it. One object serves one event loop at a time.
    """

    def __init__(
        self,
        broker: Broker,
        authorize: Authorize,
        *,
        slots: Slots | None = None,
        timing: Timing | None = None,
        limits: Limits | None = None,
        drain: DrainPolicy | None = None,
        cors: Cors | None = None,
        control_events: bool = True,
        soft_refusals: Collection[RefusalCause] = (),
        probe: ProbeRule | None = None,
        namespace: str | None = None,
        inline_send: bool = True,
    ) -> None:
        check_broker(broker)
        check_callbacks(authorize, probe)
        check_slots(slots)
        check_settings(timing=timing, limits=limits, drain=drain, cors=cors)
        check_soft_refusals(soft_refusals)
        self.broker = broker_in(broker, namespace)
        self.slots = slots_in(slots, namespace)
        self.timing = timing or Timing()
        self.limits = limits or Limits()
        self.drain_policy = drain or DrainPolicy()
        self.control_events = control_events
        self._inline_send = inline_send
        #: The causes of refusal that are answered 200 with a `livepush.refused` event.
        self.soft_refusals = ALWAYS_SOFT | frozenset(soft_refusals)
        self._counters = Counters()
        self._sender = CommandSender()
        self._run: Run | None = None
        self._stopped_in: object = None
        # The thread it was started in. Asking for the thread is cheaper than asking for the event loop.
        self._thread: int | None = None
        self._endpoint = Endpoint(
            authorize,
            self.timing,
            cors,
            control_events,
            self.soft_refusals,
            self._count_refusal,
            None if probe is None else Probes(probe, self.timing.heartbeat_interval),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection: a stream, or the lifespan. WebSockets are closed."""
        if scope["type"] == "http":
            streaming = await self._answer(scope, receive, send)
            # Ten thousand open streams need not hold ten thousand scopes.
            del scope
            if streaming is not None:
                await streaming
        elif scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send(
                {"type": "websocket.close", "code": 1003, "reason": "an event stream, not a WebSocket"}
            )
        else:
            raise ValueError(f"ASGI has no scope type {scope['type']!r} that LivePush could serve")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None] | None:
        """Answer one HTTP request, or return the stream that is its answer: to be awaited, until it ends.

        For middleware: await the returned coroutine instead of `push(...)`; it saves a frame per stream.
        """
        run = self._run
        if run is None or not run.running or run.loop is not loop_identity():
            run = await self._current_run()
        opened = await self._endpoint(run, scope, receive, send)
        return None if opened is None else drive(*opened, receive, send, scope.get("client"))

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        event: str | None = None,
        id: str | int | None = None,
        retry: int | None = None,
        idempotency_key: str | None = None,
        expected_position: Position | str | None = None,
        retry_for: float = 0.0,
    ) -> str | None:
        """Publish one event to a channel, from any process, running or not; return its event id.

        `data` is an Event, or what an Event takes as data. Events that one task publishes to a channel one
        after the other arrive in that order. With history the id is the event's position, unless the event
        has its own; from an id of its own no client can resume. Without history the id is the event's own, or
        None.

        A synchronous view publishes with `async_to_sync(push.publish)(channel, data)` of asgiref.sync. While
        this runs, a call on another event loop is handed over to its own.

        Only with history: a publish that is repeated with the same `idempotency_key` makes one event, and
        with `expected_position` (an id that `publish` returned) the event is published only if no other
        event came since; offset 0 means that there was none at all. While the broker is away the publish is
        repeated for `retry_for` seconds; without a key the event may then be published twice.

        Raises InvalidEventError for an event that cannot be written, PositionConflictError, and
        BrokerUnavailableError when the broker is away: the event may have been published.
        """
        if get_ident() != self._thread and (loop := self._loop_elsewhere()) is not None:
            again = partial(
                self.publish,
                channel,
                data,
                event=event,
                id=id,
                retry=retry,
                idempotency_key=idempotency_key,
                expected_position=expected_position,
                retry_for=retry_for,
            )
            return await run_on(loop, again)
        publication = prepare(channel, data, event, id, retry, idempotency_key, expected_position)
        if retry_for:
            sent = await publish_with_retries(self.broker, publication, retry_for)
        else:
            sent = await publish(self.broker, publication)
        self._counters.published += 1
        return sent

    async def publish_job(
        self,
        channel: str,
        items: AsyncIterable[object],
        *,
        event: str | None = None,
        end_event: str = "end",
        retry_for: float = 0.0,
    ) -> bool:
        """Publish what an async iterator yields, as one job that has the channel to itself; wait for its end.

        The channel gets an event `start`, one event for each item (an Event, or data, which is named
        `event`), and an event `end_event` with the data `{"count": ..., "error": null}`. `error` is "failed"
        if the iterator or a publish raised, which is raised here too, and "cancelled" if this call was
        cancelled. A client with `Grant(channels=channel, replay="all")` gets all of it, whenever it comes, if
        the broker's history is long enough. Items should have no id of their own: from such an id no client
        can resume.

        Returns False, with the iterator untouched, if the channel has an event in its log: the job was
        started before. It may also have started when this call raises BrokerUnavailableError or is cancelled.
        Each publish is repeated for `retry_for` seconds while the broker is away; that publishes no event
        twice. Needs a broker with history, and raises TypeError with any other.
        """
        if not isinstance(self.broker, HistoryBroker):
            raise TypeError(
                f"{type(self.broker).__name__} keeps no history, so nobody could resume the job; "
                "MemoryBroker, RedisStreamsBroker and JetStreamBroker keep one"
            )
        check_channel(channel)
        return await publish_job(
            self.publish, channel, items, event=event, end_event=end_event, retry_for=retry_for
        )

    async def disconnect(
        self, *, slot_key: str | None = None, channel: str | None = None, timeout: float = CONFIRM_TIMEOUT
    ) -> Disconnected:
        """End the streams of a slot key, or on a channel (or both), in every process; say what was reached.

        They end with the reason `revoked`, behind what was published before, and at the latest after a
        second; the clients come back, and `authorize` decides anew. A stream that is being opened at this
        moment is authorized again before it is let in. Returns when every process that is known, or that the
        broker counts, has confirmed that no matching stream is open any more, at the latest `timeout` seconds
        after the command was sent: at once with one process. A process that could not be reached ends or
        authorizes its streams again when it is back.

        Raises InvalidGrantError for what no Grant can name, and BrokerUnavailableError if the other processes
        cannot be told; the streams of this process have ended all the same.
        """
        revocation = Revocation(slot_key, channel)
        if get_ident() != self._thread and (loop := self._loop_elsewhere()) is not None:
            return await run_on(
                loop, partial(self.disconnect, slot_key=slot_key, channel=channel, timeout=timeout)
            )
        run = self._run
        if run is not None and run.running and not run.stopping and run.loop is loop_identity():
            return await run.revoker.revoke(revocation, timeout)
        return await self._sender.revoke(self.broker, revocation, timeout)

    async def drain(self) -> None:
        """Refuse new streams and end the open ones, spread over the drain window. Returns when all have."""
        if self._run is not None:
            await self._run.drain()

    @property
    def healthy(self) -> bool:
        """Whether all that was published since the streams opened is on its way to them: for a health check.

        False while a channel cannot be subscribed or its history not be read, or the broker's connection
        is down. The streams stay open all the while.
        """
        return self.statistics()["healthy"]

    def statistics(self) -> Statistics:
        """Return the numbers to watch."""
        run = self._run if self._run is not None and self._run.running else None
        return Statistics(
            streams=len(run.streams) if run else 0,
            channels=run.hub.channels if run else 0,
            healthy=run.hub.healthy if run else True,
            draining=run.draining if run else False,
            opened=self._counters.opened,
            ended=self._counters.by_end_reason(),
            refused=self._counters.by_refusal_cause(),
            published=self._counters.published,
            delivered=self._counters.delivered + (run.hub.delivered if run else 0),
        )

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Run from start to stop: `FastAPI(lifespan=push.lifespan)`, `async with push.lifespan():`."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start in the running event loop. Harmless when it runs there already."""
        self._stopped_in = None
        self._thread = get_ident()
        if self._run is None or self._run.ended or self._run.loop is not loop_identity():
            self._run = run = Run(
                self.broker,
                self.slots,
                self.timing,
                self.limits,
                self.drain_policy,
                self._counters,
                lambda request, authorize: self._endpoint.decider.decide_again(request, run, authorize),
                inline_send=self._inline_send,
            )
            run.launch()
        await self._run.wait_started()

    async def stop(self) -> None:
        """Drain, give back every subscription and slot, and refuse what comes until started again."""
        run = self._run
        if run is not None and run.loop is loop_identity():
            await run.stop()
            self._stopped_in = run.loop

    async def _current_run(self) -> Run | None:
        run = self._run
        if run is not None and run.running and run.loop is loop_identity():
            return run
        if self._stopped_in is not None and self._stopped_in is loop_identity():
            return None
        await self.start()
        return self._run

    def _loop_elsewhere(self) -> object | None:
        """Return the event loop that this runs on; None if it is the caller's, or if this does not run.

        `async_to_sync(push.publish)` may begin an event loop of its own, and the broker belongs to one loop.
        """
        run = self._run
        if run is None or run.loop is loop_identity():
            return None
        return run.loop if run.running and is_running(run.loop) else None

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _open_granted(self, grant: Grant, last_event_id: str | None = None) -> tuple[Stream, Run]:
        """Open a stream on a decision that was made before. The caller has to close it.

        Raises CapExceededError (ProcessFullError if the whole process is full), SlotsUnavailableError,
        GrantExpiredError, GrantRevokedError if `disconnect` named the stream meanwhile, and NotRunningError
        while draining.
        """
        control_events = self.control_events if grant.control_events is None else grant.control_events
        async with self._opening() as run:
            check_expiry(grant)
            run.admit()
            try:
                await run.revoker.listen()
                decided_at = run.revoker.log.number
                stream = await run.open(
                    grant, decided_at=decided_at, control_events=control_events, last_event_id=last_event_id
                )
            finally:
                run.pending -= 1
            return stream, run

    async def _open_authorized(self, authorize: Authorize, request: StreamRequest) -> tuple[Stream, Run]:
        """Open a stream on the decision of an `authorize` of its own. Otherwise as `_open_granted`.

        Raises Refused for a request that gets no stream.
        """
        async with self._opening() as run:
            return await self._endpoint.open(run, request, authorize=authorize), run

    @asynccontextmanager
    async def _opening(self) -> AsyncIterator[Run]:
        """Give the run for a new stream, and count the cause if there is none."""
        try:
            run = await self._current_run()
            if run is None:
                raise NotRunningError(NOT_RUNNING)
            yield run
        except Refused as refused:
            self._count_refusal(refused.cause)
            raise
        except REFUSED_ERRORS as error:
            self._count_refusal(refused_for(error).cause)
            raise

    def _count_refusal(self, cause: RefusalCause) -> None:
        self._counters.refused[cause] += 1
