"""The numbers to watch."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..wire.reasons import EndReason, RefusalCause


class Statistics(NamedTuple):
    """What a LivePush has done in this process since it was made, and what it holds now."""

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
    #: Streams that have ended, by reason.
    ended: Mapping[EndReason, int]
    #: Clients that got no stream, by cause.
    refused: Mapping[RefusalCause, int]
    #: Events that this process published.
    published: int
    #: Events put into outboxes: each counts once for each stream that it was for.
    delivered: int


class Tally:
    """Counts what the statistics tell."""

    __slots__ = ("delivered", "ended", "opened", "published", "refused")

    def __init__(self) -> None:
        self.opened = 0
        self.published = 0
        self.delivered = 0
        self.ended: Counter[EndReason] = Counter()
        self.refused: Counter[RefusalCause] = Counter()

    def frozen_ended(self) -> Mapping[EndReason, int]:
        """Return a copy that does not change any more, with every reason in it."""
        return MappingProxyType({reason: self.ended[reason] for reason in EndReason})

    def frozen_refused(self) -> Mapping[RefusalCause, int]:
        """Return a copy that does not change any more, with every cause in it."""
        return MappingProxyType({cause: self.refused[cause] for cause in RefusalCause})
