"""The demo: a complete application without a framework. One event stream carries two channels.

`machine` has the figures of this machine, twice a second. `board` has what visitors write to each
other. `LivePushMiddleware` puts the stream on `/events`; everything else is answered here.
"""

import hashlib
import json
import logging
import platform
import re
import time
from collections import deque
from urllib.parse import parse_qs

import anyio

from ... import (
    BrokerUnavailableError,
    DrainPolicy,
    Grant,
    InvalidEventError,
    LivePush,
    LivePushMiddleware,
    Refusal,
    StreamRequest,
)
from ...types import Receive, Scope, Send
from ..backend import Backend
from . import web
from .figures import Machine, describe
from .serve import DRAIN_WINDOW
from .web import Answer, Problem

logger = logging.getLogger("livepush_asgi")

# In seconds. And how many figures and notes a page gets when it opens, so that it is not empty.
INTERVAL = 0.5
FIGURES_KEPT = 121
NOTES_KEPT = 50

BOARD = "board"
NOTE_LIMIT = 280
BODY_LIMIT = 2048

FILES = (
    "demo.css",
    "demo.js",
    "base.css",
    "theme.js",
    "stream.js",
    "charts.js",
    "tape.js",
    "board.js",
    "log.js",
)
VISITOR = re.compile(r"[0-9a-f]{32}")


class Demo:
    """The application. `asgi` is what a server runs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        # Over a Redis, the board is everybody's and the figures are each machine's own.
        self.machine_channel = f"machine:{platform.node()}" if backend.shared else "machine"
        self.push = LivePush(backend.broker, self.authorize, drain=DrainPolicy(window=DRAIN_WINDOW))
        self.asgi = LivePushMiddleware(self, self.push, path="/events")
        self._figures: deque[dict[str, object]] = deque(maxlen=FIGURES_KEPT)
        self._notes: deque[dict[str, object]] = deque(maxlen=NOTES_KEPT)
        self._routes: web.Routes = web.page_files("demo.html", *FILES, "favicon.svg") | {
            ("GET", "/history"): self.history,
            ("POST", "/board"): self.write,
            ("POST", "/cut"): self.cut,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await web.lifespan(receive, send, self.publish_figures, self._backend.aclose)
        else:
            await web.respond(self._routes, scope, receive, send)

    async def authorize(self, request: StreamRequest) -> Grant | Refusal:
        """Let everyone in. The slot key names the visitor, so that one visitor's stream can be cut."""
        visitor = request.query.get("visitor", "")
        if not VISITOR.fullmatch(visitor):
            return Refusal(status=400, detail="visitor: 32 hexadecimal digits")
        return Grant(channels=(self.machine_channel, BOARD), slot_key=visitor)

    async def publish_figures(self) -> None:
        """Publish this machine's figures, for ever."""
        machine, number, away = Machine(), 0, False
        while True:
            await anyio.sleep(INTERVAL)
            number += 1
            visitors = self.push.statistics().streams
            figures = {"number": number, "visitors": visitors, **machine.read().as_dict()}
            self._figures.append(figures)
            try:
                await self.push.publish(self.machine_channel, figures, event="figures")
            except BrokerUnavailableError as error:
                if not away:
                    logger.warning("the figures cannot be published: %s", error)
                away = True
            else:
                away = False

    async def history(self, scope: Scope, receive: Receive) -> Answer:
        """Answer with what a page shows before its first event."""
        return web.as_json(
            json.dumps(
                {
                    "now": time.time(),
                    "retry": self.push.timing.retry,
                    "machine": describe(),
                    "figures": list(self._figures),
                    "notes": list(self._notes),
                }
            )
        )

    async def write(self, scope: Scope, receive: Receive) -> Answer:
        """Publish what a visitor wrote."""
        body = await web.read_json(scope, receive, BODY_LIMIT)
        if not isinstance(body, dict):
            raise Problem(400, "send an object with `visitor` and `text`")
        visitor, text = checked_visitor(body.get("visitor")), checked_text(body.get("text"))
        # Whoever knows a visitor's id can cut that visitor's stream, so the others see a digest.
        author = hashlib.sha256(visitor.encode()).hexdigest()[:8]
        note: dict[str, object] = {"author": author, "text": text, "at": time.time()}
        try:
            await self.push.publish(BOARD, note, event="note")
        except InvalidEventError:
            raise Problem(400, "text: this cannot be written as UTF-8") from None
        except BrokerUnavailableError:
            raise Problem(503, "the broker is away; try again in a moment") from None
        self._notes.append(note)
        return web.as_json(json.dumps(note), status=201)

    async def cut(self, scope: Scope, receive: Receive) -> Answer:
        """End a visitor's stream from this side. It comes back by itself, that is the point."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        await self.push.disconnect(slot_key=checked_visitor(query.get("visitor", [""])[0]))
        return web.as_json("{}", status=202)


def checked_visitor(value: object) -> str:
    """Return a visitor's id as it is, or raise Problem."""
    if not isinstance(value, str) or not VISITOR.fullmatch(value):
        raise Problem(400, "visitor: 32 hexadecimal digits")
    return value


def checked_text(value: object) -> str:
    """Return what a visitor wrote, without white space around it, or raise Problem."""
    if not isinstance(value, str) or not value.strip():
        raise Problem(400, "text: something to say")
    text = value.strip()
    if len(text) > NOTE_LIMIT:
        raise Problem(400, f"text: at most {NOTE_LIMIT} characters, these are {len(text)}")
    return text
