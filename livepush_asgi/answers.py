"""Answers that are no stream: problems and soft refusals. Small, and without internals.

https://www.rfc-editor.org/rfc/rfc9457
"""

import json

from .carrier import STREAM_HEADERS, RawHeaders
from .control import refused_block, retry_line
from .reasons import RefusalCause
from .request import Refusal
from .types import Send

ALLOWED_METHODS = b"GET, HEAD, OPTIONS"


async def answer(send: Send, status: int, headers: RawHeaders, body: bytes = b"") -> None:
    """Send one whole answer. A 204 has no length, by RFC 9110, section 8.6."""
    fields = list(headers)
    if status != 204:
        fields.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def refuse(send: Send, refusal: Refusal, headers: RawHeaders, *, body: bool = True) -> None:
    """Send a refusal as its status, with a problem in the body if `body` and the status allow one."""
    fields = [*_own_headers(refusal), *headers, (b"cache-control", b"no-store")]
    if refusal.status == 204:
        await answer(send, 204, fields)
        return
    problem = {"type": "about:blank", "title": refusal.title, "status": refusal.status}
    if refusal.detail is not None:
        problem["detail"] = refusal.detail
    text = json.dumps(problem).encode()
    fields.append((b"content-type", b"application/problem+json"))
    if body:
        await answer(send, refusal.status, fields, text)
        return
    fields.append((b"content-length", str(len(text)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": fields})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def refuse_softly(
    send: Send,
    refusal: Refusal,
    cause: RefusalCause,
    retry: int,
    headers: RawHeaders,
    *,
    control_events: bool,
) -> None:
    """Send a refusal that `EventSource` survives: 200, a reconnection time (ms), one event, the end."""
    if control_events:
        block = refused_block(cause.value, refusal.status, refusal.detail, retry)
    else:
        block = retry_line(retry)
    fields = [*STREAM_HEADERS, *_own_headers(refusal), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": block, "more_body": False})


def _own_headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    fields = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in refusal.headers.items()
    ]
    if refusal.retry_after is not None:
        fields.append((b"retry-after", str(refusal.retry_after).encode()))
    return fields
