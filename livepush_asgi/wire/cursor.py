"""Position and Cursor: the place of a client in the logs of its channels, and the event id that encodes it.

The log of a channel numbers its events 1, 2, 3 ... without holes, so that a missing event is visible. After a
log was lost and a new one has begun, the offset 7 names another event. So a position also holds the log's
epoch, a random name that is drawn when the log begins.

A cursor has one entry for each channel of a stream: `tag~epoch.offset`, or `tag~` for a channel without a
known position. `tag~!epoch` says that the client is owed the whole log and was sent nothing of it: a position
with offset 0 alone does not say whether the client was told of what is missing at the beginning. The tag is a
digest of the channel's name, so an id reveals no channel name. The tag also tells a channel that is new to
the client from a channel whose log was lost. A leading exclamation mark says that the client has not been
sent the whole state (`Grant.snapshot`) yet.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from secrets import token_urlsafe
from types import MappingProxyType

# A cursor has to fit into a request header: servers and proxies commonly allow 8 KiB for all headers.
MAX_POSITIONS = 128
MAX_OFFSET = 2**63 - 1
# At most this many channels of one stream may share a tag. Among 128 channels the chance that two share one
# is 1 in 2,000.
MAX_OF_ONE_TAG = 4

_EPOCH = re.compile(r"[A-Za-z0-9_-]{1,16}")
_POSITION = re.compile(r"([A-Za-z0-9_-]{1,16})\.(0|[1-9][0-9]{0,18})")
_TAG = r"[A-Za-z0-9_-]{4}"
_ENTRY = rf"{_TAG}~(?:{_POSITION.pattern}|!{_EPOCH.pattern})?"
_CURSOR = re.compile(rf"!?{_ENTRY}(?:,{_ENTRY})*")
# The longest text that can be a cursor; a longer text is not parsed.
_MAX_TEXT = MAX_POSITIONS * 42
_OWED = "!"


def new_epoch() -> str:
    """Return a random epoch for a new log."""
    return token_urlsafe(6)


@lru_cache(maxsize=2**14)
def tag_of(channel: str) -> str:
    """Return the tag of a channel: the 4 characters that stand for it in a cursor."""
    return urlsafe_b64encode(blake2b(channel.encode(), digest_size=3).digest()).decode()


@dataclass(frozen=True, slots=True, order=False)
class Position:
    """A place in the log of one channel: after the event with this offset. 0 is before the first event."""

    epoch: str
    offset: int

    def __post_init__(self) -> None:
        if not isinstance(self.epoch, str) or not _EPOCH.fullmatch(self.epoch):
            raise ValueError(f"an epoch is 1 to 16 letters, digits, '-' and '_', not {self.epoch!r}")
        if isinstance(self.offset, bool) or not isinstance(self.offset, int):
            raise TypeError(f"an offset is an int, not {self.offset!r}")
        _check_range(self.offset)

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Parse the text that `str(position)` returns. Raises ValueError for any other text."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r:.100} is no position, which `publish` returns: Position, or the id after it"
            )
        _check_range(offset := int(match[2]))
        return _make_position(match[1], offset)

    @classmethod
    def of_id(cls, id: str) -> "Position":
        """Return the position in an event id of `publish`. Raises ValueError for any other text."""
        return cls.parse(id.rpartition("~")[2])

    def next(self) -> "Position":
        """Return the position after this one in the same log."""
        return _make_position(self.epoch, self.offset + 1)

    def following(self, number: int) -> "list[Position]":
        """Return so many positions after this one in the same log."""
        epoch = self.epoch
        return [_make_position(epoch, offset) for offset in range(self.offset + 1, self.offset + 1 + number)]

    def at(self, offset: int) -> "Position":
        """Return the position with this offset in the same log. Raises what `Position(...)` raises."""
        if type(offset) is not int:
            raise TypeError(f"an offset is an int, not {offset!r}")
        _check_range(offset)
        return _make_position(self.epoch, offset)


# A frozen dataclass has no setters, and the slot descriptors are faster than `object.__setattr__`: two
# positions are made for every event.
_set_epoch = Position.__dict__["epoch"].__set__
_set_offset = Position.__dict__["offset"].__set__
_new = object.__new__


def _check_range(offset: int) -> None:
    if not 0 <= offset <= MAX_OFFSET:
        raise ValueError(f"an offset is from 0 to {MAX_OFFSET}, not {offset!r}")


def _make_position(epoch: str, offset: int) -> Position:
    """Return a position without validating it."""
    position = _new(Position)
    _set_epoch(position, epoch)
    _set_offset(position, offset)
    return position


def event_id(channel: str, position: Position | None) -> str:
    """Return the cursor entry of a channel. For a stream on one channel this is the whole event id."""
    if position is None:
        return f"{tag_of(channel)}~"
    return f"{tag_of(channel)}~{position.epoch}.{position.offset}"


def log_owed_id(channel: str, epoch: str) -> str:
    """Return the cursor entry of a channel whose whole log the client is owed."""
    return f"{tag_of(channel)}~{_OWED}{epoch}"


def owed(id: str) -> str:
    """Return the id with the mark that the client has not been sent the whole state yet."""
    return _OWED + id


def is_cursor(text: str) -> bool:
    """Return whether an event id parses as a cursor. A publisher may not give such an id to an event."""
    return len(text) <= _MAX_TEXT and _CURSOR.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Cursor:
    """The client's last event id: one entry for each channel of the stream that sent it.

    `parse` bounds the text and is strict. It returns None for a text that is no cursor, and the client is
    then sent a gap, not an error. `entries` maps each tag to the text after it. `positions_in` parses that
    text on demand, so a hostile cursor for 128 channels costs no more than splitting it.
    """

    entries: Mapping[str, str]
    #: Whether the client has not been sent the whole state yet.
    state_owed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", MappingProxyType(dict(self.entries)))

    def __str__(self) -> str:
        texts = [f"{tag}~{part}" for tag, parts in self.entries.items() for part in parts.split(",")]
        return (_OWED if self.state_owed else "") + ",".join(texts)

    @classmethod
    def of(cls, positions: Mapping[str, Position | None], *, state_owed: bool = False) -> "Cursor":
        """Return the cursor for the position of each channel; None stands for an unknown position."""
        return cls(_entries([event_id(*place) for place in positions.items()]) or {}, state_owed)

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """Return the cursor that the text encodes, or None if the text is no cursor."""
        if not text or len(text) > _MAX_TEXT or not text.isascii():
            return None
        parts = text.removeprefix(_OWED).split(",")
        entries = _entries(parts) if len(parts) <= MAX_POSITIONS else None
        return None if entries is None else cls(entries, text.startswith(_OWED))

    def knows(self, channel: str) -> bool:
        """Return whether the stream that sent this id had the channel."""
        return tag_of(channel) in self.entries

    def positions_in(self, channel: str) -> tuple[Position, ...]:
        """Return the positions that the cursor may hold for the channel; empty if it holds none.

        There are several only if two channels of the stream share a tag.
        """
        parts = self.entries.get(tag_of(channel), "").split(",")
        return tuple([place for part in parts if (place := _position_in(part)) is not None])

    def owes_log(self, channel: str) -> bool:
        """Return whether the client is owed the channel's whole log, and was sent nothing of it.

        If two channels of the stream share a tag, this is meant for the position with offset 0.
        """
        return _OWED in self.entries.get(tag_of(channel), "")


def _position_in(part: str) -> Position | None:
    """Return the position in the text after a tag, or None if the text has none."""
    if part.startswith(_OWED):
        epoch = part.removeprefix(_OWED)
        return _make_position(epoch, 0) if _EPOCH.fullmatch(epoch) else None
    match = _POSITION.fullmatch(part)
    if match is None or (offset := int(match[2])) > MAX_OFFSET:
        return None
    return _make_position(match[1], offset)


def _entries(parts: Iterable[str]) -> dict[str, str] | None:
    """Return the text after each tag, or None if a part is no entry."""
    entries: dict[str, str] = {}
    for part in parts:
        tag, mark, text = part.partition("~")
        if not mark or len(tag) != 4:
            return None
        if tag in entries:
            text = f"{entries[tag]},{text}"
            if text.count(",") == MAX_OF_ONE_TAG:
                return None
        entries[tag] = text
    return entries
