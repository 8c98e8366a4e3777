"""Client: asks once, as a browser's EventSource does, and writes down what comes and when."""

import math
import socket
import ssl
from dataclasses import replace

import anyio
import anyio.to_thread
import httpx

from ...http.probe import ProbePlan
from .observation import Answer, End, Observation, Redirect, Stall, Trouble
from .question import ENCODINGS, Question, speaks_http2, without_probe
from .reading import Reading, Unreadable

CONNECT_TIMEOUT = 10.0
# Fetch stops at twenty; nobody means more than a few. https://fetch.spec.whatwg.org/#http-redirect-fetch
MOST_REDIRECTS = 5
# How often this program looks whether it is called in time, and how late is worth writing down, in seconds.
TICK, STALL = 0.02, 0.005


class Client:
    """Asks for a URL, again and again over connections of its own."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._tls: ssl.SSLContext | None = None

    async def ask(self, plan: ProbePlan | None, encodings: tuple[str, ...] = ENCODINGS) -> Observation:
        """Ask for a probe, or with None for a stream, and return what was seen of it. Raises nothing."""
        if self._tls is None:
            # It takes a tenth of a second, which must not look like a delay on the way.
            verify = not self._question.insecure
            self._tls = await anyio.to_thread.run_sync(lambda: httpx.create_ssl_context(verify=verify))
        exchange = _Exchange(self._question, plan, self._tls)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.listen_to_itself)
            with anyio.move_on_after(exchange.allowed):
                await exchange.run(encodings)
            tasks.cancel_scope.cancel()
        return exchange.observation()

    async def finds(self, url: str, media_type: str) -> bool:
        """Return whether there is something of a type at another URL. Raises nothing."""
        seen = await Client(replace(self._question, url=url, headers=(), idle=0)).ask(None)
        return seen.answer is not None and (seen.answer.status, seen.answer.media_type) == (200, media_type)


class _Exchange:
    """One request, until it is answered or the time is up."""

    def __init__(self, question: Question, plan: ProbePlan | None, tls: ssl.SSLContext) -> None:
        self._question = question
        self._tls = tls
        self._plan = plan
        self._start = anyio.current_time()
        self._redirects: list[Redirect] = []
        self._answer: Answer | None = None
        self._reading: Reading | None = None
        # What stays if the time is up.
        self._result = Observation(plan=plan, trouble=Trouble.SILENT)
        self._stalls: list[Stall] = []

    @property
    def allowed(self) -> float:
        return (self._plan.seconds if self._plan else self._question.idle) + self._question.patience

    async def run(self, encodings: tuple[str, ...]) -> None:
        url, fields = self._question.url_for(self._plan), self._question.fields(encodings)
        try:
            async with self._client() as client:
                self._start = anyio.current_time()
                request: httpx.Request | None = client.build_request("GET", url, headers=fields)
                while request is not None and len(self._redirects) <= MOST_REDIRECTS:
                    request = await self._send(client, request)
            if request is not None:
                self._result = Observation(plan=self._plan, trouble=Trouble.REDIRECTS)
        except httpx.HTTPError as error:
            self._fail(error)
        except (httpx.InvalidURL, OSError, ValueError) as error:
            self._result = Observation(plan=self._plan, trouble=Trouble.CONNECT, detail=str(error))

    async def listen_to_itself(self) -> None:
        while True:
            due = anyio.current_time() + TICK
            await anyio.sleep_until(due)
            late = anyio.current_time() - due
            if late > STALL:
                self._stalls.append(Stall(self._now(), late))

    def observation(self) -> Observation:
        reading = self._reading
        found = replace(
            self._result,
            answer=self._answer,
            redirects=tuple(self._redirects),
            ended_at=self._result.ended_at or self._now(),
            stalls=tuple(self._stalls),
        )
        if reading is None:
            return found
        return replace(
            found,
            chunks=tuple(reading.chunks),
            marks=tuple(reading.marks),
            seen=reading.seen,
            others=tuple(reading.others),
            heartbeats=reading.heartbeats,
            body=reading.body,
            rest=reading.rest,
        )

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            http2=speaks_http2(),
            verify=self._tls,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
        )

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Request | None:
        """Send a request; return the next one if it is answered with a redirect."""
        response = await client.send(request, stream=True)
        try:
            if response.next_request is not None:
                following = response.next_request
                source, target = without_probe(str(request.url)), without_probe(str(following.url))
                self._redirects.append(Redirect(response.status_code, source, target))
                return following
            self._answer = _answer(response, self._now())
            await self._read(response, self._answer)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
        return None

    async def _read(self, response: httpx.Response, answer: Answer) -> None:
        seen = Observation(plan=self._plan, answer=answer, end=End.SILENT)
        self._result = seen
        try:
            self._reading = Reading(answer.compression, is_stream=seen.is_stream)
            enough = await self._take(response, self._reading)
        except Unreadable as error:
            self._result = replace(seen, unreadable=str(error), end=None, ended_at=self._now())
            return
        end = End.ENOUGH if enough else _ends(self._reading)
        self._result = replace(seen, end=end, ended_at=self._now())

    async def _take(self, response: httpx.Response, reading: Reading) -> bool:
        """Read to the end, or until enough is seen of what does not end; return whether that was so."""
        with anyio.CancelScope() as scope:
            async for chunk in response.aiter_raw():
                reading.feed(chunk, self._now())
                if reading.known:
                    return True
                if reading.others and not reading.marks and scope.deadline == math.inf:
                    scope.deadline = anyio.current_time() + self._question.idle
        return scope.cancelled_caught

    def _fail(self, error: httpx.HTTPError) -> None:
        if self._answer is None:
            self._result = Observation(plan=self._plan, trouble=trouble_of(error), detail=_words(error))
        else:
            self._result = replace(self._result, end=End.BROKEN, detail=_words(error), ended_at=self._now())

    def _now(self) -> float:
        return anyio.current_time() - self._start


def trouble_of(error: BaseException) -> Trouble:
    """Say what kind of trouble an error is by what caused it."""
    chain = list(_causes(error))
    if any(isinstance(cause, ssl.SSLError) for cause in chain):
        return Trouble.TLS
    if any(isinstance(cause, socket.gaierror) for cause in chain):
        return Trouble.NAME
    if any(isinstance(cause, ConnectionRefusedError) for cause in chain):
        return Trouble.REFUSED
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return Trouble.CONNECT
    return Trouble.CLOSED


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and all that led to it."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if any(each is other for other in found):
            continue
        found.append(each)
        waiting += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
    return found


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _answer(response: httpx.Response, at: float) -> Answer:
    fields = tuple((name.lower(), value) for name, value in response.headers.multi_items())
    return Answer(response.status_code, response.http_version, fields, without_probe(str(response.url)), at)


def _ends(reading: Reading) -> End:
    return {"complete": End.COMPLETE, "drain": End.DRAIN}.get(reading.end, End.CLOSED)
