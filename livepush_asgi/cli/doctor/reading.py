"""Reading: turns the bytes of an answer into marks, chunks and events, as they come."""

import codecs
import json
import zlib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from ...http.probe import EVENT
from ...testing.parser import EventStreamParser, ParsedEvent
from .observation import Chunk, Mark, Seen

# Of what is no probe so much is kept, to say what it was.
KEPT_BYTES, KEPT_EVENTS = 2048, 8

Decoder = Callable[[bytes], bytes]


class Inflater:
    """Undoes gzip and deflate, of several members the first, as browsers do; `rest` is what came after."""

    def __init__(self) -> None:
        # 32 more than the window: the header says whether it is gzip or zlib.
        self._decompress = zlib.decompressobj(32 + zlib.MAX_WBITS)
        self.rest = 0

    def __call__(self, chunk: bytes) -> bytes:
        """Return what a piece comes to."""
        if self._decompress.eof:
            self.rest += len(chunk)
            return b""
        data = self._decompress.decompress(chunk)
        self.rest += len(self._decompress.unused_data)
        return data


class Unreadable(Exception):
    """Raised when bytes cannot be what they are said to be."""


class Reading:
    """The body of one answer so far."""

    def __init__(self, compression: str | None, *, is_stream: bool) -> None:
        self.chunks: list[Chunk] = []
        self.marks: list[Mark] = []
        self.others: list[tuple[str, str]] = []
        self.seen: Seen | None = None
        self.end = ""
        self.body = b""
        self._parser = EventStreamParser() if is_stream else None
        self._decode = decoder(compression)
        self._offset = 0

    @property
    def known(self) -> bool:
        """Whether enough is known of a body that is no event stream."""
        return self._parser is None and len(self.body) >= KEPT_BYTES

    @property
    def rest(self) -> int:
        """The bytes behind the end of what was compressed, which nobody reads."""
        return self._decode.rest if isinstance(self._decode, Inflater) else 0

    @property
    def heartbeats(self) -> int:
        """How many comments came; a probe's own padding is none."""
        return sum(1 for comment in self._parser.comments if not comment.strip()) if self._parser else 0

    def feed(self, chunk: bytes, at: float) -> None:
        """Take bytes that came at a moment. Raises Unreadable."""
        self.chunks.append(Chunk(at, len(chunk)))
        try:
            text = self._decode(chunk)
            if len(self.body) < KEPT_BYTES:
                self.body = (self.body + text)[:KEPT_BYTES]
            self._offset += len(text)
            events = self._parser.feed(text) if self._parser is not None else []
        except (UnicodeDecodeError, zlib.error, ValueError) as error:
            raise Unreadable(str(error)) from None
        for event in events:
            self._take(event, at)

    def _take(self, event: ParsedEvent, at: float) -> None:
        facts = _facts(event.data) if event.event == EVENT else {}
        number, sent = facts.get("n"), facts.get("ms")
        if not isinstance(number, int) or not isinstance(sent, int):
            if len(self.others) < KEPT_EVENTS:
                self.others.append((event.event, event.data))
            return
        self.marks.append(Mark(number, sent / 1000, at, self._offset))
        if number == 0:
            self.seen = _seen(facts)
        self.end = str(facts.get("end", self.end))


def decoder(compression: str | None) -> Decoder:
    """Return what undoes a content encoding, piece by piece. Raises Unreadable if nothing here can."""
    if compression is None:
        return bytes
    if compression in ("gzip", "x-gzip", "deflate"):
        return Inflater()
    if compression == "br" and find_spec("brotli") is not None:
        decompress: Decoder = import_module("brotli").Decompressor().process
        return decompress
    raise Unreadable(compression)


def text_of(body: bytes) -> str:
    """Return the beginning of a body as text."""
    return codecs.decode(body, "utf-8", "replace")


def _facts(data: str) -> dict[str, object]:
    try:
        facts: object = json.loads(data)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _seen(facts: dict[str, object]) -> Seen:
    telling, heartbeat = facts.get("telling"), facts.get("heartbeat")
    return Seen(
        http=str(facts.get("http", "")),
        scheme=str(facts.get("scheme", "")),
        telling=tuple(map(str, telling)) if isinstance(telling, list) else (),
        via=str(facts.get("via", "")),
        heartbeat=float(heartbeat) if isinstance(heartbeat, (int, float)) else None,
    )
