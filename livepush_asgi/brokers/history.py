"""History: how much of each channel a broker keeps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The bounds of a channel's log. What is beyond any of them goes, the oldest first.

    `events` and `size` (bytes of payload) are per channel. `age` is in seconds, None keeps what the
    other bounds allow; a channel to which nothing was published for so long may be forgotten whole.
    Two bounds are for MemoryBroker, which keeps all logs in one process: `channels` is how many, and the
    one that was idle longest goes; `total_size` is how many bytes of all channels together, with 80 for
    each event beside its payload, and the oldest events of the channel that was quiet longest go. A client
    that comes back for what is gone is told of a gap.
    """

    events: int = 1000
    size: int = 1024 * 1024
    age: float | None = 3600.0
    channels: int = 10_000
    total_size: int = 128 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("events", "size", "channels", "total_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a whole number from 1 up, not {value!r}")
        if self.age is not None and not self.age > 0:
            raise ValueError(f"age is in seconds and more than 0, or None, not {self.age!r}")
