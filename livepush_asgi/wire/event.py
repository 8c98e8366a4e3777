"""Event, and the text format of an event stream.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

An event has two forms. A client receives a *block*: the field lines of one event and the blank line that
dispatches it. A broker carries a *payload*: a block after a two-byte mark, or plain text that another program
published. Plain text becomes the data of an event.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..errors import InvalidEventError
from .cursor import Position, is_cursor
from .encode import Encode, encoded, to_json

# Event names and channels with this prefix belong to the component; an application cannot use them.
RESERVED_PREFIX = "livepush."
#: Every process with streams subscribes to this channel. It carries commands such as a revocation. Over a
#: broker with history it has a log, so that a process misses no command.
COMMAND_CHANNEL = RESERVED_PREFIX + "commands"
#: This channel carries the confirmations of commands. No process reads its log.
REPLY_CHANNEL = RESERVED_PREFIX + "replies"

# 0xFF never occurs in UTF-8. So published text, however hostile, is never taken for a finished block with
# `event:` or `id:` lines of its own. The digit is the version of the format.
PAYLOAD_MARK = b"\xff1"
# A payload with a position is: this mark, the position, a line end, and the payload without position.
POSITION_MARK = b"\xff2"
# Several payloads of a log are: this mark, the position of the first, a line end, their sizes in bytes with
# commas between them, a line end, and the payloads.
BATCH_MARK = b"\xff3"

# A payload that begins so has data alone.
_DATA_ALONE = PAYLOAD_MARK + b"data: "

# One line end only: after a comment and a blank line some clients dispatch an empty event.
HEARTBEAT = b":\n"

# In milliseconds. A client passes the reconnection time to a timer. JavaScript timers hold 31 bits; a larger
# delay becomes 1 ms, and a client that should stay away for a month storms the server.
# https://nodejs.org/api/timers.html#settimeoutcallback-delay-args
MAX_RETRY = 2**31 - 1

# Only CRLF, CR and LF end a line. `str.splitlines()` would also split at U+2028, U+0085 and other characters
# that are ordinary data here.
_LINE_END = re.compile(r"\r\n|\r|\n")
_BREAKS_LINE = re.compile(r"[\r\n]")
_BREAKS_ID = re.compile(r"[\r\n\0]")


@dataclass(frozen=True, slots=True, init=False)
class Event:
    """One event of an event stream, with values that cannot break the stream.

    `data` is text, UTF-8 bytes, or a value that becomes JSON at once: what `json` encodes, and date, time,
    datetime, UUID, Decimal, Enum, dataclasses and models of Pydantic. The event stores it as text. The
    `encode` of a LivePush does not apply to it: give an Event the text, as in `Event(encode(data))`.

    `event` is the event name, for `addEventListener` in a browser. `id` becomes the client's last event id;
    it must not be empty, nor parse as one of the component's own ids. `retry` sets the client's reconnection
    time in milliseconds.

    The client receives each line end in `data` as LF, because the format does not distinguish CRLF, CR and
    LF. Raises InvalidEventError for a value that a client could not read back unchanged.
    """

    data: object = ""
    event: str | None = None
    id: str | int | None = None
    retry: int | None = None

    def __init__(
        self,
        data: object = "",
        event: str | None = None,
        id: str | int | None = None,
        retry: int | None = None,
    ) -> None:
        _set_data(self, _text_of(data))
        _set_event(self, None if event is None else _name_of(event))
        _set_id(self, None if id is None else _id_of(id))
        _set_retry(self, None if retry is None else _retry_of(retry))

    def encode(self) -> bytes:
        """Return the event as a block: its field lines and the blank line that dispatches it."""
        return encode_block(str(self.data), event=self.event, id=self.id, retry=self.retry)


# A frozen dataclass has no setters, and the slot descriptors are faster than `object.__setattr__`: every
# publish makes an Event.
_set_data, _set_event, _set_id, _set_retry = (
    Event.__dict__[name].__set__ for name in ("data", "event", "id", "retry")
)


def event_of(item: object, encode: Encode | None) -> Event:
    """Return an Event as it is, and other data as an Event, encoded by `encode` unless that is None."""
    if isinstance(item, Event):
        return item
    return Event(item if encode is None else encoded(item, encode))


def block_of(item: object, encode: Encode | None) -> bytes:
    """Return `event_of(item, encode).encode()` without making an Event, and raise what that raises."""
    if type(item) is str and encode is None and item.isascii() and "\n" not in item and "\r" not in item:
        # A token of an answer. The calls below cost more than the rest of its way into the log.
        return f"data: {item}\n\n".encode()
    if isinstance(item, Event):
        return item.encode()
    return encode_block(_text_of(item if encode is None else encoded(item, encode)))


def encode_block(
    data: str, *, event: str | None = None, id: str | int | None = None, retry: int | None = None
) -> bytes:
    """Return the block of these values, without validating them. `Event` validates."""
    if event is None and id is None and retry is None and "\n" not in data and "\r" not in data:
        return f"data: {data}\n\n".encode()
    lines = []
    if event is not None:
        lines.append(f"event: {event}\n")
    if id is not None:
        lines.append(f"id: {id}\n")
    if retry is not None:
        lines.append(f"retry: {retry}\n")
    # A line end at the end of the data is data too: it adds an empty last line.
    lines.extend(f"data: {line}\n" for line in _LINE_END.split(data))
    lines.append("\n")
    return "".join(lines).encode()


def id_line(id: str) -> bytes:
    """Return an id as a field line."""
    return f"id: {id}\n".encode()


def name_line(block: bytes) -> bytes:
    """Return the field line of the event name in a payload's block, or b"" if the event has no name."""
    return block[: block.index(b"\n")] if block.startswith(b"event: ") else b""


