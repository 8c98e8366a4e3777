"""Applications that serve scripts in place of runs, and that cut the streams of others."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send

END = b"\n\n"


@dataclass
class Script:
    """What is answered: the blocks after the last event id of the client, or `idle` if there are none.

    `cut` says after how many blocks it is cut off, without an end of its body.
    """

    blocks: list[tuple[str, bytes]]
    idle: int = 204
    cut: int | None = None
    #: The last event id of each request.
    asked: list[str] = field(default_factory=list)

    def after(self, id: str) -> list[bytes]:
        """Return the blocks after the one with this id."""
        ids = [each for each, _ in self.blocks]
        start = ids.index(id) + 1 if id in ids else 0
        return [block for _, block in self.blocks[start:]]


class CutOffError(OSError):
    """Raised to have the server close the connection."""


class Scripts:
    """An ASGI application. The first segment of a path is the name of a script, or of an application."""

    def __init__(self) -> None:
        self.by_name: dict[str, Script | ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        found = self.by_name[scope["path"].split("/")[1]]
        if not isinstance(found, Script):
            await found(scope, receive, send)
            return
        last = last_event_id(scope)
        found.asked.append(last)
        blocks = found.after(last)
        if not blocks:
            await send({"type": "http.response.start", "status": found.idle})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for block in blocks[: found.cut]:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        if found.cut is not None:
            raise CutOffError
        await send({"type": "http.response.body", "body": b""})


def last_event_id(scope: Scope) -> str:
    """Return the last event id of a request, "" if it has none."""
    return str(dict(scope["headers"]).get(b"last-event-id", b"").decode())


class Cutting:
    """Passes each request on to the next of these applications, or to the last one.

    `cuts` says after how many blocks each of the first connections is closed, without an end of its body.
    """

    def __init__(self, *apps: ASGIApp, cuts: Iterable[int] = ()) -> None:
        self._apps = apps
        self._cuts = list(cuts)
        #: The last event id of each request.
        self.asked: list[str] = []
        #: How many blocks were sent.
        self.sent = 0
        #: The last event id after what was sent.
        self.last_id: str | None = None
        self._more = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._apps[min(len(self.asked), len(self._apps) - 1)]
        self.asked.append(last_event_id(scope))
        left, cut = self._cuts.pop(0) if self._cuts else None, False

        async def counting(message: Message) -> None:
            nonlocal left, cut
            if cut:
                raise CutOffError
            body = message.get("body", b"")
            blocks = body.count(END)
            if left is not None and body and blocks >= left:
                kept = b"".join([block + END for block in body.split(END)[:left]])
                cut = True
                self._note(kept)
                await send({"type": "http.response.body", "body": kept, "more_body": True})
                raise CutOffError
            left = None if left is None else left - blocks
            await send(message)
            self._note(body)

        await app(scope, receive, counting)

    def _note(self, body: bytes) -> None:
        self.sent += body.count(END)
        for id in re.findall(rb"^id: (.*)$", body, re.MULTILINE):
            self.last_id = id.decode()
        self._more.set()
        self._more = asyncio.Event()

    async def wait_sent(self, blocks: int) -> None:
        """Wait until so many blocks were sent."""
        while self.sent < blocks:
            await self._more.wait()
