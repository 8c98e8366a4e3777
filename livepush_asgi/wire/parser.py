"""EventStreamParser: a strict event-stream parser, written from the standard alone. No event loop, no I/O.

It shares no code with the encoder, so that each finds the other's mistakes.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import codecs
import json
import re
from dataclasses import dataclass
from typing import Any

# Python reads no number of more digits; such a `retry` is ignored.
# https://docs.python.org/3/library/stdtypes.html#int-max-str-digits
MAX_DIGITS = 4300
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class ParsedEvent:
    """An event as a client's listener gets it.

    `last_event_id` is what the listener sees: the newest id that the client has got so far. `id` and `retry`
    are the fields of this very block, None where it had none that counts.
    """

    event: str = "message"
    data: str = ""
    last_event_id: str = ""
    id: str | None = None
    retry: int | None = None

    # Any: a test knows what its application publishes.
    def json(self) -> Any:
        """Return the value of the JSON in the data. Raises ValueError if it is none."""
        return json.loads(self.data)


class EventStreamParser:
    """Reads an event stream in chunks of any size.

    Raises UnicodeDecodeError for bytes that are not UTF-8, where a browser would put in replacement
    characters. It tolerates everything else that the standard tolerates, and records it: `comments` (the
    text after the colon), `ignored` (lines without a meaning: an unknown field, an id with NUL, a `retry`
    that is no number) and `empty_blocks`, the number of blank lines that dispatched no event. Some clients
    crash on such a line, or fire an empty event. The argument `last_event_id` is the client's id from an
    earlier stream; it holds until the stream sends another.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.comments: list[str] = []
        self.ignored: list[str] = []
        self.empty_blocks = 0
        self.retry: int | None = None
        # The id that a client would send as `Last-Event-ID`. An id takes effect with the blank line after it.
        self.last_event_id = last_event_id
        # The standard skips one byte order mark at the start.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._after_cr = False
        self._rest = ""
        self._id_buffer = last_event_id
        self._event = ""
        self._data: list[str] = []
        self._id: str | None = None
        self._retry: int | None = None

    def feed(self, chunk: bytes) -> list[ParsedEvent]:
        """Take the next bytes of the stream and return the events that they complete."""
        events = []
        for line in self._lines(self._decoder.decode(chunk)):
            if line:
                self._take_line(line)
            elif (event := self._end_block()) is not None:
                events.append(event)
        return events

    def _lines(self, text: str) -> list[str]:
        if self._after_cr and text:
            # The CR has ended its line already; an LF right behind it belongs to the same line end.
            self._after_cr = False
            text = text.removeprefix("\n")
        self._after_cr = self._after_cr or text.endswith("\r")
        *lines, self._rest = _LINE_END.split(self._rest + text)
        return lines

    def _take_line(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "":
                self.comments.append(line[1:])
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = self._id_buffer = value
            case "retry" if value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS:
                # The reconnection time changes at once, even if the block is never dispatched.
                self._retry = self.retry = int(value)
            case _:
                self.ignored.append(line)

    def _end_block(self) -> ParsedEvent | None:
        self.last_event_id = self._id_buffer
        name, data = self._event or "message", "\n".join(self._data)
        event = ParsedEvent(name, data, self.last_event_id, self._id, self._retry) if self._data else None
        self.empty_blocks += event is None
        self._event, self._data, self._id, self._retry = "", [], None, None
        return event
