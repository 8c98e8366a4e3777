"""A reader of event streams that costs little, for tests with very many events or very few bytes at once."""

import re
from typing import NamedTuple

# The line end before it belongs to the head, or to the chunk before.
_CHUNK = re.compile(rb"\r\n([0-9a-f]+)\r\n")


class Block(NamedTuple):
    """One event as it was sent. What the field lines say, empty where there is none."""

    id: str
    event: str
    data: str


class Blocks:
    """Takes the bytes of an HTTP/1.1 answer as they come, in any portions, and gives its blocks."""

    def __init__(self) -> None:
        #: The status line, when the head has come.
        self.status = ""
        self._wire = b""
        self._left = 0
        self._body = b""

    def feed(self, data: bytes) -> list[Block]:
        """Return the blocks that these bytes complete."""
        self._wire += data
        if not self.status and not self._take_head():
            return []
        self._take_chunks()
        *blocks, self._body = self._body.split(b"\n\n")
        return [_block_of(block) for block in blocks]

    def _take_head(self) -> bool:
        head, end, rest = self._wire.partition(b"\r\n\r\n")
        if end:
            self.status = head.partition(b"\r\n")[0].decode()
            self._wire = b"\r\n" + rest
        return bool(end)

    def _take_chunks(self) -> None:
        wire, parts, at = self._wire, [self._body], 0
        while at < len(wire):
            if not self._left:
                size = _CHUNK.match(wire, at)
                if size is None:
                    break
                self._left, at = int(size[1], 16), size.end()
            part = wire[at : at + self._left]
            parts.append(part)
            at += len(part)
            self._left -= len(part)
        self._wire = wire[at:]
        self._body = b"".join(parts)


def _block_of(block: bytes) -> Block:
    fields = dict.fromkeys(("id", "event", "data"), "")
    for line in block.decode().split("\n"):
        name, _, value = line.partition(": ")
        fields[name] = value
    return Block(fields["id"], fields["event"], fields["data"])
