"""History: how much of each channel a broker keeps."""

from dataclasses import dataclass

from ..settings import check_seconds, check_whole

# Ten years, in seconds.
_LONGEST_AGE = 10 * 365 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The bounds of a channel's log. The oldest events that exceed any bound are dropped.

    `events` and `size` (bytes of payload) are per channel. `age` is in seconds; None sets no bound. A log
    to which nothing was added for that time may be forgotten. A client that reconnects and needs dropped
    events is told of a gap.

    `channels` and `total_size` are for MemoryBroker, which keeps all logs in one process. With more than
    `channels` logs it forgets the log that was idle longest. When all logs together exceed `total_size`
    bytes, counting 80 for each event beside its payload, it drops the oldest events of the channel to which
    nothing was published for the longest time.
    """

    events: int = 10_000
    size: int = 1024 * 1024
    age: float | None = 3600.0
    channels: int = 10_000
    total_size: int = 128 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("events", "size", "channels", "total_size"):
            check_whole(name, getattr(self, name))
        if self.age is not None:
            check_seconds("age", self.age, _LONGEST_AGE)
