"""An application that serves scripts in place of runs: blocks, and the id that a client has after each."""

from dataclasses import dataclass, field

from livepush_asgi.runtime.asgi import Receive, Scope, Send


@dataclass
class Script:
    """What is answered: the blocks after the last event id of the client, or `idle` if there are none.

    `cuts` says after how many blocks each of the first requests is cut off: with `goodbye`, or without an end
    of its body. `retry` precedes each answer. After so many `requests` there is nothing more.
    """

    blocks: list[tuple[str, bytes]]
    headers: dict[str, str] = field(default_factory=dict)
    idle: int = 204
    cuts: list[int] = field(default_factory=list)
    retry: bytes = b""
    goodbye: bytes | None = None
    requests: int | None = None
    #: The last event id of each request.
    asked: list[str] = field(default_factory=list)

    def after(self, id: str) -> list[bytes]:
        """Return the blocks after the one with this id."""
        ids = [each for each, _ in self.blocks]
        start = ids.index(id) + 1 if id in ids else 0
        return [block for _, block in self.blocks[start:]]


class CutOffError(Exception):
    """Raised to have the server close the connection."""


class Scripts:
    """An ASGI application. The first segment of a path is the name of a script."""

    def __init__(self) -> None:
        self.by_name: dict[str, Script] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        script = self.by_name[scope["path"].split("/")[1]]
        last = dict(scope["headers"]).get(b"last-event-id", b"").decode()
        script.asked.append(last)
        blocks = script.after(last)
        if not blocks or len(script.asked) - 1 == script.requests:
            await send({"type": "http.response.start", "status": script.idle})
            await send({"type": "http.response.body", "body": b""})
            return
        own = [(name.encode(), value.encode()) for name, value in script.headers.items()]
        headers = [(b"content-type", b"text/event-stream"), *own]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        cut = script.cuts.pop(0) if script.cuts else None
        for block in [script.retry, *blocks[:cut]]:
            await send({"type": "http.response.body", "body": block, "more_body": True})
        if cut is not None and script.goodbye is None:
            raise CutOffError
        await send({"type": "http.response.body", "body": script.goodbye or b"" if cut is not None else b""})
