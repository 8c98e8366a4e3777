"""Statistics and Counters: the numbers of a LivePush in this process."""

from collections import Counter
from typing import TypedDict

from ..wire.reasons import EndReason, RefusalCause


class Statistics(TypedDict):
    """The numbers of a LivePush in this process: its current state, and counts since it was made.

    JSON can encode this dictionary; a health or metrics route may return it unchanged.
    """

    #: Streams that are open now.
    streams: int
    #: Channels of the application that this process is subscribed to now.
    channels: int
    #: Whether every channel is subscribed and the broker's connection is up.
    healthy: bool
    #: Whether the process is draining and refuses new streams.
    draining: bool
    #: Streams that were opened.
    opened: int
    #: Streams that have ended, by `EndReason`. It has every reason.
    ended: dict[str, int]
    #: Requests that were refused a stream, by `RefusalCause`. It has every cause.
    refused: dict[str, int]
    #: Events that this process published.
    published: int
    #: Events delivered to streams: an event counts once for each stream.
    delivered: int


class Counters:
    """The counts of a LivePush, over all its runs."""

    __slots__ = ("delivered", "ended", "opened", "published", "refused")

    def __init__(self) -> None:
        self.opened = 0
        self.published = 0
        self.delivered = 0
        self.ended: Counter[EndReason] = Counter()
        self.refused: Counter[RefusalCause] = Counter()

    def by_end_reason(self) -> dict[str, int]:
        """Return how many streams have ended for each reason."""
        return {reason.value: self.ended[reason] for reason in EndReason}

    def by_refusal_cause(self) -> dict[str, int]:
        """Return how many requests were refused for each cause."""
        return {cause.value: self.refused[cause] for cause in RefusalCause}
