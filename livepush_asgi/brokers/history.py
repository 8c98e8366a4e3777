"""History: how much of each channel a broker keeps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The bounds of a channel's log. What is beyond any of them goes, the oldest first.

    `events` and `size` (bytes of payload) are per channel. `age` is in seconds, None keeps what the
    other bounds allow; a channel to which nothing was published for so long may be forgotten whole.
    `channels` bounds the logs that one process keeps in memory; the one that was idle longest goes.
    """

    events: int = 1000
    size: int = 1024 * 1024
    age: float | None = 3600.0
    channels: int = 10_000

    def __post_init__(self) -> None:
        for name in ("events", "size", "channels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a whole number from 1 up, not {value!r}")
        if self.age is not None and not self.age > 0:
            raise ValueError(f"age is in seconds and more than 0, or None, not {self.age!r}")
