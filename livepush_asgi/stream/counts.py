"""Sent and StreamCounts: what a stream has sent, and what the streams of a process count."""

from collections import Counter
from typing import NamedTuple

from ..runtime.histogram import Histogram
from ..wire.reasons import GapReason


class Sent(NamedTuple):
    """What a stream gave the server to send. A client that has left need not have received all of it.

    `events` are those of the application: live, from history, and of a snapshot. `bytes` are all that was
    sent, with heartbeats and the component's own events, without the server's framing.
    """

    events: int
    bytes: int


class StreamCounts:
    """The counts of all streams of a LivePush together, from its first start on."""

    __slots__ = ("fresh", "gap", "gaps", "open_duration", "replayed", "resumed", "sent_bytes", "unopened")

    def __init__(self) -> None:
        #: The bytes that streams which have closed gave the server to send.
        self.sent_bytes = 0
        #: The events that were read from history and sent.
        self.replayed = 0
        #: The gap events that were sent, by reason.
        self.gaps: Counter[GapReason] = Counter()
        #: The streams that opened, or closed before that, by OpenOutcome. A Counter would hash its members,
        #: which is slow.
        self.fresh = self.resumed = self.gap = self.unopened = 0
        #: How long it took from the request to the first chunk, in seconds.
        self.open_duration = Histogram(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
