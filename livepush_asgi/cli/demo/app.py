"""The demo's application: complete, and without a framework. One event stream carries two channels.

The channel `machine` has the figures of this machine, twice a second; the channel `board` has the notes of
the visitors. `LivePushMiddleware` serves the stream at `/events`; this module answers everything else.
"""

import contextlib
import hashlib
import platform
import re
import time
from collections import deque
from itertools import count

import anyio
from redis.asyncio import Redis

from ... import (
    BrokerUnavailableError,
    Grant,
    InvalidEventError,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    RedisBroker,
    Refusal,
    StreamRequest,
)
from ...runtime.asgi import Receive, Scope, Send
from . import web
from .figures import Machine, describe
from .web import Answer

# Seconds between two readings.
INTERVAL = 0.5
# A page that opens gets so many readings and notes, so that it is not empty: a minute of figures.
FIGURES_KEPT, NOTES_KEPT = 121, 50

BOARD = "board"
# In characters and in bytes.
NOTE_LIMIT, BODY_LIMIT = 280, 2048
VISITOR = re.compile(r"[0-9a-f]{32}")


class Demo:
    """The application. A server runs `asgi`. `local` is for a page that is for this machine alone."""

    def __init__(self, redis_url: str | None, namespace: str | None, *, local: bool) -> None:
        self._check: web.Check = web.check_host if local else lambda request: None
        self._redis = Redis.from_url(redis_url) if redis_url is not None else None
        broker = RedisBroker(self._redis) if self._redis is not None else MemoryBroker()
        # Over a Redis, all machines share the board, and each has a channel for its own figures.
        self.machine_channel = f"machine:{platform.node()}" if redis_url is not None else "machine"
        self.push = LivePush(broker, self.authorize, namespace=namespace)
        self.asgi = LivePushMiddleware(self, self.push, path="/events")
        self._figures: deque[dict[str, object]] = deque(maxlen=FIGURES_KEPT)
        self._notes: deque[dict[str, object]] = deque(maxlen=NOTES_KEPT)
        self._routes: web.Routes = web.page_files() | {
            ("GET", "/history"): self.history,
            ("POST", "/board"): self.write,
            ("POST", "/cut"): self.cut,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            raise NotImplementedError("the middleware in front of this application answers the lifespan")
        await web.respond(self._routes, self._check, scope, receive, send)

    async def aclose(self) -> None:
        """Close the connections to the Redis. Call it after the last use."""
        if self._redis is not None:
            await self._redis.aclose()

    async def authorize(self, request: StreamRequest) -> Grant:
        """Let everyone in. The visitor is the slot key, so that `cut` can end this visitor's stream alone."""
        self._check(request)
        visitor = checked_visitor(request.query.get("visitor"))
        return Grant(channels=(self.machine_channel, BOARD), slot_key=visitor)

    async def publish_figures(self) -> None:
        """Publish this machine's figures until cancelled."""
        machine = Machine()
        for number in count(1):
            await anyio.sleep(INTERVAL)
            visitors = self.push.statistics()["streams"]
            figures = {"number": number, "visitors": visitors, **machine.read()}
            self._figures.append(figures)
            # While a page is open, the component logs that the broker is away.
            with contextlib.suppress(BrokerUnavailableError):
                await self.push.publish(self.machine_channel, figures, event="figures")

    async def history(self, request: StreamRequest, receive: Receive) -> Answer:
        """Answer with the recent figures and notes, which a page shows before its first event."""
        return web.as_json(
            {
                "now": time.time(),
                "retry": self.push.timing.retry,
                "machine": describe(),
                "figures": list(self._figures),
                "notes": list(self._notes),
            }
        )

    async def write(self, request: StreamRequest, receive: Receive) -> Answer:
        """Publish a visitor's note."""
        body = await web.read_json(request, receive, BODY_LIMIT)
        if not isinstance(body, dict):
            raise Refusal(400, "send an object with `visitor` and `text`")
        visitor, text = checked_visitor(body.get("visitor")), checked_text(body.get("text"))
        # The visitor's id can cut the visitor's stream: the other visitors see a digest of it.
        author = hashlib.sha256(visitor.encode()).hexdigest()[:8]
        note: dict[str, object] = {"author": author, "text": text, "at": time.time()}
        try:
            await self.push.publish(BOARD, note, event="note")
        except InvalidEventError:
            raise Refusal(400, "text: this cannot be written as UTF-8") from None
        except BrokerUnavailableError:
            raise Refusal(503, "the broker is away; try again in a moment") from None
        self._notes.append(note)
        return web.as_json(note, status=201)

    async def cut(self, request: StreamRequest, receive: Receive) -> Answer:
        """End a visitor's stream on the server, to show that the browser comes back by itself."""
        await self.push.disconnect(slot_key=checked_visitor(request.query.get("visitor")))
        return web.as_json({}, status=202)


def checked_visitor(value: object) -> str:
    """Return a visitor's id unchanged. Raises Refusal."""
    if not isinstance(value, str) or not VISITOR.fullmatch(value):
        raise Refusal(400, "visitor: 32 hexadecimal digits")
    return value


def checked_text(value: object) -> str:
    """Return the text of a note without white space around it. Raises Refusal."""
    if not isinstance(value, str) or not value.strip():
        raise Refusal(400, "text: something to say")
    text = value.strip()
    if len(text) > NOTE_LIMIT:
        raise Refusal(400, f"text: at most {NOTE_LIMIT} characters, these are {len(text)}")
    return text
