"""The public API as typed applications use it, for mypy and pyright; nothing here is a test that runs.

tests/test_typing.py has both check this file, and that it uses every public name. `assert_type` states what a
caller gets.
"""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, assert_type

import asyncpg
import psycopg
from asgiref.sync import async_to_sync, sync_to_async
from fastapi import FastAPI, Security
from fastapi import Request as FastAPIRequest
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from livepush_asgi import (
    READ_BYTES,
    AuthorizationUnavailableError,
    Authorize,
    AuthorizeError,
    AuthorizePublish,
    AuthorizeRun,
    BatchBroker,
    Broker,
    BrokerTimeouts,
    BrokerUnavailableError,
    CapExceededError,
    ChannelSigner,
    Claims,
    Cors,
    Cursor,
    Disconnected,
    DrainPolicy,
    EndReason,
    Event,
    Fault,
    ForwardingSubscription,
    Gap,
    GapReason,
    Grant,
    GrantExpiredError,
    GrantRevokedError,
    History,
    HistoryBroker,
    InvalidEventError,
    InvalidGrantError,
    JetStreamBroker,
    Lease,
    Limits,
    LivePush,
    LivePushError,
    LivePushMiddleware,
    Mailbox,
    MemoryBroker,
    MemorySlotCap,
    MemoryTickets,
    MessagesLostError,
    MockBroker,
    NatsBroker,
    NotRunningError,
    Page,
    Position,
    PositionConflictError,
    PostgresBroker,
    ProcessFullError,
    Publisher,
    PublishGrant,
    PublishRequest,
    Received,
    Record,
    Records,
    RedisBroker,
    RedisStreamsBroker,
    RedisTickets,
    Refusal,
    RefusalCause,
    Run,
    RunAccess,
    RunExistsError,
    RunFailedError,
    RunGrant,
    RunNotFoundError,
    RunReader,
    RunState,
    RunStatus,
    Sent,
    SignedChannels,
    Sink,
    SlotCap,
    Slots,
    SlotsUnavailableError,
    SSEStream,
    SSEStreamService,
    Statistics,
    StreamRequest,
    Subscriber,
    Subscription,
    SubscriptionClosedError,
    Tickets,
    Timing,
    hmac_publish,
    jwt_claims,
    jwt_publish,
    positioned,
    public,
    send_event_stream,
    split_position,
    sse_headers,
)
from livepush_asgi.contrib import fastapi as contrib_fastapi
from livepush_asgi.contrib import starlette as contrib_starlette
from livepush_asgi.dialects import ai_sdk
from livepush_asgi.testing import (
    Answer,
    BrokerContract,
    Client,
    EventStreamParser,
    HistoryBrokerContract,
    ParsedEvent,
    Stream,
    StreamEnded,
)

if TYPE_CHECKING:
    from asgiref.typing import ASGI3Application


async def authorize(request: StreamRequest) -> Grant | Refusal:
    """Use all that a request has and a grant takes."""
    assert_type(request.path, str)
    assert_type(request.headers, Mapping[str, str])
    assert_type(request.cookies, Mapping[str, str])
    assert_type(request.query_all("channel"), list[str])
    assert_type(request.last_event_id, str | None)
    if request.query.get("token") is None:
        return Refusal(401, "Which token?", soft=True, retry_after=5, headers={"WWW-Authenticate": "Bearer"})
    return Grant(
        channels=["news", "jobs"],
        slot_key="42",
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        control_events=True,
        replay=10,
        snapshot=lambda: [Event({"a": 1}, event="state")],
    )


@sync_to_async
def authorize_in_a_thread(request: StreamRequest) -> Grant:
    return Grant(channels="news", replay="last")


def authorize_at_once(request: StreamRequest) -> Grant:
    raise Refusal(403)


WAYS_TO_AUTHORIZE: list[Authorize] = [
    authorize,
    authorize_in_a_thread,
    authorize_at_once,
    public("news", slot_key="visitors"),
]


async def authorize_publish(request: PublishRequest) -> PublishGrant | Refusal:
    """Use what a publisher's request has beside that of a stream."""
    assert_type(await request.body(), bytes)
    assert_type(request.idempotency_key, str | None)
    if request.headers.get("authorization") is None:
        return Refusal(401)
    grant = PublishGrant(channels=lambda channel: channel.startswith("orders:"))
    assert_type(grant.allows("orders:7"), bool)
    return grant


WAYS_TO_AUTHORIZE_PUBLISH: list[AuthorizePublish] = [
    authorize_publish,
    lambda request: PublishGrant(channels=["news"]),
    hmac_publish("secret of the publisher"),
    hmac_publish([b"secret of the publisher"], channels="news", window=60),
    jwt_publish("key", ["HS256"], audience="push", issuer="login"),
]