def to_payload(block: bytes) -> bytes:
    """Return a block as a payload: with the mark in front."""
    return PAYLOAD_MARK + block


def plain_payload(data: object) -> bytes:
    """Return `to_payload(Event(data).encode())` without making an Event, and raise what that raises."""
    return PAYLOAD_MARK + encode_block(_text_of(data))


def payload_bytes(payload: object) -> bytes:
    """Return what a broker is given to publish as bytes. Raises TypeError unless it is text or bytes."""
    if isinstance(payload, str):
        return payload.encode()
    if not isinstance(payload, (bytes, bytearray, memoryview)):
        raise TypeError(
            f"a broker publishes text or bytes, not {type(payload).__name__}: give it json.dumps(...), or "
            "publish through LivePush or Publisher, which encode other data"
        )
    return bytes(payload)


def from_payload(payload: bytes) -> bytes:
    """Return the block of a payload. A plain payload becomes an event with data only.

    Raises InvalidEventError for a plain payload that is not UTF-8, and for an id that `Event` would refuse.
    """
    if not payload.startswith(PAYLOAD_MARK):
        return encode_block(_decode(payload))
    block = payload[len(PAYLOAD_MARK) :]
    if _has_id(block):
        _check_id(block)
    return block


def bare_block(payload: bytes) -> bytes:
    """Return `from_payload` of a payload whose block was made before, without checking it again."""
    return payload[len(PAYLOAD_MARK) :] if payload.startswith(PAYLOAD_MARK) else from_payload(payload)


def blocks_of(payload: bytes, id: str) -> tuple[bytes, bytes]:
    """Return the block of a payload with this id, unless it has one, and the block as it is in the payload.

    Raises what `from_payload` raises.
    """
    if payload.startswith(_DATA_ALONE):
        # Nearly every event: it has no id.
        bare = payload[len(PAYLOAD_MARK) :]
        return f"id: {id}\n".encode() + bare, bare
    bare = from_payload(payload)
    return with_id(bare, id), bare


def numbered_blocks(payloads: Sequence[bytes], id_start: str, first: int) -> list[bytes]:
    """Return the blocks with an id of these payloads. The ids are `id_start` and a number, from `first` on.

    Raises what `from_payload` raises.
    """
    start, size = f"id: {id_start}".encode(), len(PAYLOAD_MARK)
    return [
        b"%b%d\n%b" % (start, number, payload[size:])
        if payload.startswith(_DATA_ALONE)
        else blocks_of(payload, f"{id_start}{number}")[0]
        for number, payload in enumerate(payloads, first)
    ]


def positioned(position: Position, payload: bytes) -> bytes:
    """Return a payload with its position in front, as a broker with history delivers it live."""
    return b"%s%s\n%s" % (POSITION_MARK, str(position).encode(), payload)


