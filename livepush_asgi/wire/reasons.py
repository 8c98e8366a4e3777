"""EndReason, GapReason, RefusalCause and their like: names for the wire, the log and `statistics`."""

from enum import StrEnum


class EndReason(StrEnum):
    """Why a stream ended. A stream has exactly one reason: the first that occurred."""

    #: The client disconnected, or the server closed the connection.
    DISCONNECT = "disconnect"
    #: The process drained.
    DRAIN = "drain"
    #: The stream reached its maximum lifetime.
    LIFETIME = "lifetime"
    #: The login behind the stream ended (`Grant.expires_at`).
    EXPIRED = "expired"
    #: `LivePush.disconnect` named its slot key or one of its channels.
    REVOKED = "revoked"
    #: The client was too slow: its outbox was full, or a send took longer than `Timing.send_timeout`.
    SLOW = "slow"
    #: A newer stream of the same slot key took its slot.
    REPLACED = "replaced"
    #: Events may be missing, and the client does not accept control events, so it cannot be sent a gap.
    BROKER = "broker"
    #: The generator of the stream has returned: there are no more events.
    FINISHED = "finished"
    #: The application's snapshot or generator, the server or the component raised; the log has the error.
    ERROR = "error"


class GapReason(StrEnum):
    """Why events are missing at a point of a stream."""

    #: The history after the client's position has been dropped, or the beginning that `replay="all"` asks
    #: for.
    EXPIRED = "expired"
    #: The client's last event id holds no position in this channel.
    UNKNOWN = "unknown"
    #: The channel's log was lost, and a new one has begun.
    EPOCH = "epoch"
    #: The client was too slow, and the overflow policy dropped events; or it missed, or asked for, more than
    #: `Limits.replay_events`.
    OVERFLOW = "overflow"
    #: The connection to the broker was lost, or the broker delivered a payload that is no event.
    BROKER = "broker"


class RefusalCause(StrEnum):
    """Why a client was refused a stream."""

    #: `authorize` returned or raised a Refusal.
    AUTHORIZE = "authorize"
    #: `authorize` raised, took too long, or returned neither a Grant nor a Refusal.
    ERROR = "error"
    #: Every slot of the slot key is taken.
    CAP = "cap"
    #: The process has as many streams as `Limits.streams` allows.
    FULL = "full"
    #: The slot store is unavailable and the cap fails closed.
    SLOTS = "slots"
    #: The process is draining.
    DRAIN = "drain"
    #: `Grant.expires_at` was in the past.
    EXPIRED = "expired"
    #: `LivePush.disconnect` revoked each of its grants before the stream was open.
    REVOKED = "revoked"


class OpenOutcome(StrEnum):
    """How a stream opened. It is counted once for each stream that has its slot."""

    #: The client had no last event id.
    FRESH = "fresh"
    #: The client is sent every event that it has missed.
    RESUMED = "resumed"
    #: The client came back, and is told of a gap.
    GAP = "gap"
    #: The stream ended before it opened.
    UNOPENED = "unopened"


class PublishFailure(StrEnum):
    """Why a publish raised."""

    #: The broker is away or refuses. The event may have been published.
    UNAVAILABLE = "unavailable"
    #: The log does not end at `expected_position`.
    CONFLICT = "conflict"
    #: An argument is wrong: the channel, data that cannot be encoded, or one that needs history.
    INVALID = "invalid"
    #: The broker raised another error.
    ERROR = "error"


class StreamState(StrEnum):
    """The states of a stream, in order. A refused request never has a stream."""

    OPENING = "opening"
    LIVE = "live"
    ENDING = "ending"
    CLOSED = "closed"


class RunState(StrEnum):
    """What has become of a run."""

    #: `queue` has made it known, and no process has started it.
    QUEUED = "queued"
    #: Its producer holds the lease, or has been silent for less than it.
    RUNNING = "running"
    #: Its iterator has returned.
    DONE = "done"
    #: Its iterator has raised; the log of its process has the error.
    FAILED = "failed"
    #: `cancel` has ended it.
    CANCELLED = "cancelled"
    #: Its producer was killed, has stopped, or was silent for a lease; or nobody has started it in time.
    LOST = "lost"

    @property
    def ended(self) -> bool:
        """Whether the run has ended: it is not queued or running."""
        return self not in (RunState.QUEUED, RunState.RUNNING)