claims_of = jwt_claims(
    "key", ["HS256"], issuer=["login"], leeway=5, require=["exp"], cookie="token", query="t"
)
signer = ChannelSigner(["the secret that signs", b"the secret before it"])


async def key_set() -> Mapping[str, object]:
    """Return the keys of a login server."""
    return {"keys": []}


class OwnTickets(Tickets):
    """Tickets in a store of the application."""

    async def put(self, key: str, subject: str) -> None:
        """Store a text."""

    async def take(self, key: str) -> str | None:
        """Remove a text and return it."""
        return None


async def authorize_by_credentials(request: StreamRequest) -> Grant | Refusal:
    """Use what checks tokens, tickets and signed channels."""
    claims = await claims_of(request)
    assert_type(claims, Claims)
    assert_type(claims.expires_at, float | None)
    assert_type(await jwt_claims(key_set, ["RS256"])(request), Claims)
    await jwt_claims({"keys": []}, ["RS256"])(request)
    await jwt_claims(lambda: {"keys": []}, ["RS256"])(request)
    for tickets in (MemoryTickets(ttl=10), RedisTickets(Redis(), key_prefix="app:"), OwnTickets()):
        assert_type(await tickets.issue("ada"), str)
        assert_type(await tickets.redeem(request), str)
    assert_type(signer.sign("news", "orders:7", user="ada", ttl=60), str)
    granted = signer.verify(request.query.get("channels"), user=request.cookies_all("user")[0])
    assert_type(granted, SignedChannels)
    if not claims:
        raise AuthorizationUnavailableError
    return Grant(channels=granted.channels, slot_key=claims["sub"], expires_at=claims.expires_at)


def make(redis: "Redis") -> LivePush:
    brokers: list[Broker] = [
        MemoryBroker(history=History(events=10, size=1000, age=None, channels=5, total_size=10_000)),
        RedisBroker(redis, timeouts=BrokerTimeouts(subscribe=2, publish=5.0, ping_interval=10, ping=5)),
        RedisStreamsBroker(redis, history=History()),
        NatsBroker("nats://127.0.0.1:4222", timeouts=BrokerTimeouts(), linger=10),
        JetStreamBroker(["nats://127.0.0.1:4222"], history=History()),
        PostgresBroker(
            "postgresql://localhost/name", history=History(), prefix="app.livepush", max_connections=4
        ),
        MockBroker(limit=10),
        OwnBroker(),
    ]
    slots: list[Slots] = [MemorySlotCap(20), SlotCap(redis, cap=20, on_full="replace_oldest")]
    return LivePush(
        brokers[0],
        authorize,
        slots=slots[0],
        timing=Timing(heartbeat_interval=None, retry=3, max_lifetime=None),
        limits=Limits(outbox_events=10, overflow="latest", streams=None),
        drain=DrainPolicy(window=1, signals=False, hold=False),
        encode=repr,
        cors=Cors(["https://app.example.com"], credentials=True),
        control_events=False,
        soft_refusals={RefusalCause.CAP, RefusalCause.ERROR},
        probe=lambda request: True,
        namespace="staging",
        inline_send=False,
        on_open=told_of_open,
        on_end=told_of_end,
    )


def told_of_open(grant: Grant) -> None:
    assert_type(grant.slot_key, str | None)


def told_of_end(grant: Grant, reason: EndReason, duration: float, sent: Sent) -> None:
    assert_type(reason, EndReason)
    assert_type(duration, float)
    assert_type(sent.events, int)
    assert_type(sent.bytes, int)


async def publish_in_transactions(
    push: LivePush,
    connection: "asyncpg.Connection[asyncpg.Record]",
    asynchronous: "psycopg.AsyncConnection[tuple[str]]",
    synchronous: "psycopg.Connection[tuple[str]]",
) -> None:
    async with connection.transaction():
        assert_type(await push.publish_in(connection, "news", {"a": 1}, event="e", idempotency_key="k"), str)
    assert_type(await push.publish_in(asynchronous, "news", 1, expected_position=Position("a", 1)), str)
    async with asynchronous.cursor() as cursor:
        assert_type(await push.publish_in(cursor, "news", 1), str)
    assert_type(push.publish_in(synchronous, "news", 1, id=7), str)
    assert_type(push.publish_in(synchronous.cursor(), "news", 1), str)


async def subscribe(push: LivePush) -> None:
    assert_type(push.listeners("news"), int)
    async with push.subscribe("news", "jobs", replay="all", last_event_id="x") as events:
        assert_type(events, Subscriber)
        async for item in events:
            match item:
                case Received(channel, event, id):
                    assert_type((channel, event, id, item.data), tuple[str, Event, str, str])
                case Gap(channel, reason):
                    assert_type((channel, reason, item.id), tuple[str, GapReason, str])
    assert_type(events.end_reason, EndReason | None)
    assert_type(events.last_event_id, str)


