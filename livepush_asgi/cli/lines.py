"""From bytes to lines: decoding, long lines, and the line that is not finished yet."""

import codecs
from dataclasses import dataclass

# In characters. A line that is longer is hardly text, and would hold up what comes behind it.
LINE_LIMIT = 16 * 1024

# Enough for LINE_LIMIT characters of four bytes each. The rest of a long line is counted, not kept.
_HEAD_BYTES = 4 * LINE_LIMIT

# The bytes that go on with a character in UTF-8. All others begin one.
_CONTINUATION = bytes(range(0x80, 0xC0))


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end. `replaced` tells that it was not UTF-8 and has U+FFFD in places."""

    text: str
    replaced: bool = False


class LineAssembler:
    """Makes lines of bytes that come in pieces. Lines end with LF; a CR before it goes too."""

    def __init__(self) -> None:
        self._head = b""
        # The characters that began beyond the head; None while all of the line is in it.
        self._beyond: int | None = None

    @property
    def pending(self) -> bool:
        """Whether there is a line that has not ended yet."""
        return bool(self._head)

    def feed(self, data: bytes) -> list[Line]:
        """Take a piece and return the lines that it ends."""
        *ended, rest = data.split(b"\n")
        lines = []
        for part in ended:
            self._add(part)
            lines.append(self._take())
        self._add(rest)
        return lines

    def flush(self) -> list[Line]:
        """Return the line that has not ended, if there is one, as it is."""
        return [self._take()] if self.pending else []

    def _add(self, part: bytes) -> None:
        room = _HEAD_BYTES - len(self._head)
        self._head += part[:room]
        if len(part) > room:
            self._beyond = (self._beyond or 0) + len(part[room:].translate(None, _CONTINUATION))

    def _take(self) -> Line:
        head, beyond = self._head, self._beyond
        self._head, self._beyond = b"", None
        if beyond is not None:
            return _cut(head, beyond)
        line = _decoded(head.removesuffix(b"\r"))
        return line if len(line.text) <= LINE_LIMIT else _shortened(line, len(line.text) - LINE_LIMIT)


def _decoded(data: bytes) -> Line:
    try:
        return Line(data.decode())
    except UnicodeDecodeError:
        return Line(data.decode(errors="replace"), replaced=True)


def _cut(head: bytes, beyond: int) -> Line:
    # The head may end in the middle of a character, which is no fault of the line's.
    whole = len(head) - _unfinished_bytes(head)
    line = _decoded(head[:whole])
    return _shortened(line, len(line.text) - LINE_LIMIT + (whole < len(head)) + beyond)


def _unfinished_bytes(head: bytes) -> int:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(head)
    return len(decoder.getstate()[0])


def _shortened(line: Line, more: int) -> Line:
    return Line(f"{line.text[:LINE_LIMIT]}… ({more:,} more characters)", line.replaced)
