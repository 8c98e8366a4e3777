"""LivePush: the ASGI application that serves streams, and publishes to them."""

import logging
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from threading import Lock, get_ident
from time import perf_counter
from typing import Any, TypeVar, overload
from weakref import WeakSet

import anyio.to_thread

from ..brokers import Broker, HistoryBroker
from ..brokers.faults import Fault
from ..brokers.transaction import AsyncConnection, Connection, SyncConnection, SyncCursor
from ..dialects import Dialect
from ..errors import NotRunningError
from ..grant import Authorize, Grant, Replay, StreamRequest, check_channel
from ..http.authorize import ALWAYS_SOFT, REFUSED_ERRORS, Refused, refused_for
from ..http.cors import Cors
from ..http.driver import drive
from ..http.endpoint import Endpoint
from ..http.health import HealthEndpoint
from ..http.probe import ProbeRule, Probes
from ..http.publish.endpoint import PublishEndpoint
from ..http.publish.request import AuthorizePublish
from ..process.commands import CONFIRM_TIMEOUT, CommandSender
from ..process.hooks import OnEnd, OnOpen, make_hooks
from ..process.observer import Observer
from ..process.process import NOT_RUNNING, Process, check_expiry
from ..process.revocation import Disconnected, Revocation, can_be_revoked
from ..process.statistics import Counters, Statistics
from ..runs.host import RunHost
from ..runtime.asgi import ASGIApp, Receive, Scope, Send
from ..runtime.event_loop import call_on, is_running, loop_identity, refuse_to_block, result_of, run_on
from ..runtime.failure_log import FailureLog, fields
from ..settings import DrainPolicy, Limits, Timing
from ..slots import Slots
from ..stream.stream import Stream
from ..stream.subscriber import SubscriberStream
from ..wire.cursor import Position
from ..wire.encode import Encode
from ..wire.reasons import RefusalCause
from .arguments import (
    check_authorize_run,
    check_broker,
    check_callbacks,
    check_dialect,
    check_encode,
    check_hooks,
    check_settings,
    check_slots,
    check_soft_refusals,
)
from .namespace import broker_in, slots_in
from .publisher import Publisher
from .publishing import Publication, prepare, publish, publish_in, publish_job, publish_with_retries
from .run import Run
from .runs import AuthorizeRun, RunsEndpoint
from .subscriber import Subscriber

logger = logging.getLogger("livepush_asgi")

T = TypeVar("T")

OTHER_LOOP = (
    "this LivePush runs on another event loop: subscribe in a task of that loop, or in this one from a "
    "LivePush with a broker of its own"
)

# How long `start` waits for the calls of `publish_sync` that are under way, in seconds.
CLOSE_TIMEOUT = 5.0
IN_USE = (
    "the broker of this LivePush is in use by another event loop, and belongs to one at a time. In threads "
    "call push.publish_sync(...) or push.disconnect_sync(...), not async_to_sync; in a process without a "
    "LivePush use a Publisher; or start this LivePush (lifespan=push.lifespan), so that its loop publishes"
)


