"""Timing, Limits and DrainPolicy: the settings of a LivePush. The constructors validate them."""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

Overflow = Literal["resume", "close", "drop_oldest", "latest"]
OVERFLOWS = ("resume", "close", "drop_oldest", "latest")
T = TypeVar("T")
# The longest time for each setting, in seconds. A longer one is most likely in milliseconds.
_HOUR = 3600
_LONGEST = {
    "heartbeat_interval": _HOUR,
    "retry": 600,
    "send_timeout": _HOUR,
    "max_lifetime": 31 * 24 * _HOUR,
    "subscribe_timeout": 600,
    "snapshot_timeout": _HOUR,
    "authorize_timeout": 600,
    "linger": _HOUR,
    "window": _HOUR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of a stream, in seconds. None turns the heartbeat or the maximum lifetime off.

    `heartbeat_interval`: a stream that has sent nothing for this long sends a comment. 15 s is below the
    idle timeouts of common proxies (30 s and 60 s).
    `retry`: the reconnection time. Each client gets a random time between 0.5 and 1.5 times this value, so
    that clients do not all reconnect at once.
    `send_timeout`: a stream whose client accepts no data for this long ends as `slow`.
    `max_lifetime`: a stream ends at a random moment in the last fifth of this time. A client whose login was
    withdrawn keeps its stream until then, unless its Grant has an `expires_at` or the application calls
    `disconnect`. So the default is two hours and not None. `EventSource` reconnects by itself, is authorized
    again, and resumes if the broker keeps history. Ten thousand streams cause 1.5 reconnects a second.
    `subscribe_timeout`: a new stream waits this long for the broker, and then opens without it.
    `snapshot_timeout`: a snapshot callback that takes longer is cancelled, and its stream ends as `error`.
    `authorize_timeout`: a client is refused if `authorize` or taking its slot takes longer.
    `linger`: a channel stays subscribed for this long after its last stream has closed.
    """

    heartbeat_interval: float | None = 15.0
    retry: float = 3.0
    send_timeout: float = 30.0
    max_lifetime: float | None = 7200.0
    subscribe_timeout: float = 2.0
    snapshot_timeout: float = 60.0
    authorize_timeout: float = 10.0
    linger: float = 5.0

    def __post_init__(self) -> None:
        for name in ("retry", "send_timeout", "subscribe_timeout", "snapshot_timeout", "authorize_timeout"):
            check_seconds(name, getattr(self, name), _LONGEST[name])
        for name in ("heartbeat_interval", "max_lifetime"):
            if getattr(self, name) is not None:
                check_seconds(name, getattr(self, name), _LONGEST[name])
        if self.linger != 0:
            check_seconds("linger", self.linger, _LONGEST["linger"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits on the streams of a process and on the outbox of a client, and the overflow policy.

    An outbox holds at most `outbox_events` events and `outbox_bytes` bytes, or a single event of any size.
    For a client that has accepted everything, the events of one turn of the event loop do not pass through
    it, up to `message_bytes`.
    `overflow` decides what happens when it is full. "resume" empties it and reads on from history at the
    client's pace, so no event is lost; without history it acts as "close". "close" ends the stream as
    `slow`. "drop_oldest" drops the oldest events, and the client is sent a gap in their place. "latest" keeps
    only the newest waiting event of each channel and event name: for prices, cursors and progress, where a
    newer value replaces the older one.

    `replay_events` bounds the events of each channel that a client is sent from history; a client that missed
    more, or asked for more by `replay="all"`, is sent a gap and the newest events. `message_bytes` bounds one
    ASGI message, because servers buffer a message whole. `streams` bounds the streams of the process,
    whatever their slot keys.
    """

    outbox_events: int = 1000
    outbox_bytes: int = 1024 * 1024
    message_bytes: int = 256 * 1024
    replay_events: int = 10_000
    overflow: Overflow = "resume"
    streams: int | None = 20_000

    def __post_init__(self) -> None:
        for name in ("outbox_events", "outbox_bytes", "message_bytes", "replay_events"):
            check_whole(name, getattr(self, name))
        if self.streams is not None:
            check_whole("streams", self.streams)
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(OVERFLOWS)}, not {self.overflow!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPolicy:
    """How a process drains: how it ends its streams before it exits.

    Each stream ends at a random moment of the `window`, in seconds. Keep the window shorter than the time
    after which the server or its supervisor kills the process. With `signals`, SIGTERM and SIGINT start a
    drain, and then call the handlers that were installed before: at once, or, with `hold`, when the streams
    have ended. `hold` is for a server that closes every connection at the signal, as Daphne does. A second
    signal, more than a second later, calls the earlier handlers at once.

    A signal takes effect after `delay` seconds. Until then `draining` is True, so that a readiness check
    fails, and everything else goes on: the server accepts requests, and new streams open. A balancer that
    checks within this time sends no request to a process that has closed its port.

    The runs that this process produces go on for `runs` seconds after its streams have ended. Then their
    iterators are closed, and they are `lost`. 0 stops them at once.
    """

    window: float = 3.0
    signals: bool = True
    hold: bool = False
    delay: float = 0.0
    runs: float = 5.0

    def __post_init__(self) -> None:
        for name in ("window", "delay", "runs"):
            if getattr(self, name) != 0:
                check_seconds(name, getattr(self, name), _LONGEST["window"])


def check_whole(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a whole number from 1 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is a whole number from 1 up, not {value!r}")


def check_seconds(name: str, value: object, longest: float, shortest: float = 0.0) -> None:
    """Raise ValueError unless `value` is a time in seconds, more than 0 and from `shortest` to `longest`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 < value <= longest
        or value < shortest
    ):
        late = isinstance(value, (int, float)) and longest < value < math.inf
        hint = "; is it in milliseconds? divide by 1000" if late else ""
        least = f"at least {shortest}" if shortest else "more than 0"
        raise ValueError(f"{name} is in seconds, {least} and at most {longest:,}, not {value!r}{hint}")


def check_retry_for(value: object) -> None:
    """Raise ValueError unless `value` is a time in seconds to retry for: from 0 up, `math.inf` included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"retry_for is in seconds, from 0 up, not {value!r}")


def value_or_default(name: str, value: T | None, kind: type[T]) -> T:
    """Return `value`, or `kind()` if it is None. Raises TypeError for a value of another class."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {kind.__name__}(...), not {value!r:.100}")
    return value
