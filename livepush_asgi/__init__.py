"""livepush_asgi: server push for any Python ASGI application.

An event is delivered in order, or the client is told that it was not.

    publish ─▶ broker ─▶ (one reader per process) ─▶ hub ─▶ turn ─▶ outbox of each stream ─▶ send

The rooms, each importing only from those before it: `types, errors, reasons, cursor` ← `event,
settings, loop` ← `request, broker, slots, clock, control` ← `outbox, turn, places` ← `publisher,
producer, topic, hub` ← `reading, feed, direct, stream, waiting` ← `carrier, open_streams, review, revoker` ←
`run` ← `probe, answers, decision, endpoint` ← `app` ← `middleware, service` ← `contrib, cli`. The adapters
(`brokers/*`, `slots/redis`) import the ports and their client library, and are imported on first
use: `import livepush_asgi` loads neither redis nor a framework.
"""

from typing import TYPE_CHECKING

from .app import LivePush
from .broker import Broker, ForwardingSubscription, HistoryBroker, Page, Record, Sink, Subscription
from .brokers.history import History
from .brokers.memory import MemoryBroker
from .cors import Cors
from .cursor import Cursor, Position
from .errors import (
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
    SlotsUnavailableError,
    SubscriptionClosedError,
)
from .event import Event
from .middleware import LivePushMiddleware
from .publisher import Publisher
from .reasons import EndReason, GapReason, RefusalCause
from .request import Authorize, Grant, Refusal, StreamRequest, public
from .revocation import Disconnected
from .service import SSEStream, SSEStreamService, sse_headers
from .settings import DrainPolicy, Limits, Timing
from .slots import Lease, MemorySlotCap, Slots
from .statistics import Statistics

if TYPE_CHECKING:
    from .brokers.nats import JetStreamBroker, NatsBroker
    from .brokers.redis import RedisBroker
    from .brokers.redis_streams import RedisStreamsBroker
    from .slots.redis import SlotCap
    from .testing.mock import MockBroker

__all__ = [
    "Authorize",
    "AuthorizeError",
    "Broker",
    "BrokerUnavailableError",
    "CapExceededError",
    "Cors",
    "Cursor",
    "Disconnected",
    "DrainPolicy",
    "EndReason",
    "Event",
    "ForwardingSubscription",
    "GapReason",
    "Grant",
    "GrantExpiredError",
    "GrantRevokedError",
    "History",
    "HistoryBroker",
    "InvalidEventError",
    "InvalidGrantError",
    "JetStreamBroker",
    "Lease",
    "Limits",
    "LivePush",
    "LivePushError",
    "LivePushMiddleware",
    "MemoryBroker",
    "MemorySlotCap",
    "MessagesLostError",
    "MockBroker",
    "NatsBroker",
    "NotRunningError",
    "Page",
    "Position",
    "PositionConflictError",
    "ProcessFullError",
    "Publisher",
    "Record",
    "RedisBroker",
    "RedisStreamsBroker",
    "Refusal",
    "RefusalCause",
    "SSEStream",
    "SSEStreamService",
    "Sink",
    "SlotCap",
    "Slots",
    "SlotsUnavailableError",
    "Statistics",
    "StreamRequest",
    "Subscription",
    "SubscriptionClosedError",
    "Timing",
    "public",
    "sse_headers",
]
__version__ = "0.1.0"

# The names that need a client library, or are for tests, are loaded when they are first used.
_LAZY = {
    "JetStreamBroker": ".brokers.nats",
    "MockBroker": ".testing.mock",
    "NatsBroker": ".brokers.nats",
    "RedisBroker": ".brokers.redis",
    "RedisStreamsBroker": ".brokers.redis_streams",
    "SlotCap": ".slots.redis",
}
_LIBRARIES = {"redis": "redis-py", "nats": "nats-py"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        value: object = getattr(import_module(_LAZY[name], __name__), name)
    except ModuleNotFoundError as error:
        extra = error.name or ""
        if extra not in _LIBRARIES:
            raise
        raise ImportError(
            f"{name} needs {_LIBRARIES[extra]}: pip install 'livepush_asgi[{extra}]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