class LivePush:
    """Server push as an ASGI application: mount it, or serve it at a path with LivePushMiddleware.

    `authorize` decides about each request. It takes a StreamRequest, returns or raises a Grant or a Refusal,
    and may be `async`. If it raises an HTTP error of Starlette, FastAPI, Litestar, Quart or Django, the
    client gets that status.

    `slots` caps the open streams of each slot key.

    `soft_refusals` names the causes for which a client gets a 200 with a `livepush.refused` event, so that
    `EventSource` reconnects. Among them is `RefusalCause.ERROR`, for an `authorize` that raises or takes too
    long; without it the client gets a 500 or 503. A refusal in a drain is always soft, and
    `RefusalCause.CAP` includes a full process.

    Without `control_events` no stream sends `livepush.*` events, and one that would send a gap ends instead.
    A soft refusal is a `livepush.refused` event in any case.

    `probe` decides which requests may measure the path to a client with `python -m livepush_asgi doctor`. It
    returns a bool, or a Grant or Refusal as `authorize` does. Without it no request may.

    `namespace` separates applications that share a server, such as "staging" and "production": their
    channels, logs, slot keys and `disconnect` calls. At the broker a channel is then named
    `<namespace>:<channel>`.

    Under the tested versions of uvicorn, and from Python 3.12 on under every server and behind every
    middleware, an event is sent without waking the stream's task, which is several times cheaper.
    `inline_send=False` turns this off: for a patched server, for a middleware whose `send` depends on the
    task of its request (a lock of that task, an anyio shield), or to find the cause of a problem.

    `encode` makes text (str, or bytes in UTF-8) of the data that is published, of the items of a job and of
    what a snapshot returns: `orjson.dumps`, for example. Text, bytes and an Event do not pass through it.
    Without it, data becomes JSON as described at Event.

    `on_open(grant)` is called when a stream opens: it has its slot, and is about to be subscribed.
    `on_end(grant, reason, duration, sent)` is called once for each such stream, whatever ends it, with the
    EndReason, the duration in seconds, and a Sent: how many events and bytes. Its slot is free then. Both are
    plain functions and block the event loop as long as they take. What they raise is logged, once a minute
    for each kind, and affects no stream. They are called in any task of the loop, so they read no context
    variable of a request.

    It starts with the ASGI lifespan (`lifespan`, or by itself as the outermost application), or with the
    first request if it gets no lifespan. One object serves one event loop at a time.
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
        on_open: OnOpen | None = None,
        on_end: OnEnd | None = None,
        encode: Encode | None = None,
    ) -> None:
        check_broker(broker)
        check_encode(encode)
        check_callbacks(authorize, probe)
        check_slots(slots)
        check_hooks(on_open=on_open, on_end=on_end)
        check_settings(timing=timing, limits=limits, drain=drain, cors=cors)
        check_soft_refusals(soft_refusals)
        self.broker = broker_in(broker, namespace)
        self.slots = slots_in(slots, namespace)
        self.timing = timing or Timing()
        self.limits = limits or Limits()
        self.drain_policy = drain or DrainPolicy()
        self.control_events = control_events
        self._inline_send = inline_send
        self._on_open, self._on_end = on_open, on_end
        self.encode = encode
        #: The causes for which a client gets a 200 with a `livepush.refused` event.
        self.soft_refusals = ALWAYS_SOFT | frozenset(soft_refusals)
        self._cors = cors
        self._counters = Counters()
        self._observers: tuple[Observer, ...] = ()
        self._broker_name = type(broker).__name__
        # In memory a publish takes microseconds, and reading the clock twice would show.
        self._times_publishes = not getattr(broker, "in_process", False)
        self._failures = FailureLog()
        self._sender = CommandSender()
        self._process: Process | None = None
        self._host: RunHost | None = None
        # For `publish_sync`, where this LivePush is not started. It has no reference to this object.
        self._publisher = Publisher(partial(_lend, self.broker))
        self._lock = Lock()
        # The event loop that has used the broker last, while this LivePush was not started.
        self._user: object = None
        self._stopped_loop: object = None
        # Whether it was started by its application, which will stop it, and not by a request or a run.
        self._has_lifespan = True
        # The thread in which it was started. Comparing threads is faster than comparing event loops.
        self._thread: int | None = None
        _instances.add(self)
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
        """Serve one ASGI connection: a stream, or the lifespan. Closes WebSockets."""
        if scope["type"] == "http":
            streaming = await self._answer(StreamRequest(scope), receive, send)
            # An open stream need not keep its scope in memory.
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

    async def _answer(
        self, request: StreamRequest, receive: Receive, send: Send
    ) -> Coroutine[Any, Any, None] | None:
        """Answer one HTTP request, or return a coroutine that sends its stream.

        For middleware: await the returned coroutine instead of `push(...)`; it saves a frame per stream.
        """
        process = self._process
        if process is None or not process.running or process.loop is not loop_identity():
            process = await self._current_process()
        opened = await self._endpoint(process, request, receive, send)
        return None if opened is None else drive(*opened, receive, send, request.scope.get("client"))

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
        """Publish one event to a channel and return its event id. It need not be started for that.

        `data` is an Event, or data for one. Events that one task publishes to a channel one after the other
        arrive in that order. With history, the returned id encodes the event's position, unless the event has
        an `id` of its own; a client cannot resume from such an id. Without history, the returned id is the
        event's `id`, or None.

        Code in a thread without an event loop, such as a synchronous view, calls `publish_sync`. If the
        LivePush runs on another event loop, that loop publishes.

        With history only: publishing again with the same `idempotency_key` publishes no second event. With
        `expected_position` (an id that `publish` returned), the event is published only if it directly
        follows that event; offset 0 stands for an empty log. While the broker is unavailable, `publish`
        retries for `retry_for` seconds; without a key, this may publish the event twice.

        Raises InvalidEventError for an invalid event, PositionConflictError, and BrokerUnavailableError if
        the broker is unavailable: the event may have been published. Raises RuntimeError if the LivePush is
        not started and another event loop, which still runs, has used its broker.
        """
        if get_ident() != self._thread and (loop := self._other_loop()) is not None:
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
        counters = self._counters
        started_at = perf_counter() if self._times_publishes else 0.0
        try:
            publication = prepare(
                channel, data, event, id, retry, idempotency_key, expected_position, self.encode
            )
            if self._observers:
                sent = await self._publish_observed(publication, retry_for)
            elif retry_for != 0:
                sent = await publish_with_retries(self.broker, publication, retry_for)
            else:
                sent = await publish(self.broker, publication)
        except Exception as error:
            counters.publish_failed(error)
            raise
        counters.published += 1
        if self._times_publishes:
            counters.publish_duration.add(perf_counter() - started_at)
        return sent

    async def _publish_observed(self, publication: Publication, retry_for: float) -> str | None:
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer.publishing(publication[0]))
            return await publish_with_retries(self.broker, publication, retry_for)

    def publish_sync(
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
        """Publish one event from a thread without an event loop, and return its event id. Blocks.

        It is right in every process: in a synchronous view under ASGI and under WSGI, in a signal handler, a
        management command, a Celery task, from any number of threads and after a fork. Where this LivePush
        runs, its event loop publishes. Elsewhere an event loop in a thread of its own does, from the first
        call to the exit of the process, or until this LivePush starts here. The arguments and the errors are
        those of `publish`.

        Where this LivePush does not run, what is published to MemoryBroker is heard by no stream. It is
        dropped, and logged once.

        Raises RuntimeError in the thread of an event loop, which the call would block.
        """
        refuse_to_block("push.publish_sync", "await push.publish(...)")
        function = partial(
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
        if self._is_in_process and self._live_process() is None:
            # A mistake in the arguments is raised all the same.
            prepare(channel, data, event, id, retry, idempotency_key, expected_position, self.encode)
            _warn_unheard()
            return None
        return self._call_from_thread(function)

    @overload
    def publish_in(
        self,
        connection: AsyncConnection,
        channel: str,
        data: object,
        *,
        event: str | None = None,
        id: str | int | None = None,
        retry: int | None = None,
        idempotency_key: str | None = None,
        expected_position: Position | str | None = None,
    ) -> Awaitable[str]: ...

    @overload
    def publish_in(
        self,
        connection: SyncConnection | SyncCursor,
        channel: str,
        data: object,
        *,
        event: str | None = None,
        id: str | int | None = None,
        retry: int | None = None,
        idempotency_key: str | None = None,
        expected_position: Position | str | None = None,
    ) -> str: ...

    def publish_in(
        self,
        connection: Connection,
        channel: str,
        data: object,
        *,
        event: str | None = None,
        id: str | int | None = None,
        retry: int | None = None,
        idempotency_key: str | None = None,
        expected_position: Position | str | None = None,
    ) -> str | Awaitable[str]:
        """Publish one event in a transaction of the application: it exists if and only if that commits.

        For PostgresBroker. `connection` leads to the database of the broker: a connection of asyncpg, a
        connection or cursor of psycopg, or Django's `connection`. With an asynchronous one write `await`;
        with another the call needs no event loop and returns the event id. It may come from any thread, and
        before this LivePush was started. The other arguments are those of `publish`.

        Streams get the event after the commit. Until then other publishers of the channel wait, so publish
        late in the transaction, and to several channels in the same order everywhere. `statistics()` does not
        count the event.

        Raises RuntimeError if the connection is in no transaction, TypeError for another broker or object,
        what `publish` raises for its arguments, and the errors of the driver.
        """
        publication = prepare(
            channel, data, event, id, retry, idempotency_key, expected_position, self.encode
        )
        return publish_in(self.broker, connection, publication)

    async def publish_job(
        self,
        channel: str,
        items: AsyncIterable[object],
        *,
        event: str | None = None,
        end_event: str = "end",
        retry_for: float = 0.0,
    ) -> bool:
        """Publish the items of an async iterator as one job, on a channel of its own, and wait for its end.

        The channel gets an event `start`, one event for each item (an Event, or data for one with the name
        `event`), and an event `end_event` with the data `{"count": ..., "error": null}`. `error` is "failed"
        if the iterator or a publish raised; the exception is raised here too. `error` is "cancelled" if this
        call was cancelled. A client with `Grant(channels=channel, replay="all")` gets the whole job, even if
        it connects later. If the broker's history has dropped the beginning, the client is sent a gap before
        what is left: a long job needs `History(events=...)`. Items should have no id of their own: a
        client cannot resume from such an id.

        Returns False without reading the iterator if the channel's log has an event: the job was started
        before. The job may also have started if this call raises BrokerUnavailableError or is cancelled.
        While the broker is unavailable, each publish is retried for `retry_for` seconds, which publishes no
        event twice. Raises TypeError if the broker keeps no history.
        """
        if not isinstance(self.broker, HistoryBroker):
            raise TypeError(
                f"{type(self.broker).__name__} keeps no history, so no client could resume the job; "
                "MemoryBroker, RedisStreamsBroker, JetStreamBroker and PostgresBroker keep one"
            )
        check_channel(channel)
        return await publish_job(
            self.publish,
            channel,
            items,
            event=event,
            end_event=end_event,
            retry_for=retry_for,
            failures=self._failures,
        )

    def run(self, id: str, *, dialect: Dialect | None = None) -> Run:
        """Return the run with this id, for any process: a job that ends, whose output clients follow.

        `await push.run("17").start(answer())` starts it once, `read` and `grant` follow it, `cancel` ends it
        and `status` says how far it is: see Run. The `dialect` says how its items and its end are written
        for its clients: `ai_sdk()`, `ag_ui()` or `openai()` of livepush_asgi.dialects, or that of an
        EventSource if it is None. Who starts a run and who serves it name the same. This call does nothing
        yet. Raises TypeError if the broker keeps no history, and InvalidGrantError for an invalid id.
        """
        check_dialect(dialect)
        return Run(self, id, dialect)

    def runs(self, authorize_run: AuthorizeRun, *, dialect: Dialect | None = None) -> ASGIApp:
        """Return an ASGI application that serves runs to their clients: mount it, at `/answers` for example.

        A GET of `/answers/17` or `/answers/17/stream` streams the run `17` in the `dialect`, as `Run.grant`
        does. A DELETE of `/answers/17` cancels it, and answers `{"id": "17", "state": ..., "count": ...}`, or
        404 if there is none. Runs are started elsewhere, with the same dialect.

        `authorize_run` decides about each request. It takes the StreamRequest and the Run, returns or raises
        a RunAccess or a Refusal, and may be `async`. What holds for errors and blocking code of `authorize`
        holds for it too. It is called for ids that no run has, too.

        In a dialect without control events no refusal is soft: in a drain, or while the broker is away, the
        client gets a 503 with `Retry-After`. An EventSource gets a soft refusal then, and comes back.

        Raises TypeError if the broker keeps no history.
        """
        check_authorize_run(authorize_run)
        return RunsEndpoint(self, authorize_run, dialect, self._cors)

    async def _run_host(self) -> RunHost:
        """Return the runs of this process. It starts this LivePush if it is not started."""
        process = self._live_process()
        if process is not None and process.running and process.loop is not loop_identity():
            raise RuntimeError(OTHER_LOOP)
        process = await self._current_process()
        if process is None or process.stopping:
            raise NotRunningError(NOT_RUNNING)
        if self._host is None or self._host.process is not process:
            self._host = RunHost(process, self._counters)
        return self._host

    def _tell_unstopped(self, host: RunHost) -> None:
        """Log that nothing ends the runs of this process when its server stops."""
        if self._has_lifespan:
            return
        host.process.context.failures.log(
            logging.WARNING,
            "a run is started, and nothing stops this LivePush: when the server stops, the run is cut off, "
            "its finally does not run, and its readers wait for the lease; give the application "
            "lifespan=push.lifespan, or use async with push.lifespan()",
            extra=fields("run_unstopped"),
        )

    async def _on_own_loop(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await a function on the event loop that the broker belongs to."""
        if get_ident() != self._thread and (loop := self._other_loop()) is not None:
            return await run_on(loop, function)
        return await function()

    def publisher(
        self,
        authorize_publish: AuthorizePublish,
        *,
        max_body: int = 1024 * 1024,
        max_batch: int = 100,
        body_timeout: float = 10.0,
    ) -> ASGIApp:
        """Return an ASGI application that takes events over HTTP: mount it apart from the streams.

        `authorize_publish` decides about each request. It takes a PublishRequest, returns or raises a
        PublishGrant or a Refusal, and may be `async`; `hmac_publish(...)` and `jwt_publish(...)` make one.
        What holds for errors and blocking code of `authorize` holds for it too.

        A POST has a JSON body: `{"channel": "news", "data": ...}` with `event`, `id`, `retry` and
        `expected_position` as in `publish`; `{"channels": [...], "data": ...}`; or `{"items": [{...}]}`. Or
        it has the form of Mercure's publishers. With the header `Idempotency-Key`, and a broker with history,
        a repeated request publishes no second event.

        A body has at most `max_body` bytes, which arrive within `body_timeout` seconds. A request has at most
        `max_batch` channels or items. Nothing is published before the whole request is known to be valid.
        """
        return PublishEndpoint(
            self,
            self.publish,
            self._current_process,
            authorize_publish,
            keeps_history=isinstance(self.broker, HistoryBroker),
            encode=self.encode,
            authorize_timeout=self.timing.authorize_timeout,
            max_body=max_body,
            max_batch=max_batch,
            body_timeout=body_timeout,
        )

    def health(self, *, unready_after: float = 1.0, dead_after: float = 900.0) -> ASGIApp:
        """Return an ASGI application for the health checks of balancers and orchestrators: mount it.

        `/ready` is 200 if this process is to get requests, and 503 if not, at once: it is draining or has
        stopped, it has not reached the broker yet, or it has not received all events for `unready_after`
        seconds. So a short reconnect takes no process out. A channel that the server refuses, as permissions
        do, counts in `healthy` and not here: a client that may choose channels could take out every process.

        `/live` is 503 if this process has not received all events for `dead_after` seconds, so that it is
        restarted. It reconnects by itself and a restart ends its streams, so this time is longer than an
        outage of the broker, which a restart does not end. It is 200 in a drain.

        Both times are in seconds; `math.inf` leaves the broker out.

        Both answer GET and HEAD, and say the reason in one word: `{"status": "draining"}`.
        """
        return HealthEndpoint(
            self,
            self._current_process,
            lambda: self._process,
            unready_after=unready_after,
            dead_after=dead_after,
        )

    def subscribe(
        self, *channels: str, replay: Replay = "new", last_event_id: str | None = None
    ) -> Subscriber:
        """Return a Subscriber, for `async with push.subscribe("news") as events: async for item in events`.

        It yields a Received for each event, in the order of its channel, and a Gap where events are missing.
        `last_event_id`, the id of an item of an earlier subscriber or an id that `publish` returned, goes on
        after that event. Without it, `replay` says how many earlier events come first, as in a Grant. Both
        need a broker with history: without it, `last_event_id` begins with a Gap, and a `replay` other than
        "new" raises TypeError on entering.

        A subscriber belongs to the application and not to a client: it takes no slot, is not authorized or
        revoked, calls no hook, and counts in no statistics but `channels` and `delivered`. It needs no HTTP
        server.

        Entering it starts this LivePush if it is not started. Entering raises NotRunningError in a drain,
        RuntimeError if this LivePush runs on another event loop, and TypeError for a `replay` without
        history. This call raises InvalidGrantError for an invalid name or `replay`, and TypeError for a value
        of another type.
        """
        if not (last_event_id is None or isinstance(last_event_id, str)):
            raise TypeError(f"last_event_id is the id of an item, a str, not {last_event_id!r:.100}")
        if not channels:
            raise TypeError('name the channels to subscribe to: push.subscribe("news")')
        grant = Grant(channels=channels, replay=replay)
        return Subscriber(partial(self._open_subscriber, grant, last_event_id), last_event_id)

    async def _open_subscriber(self, grant: Grant, last_event_id: str | None) -> SubscriberStream:
        process = self._live_process()
        if process is not None and process.running and process.loop is not loop_identity():
            raise RuntimeError(OTHER_LOOP)
        process = await self._current_process()
        if process is None:
            raise NotRunningError(NOT_RUNNING)
        return process.subscribe(grant, last_event_id)

    async def disconnect(
        self,
        *,
        slot_key: str | None = None,
        channel: str | None = None,
        timeout: float = CONFIRM_TIMEOUT,
        retry_for: float = 0.0,
    ) -> Disconnected:
        """End the streams of a slot key, on a channel, or both, in every process.

        Returns how many streams have ended, in how many processes, and how many processes are missing: they
        did not confirm.

        The streams end with the reason `revoked`, after the events that were published before, and within a
        second. Their clients reconnect, and `authorize` decides again. A stream that is being opened is
        authorized again before it opens. The call returns when every known process, and as many as the broker
        counts, have confirmed that no matching stream is open; or `timeout` seconds after the command was
        sent. A process that did not confirm an earlier call is not waited for. With one process it returns at
        once. A process that could not receive the command when it was sent ends its streams, or authorizes
        them again, when it has reconnected to the broker.

        While the broker is unavailable, the streams of this process end, and the command is sent again for
        `retry_for` seconds.

        Raises InvalidGrantError for an invalid name, and BrokerUnavailableError if the command was not sent:
        the streams of this process have ended, and those of other processes stay open. Call `disconnect`
        again, or answer that the streams could not be ended.
        """
        revocation = Revocation(slot_key, channel)
        if get_ident() != self._thread and (loop := self._other_loop()) is not None:
            again = partial(
                self.disconnect, slot_key=slot_key, channel=channel, timeout=timeout, retry_for=retry_for
            )
            return await run_on(loop, again)
        process = self._process
        if (
            process is not None
            and process.running
            and not process.stopping
            and process.loop is loop_identity()
        ):
            return await process.revoker.revoke(revocation, timeout, retry_for)
        return await self._sender.revoke(self.broker, revocation, timeout, retry_for)

    def disconnect_sync(
        self,
        *,
        slot_key: str | None = None,
        channel: str | None = None,
        timeout: float = CONFIRM_TIMEOUT,
        retry_for: float = 0.0,
    ) -> Disconnected:
        """End streams as `disconnect` does, from a thread without an event loop: see `publish_sync`."""
        refuse_to_block("push.disconnect_sync", "await push.disconnect(...)")
        function = partial(
            self.disconnect, slot_key=slot_key, channel=channel, timeout=timeout, retry_for=retry_for
        )
        if self._is_in_process and self._live_process() is None:
            Revocation(slot_key, channel)
            _warn_unheard()
            return Disconnected(0, 0, 0)
        return self._call_from_thread(function)

    async def drain(self) -> None:
        """Refuse new streams, end the open ones spread over the window, and wait until all have ended.

        Subscribers end at once. Waits for the code in their blocks too, but no longer than the window.
        """
        if self._process is not None:
            await self._process.drain()

    @property
    def healthy(self) -> bool:
        """Whether the streams receive every published event: for a health check.

        False while a channel cannot be subscribed, its history cannot be read, or the broker's connection is
        down. The streams stay open meanwhile.
        """
        process = self._process
        return process is None or not process.running or process.healthy

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why this process is not `healthy`, and since when: one Fault for each server, group or channel.

        Empty while it is healthy. Any thread may read it.
        """
        process = self._process
        return process.faults if process is not None and process.running else ()

    def listeners(self, channel: str) -> int:
        """Return how many streams of this process are open on a channel; subscribers in Python do not count.

        Raises InvalidGrantError for an invalid name.
        """
        check_channel(channel)
        return self._process.listeners(channel) if self._process is not None and self._process.running else 0

    def statistics(self) -> Statistics:
        """Return the current state and the counts of this process. Any thread may call it."""
        from .. import __version__

        process = self._process if self._process is not None and self._process.running else None
        return self._counters.statistics(
            version=__version__,
            broker=self._broker_name,
            streams=len(process.streams) if process else 0,
            channels=process.hub.channels if process else 0,
            healthy=self.healthy,
            draining=process.draining if process else False,
            outbox_bytes=process.outbox_bytes if process else 0,
            sent_bytes=self._counters.sent_bytes(process.streams if process else ()),
            broker_reconnects=self._process.broker_reconnects if self._process else 0,
        )

    def _observe(self, observer: Observer) -> None:
        """Add an observer. `livepush_asgi.contrib.prometheus` and `.opentelemetry` do it.

        Raises RuntimeError if this LivePush has started already.
        """
        if self._process is not None and not self._process.ended:
            raise RuntimeError(
                "instrument a LivePush before it starts, where it is made: this one has started already"
            )
        self._observers += (observer,)
        self._record(observer)

    def _record(self, observer: Observer) -> None:
        if observer.records:
            for name, reason, histogram in self._counters.histograms():
                histogram.also += (partial(observer.recorded, name, reason),)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Start; stop at the end: `FastAPI(lifespan=push.lifespan)` or `async with push.lifespan():`."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def start(self) -> None:
        """Start in the running event loop. Harmless if it runs there already.

        Over a broker with a server, it starts to listen for the `disconnect` calls of other processes. It
        does not wait for the broker.
        """
        self._has_lifespan = True
        await self._start()

    @property
    def _needs_start(self) -> bool:
        process = self._process
        return process is None or process.ended or process.loop is not loop_identity()

    async def _start(self) -> None:
        self._stopped_loop = None
        if self._needs_start:
            process = Process(
                self.broker,
                self.slots,
                self.timing,
                self.limits,
                self.drain_policy,
                self._counters,
                lambda request, authorize: self._endpoint.decide_again(request, process, authorize),
                inline_send=self._inline_send,
                hooks=make_hooks(self._on_open, self._on_end, self._observers),
                observers=self._observers,
                encode=self.encode,
            )
            with self._lock:
                self._process = process
            try:
                await self._close_publisher()
            finally:
                self._user = None
                process.launch()
        self._thread = get_ident()
        assert self._process is not None
        await self._process.wait_started()

    async def stop(self) -> None:
        """Drain, close every subscription and the slots, and refuse requests until `start`."""
        process = self._process
        if process is not None and process.loop is loop_identity():
            await process.stop()
            self._stopped_loop = process.loop

    async def _current_process(self) -> Process | None:
        process = self._process
        if process is not None and process.running and process.loop is loop_identity():
            return process
        if self._stopped_loop is not None and self._stopped_loop is loop_identity():
            return None
        if self._needs_start:
            self._has_lifespan = False
        await self._start()
        return self._process

    def _live_process(self) -> Process | None:
        """Return the process if its event loop still runs, in any thread."""
        process = self._process
        return process if process is not None and is_running(process.loop) else None

    def _other_loop(self) -> object | None:
        """Return the event loop that the broker belongs to, if it is not the caller's.

        That is the loop in which it was started, or that of `publish_sync`. `async_to_sync(push.publish)` may
        start an event loop of its own. Raises RuntimeError if no such loop exists, and another one uses the
        broker.
        """
        here, process = loop_identity(), self._live_process()
        if here is self._user:
            return None
        if process is not None and not process.ended:
            return None if process.loop is here else process.loop
        loop = self._publisher.loop
        if loop is not None and loop is not here:
            return loop
        if not self._is_in_process:
            self._take_broker(here)
        elif self._process is None:
            _warn_unheard()
        return None

    def _take_broker(self, here: object) -> None:
        with self._lock:
            user = self._user
            if user is not None and user is not here and is_running(user):
                raise RuntimeError(IN_USE)
            self._user = here

    @property
    def _is_in_process(self) -> bool:
        return bool(getattr(self.broker, "in_process", False))

    def _call_from_thread(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await an asynchronous function on the event loop that the broker belongs to. Blocks."""
        # With the lock: a call is submitted before `start` closes the publisher, or goes to the process.
        with self._lock:
            process = self._live_process()
            if process is None:
                # `publish` compares the threads first, and the thread of an earlier run may call it.
                self._thread = None
                call, loop = self._publisher.submit(lambda thread: function())
        if process is None:
            return result_of(call, loop)
        return call_on(process.loop, partial(_when_started, process, function))

    async def _close_publisher(self) -> None:
        """Close the event loop of `publish_sync`: from now on the process publishes."""
        if self._publisher.loop is None:
            return
        try:
            await anyio.to_thread.run_sync(self._publisher.close, CLOSE_TIMEOUT)
        except Exception:
            logger.exception(
                "closing the event loop of publish_sync raised; the component starts all the same",
                extra=fields("publisher_close_failed"),
            )

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _open_granted(
        self,
        grant: Grant,
        last_event_id: str | None = None,
        source: AsyncIterator[object] | None = None,
    ) -> tuple[Stream, Process]:
        """Open a stream for a Grant that the caller has decided on. The caller has to close the stream.

        With a `source` its events come from there, and the stream closes it.

        Raises CapExceededError (ProcessFullError if the process is full), SlotsUnavailableError,
        GrantExpiredError, GrantRevokedError if `disconnect` revokes the stream meanwhile, NotRunningError in
        a drain, and TypeError for a `replay` without history.
        """
        control_events = self.control_events if grant.control_events is None else grant.control_events
        async with self._counting_refusals() as process:
            check_expiry(grant)
            process.check_replay(grant)
            requested_at = process.scheduler.now()
            process.admit()
            try:
                if can_be_revoked(grant):
                    await process.revoker.listen()
                decided_at = process.revoker.log.number
                stream = await process.open(
                    grant,
                    decided_at=decided_at,
                    control_events=control_events,
                    last_event_id=last_event_id,
                    source=source,
                    requested_at=requested_at,
                )
            finally:
                process.pending -= 1
            return stream, process

    async def _open_authorized(self, authorize: Authorize, request: StreamRequest) -> tuple[Stream, Process]:
        """Open the stream that this `authorize` grants. Otherwise as `_open_granted`.

        Raises Refused if the request is refused.
        """
        async with self._counting_refusals() as process:
            return await self._endpoint.open(process, request, authorize=authorize), process

    @asynccontextmanager
    async def _counting_refusals(self) -> AsyncIterator[Process]:
        """Yield the process for a new stream, and count a refusal that the body raises."""
        try:
            process = await self._current_process()
            if process is None:
                raise NotRunningError(NOT_RUNNING)
            yield process
        except Refused as refused:
            self._count_refusal(refused.cause)
            raise
        except REFUSED_ERRORS as error:
            self._count_refusal(refused_for(error).cause)
            raise

    def _count_refusal(self, cause: RefusalCause) -> None:
        self._counters.refused[cause] += 1


