"""Examine: asks for a stream as a browser's EventSource does, and gathers what comes and when."""

import math
import socket
import ssl
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx

from ...http.probe import BOUNDS, EVENT, QUERY, ProbePlan
from ...wire.parser import EventStreamParser, ParsedEvent
from .observation import (
    SHORTEST_SILENCE,
    Answer,
    Arrival,
    End,
    Evidence,
    Observation,
    Redirect,
    Seen,
    Stall,
    Trouble,
    is_disturbed,
    is_held,
    json_object,
)

# The content encodings that an EventSource accepts in browsers, and those that this program can decompress.
ENCODINGS: tuple[str, ...] = ("gzip", "deflate", "br")
DECODED = ("gzip", "x-gzip", "deflate")
# Only connecting has a limit of its own.
TIMEOUT = httpx.Timeout(None, connect=10.0)
# Browsers follow twenty; no working server needs more than a few.
# https://fetch.spec.whatwg.org/#http-redirect-fetch
MAX_REDIRECTS = 5
# In seconds: how often this program checks whether it runs in time, and the lateness that it notes.
TICK, STALL = 0.02, 0.005
# How much of an answer that is no probe is kept, to describe it.
KEPT_BYTES, KEPT_EVENTS = 2048, 8
# The trouble that an error means: the first row that an error or one of its causes belongs to.
TROUBLES = (
    (ssl.SSLError, Trouble.TLS),
    (socket.gaierror, Trouble.NAME),
    (ConnectionRefusedError, Trouble.REFUSED),
    (httpx.TooManyRedirects, Trouble.REDIRECTS),
    ((httpx.ConnectError, httpx.ConnectTimeout), Trouble.CONNECT),
    (httpx.HTTPError, Trouble.CLOSED),
    (Exception, Trouble.CONNECT),
)

# Small events: close enough to show a hold of 0.2 s, and not so close that a busy machine looks like one.
EVENTS, INTERVAL = 40, 50
# After events were held back: 64 kB, to see how many bytes have to come together.
LARGE_EVENTS = ProbePlan(32, 50, 500, 2048)
# Some proxies compress only answers that begin with a large piece. This plan begins with one. If the answer
# is compressed, the first probe is repeated with events of this size.
LARGE_START, LARGE_START_SIZE = ProbePlan(1, 10, 0, 2048), 640
# How often a measurement is tried while this machine is too busy.
TRIES = 3
# How often a hold has to be seen again: a busy machine may look like one once, or twice.
REPETITIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A URL, and how to ask for it. Raises ValueError.

    `idle` is the silence to test; `timeout` is how much longer an answer may take than it should. Both are in
    seconds.
    """

    url: str
    idle: float = 2.0
    headers: tuple[tuple[str, str], ...] = ()
    origin: str | None = None
    insecure: bool = False
    timeout: float = 15.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is no URL such as https://example.org/events/")
        longest = BOUNDS["idle"][1] // 1000
        if not 0 <= self.idle <= longest:
            raise ValueError(f"the silence is from 0 to {longest} seconds, not {self.idle:g}")

    def url_for(self, plan: ProbePlan | None) -> str:
        """Return the URL that asks for a probe, or without a plan for an ordinary stream."""
        if plan is None:
            return self.url
        parts = urlsplit(self.url)
        query = f"{parts.query}&{QUERY}={plan}" if parts.query else f"{QUERY}={plan}"
        return parts._replace(query=query, fragment="").geturl()

    def fields(self, encodings: tuple[str, ...]) -> dict[str, str]:
        """Return the header fields of a request. The user's own fields replace ours."""
        fields = {
            "Accept": "text/event-stream",
            "Cache-Control": "no-store",
            "Accept-Encoding": ", ".join(encodings) or "identity",
            "User-Agent": "livepush-doctor",
        }
        return fields | ({"Origin": self.origin} if self.origin is not None else {}) | dict(self.headers)


