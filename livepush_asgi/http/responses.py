"""Answers that are no stream: problems and soft refusals. Small, and without internals.

https://www.rfc-editor.org/rfc/rfc9457
"""

import json
import random

from ..grant import Refusal
from ..runtime.asgi import Send
from ..settings import Timing
from ..wire.control import refused_block, retry_line
from ..wire.reasons import RefusalCause
from .driver import STREAM_HEADERS, RawHeaders

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


def soft_block(refusal: Refusal, cause: RefusalCause, timing: Timing, *, control_events: bool) -> bytes:
    """Return all that a soft refusal has to say: a reconnection time and one event."""
    if refusal.retry_after is None:
        retry = timing.own_retry()
    else:
        # The hint is the least to wait; the rest keeps the refused from coming back together.
        retry = round(1000 * refusal.retry_after * random.uniform(1.0, 1.5))
    if control_events:
        return refused_block(cause.value, refusal.status, refusal.detail, retry)
    return retry_line(retry)


async def refuse_softly(send: Send, refusal: Refusal, block: bytes, headers: RawHeaders) -> None:
    """Send a refusal that `EventSource` survives: 200, its block, the end."""
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
