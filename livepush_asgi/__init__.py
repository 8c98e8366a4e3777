"""livepush_asgi: server push for any Python ASGI application.

An event is delivered in order, or the client is told that it was not.

    publish ─▶ broker ─▶ (one reader per process) ─▶ hub ─▶ outbox of each stream ─▶ send
                 └── history ◀── replay when a client comes back ──┘

The rooms, from the top to the bottom. A room imports only rooms below it; `tests/test_rooms.py` holds that.

    contrib/, cli/, testing/   one file per framework; the command `livepush`; help for tests of applications
    metrics/    the series for Prometheus and OpenTelemetry, and their text without a library
    app/        LivePush, its middleware, SSEStreamService, Subscriber, Publisher, responses from generators
    runs/       the producers of finite jobs, their state in the log, and the watch over them
    http/       one request: authorize, the answer, the ASGI messages of a stream
    process/    one process: start, signals and drain, revocation in every process, statistics, hooks
    stream/     one client: what it is sent next, its outbox, recovery after a reconnect, deadlines
    hub/        the channels of a process, one subscription each
    slots/      caps on the streams of a key: the port, in memory, over Redis
    brokers/    the broker port and the adapters
    grant.py    StreamRequest, Grant and Refusal: what `authorize` gets and returns
    dialects.py  how the output of a run is written for one kind of client
    runtime/    event loop, timers, and what differs between ASGI servers
    wire/       events, event ids, payloads, control events
    settings.py, errors.py

The adapters are imported on first use: `import livepush_asgi` loads neither redis nor a framework.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from .app.generator import send_event_stream
from .app.livepush import LivePush
from .app.middleware import LivePushMiddleware
from .app.publisher import Publisher
from .app.run import Run, RunStatus
from .app.run_reader import RunReader
from .app.runs import AuthorizeRun
from .app.service import SSEStream, SSEStreamService, sse_headers
from .app.subscriber import Gap, Received, Subscriber
from .brokers import (
    READ_BYTES,
    BatchBroker,
    Broker,
    ForwardingSubscription,
    HistoryBroker,
    Page,
    Record,
    Records,
    Sink,
    Subscription,
)
from .brokers.faults import Fault
from .brokers.history import History
from .brokers.mailbox import Mailbox
from .brokers.memory import MemoryBroker
from .brokers.timeouts import BrokerTimeouts
from .errors import (
    AuthorizationUnavailableError,
    AuthorizeError,
    BrokerUnavailableError,
    CapExceededError,
    GrantExpiredError,
    GrantRevokedError,
    InvalidEventError,
    InvalidGrantError,
    LivePushError,
    MessagesLostError,
    NotRunningError,
    PositionConflictError,
    ProcessFullError,
    RunExistsError,
    RunFailedError,
    RunNotFoundError,
    SlotsUnavailableError,
    SubscriptionClosedError,
)
from .grant import Authorize, Grant, Refusal, RunAccess, RunGrant, StreamRequest, public
from .http.cors import Cors
from .http.credentials.signed_channels import ChannelSigner, SignedChannels
from .http.credentials.tickets import MemoryTickets, Tickets
from .http.publish.request import AuthorizePublish, PublishGrant, PublishRequest
from .http.publish.signature import hmac_publish
from .process.revocation import Disconnected
from .process.statistics import Statistics
from .settings import DrainPolicy, Limits, Timing
from .slots import Lease, Slots
from .slots.memory import MemorySlotCap
from .stream.counts import Sent
from .wire.cursor import Cursor, Position
from .wire.event import Event, positioned, split_position
from .wire.reasons import EndReason, GapReason, RefusalCause, RunState

if TYPE_CHECKING:
    from .brokers.nats import JetStreamBroker, NatsBroker
    from .brokers.postgres import PostgresBroker
    from .brokers.redis import RedisBroker, RedisStreamsBroker
    from .http.credentials.jwt import Claims, jwt_claims
    from .http.credentials.redis import RedisTickets
    from .http.publish.jwt import jwt_publish
    from .slots.redis import SlotCap
    from .testing.mock import MockBroker

__all__ = [
    "READ_BYTES",
    "AuthorizationUnavailableError",
    "Authorize",
    "AuthorizeError",
    "AuthorizePublish",
    "AuthorizeRun",
    "BatchBroker",
    "Broker",
    "BrokerTimeouts",
    "BrokerUnavailableError",
    "CapExceededError",
    "ChannelSigner",
    "Cors",
    "Cursor",
    "Disconnected",
    "DrainPolicy",
    "EndReason",
    "Event",
    "Fault",
    "ForwardingSubscription",
    "Gap",
    "GapReason",
    "Grant",
    "GrantExpiredError",
    "GrantRevokedError",
    "History",
    "HistoryBroker",
    "InvalidEventError",
    "InvalidGrantError",
    "Lease",
    "Limits",
    "LivePush",
    "LivePushError",
    "LivePushMiddleware",
    "Mailbox",
    "MemoryBroker",
    "MemorySlotCap",
    "MemoryTickets",
    "MessagesLostError",
    "NotRunningError",
    "Page",
    "Position",
    "PositionConflictError",
    "ProcessFullError",
    "PublishGrant",
    "PublishRequest",
    "Publisher",
    "Received",
    "Record",
    "Records",
    "Refusal",
    "RefusalCause",
    "Run",
    "RunAccess",
    "RunExistsError",
    "RunFailedError",
    "RunGrant",
    "RunNotFoundError",
    "RunReader",
    "RunState",
    "RunStatus",
    "SSEStream",
    "SSEStreamService",
    "Sent",
    "SignedChannels",
    "Sink",
    "Slots",
    "SlotsUnavailableError",
    "Statistics",
    "StreamRequest",
    "Subscriber",
    "Subscription",
    "SubscriptionClosedError",
    "Tickets",
    "Timing",
    "hmac_publish",
    "positioned",
    "public",
    "send_event_stream",
    "split_position",
    "sse_headers",
]
__version__ = "0.1.0"

# The names that are loaded when they are first used: they need a client library, or are for tests.
_LAZY = {
    "Claims": ".http.credentials.jwt",
    "JetStreamBroker": ".brokers.nats",
    "MockBroker": ".testing.mock",
    "NatsBroker": ".brokers.nats",
    "PostgresBroker": ".brokers.postgres",
    "RedisBroker": ".brokers.redis",
    "RedisStreamsBroker": ".brokers.redis",
    "RedisTickets": ".http.credentials.redis",
    "SlotCap": ".slots.redis",
    "jwt_claims": ".http.credentials.jwt",
    "jwt_publish": ".http.publish.jwt",
}
# The package that each library of an adapter is in, and the extra that installs it.
_LIBRARIES = {
    "redis": ("redis-py", "redis"),
    "nats": ("nats-py", "nats"),
    "asyncpg": ("asyncpg", "postgres"),
    "jwt": ("PyJWT", "jwt"),
}

# `from livepush_asgi import *` and `help` take the names that can be loaded here.
if TYPE_CHECKING:
    __all__ += [
        "Claims",
        "JetStreamBroker",
        "MockBroker",
        "NatsBroker",
        "PostgresBroker",
        "RedisBroker",
        "RedisStreamsBroker",
        "RedisTickets",
        "SlotCap",
        "jwt_claims",
        "jwt_publish",
    ]
else:
    _missing = {extra for name, (_, extra) in _LIBRARIES.items() if find_spec(name) is None}
    __all__ += [name for name, room in _LAZY.items() if room.rpartition(".")[2] not in _missing]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        value: object = getattr(import_module(_LAZY[name], __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        library, extra = _LIBRARIES[error.name]
        raise ImportError(f"{name} needs {library}: pip install 'livepush_asgi[{extra}]'") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
