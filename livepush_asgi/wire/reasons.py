"""The reasons: why a stream ended, why a gap is told, why a client was refused. One list for the wire,
the log and the counters. And where a stream is in its life.
"""

from enum import StrEnum


class EndReason(StrEnum):
    """Why a stream ended. Exactly one, the first that occurred."""

    #: The client left, or the server took the connection away.
    DISCONNECT = "disconnect"
    #: The process is ending, or was asked to give up its streams.
    DRAIN = "drain"
    #: The stream reached its maximum lifetime.
    LIFETIME = "lifetime"
    #: The login behind the stream ended (`Grant.expires_at`).
    EXPIRED = "expired"
    #: `LivePush.disconnect` named its slot key or one of its channels.
    REVOKED = "revoked"
    #: The client took too little for too long: its outbox was full, or a send took too long.
    SLOW = "slow"
    #: A newer stream took its slot.
    REPLACED = "replaced"
    #: Events may have been lost on the way from the broker, and this client cannot be told otherwise.
    BROKER = "broker"
    #: Something raised that should not have; it is in the log.
    ERROR = "error"


class GapReason(StrEnum):
    """Why events are missing at a point of a stream."""

    #: The history after the client's position has been dropped.
    EXPIRED = "expired"
    #: The client's last event id names no position here.
    UNKNOWN = "unknown"
    #: The channel's log was lost and begun anew.
    EPOCH = "epoch"
    #: The client was too slow, and the overflow policy dropped events.
    OVERFLOW = "overflow"
    #: The connection to the broker was lost, or the broker delivered what cannot be passed on.
    BROKER = "broker"


class RefusalCause(StrEnum):
    """Why a client got no stream."""

    #: `authorize` said so.
    AUTHORIZE = "authorize"
    #: `authorize` raised, took too long, or returned something else than a Grant or a Refusal.
    ERROR = "error"
    #: Every slot of its key is taken.
    CAP = "cap"
    #: The process has as many streams as `Limits.streams` allows.
    FULL = "full"
    #: The slot store is away and the cap fails closed.
    SLOTS = "slots"
    #: The process is draining.
    DRAIN = "drain"
    #: The login had already ended.
    EXPIRED = "expired"
    #: `LivePush.disconnect` named it again and again while it was being opened.
    REVOKED = "revoked"


class StreamState(StrEnum):
    """Where a stream is in its life. (`refused` never becomes a stream.)"""

    OPENING = "opening"
    LIVE = "live"
    ENDING = "ending"
    CLOSED = "closed"
