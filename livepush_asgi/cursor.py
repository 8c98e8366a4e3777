"""Position and Cursor: where a client is in the logs of its channels, as values and as the text of an id.

The log of a channel counts its events 1, 2, 3 ... without holes, so that a hole can be seen. An offset
alone would lie after the log was lost and begun anew: 7 would name another event. So a position carries
the log's epoch too, a name drawn at random when the log begins.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from secrets import token_urlsafe
from types import MappingProxyType

# One position for each channel of a stream, and not more channels than fit into a request header:
# servers and proxies commonly take 8 KiB for all of them.
MOST_POSITIONS = 128
MOST_OFFSET = 2**63 - 1

_EPOCH = re.compile(r"[A-Za-z0-9_-]{1,16}")
_POSITION = re.compile(r"([A-Za-z0-9_-]{1,16})\.(0|[1-9][0-9]{0,18})")
# The longest text that can be a cursor; what is longer is not even looked at.
_MOST_TEXT = MOST_POSITIONS * 37


def new_epoch() -> str:
    """Return a name for a log that begins."""
    return token_urlsafe(6)


@dataclass(frozen=True, slots=True, order=False)
class Position:
    """A place in the log of one channel: after the event with this offset; 0 is before the first."""

    epoch: str
    offset: int

    def __post_init__(self) -> None:
        if not isinstance(self.epoch, str) or not _EPOCH.fullmatch(self.epoch):
            raise ValueError(f"an epoch is 1 to 16 letters, digits, '-' and '_', not {self.epoch!r}")
        if isinstance(self.offset, bool) or not isinstance(self.offset, int):
            raise TypeError(f"an offset is an int, not {self.offset!r}")
        if not 0 <= self.offset <= MOST_OFFSET:
            raise ValueError(f"an offset is from 0 to {MOST_OFFSET}, not {self.offset!r}")

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Return the position that `str` of it wrote. Raises ValueError for any other text."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError("this is no position")
        return _place(match[1], int(match[2]))

    def at(self, offset: int) -> "Position":
        """Return the place with this offset in the same log. Raises as making one does."""
        if type(offset) is not int:
            raise TypeError(f"an offset is an int, not {offset!r}")
        return _place(self.epoch, offset)


# As the setters that a frozen value has none of; one is made twice for every event.
_set_epoch = Position.__dict__["epoch"].__set__
_set_offset = Position.__dict__["offset"].__set__


def _place(epoch: str, offset: int) -> Position:
    """Return a position in a log whose epoch is known to be good."""
    if not 0 <= offset <= MOST_OFFSET:
        raise ValueError(f"an offset is from 0 to {MOST_OFFSET}, not {offset!r}")
    position = object.__new__(Position)
    _set_epoch(position, epoch)
    _set_offset(position, offset)
    return position


@dataclass(frozen=True, slots=True)
class Cursor:
    """One position for each log that a client follows. As text it is an event id.

    The epochs stand for the channels, so that an id tells nobody a channel's name. Text from outside
    is bounded and read strictly; whatever is no cursor is None, and that is a gap, never an error.
    """

    offsets: Mapping[str, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", MappingProxyType(dict(self.offsets)))

    def __str__(self) -> str:
        return ",".join(f"{epoch}.{offset}" for epoch, offset in self.offsets.items())

    @classmethod
    def of(cls, positions: Iterable[Position]) -> "Cursor":
        """Return the cursor of these positions."""
        return cls({position.epoch: position.offset for position in positions})

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """Return the cursor that a text is, None if it is none."""
        if not text or len(text) > _MOST_TEXT:
            return None
        offsets: dict[str, int] = {}
        for part in text.split(","):
            match = _POSITION.fullmatch(part)
            if match is None or match[1] in offsets or int(match[2]) > MOST_OFFSET:
                return None
            offsets[match[1]] = int(match[2])
        return cls(offsets) if len(offsets) <= MOST_POSITIONS else None
