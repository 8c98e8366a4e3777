"""Publish to nchan from a process of its own: `python -m benchmarks.post PORT COUNT RATE SIZE`.

The requests go out on one connection that is kept. A burst does not wait for each answer: up to 50 are open.
"""

import asyncio
import sys

from benchmarks.traffic import publish_all

UNANSWERED = 50
HEAD = "POST /post HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n"


class Poster:
    """A connection on which payloads are posted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unanswered = 0

    async def publish(self, channel: str, data: str) -> None:
        """Send a request, once there are few enough without an answer."""
        while self._unanswered >= UNANSWERED:
            await self._take_answer()
        body = data.encode()
        self._writer.write(HEAD.format(size=len(body)).encode() + body)
        self._unanswered += 1

    async def finish(self) -> None:
        """Wait for the answers that are left."""
        while self._unanswered:
            await self._take_answer()
        self._writer.close()
        await self._writer.wait_closed()

    async def _take_answer(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.splitlines()
        if not status.startswith("HTTP/1.1 2"):
            raise RuntimeError(f"a post was answered with {status}")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        await self._reader.readexactly(int(headers["content-length"]))
        self._unanswered -= 1


async def main(port: str, count: str, rate: str, size: str) -> None:
    poster = Poster(*await asyncio.open_connection("127.0.0.1", int(port)))
    await publish_all(poster.publish, int(count), float(rate), int(size))
    await poster.finish()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