def mount(push: LivePush, django: "ASGI3Application") -> list[LivePushMiddleware | Starlette | FastAPI]:
    fastapi = FastAPI(lifespan=push.lifespan)
    fastapi.mount("/events", push)
    fastapi.mount("/health", push.health(unready_after=1, dead_after=math.inf))
    fastapi.mount("/publish", push.publisher(authorize_publish, max_body=1, max_batch=1, body_timeout=1))
    return [
        LivePushMiddleware(django, push, path="/events"),
        LivePushMiddleware(LivePushMiddleware(fastapi, push), push),
        Starlette(routes=[Mount("/events", push)], lifespan=push.lifespan),
    ]


async def publish(push: LivePush) -> None:
    assert_type(await push.publish("news", {"a": 1}, event="e", id="7", retry=1000), str | None)
    first = await push.publish("news", Event("x"), idempotency_key="once")
    await push.publish("news", b"x", expected_position=Position("epoch", 0))
    await push.publish("news", "x", retry_for=1, expected_position=first)
    done = await push.disconnect(slot_key="42", channel="news", timeout=1)
    assert_type(done, Disconnected)
    assert_type(done.streams + done.processes + done.missing, int)
    assert_type(push.statistics(), Statistics)
    assert_type(push.healthy, bool)
    assert_type(push.faults, tuple[Fault, ...])
    assert_type(async_to_sync(push.publish)("news", "x"), str | None)
    await push.drain()


def publish_from_a_thread(push: LivePush) -> None:
    assert_type(push.publish_sync("news", {"a": 1}, event="e", retry_for=1), str | None)
    assert_type(push.disconnect_sync(slot_key="7", timeout=1), Disconnected)


def publish_from_a_script() -> None:
    @asynccontextmanager
    async def make_broker() -> AsyncGenerator[Broker, None]:
        async with Redis() as redis:
            yield RedisBroker(redis)

    with Publisher(make_broker, namespace="staging", encode=lambda data: repr(data).encode()) as publisher:
        assert_type(publisher.publish("news", {"a": 1}), str | None)
        assert_type(publisher.disconnect(channel="news"), Disconnected)
    Publisher(lambda: NatsBroker()).close()


async def stream_in_a_route(push: LivePush, request: Request, other: FastAPIRequest) -> StreamingResponse:
    service = SSEStreamService(MemoryBroker(), MemorySlotCap(20), heartbeat_seconds=15)
    stream = await service.open_stream(
        channel="news", slot_key="42", is_disconnected=request.is_disconnected, last_event_id="1"
    )
    assert_type(stream, SSEStream)
    assert_type(stream.headers | sse_headers(), dict[str, str])
    assert_type(stream.body.end_reason, EndReason | None)
    async for chunk in stream.body:
        assert_type(chunk, bytes)
    await contrib_fastapi.sse_streaming_response(service, other, grant=Grant(channels="news"))
    return await contrib_starlette.sse_streaming_response(push, request, channel="news", slot_key="42")


def granted(user: str) -> Grant:
    return Grant(channels=f"user:{user}")


assert_type(contrib_fastapi.depends(granted), Authorize)
LivePush(MemoryBroker(), contrib_fastapi.depends(Security(granted, scopes=["stream"])))


async def answer() -> AsyncIterator[Event | str]:
    yield Event("x")
    yield "y"


async def respond(scope: Scope, receive: Receive, send: Send) -> None:
    await send_event_stream(scope, receive, send, answer(), control_events=True)


async def respond_from_generators(
    push: LivePush, request: Request, other: FastAPIRequest
) -> StreamingResponse:
    await contrib_starlette.event_stream_response(request, answer())
    service = SSEStreamService(MemoryBroker())
    await contrib_starlette.event_stream_response(request, answer(), push=service, expires_at=1.0)
    return await contrib_fastapi.event_stream_response(other, answer(), push=push, slot_key="42")


class OwnBroker:
    """A broker with history, written from the public names alone. It keeps one event of each channel."""

    def __init__(self) -> None:
        self._subscriptions: dict[Mailbox, None] = {}
        self._newest: dict[str, Record] = {}

    async def publish(self, channel: str, payload: str | bytes) -> int:
        await self.append(channel, payload.encode() if isinstance(payload, str) else payload)
        return len(self._subscriptions)

    async def subscribe(self, channel: str) -> Subscription:
        mailbox = Mailbox(channel, lambda closed: self._subscriptions.pop(closed, None), limit=100)
        self._subscriptions[mailbox] = None
        return mailbox

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        last = self._newest[channel].offset if channel in self._newest else 0
        position = Position("epoch", last + 1)
        if expected_position is not None and expected_position.offset != last:
            raise PositionConflictError(channel, position)
        self._newest[channel] = Record(position.offset, payload)
        for mailbox in list(self._subscriptions):
            if mailbox.channel == channel:
                mailbox.deliver(positioned(position, payload))
        return position

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        newest = self._newest.get(channel)
        if newest is None:
            return Page("epoch", 1, 0, ())
        wanted = [newest.payload] if limit and newest.offset > after else []
        return Page("epoch", newest.offset, newest.offset, Records(newest.offset, wanted))


