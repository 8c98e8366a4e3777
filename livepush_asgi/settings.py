"""Timing, Limits and DrainPolicy: the numbers of a LivePush, checked once when they are made."""

import math
import random
from dataclasses import dataclass
from typing import Literal

Overflow = Literal["resume", "close", "drop_oldest", "latest"]
OVERFLOWS = ("resume", "close", "drop_oldest", "latest")
# The longest times, in seconds. A longer one is most likely in milliseconds.
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
    """When things happen on a stream, in seconds.

    `heartbeat_interval`: a comment is sent after so long without an event; None sends none. 15 s is
    under the idle limits of common proxies (30 s and 60 s).
    `retry`: the reconnection time; each client is told its own, between half of it and one and a
    half, so that they do not all come back at once.
    `send_timeout`: a stream whose client takes nothing for so long ends as `slow`.
    `max_lifetime`: a stream ends, at a random moment in the last fifth of it; None lets it live. A client
    whose login was withdrawn keeps its stream until then, unless its Grant has an `expires_at` or somebody
    calls `disconnect`; so the default is two hours and not None. `EventSource` comes back by itself, is
    authorized anew, and goes on where it was where the broker keeps history; ten thousand streams cost about
    one and a half reconnects a second.
    `subscribe_timeout`: how long a new stream waits for the broker before it opens all the same.
    `snapshot_timeout`: a snapshot callback that takes longer is cancelled, and its stream ends as `error`.
    `authorize_timeout`: how long `authorize` may take, and how long a slot; the client is refused then.
    `linger`: a channel stays subscribed for so long after its last stream has gone.
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
            _check_seconds(name, getattr(self, name))
        for name in ("heartbeat_interval", "max_lifetime"):
            if getattr(self, name) is not None:
                _check_seconds(name, getattr(self, name))
        if self.linger != 0:
            _check_seconds("linger", self.linger)

    def own_retry(self) -> int:
        """Return one client's reconnection time in milliseconds."""
        return max(1, round(1000 * self.retry * (0.5 + random.random())))

    def own_lifetime(self) -> float | None:
        """Return one stream's lifetime in seconds: from 80 to 100 % of the maximum."""
        return None if self.max_lifetime is None else self.max_lifetime * random.uniform(0.8, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many streams a process has, how much may wait for one client, and what happens when more comes.

    An outbox holds at most `outbox_events` events and `outbox_bytes` bytes (or one event, however
    large). When it is full, `overflow` decides. "resume" stops queueing and reads on from history at
    the client's pace: nothing is lost; where there is no history, it closes. "close" ends the stream
    as `slow`. "drop_oldest" makes room and tells the client with a gap event where events are
    missing. "latest" keeps, of what waits, only the newest of each channel and event name: for
    prices, cursors and progress, where an older value is worth nothing.

    `replay_events` bounds, for each channel, what a client that comes back is sent from history; one
    that missed more is told of a gap and gets the newest. `message_bytes` bounds what is given to the
    server in one message, because servers take a message whole.
    """

    outbox_events: int = 1000
    outbox_bytes: int = 1024 * 1024
    message_bytes: int = 256 * 1024
    replay_events: int = 10_000
    overflow: Overflow = "resume"
    streams: int | None = 20_000

    def __post_init__(self) -> None:
        for name in ("outbox_events", "outbox_bytes", "message_bytes", "replay_events"):
            _whole(name, getattr(self, name))
        if self.streams is not None:
            _whole("streams", self.streams)
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(OVERFLOWS)}, not {self.overflow!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPolicy:
    """How the streams of a process are given up when it ends.

    Each ends at a random moment of the `window` (seconds). Keep it shorter than the time the server
    or its supervisor allows before it kills. With `signals`, a drain begins at SIGTERM and SIGINT,
    by handlers that call the ones they found: at once, or, with `hold`, when the streams have ended.
    That is for a server that cuts every connection at the signal, as Daphne does; a second signal
    is passed on at once.
    """

    window: float = 3.0
    signals: bool = True
    hold: bool = False

    def __post_init__(self) -> None:
        if self.window != 0:
            _check_seconds("window", self.window)


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is a whole number from 1 up, not {value!r}")


def _check_seconds(name: str, value: object) -> None:
    longest = _LONGEST[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= longest:
        late = isinstance(value, (int, float)) and longest < value < math.inf
        hint = "; is it in milliseconds? divide by 1000" if late else ""
        raise ValueError(f"{name} is in seconds, more than 0 and at most {longest:,}, not {value!r}{hint}")
