"""HTTP for the demo: routes, the files of the page, JSON, and refusals as problem details."""

import ipaddress
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

from ...grant import Refusal, StreamRequest
from ...http.responses import answer, refuse
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
    """A response that is no problem: its body, content type and status."""

    body: bytes
    kind: str
    status: int = 200


Handler = Callable[[StreamRequest, Receive], Awaitable[Answer]]
Check = Callable[[StreamRequest], None]
#: A fixed answer or a handler, by method and path.
Routes = dict[tuple[str, str], Answer | Handler]


def as_json(value: object, status: int = 200) -> Answer:
    """Return a JSON response."""
    return Answer(json.dumps(value).encode(), "application/json", status)


def page_files() -> Routes:
    """Return a route for each file of the page; `/` is `demo.html`."""
    routes: Routes = {}
    for file in (files(__package__) / "page").iterdir():
        path = "/" if file.name == "demo.html" else f"/{file.name}"
        routes["GET", path] = Answer(file.read_bytes(), KINDS[file.name.rpartition(".")[2]])
    return routes


async def respond(routes: Routes, check: Check, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the answer of a route, or the Refusal that `check` or its handler raises.

    A HEAD has no body: uvicorn leaves it out.
    """
    request = StreamRequest(scope)
    try:
        check(request)
        found = _route(routes, scope["method"], scope["path"])
        result = found if isinstance(found, Answer) else await found(request, receive)
    except Refusal as refusal:
        await refuse(send, refusal, HEADERS)
    else:
        await answer(send, result.status, [(b"content-type", result.kind.encode()), *HEADERS], result.body)


async def read_json(request: StreamRequest, receive: Receive, limit: int) -> object:
    """Return the JSON value of a request's body of at most `limit` bytes. Raises Refusal."""
    # A page of another site may send a form or plain text here without asking. It may not send JSON:
    # the browser asks this server first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "send it as application/json")
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > limit:
            raise Refusal(413, f"at most {limit} bytes")
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "this is not JSON") from None
    return value


def is_local(host: str) -> bool:
    """Return whether a host name or address means this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(request: StreamRequest) -> None:
    """Raise Refusal if the field `Host` has a name from outside (DNS rebinding).

    A web site can point its own name to 127.0.0.1, and its scripts could then read this page as their own.
    """
    # HTTP/1.0 has no Host field, and no browser speaks it.
    host = request.headers.get("host", "localhost")
    try:
        local = is_local(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        local = False
    if not local:
        raise Refusal(421, "this page is for this machine; open it as localhost or 127.0.0.1")


def _route(routes: Routes, method: str, path: str) -> Answer | Handler:
    if found := routes.get(("GET" if method == "HEAD" else method, path)):
        return found
    methods = sorted(each for each, known in routes if known == path)
    if not methods:
        raise Refusal(404, "there is nothing here")
    allowed = ", ".join(methods + ["HEAD"] * ("GET" in methods))
    raise Refusal(405, f"only {allowed}", headers={"allow": allowed})