class OwnSink:
    def deliver(self, payload: bytes, /) -> None:
        assert_type(split_position(payload), tuple[Position | None, bytes])

    def lost(self) -> None: ...


async def append_a_batch(broker: HistoryBroker) -> None:
    if isinstance(broker, BatchBroker):
        position = await broker.append_batch("news", [b"1", b"2"], expected_position=Position("a", 1))
        assert_type(position, Position)


async def read_a_broker(broker: HistoryBroker, slots: Slots) -> None:
    subscription = await broker.subscribe("news")
    assert_type(await subscription.get_message(timeout=1), bytes | None)
    sink: Sink = OwnSink()
    if isinstance(subscription, ForwardingSubscription):
        subscription.forward(sink)
    lease = await slots.acquire_lease("42")
    assert_type(lease, Lease)
    lease.release()
    assert_type(Cursor.parse("1-x"), Cursor | None)


own_broker: HistoryBroker = OwnBroker()


class TestOwnBroker(BrokerContract):
    """What an adapter's author writes; the name of this file keeps pytest from running it."""

    def broker(self) -> Broker:
        return OwnBroker()


class TestOwnHistory(HistoryBrokerContract):
    def bounded_broker(self) -> HistoryBroker:
        return OwnBroker()


async def test_an_application(push: LivePush) -> None:
    async with Client(push, lifespan=True) as client, client.open("/", query={"token": "x"}) as stream:
        assert_type(stream, Stream)
        event = await stream.next_event(name="livepush.open")
        assert_type(event, ParsedEvent)
        assert_type(await client.request("HEAD", "/"), Answer)
        assert (await client.request("POST", "/", json={"a": 1})).json() == event.json()
        try:
            await stream.wait_ended()
        except StreamEnded as ended:
            assert_type(ended.reason, str | None)
    assert_type(EventStreamParser().feed(b"data: 1\n\n"), list[ParsedEvent])


async def run_of(push: LivePush, request: StreamRequest, answer: AsyncIterator[str]) -> Grant | Refusal:
    """Start a run, follow it, and let a page follow it."""
    run = push.run("17")
    assert_type(run, Run)
    assert_type(await run.start(answer, lease=5, restart=True), bool)
    async with run.read(last_event_id=None) as items:
        assert_type(items, RunReader)
        async for item in items:
            assert_type(item, Received | Gap)
        assert_type(items.state, RunState)
    assert_type(await run.cancel(), RunStatus | None)
    assert_type(await run.wait(), RunStatus)
    decision = await run.grant(request, slot_key="k")
    assert_type(decision, RunGrant | Refusal)
    return decision


async def authorize_run(request: StreamRequest, run: Run) -> RunAccess | Refusal:
    """Decide about a client of a run."""
    if request.headers.get("authorization") is None:
        return Refusal(401)
    return RunAccess(slot_key=run.id, expires_at=datetime.now(UTC), may_cancel=False)


WAYS_TO_AUTHORIZE_A_RUN: list[AuthorizeRun] = [authorize_run, lambda request, run: RunAccess()]


async def serve_runs(push: LivePush, request: Request, fastapi_request: FastAPIRequest) -> None:
    """Mount the application for runs, and answer with a run in a route."""
    Starlette(routes=[Mount("/answers", push.runs(authorize_run, dialect=ai_sdk()))])
    FastAPI().mount("/answers", push.runs(authorize_run))
    run = push.run("17", dialect=ai_sdk(replays_ended=True))
    assert_type(await contrib_starlette.run_response(push, request, run, slot_key="k"), Response)
    assert_type(await contrib_fastapi.run_response(push, fastapi_request, run, expires_at=1.0), Response)


def tell(error: LivePushError, gap: GapReason) -> str:
    """Tell the situations apart that an application may meet."""
    match error:
        case CapExceededError() | ProcessFullError() | SlotsUnavailableError():
            return "no slot"
        case InvalidEventError() | InvalidGrantError() | AuthorizeError():
            return "a mistake"
        case GrantExpiredError() | GrantRevokedError():
            return "no permission"
        case BrokerUnavailableError() | MessagesLostError() | SubscriptionClosedError():
            return gap.value
        case PositionConflictError() | NotRunningError() | RunExistsError() | RunNotFoundError():
            return str(error)
        case RunFailedError():
            return "for readers"
        case _:
            return "unknown"
