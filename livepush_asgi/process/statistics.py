"""Statistics: what a LivePush counts in this process."""

from collections import Counter
from typing import TypedDict

from ..wire.reasons import EndReason, RefusalCause


class Statistics(TypedDict):
    """What a LivePush has done in this process since it was made, and what it holds now.

    A plain dictionary that JSON can hold: a health or metrics route may return it as it is.
    """

    #: Streams that are open now.
    streams: int
    #: Channels that this process is subscribed to now.
    channels: int
    #: Whether every channel is subscribed and the broker's connection is up.
    healthy: bool
    #: Whether new streams are refused because the process gives up its own.
    draining: bool
    #: Streams that were opened.
    opened: int
    #: Streams that have ended, by `EndReason`. Every reason is there.
    ended: dict[str, int]
    #: Requests that got no stream, by `RefusalCause`. Every cause is there.
    refused: dict[str, int]
    #: Events that this process published.
    published: int
    #: Events put into outboxes: each counts once for each stream that it was for.
    delivered: int


class Counters:
    """What a LivePush counts over all its runs."""

    __slots__ = ("delivered", "ended", "opened", "published", "refused")

    def __init__(self) -> None:
        self.opened = 0
        self.published = 0
        self.delivered = 0
        self.ended: Counter[EndReason] = Counter()
        self.refused: Counter[RefusalCause] = Counter()

    def by_end_reason(self) -> dict[str, int]:
        """Return how many streams have ended for each reason, by its text."""
        return {reason.value: self.ended[reason] for reason in EndReason}

    def by_refusal_cause(self) -> dict[str, int]:
        """Return how many requests were refused for each cause, by its text."""
        return {cause.value: self.refused[cause] for cause in RefusalCause}
