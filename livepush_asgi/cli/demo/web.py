"""HTTP for a raw ASGI application: routes, page files, JSON, problems, and the lifespan protocol."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files

import anyio

from ...runtime.asgi import Receive, Scope, Send

HEADERS = (
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # The pages belong to the installed version and must not outlive it in a browser.
    (b"cache-control", b"no-cache"),
)

KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    body: bytes
    kind: str
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, scope: Scope, send: Send) -> None:
        """Send the response; without its body if the request is HEAD."""
        length = str(len(self.body)).encode()
        own = ((b"content-type", self.kind.encode()), (b"content-length", length), *self.headers)
        body = b"" if scope["method"] == "HEAD" else self.body
        await send({"type": "http.response.start", "status": self.status, "headers": [*own, *HEADERS]})
        await send({"type": "http.response.body", "body": body})


class Problem(Exception):
    """An error for the client, as `application/problem+json` (RFC 9457)."""

    def __init__(self, status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        text = json.dumps({"title": HTTPStatus(status).phrase, "status": status, "detail": detail})
        self.answer = Answer(text.encode(), "application/problem+json", status, headers)
        super().__init__(detail)


Handler = Callable[[Scope, Receive], Awaitable[Answer]]
Routes = dict[tuple[str, str], Handler]


def as_json(value: object, status: int = 200) -> Answer:
    """Return a JSON response."""
    return Answer(json.dumps(value).encode(), "application/json", status)


def page_files(home: str) -> Routes:
    """Return a route for each file of the page; `/` is the file `home`."""
    page = files(__package__) / "page"
    routes = {("GET", f"/{file.name}"): _file(file.name, file.read_bytes()) for file in page.iterdir()}
    routes["GET", "/"] = routes.pop(("GET", f"/{home}"))
    return routes


async def respond(routes: Routes, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with the handler of its method and path, or with the problem that it raises."""
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    handler = routes.get((method, scope["path"]))
    try:
        answer = await handler(scope, receive) if handler else _unrouted(routes, scope).answer
    except Problem as problem:
        answer = problem.answer
    await answer.send(scope, send)


async def read_json(scope: Scope, receive: Receive, limit: int) -> object:
    """Return the JSON value of a request's body of at most `limit` bytes. Raises Problem."""
    # A page of another site may send a form or plain text here without asking. It may not send JSON:
    # the browser asks this server first.
    fields = {name: bytes(value) for name, value in scope["headers"]}
    if fields.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        raise Problem(415, "send it as application/json")
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise Problem(413, f"at most {limit} bytes")
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "this is not JSON") from None
    return value


Work = Callable[[], Coroutine[object, object, None]]


async def lifespan(receive: Receive, send: Send, work: Work, close: Work) -> None:
    """Speak the lifespan protocol: run `work` as long as the server runs, then `close`."""
    await receive()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        tasks.cancel_scope.cancel()
    await close()
    await send({"type": "lifespan.shutdown.complete"})


def _file(name: str, content: bytes) -> Handler:
    answer = Answer(content, KINDS[name.rpartition(".")[2]])

    async def handler(scope: Scope, receive: Receive) -> Answer:
        return answer

    return handler


def _unrouted(routes: Routes, scope: Scope) -> Problem:
    methods = sorted(method for method, path in routes if path == scope["path"])
    if not methods:
        return Problem(404, "there is nothing here")
    allowed = ", ".join(methods + ["HEAD"] * ("GET" in methods))
    return Problem(405, f"only {allowed}", ((b"allow", allowed.encode()),))