def split_position(payload: bytes) -> tuple[Position | None, bytes]:
    """Return the position of a live payload, or None, and the payload without it.

    Raises InvalidEventError for a malformed position.
    """
    if not payload.startswith(POSITION_MARK):
        return None, payload
    text, _, rest = payload[len(POSITION_MARK) :].partition(b"\n")
    try:
        return Position.parse(text.decode("ascii")), rest
    except ValueError as error:
        raise InvalidEventError(f"a payload has a position that cannot be read: {text[:40]!r}") from error


def split_batch(message: bytes) -> tuple[Position, list[bytes]]:
    """Return the payloads of a message with BATCH_MARK, and the position that they follow.

    Raises ValueError for a message that is malformed.
    """
    head, sizes, body = message.removeprefix(BATCH_MARK).split(b"\n", 2)
    first = Position.parse(head.decode("ascii"))
    return first.at(first.offset - 1), split_payloads(sizes, body)


def split_payloads(sizes: bytes, body: bytes) -> list[bytes]:
    """Return the payloads that a text has, given their sizes with commas between them. Raises ValueError."""
    ends = list(accumulate(map(int, sizes.split(b","))))
    if ends[-1] != len(body):
        raise ValueError(f"payloads have {len(body)} bytes, and should have {ends[-1]}")
    return [body[start:end] for start, end in pairwise([0, *ends])]


def with_id(block: bytes, id: str) -> bytes:
    """Return the block with this id, or unchanged if it has an id."""
    return block if _has_id(block) else f"id: {id}\n".encode() + block


def _has_id(block: bytes) -> bool:
    # Each line of data begins with `data: `, so a line that begins with `id: ` is the field. It precedes the
    # data.
    return not block.startswith(b"data: ") and (block.startswith(b"id: ") or b"\nid: " in block)


def _check_id(block: bytes) -> None:
    """Raise InvalidEventError for an id that erases the client's cursor or forges one."""
    mark = b"id: " if block.startswith(b"id: ") else b"\nid: "
    _id_of(block.partition(mark)[2].partition(b"\n")[0].decode("utf-8", "replace"))


def data_of(block: bytes) -> str:
    """Return the data of a block that has only data."""
    return "\n".join(line.removeprefix("data: ") for line in block.decode()[:-2].split("\n"))


def _text_of(data: object) -> str:
    if isinstance(data, str):
        return _encodable(data)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return _decode(bytes(data))
    return _encodable(to_json(data))


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidEventError(
            f"an event stream is UTF-8, and these bytes are not ({error}); encode binary data as base64"
        ) from error


def _encodable(text: str) -> str:
    # A member of `class Name(str, Enum)` is a str, but str() and format() return another text. Use its value,
    # so that the text which is validated here is the text which is written later.
    text = str.__str__(text)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidEventError(f"text with a lone surrogate cannot be written as UTF-8: {error}") from error
    return text


def _name_of(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidEventError(f"an event name is a str, not {type(value).__name__}")
    name = _encodable(value)
    if not name:
        raise InvalidEventError("an empty event name would be read back as 'message'; leave it out instead")
    if _BREAKS_LINE.search(name):
        raise InvalidEventError(f"the event name {name!r} has a line end, which would begin another field")
    if name.startswith(RESERVED_PREFIX):
        raise InvalidEventError(f"event names that begin with {RESERVED_PREFIX!r} are the component's own")
    return name


def _id_of(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidEventError(f"an event id is a str or an int, not {type(value).__name__}")
    text = _encodable(value) if isinstance(value, str) else _digits_of(value)
    if _BREAKS_ID.search(text):
        raise InvalidEventError(
            f"the event id {text!r} has a line end or a NUL: clients would ignore or split it"
        )
    if not text:
        raise InvalidEventError("an empty event id makes a client forget its place; leave it out instead")
    if is_cursor(text):
        raise InvalidEventError(
            f"the event id {text!r} reads as a cursor of the component, by which clients resume: "
            "leave it out, and each event gets its own, or put something of yours in front"
        )
    return text


def _digits_of(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError as error:
        raise InvalidEventError(f"the event id is too large a number: {error}") from error


def _retry_of(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRY:
        raise InvalidEventError(f"retry is a whole number of milliseconds from 0 to {MAX_RETRY}")
    return int(value)