def header_of(text: str) -> tuple[str, str]:
    """Read a header field as curl takes it, `Name: value`. Raises ValueError."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not text.isascii() or any(character in text for character in "\r\n"):
        raise ValueError(f"{text!r} is no header field such as 'Authorization: Bearer ...'")
    return name.strip(), value.strip()


def without_probe(url: str) -> str:
    """Return a URL without the parameter that asks for a probe."""
    parts = urlsplit(url)
    kept = [each for each in parts.query.split("&") if not each.startswith(f"{QUERY}=")]
    return parts._replace(query="&".join(kept)).geturl()


async def examine(question: Question) -> Evidence:
    """Ask for a probe. Ask again in other ways if it came late, was cut, or was refused."""
    # This takes a tenth of a second, which must not look like a delay of the answer.
    tls = await anyio.to_thread.run_sync(lambda: httpx.create_ssl_context(verify=not question.insecure))
    examination = _Examination(question, tls)
    await examination.probe()
    await examination.explain()
    return examination.found


def first_plan(question: Question) -> ProbePlan:
    """Return the plan of the first probe: small events, and then the silence to test."""
    return ProbePlan(EVENTS, INTERVAL, max(round(1000 * question.idle), SHORTEST_SILENCE))


class _Examination:
    """Asks for one URL as often as needed, each time over a new connection."""

    def __init__(self, question: Question, tls: ssl.SSLContext) -> None:
        self._question = question
        self._tls = tls
        self._plan = first_plan(question)
        self._encodings = ENCODINGS
        self.found = Evidence(
            first=Observation(plan=self._plan),
            origin=question.origin,
            has_cookie=any(name.lower() == "cookie" for name, _ in question.headers),
            idle=question.idle,
        )

    async def probe(self) -> None:
        """Ask for a probe until it can be read, and again after a hold, until events come in time."""
        found = self.found
        first = found.first = await self._measure(self._plan)
        if first.compression not in (None, *DECODED):
            found.unread_encoding = first.compression
            self._encodings = tuple(each for each in ENCODINGS if each != first.compression)
            first = found.first = await self._measure(self._plan)
        if first.probed and first.compression is None:
            found.large_starts_compressed = (await self._ask(LARGE_START)).compression is not None
            if found.large_starts_compressed:
                self._plan = replace(self._plan, size=LARGE_START_SIZE)
                found.first = await self._measure(self._plan)
        self._plan = replace(self._plan, idle=min(self._plan.idle, SHORTEST_SILENCE))
        while is_held(found.latest) and len(found.repeated) < REPETITIONS:
            found.repeated.append(await self._measure(self._plan))

    async def explain(self) -> None:
        """Ask in the other ways that tell why the first probe came as it did."""
        found, first, held = self.found, self.found.first, is_held(self.found.latest)
        if held:
            found.large = await self._measure(LARGE_EVENTS)
        if first.cut_for_silence:
            found.steady = await self._ask(_steady_plan(1.2 * first.ended_at, first.silence))
        if first.answer is not None and first.answer.status in (400, 401, 403, 404, 429):
            # Perhaps only the probe is refused.
            found.ordinary = await self._ask(None)
        if held or first.cut or first.end is End.SILENT:
            # Vite leaves no sign on an answer, and the advice depends on it.
            url = urlsplit(self._question.url)._replace(path="/@vite/client", query="", fragment="").geturl()
            vite = _Examination(replace(self._question, url=url, headers=(), idle=0), self._tls)
            found.vite = (await vite._ask(None)).is_answer_of("text/javascript")
        if held and first.compression is not None:
            self._encodings = ()
            found.uncompressed = await self._measure(self._plan)

    async def _measure(self, plan: ProbePlan) -> Observation:
        """Ask for a probe, and again if this program stalled meanwhile."""
        for _ in range(TRIES):
            observation = await self._ask(plan)
            if not is_disturbed(observation):
                break
        return observation

    async def _ask(self, plan: ProbePlan | None) -> Observation:
        """Ask for a probe, or without a plan for a stream. Raises nothing."""
        exchange = _Exchange(self._question, plan)
        limit = (plan.seconds if plan else self._question.idle) + self._question.timeout
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.note_stalls)
            with anyio.move_on_after(limit):
                await exchange.run(self._tls, self._question.fields(self._encodings))
            tasks.cancel_scope.cancel()
        return exchange.found


def _steady_plan(seconds: float, silence: float) -> ProbePlan:
    """Return a plan that takes `seconds`, within the bounds, and is never silent for as long as `silence`."""
    interval = int(min(max(silence / 4 * 1000, 100), BOUNDS["interval"][1]))
    return ProbePlan(min(max(int(seconds * 1000 / interval), 1), BOUNDS["events"][1]), interval, 0)


class _Exchange:
    """One request and its answer, until the answer ends or the time is up."""

    def __init__(self, question: Question, plan: ProbePlan | None) -> None:
        self.found = Observation(plan=plan, trouble=Trouble.SILENT)
        self._question = question
        self._start = anyio.current_time()

    async def run(self, tls: ssl.SSLContext, fields: dict[str, str]) -> None:
        """Fill in the observation."""
        found, url = self.found, self._question.url_for(self.found.plan)
        client = httpx.AsyncClient(http2=True, verify=tls, timeout=TIMEOUT, max_redirects=MAX_REDIRECTS)
        client.event_hooks = {"response": [self._note_redirect]}
        try:
            self._start = anyio.current_time()
            async with client, client.stream("GET", url, headers=fields, follow_redirects=True) as response:
                await self._read(response)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            if found.answer is None:
                found.trouble, found.detail = trouble_of(error), str(error) or type(error).__name__
            else:
                found.end = End.BROKEN
        finally:
            found.ended_at = found.ended_at or self._now()

    async def _note_redirect(self, response: httpx.Response) -> None:
        if response.has_redirect_location:
            source, target = response.url, response.url.join(response.headers["location"])
            redirect = Redirect(response.status_code, without_probe(str(source)), without_probe(str(target)))
            self.found.redirects.append(redirect)

    async def note_stalls(self) -> None:
        while True:
            due = anyio.current_time() + TICK
            await anyio.sleep_until(due)
            late = anyio.current_time() - due
            if late > STALL:
                self.found.stalls.append(Stall(self._now(), late))

    async def _read(self, response: httpx.Response) -> None:
        found = self.found
        fields = tuple((name.lower(), value) for name, value in response.headers.multi_items())
        url = without_probe(str(response.url))
        found.answer = Answer(response.status_code, response.http_version, fields, url)
        # This is the end if the time is up.
        found.trouble, found.end = None, End.SILENT
        try:
            body = Body(found)
            with anyio.CancelScope() as scope:
                async for chunk in response.aiter_raw():
                    body.feed(chunk, self._now())
                    if not found.is_stream and len(found.body) >= KEPT_BYTES:
                        scope.cancel()
                    elif found.others and not found.arrivals and scope.deadline == math.inf:
                        # An ordinary stream does not end.
                        scope.deadline = anyio.current_time() + self._question.idle
            found.end = End.ENOUGH if scope.cancelled_caught else body.end
        except Unreadable as error:
            found.unreadable, found.end = str(error), None
        finally:
            found.ended_at = self._now()

    def _now(self) -> float:
        return anyio.current_time() - self._start


class Unreadable(Exception):
    """Raised when the bytes of a body do not fit its type or its content encoding."""


class Body:
    """Reads the body of an answer into its observation."""

    def __init__(self, found: Observation) -> None:
        if found.compression not in (None, *DECODED):
            raise Unreadable(found.compression)
        self.end = End.CLOSED
        self._found = found
        self._length = 0
        self._parser = EventStreamParser() if found.is_stream else None
        # With 32 more than the window size, zlib tells gzip from deflate by the header. As in browsers, only
        # the first of several members counts.
        self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS) if found.compression else None

    def feed(self, chunk: bytes, at: float) -> None:
        """Take the bytes that came at a moment. Raises Unreadable."""
        found = self._found
        found.bytes_at.append(at)
        try:
            text = self._inflate.decompress(chunk) if self._inflate else chunk
            events = self._parser.feed(text) if self._parser is not None else []
        except (zlib.error, ValueError) as error:
            raise Unreadable(str(error)) from None
        found.trailing = len(self._inflate.unused_data) if self._inflate else 0
        found.body = (found.body + text)[:KEPT_BYTES]
        self._length += len(text)
        for event in events:
            self._take(event, at)

    def _take(self, event: ParsedEvent, at: float) -> None:
        facts = json_object(event.data) if event.event == EVENT else {}
        number, sent = facts.get("n"), facts.get("ms")
        if not isinstance(number, int) or not isinstance(sent, int):
            if len(self._found.others) < KEPT_EVENTS:
                self._found.others.append((event.event, event.data))
            return
        self._found.arrivals.append(Arrival(number, sent / 1000, at, self._length))
        if number == 0:
            self._found.seen = Seen.of(facts)
        if "end" in facts:
            self.end = {"complete": End.COMPLETE, "drain": End.DRAIN}.get(str(facts["end"]), End.CLOSED)


def trouble_of(error: BaseException) -> Trouble:
    """Return the kind of trouble, by the error and its causes."""
    causes = list(_causes(error))
    return next(trouble for kind, trouble in TROUBLES if any(isinstance(cause, kind) for cause in causes))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all errors that led to it."""
    if error is not None:
        yield error
        yield from _causes(error.__cause__ or error.__context__)
        for each in getattr(error, "exceptions", ()):
            yield from _causes(each)
