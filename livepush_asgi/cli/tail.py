"""The log page: followers are asked for lines, and batches of lines become events.

Every line and note of a source has a running number, by which a page sees what it has missed.
"""

import json
import logging
import platform
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import anyio
import anyio.to_thread

from .. import BrokerUnavailableError, DrainPolicy, Limits, LivePush, LivePushMiddleware, public
from ..types import Receive, Scope, Send
from .backend import Backend
from .backlog import Backlog
from .demo import web
from .demo.serve import DRAIN_WINDOW
from .demo.web import Answer
from .follow import Follower, Found, Note
from .lines import Line

logger = logging.getLogger("livepush_asgi")

CHANNEL = "tail"

# The pause between two rounds, in seconds. A reader sees no difference, and a burst of a hundred
# thousand lines becomes some dozens of events. What has to wait stays where it is: in its file.
PACE = 0.05
BATCH_LINES = 2000

# As many lines as a page keeps, and as many characters as a browser takes without a stutter.
KEPT_LINES = 5000
KEPT_CHARACTERS = 4 * 1024 * 1024

# Room for a client that is held up for a second or two while the longest batches come.
LIMITS = Limits(outbox_bytes=8 * 1024 * 1024)

# The broker is asked again so often while it is away.
RETRY = 0.5

FILES = ("tail.css", "tail.js", "base.css", "theme.js", "stream.js", "sources.js", "rows.js", "favicon.svg")


@dataclass(slots=True)
class Source:
    """One follower, and the number of the last thing it gave."""

    id: str
    name: str
    follower: Follower
    number: int = 0
    failing: bool = False


class Tail:
    """The application. `asgi` is what a server runs."""

    def __init__(self, backend: Backend, followers: Sequence[Follower]) -> None:
        self._backend = backend
        self.push = LivePush(
            backend.broker, public(CHANNEL), limits=LIMITS, drain=DrainPolicy(window=DRAIN_WINDOW)
        )
        self.asgi = LivePushMiddleware(self, self.push, path="/events")
        # Over a Redis, several machines may send their lines to the same pages. The run tells lines
        # of this process from those of the one before, whose numbers began at 1 as well.
        self._host = f"{platform.node()}:" if backend.shared else ""
        self._run = secrets.token_hex(4)
        self._sources = [
            Source(f"{self._run}.{index}", self._host + follower.name, follower)
            for index, follower in enumerate(followers)
        ]
        self._backlog = Backlog(KEPT_LINES, KEPT_CHARACTERS)
        self._routes: web.Routes = web.page_files("tail.html", *FILES) | {("GET", "/history"): self.history}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await web.lifespan(receive, send, self.follow, self._backend.aclose)
        else:
            await web.respond(self._routes, scope, receive, send)

    async def follow(self) -> None:
        """Publish the lines of every source as they come, for ever."""
        while True:
            for source, found in await anyio.to_thread.run_sync(self._poll):
                for event, record, count in records(source, found):
                    self._backlog.add(record, count)
                    await self._publish(event, record)
            await anyio.sleep(PACE)

    async def history(self, scope: Scope, receive: Receive) -> Answer:
        """Answer with the sources and the newest lines."""
        sources = json.dumps([{"id": source.id, "name": source.name} for source in self._sources])
        return web.as_json(f'{{"sources":{sources},"records":{self._backlog.as_json()}}}')

    def _poll(self) -> list[tuple[Source, Sequence[Found]]]:
        return [(source, found) for source in self._sources if (found := _asked(source))]

    async def _publish(self, event: str, record: str) -> None:
        # Nothing more is read while the broker is away, so nothing is lost: the lines wait in their
        # files. A page that gets an event twice sees it by the numbers.
        away = False
        while True:
            try:
                await self.push.publish(CHANNEL, record, event=event)
            except BrokerUnavailableError as error:
                if not away:
                    logger.warning("lines wait, they cannot be published: %s", error)
                away = True
                await anyio.sleep(RETRY)
            else:
                return


def records(source: Source, found: Sequence[Found]) -> Iterator[tuple[str, str, int]]:
    """Number what was found and make events of it: the name, the data and how many lines it holds."""
    for batch in _batches(found):
        record: dict[str, object] = {"source": source.id, "name": source.name, "first": source.number + 1}
        source.number += len(batch)
        if isinstance(batch[0], Note):
            record["note"] = batch[0].text
        else:
            lines = [line for line in batch if isinstance(line, Line)]
            record["lines"] = [line.text for line in lines]
            record["replaced"] = sum(line.replaced for line in lines)
        event = "note" if "note" in record else "lines"
        yield event, json.dumps(record, ensure_ascii=False, separators=(",", ":")), len(batch)


def _batches(found: Sequence[Found]) -> Iterator[Sequence[Found]]:
    """Split what was found into notes, each alone, and runs of lines."""
    start = 0
    for index, each in enumerate(found):
        if isinstance(each, Note):
            if start < index:
                yield found[start:index]
            yield found[index : index + 1]
            start = index + 1
        elif index - start == BATCH_LINES:
            yield found[start:index]
            start = index
    if start < len(found):
        yield found[start:]


def _asked(source: Source) -> Sequence[Found]:
    # A disk may fail to read for a while; the other files go on, and this one is asked again.
    try:
        found = source.follower.poll()
    except OSError as error:
        news: list[Found] = [] if source.failing else [Note(f"cannot be read: {error.strerror}")]
        source.failing = True
        return news
    source.failing = False
    return found
