"""Client: asks for a stream as a browser's EventSource does, and measures what comes and when."""

import json
import math
import socket
import ssl
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx

from ...http.probe import BOUNDS, EVENT, QUERY, ProbePlan
from ...testing.parser import EventStreamParser, ParsedEvent
from .observation import Answer, Arrival, End, Observation, Redirect, Seen, Stall, Trouble

# The content encodings that an EventSource accepts in browsers.
ENCODINGS: tuple[str, ...] = ("gzip", "deflate", "br")
# The content encodings that this program can decompress.
DECODED = ("gzip", "x-gzip", "deflate")
CONNECT_TIMEOUT = 10.0
# Browsers follow twenty; no working server needs more than a few.
# https://fetch.spec.whatwg.org/#http-redirect-fetch
MAX_REDIRECTS = 5
# In seconds: how often this program checks whether it runs in time, and the lateness that it notes.
TICK, STALL = 0.02, 0.005
# The trouble that an error means, by the class of its cause.
TROUBLES = (
    (ssl.SSLError, Trouble.TLS),
    (socket.gaierror, Trouble.NAME),
    (ConnectionRefusedError, Trouble.REFUSED),
)
# How much of an answer that is no probe is kept, to describe it.
KEPT_BYTES, KEPT_EVENTS = 2048, 8


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
        if self.origin is not None:
            fields["Origin"] = self.origin
        return fields | dict(self.headers)


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


class Client:
    """Asks for one URL as often as needed, each time over a new connection."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._tls: ssl.SSLContext | None = None

    async def ask(self, plan: ProbePlan | None, encodings: tuple[str, ...] = ENCODINGS) -> Observation:
        """Ask for a probe, or without a plan for a stream. Return the observation; raise nothing."""
        if self._tls is None:
            # This takes a tenth of a second, which must not look like a delay of the answer.
            verify = not self._question.insecure
            self._tls = await anyio.to_thread.run_sync(lambda: httpx.create_ssl_context(verify=verify))
        exchange = _Exchange(self._question, plan, self._tls)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.note_stalls)
            with anyio.move_on_after(exchange.time_limit):
                await exchange.run(encodings)
            tasks.cancel_scope.cancel()
        return exchange.found

    async def finds(self, url: str, media_type: str) -> bool:
        """Return whether another URL answers with this content type. Raises nothing."""
        seen = await Client(replace(self._question, url=url, headers=(), idle=0)).ask(None)
        return seen.answer is not None and (seen.answer.status, seen.answer.media_type) == (200, media_type)


class _Exchange:
    """One request and its answer, until the answer ends or the time is up."""

    def __init__(self, question: Question, plan: ProbePlan | None, tls: ssl.SSLContext) -> None:
        self.found = Observation(plan=plan, trouble=Trouble.SILENT)
        self.time_limit = (plan.seconds if plan else question.idle) + question.timeout
        self._question = question
        self._tls = tls
        self._start = anyio.current_time()

    async def run(self, encodings: tuple[str, ...]) -> None:
        """Fill in the observation."""
        url, fields = self._question.url_for(self.found.plan), self._question.fields(encodings)
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
        try:
            async with httpx.AsyncClient(http2=True, verify=self._tls, timeout=timeout) as client:
                self._start = anyio.current_time()
                request: httpx.Request | None = client.build_request("GET", url, headers=fields)
                while request is not None and len(self.found.redirects) <= MAX_REDIRECTS:
                    request = await self._send(client, request)
            if request is not None:
                self.found.trouble = Trouble.REDIRECTS
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            if self.found.answer is None:
                self.found.trouble = trouble_of(error)
                self.found.detail = str(error) or type(error).__name__
            else:
                self.found.end = End.BROKEN
        finally:
            self.found.ended_at = self.found.ended_at or self._now()

    async def note_stalls(self) -> None:
        while True:
            due = anyio.current_time() + TICK
            await anyio.sleep_until(due)
            late = anyio.current_time() - due
            if late > STALL:
                self.found.stalls.append(Stall(self._now(), late))

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Request | None:
        """Send a request and read its answer. If it is a redirect, return the next request instead."""
        response = await client.send(request, stream=True)
        try:
            if (following := response.next_request) is not None:
                source, target = without_probe(str(request.url)), without_probe(str(following.url))
                self.found.redirects.append(Redirect(response.status_code, source, target))
                return following
            await self._read(response)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
        return None

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
                    if body.is_known:
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
        self.end = End.CLOSED
        self._found = found
        self._length = 0
        self._parser = EventStreamParser() if found.is_stream else None
        self._decode = _decoder(found.compression)

    @property
    def is_known(self) -> bool:
        """Whether enough was read of a body that is no event stream."""
        return self._parser is None and len(self._found.body) >= KEPT_BYTES

    def feed(self, chunk: bytes, at: float) -> None:
        """Take the bytes that came at a moment. Raises Unreadable."""
        found = self._found
        found.bytes_at.append(at)
        try:
            text = self._decode(chunk)
            events = self._parser.feed(text) if self._parser is not None else []
        except (UnicodeDecodeError, zlib.error, ValueError) as error:
            raise Unreadable(str(error)) from None
        if isinstance(self._decode, Inflater):
            found.trailing = self._decode.trailing
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
            self._found.seen = _seen(facts)
        if "end" in facts:
            self.end = {"complete": End.COMPLETE, "drain": End.DRAIN}.get(str(facts["end"]), End.CLOSED)


class Inflater:
    """Decompresses gzip and deflate. As in browsers, only the first of several members counts."""

    def __init__(self) -> None:
        # With 32 more than the window size, zlib tells gzip from deflate by the header.
        self._decompress = zlib.decompressobj(32 + zlib.MAX_WBITS)
        #: The bytes after the end of the first member.
        self.trailing = 0

    def __call__(self, chunk: bytes) -> bytes:
        """Return the decompressed bytes."""
        if self._decompress.eof:
            self.trailing += len(chunk)
            return b""
        data = self._decompress.decompress(chunk)
        self.trailing += len(self._decompress.unused_data)
        return data


def _decoder(compression: str | None) -> Callable[[bytes], bytes]:
    if compression is None:
        return bytes
    if compression in DECODED:
        return Inflater()
    raise Unreadable(compression)


def trouble_of(error: BaseException) -> Trouble:
    """Return the kind of trouble, by the error and its causes."""
    causes = list(_causes(error))
    for kind, trouble in TROUBLES:
        if any(isinstance(cause, kind) for cause in causes):
            return trouble
    unconnected = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
    return Trouble.CLOSED if isinstance(error, httpx.HTTPError) and not unconnected else Trouble.CONNECT


def json_object(text: str) -> dict[str, object]:
    """Return a JSON object; an empty one if the text is none."""
    try:
        value: object = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all errors that led to it."""
    if error is not None:
        yield error
        yield from _causes(error.__cause__ or error.__context__)
        for each in getattr(error, "exceptions", ()):
            yield from _causes(each)


def _seen(facts: dict[str, object]) -> Seen:
    telling, heartbeat = facts.get("telling"), facts.get("heartbeat")
    return Seen(
        http=str(facts.get("http", "")),
        scheme=str(facts.get("scheme", "")),
        telling=tuple(map(str, telling)) if isinstance(telling, list) else (),
        via=str(facts.get("via", "")),
        heartbeat=float(heartbeat) if isinstance(heartbeat, (int, float)) else None,
    )