async def _when_started(process: Process, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Call a function when nothing but the process uses the broker."""
    await process.wait_started()
    return await function()


@asynccontextmanager
async def _lend(broker: Broker) -> AsyncIterator[Broker]:
    """Yield the broker to an event loop, and close the connections that it has made there."""
    try:
        yield broker
    finally:
        if (close := getattr(broker, "aclose", None)) is not None:
            await close()


# Held from the first warning of this process on. Many threads may come to it at once.
_unheard_warned = Lock()


def _warn_unheard() -> None:
    if _unheard_warned.acquire(blocking=False):
        logger.warning(
            "what this process publishes to MemoryBroker reaches no stream, since LivePush is not started in "
            "it: serve streams from this process by ASGI (uvicorn; for Django's runserver, put 'daphne' "
            "first into INSTALLED_APPS), or take a broker with a server (RedisStreamsBroker)",
            extra=fields("memory_unheard"),
        )


_instances: WeakSet[LivePush] = WeakSet()
# The processes that a fork has inherited. They are kept: collecting them would affect the event loop of
# the parent process.
_inherited: list[Process | None] = []


def _reset_after_fork() -> None:
    """Make every LivePush one that was not started: only its parent process has its thread."""
    for push in list(_instances):
        _inherited.append(push._process)
        push._process = push._host = push._thread = push._user = push._stopped_loop = None
        push._lock, push._sender = Lock(), CommandSender()
        # The parent process exports what it has counted.
        push._counters = Counters()
        for observer in push._observers:
            push._record(observer)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
