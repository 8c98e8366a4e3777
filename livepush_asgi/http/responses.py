"""Responses that are no stream: problem details and soft refusals. They reveal no internals.

https://www.rfc-editor.org/rfc/rfc9457
"""

import json
import random

from ..grant import Refusal
from ..runtime.asgi import Send
from ..settings import Timing
from ..stream.stream import draw_retry
from ..wire.control import refused_block
from ..wire.reasons import RefusalCause
from .driver import STREAM_HEADERS, RawHeaders

ALLOWED_METHODS = b"GET, HEAD, OPTIONS"


async def answer(
    send: Send, status: int, headers: RawHeaders, content: bytes = b"", *, body: bool = True
) -> None:
    """Send a whole response, or only its head. A 204 has no `Content-Length`, by RFC 9110, section 8.6."""
    fields = list(headers)
    if status != 204:
        fields.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content if body else b"", "more_body": False})


async def refuse(send: Send, refusal: Refusal, headers: RawHeaders, *, body: bool = True) -> None:
    """Send a refusal with its status, and with problem details if `body` and the status allow a body."""
    fields = [*_own_headers(refusal), *headers, (b"cache-control", b"no-store")]
    if refusal.status == 204:
        await answer(send, 204, fields)
        return
    problem = {"type": "about:blank", "title": refusal.title, "status": refusal.status}
    if refusal.detail is not None:
        problem["detail"] = refusal.detail
    fields.append((b"content-type", b"application/problem+json"))
    await answer(send, refusal.status, fields, json.dumps(problem).encode(), body=body)


def soft_block(refusal: Refusal, cause: RefusalCause, timing: Timing) -> bytes:
    """Return the body of a soft refusal: the refused event, with a reconnection time.

    It is sent where control events are off too: without it the response would look like an empty stream that
    has ended.
    """
    if refusal.retry_after is None:
        retry = draw_retry(timing)
    else:
        # The client waits at least `retry_after`; the random part spreads the reconnects.
        retry = round(1000 * refusal.retry_after * random.uniform(1.0, 1.5))
    return refused_block(cause.value, refusal.status, refusal.detail, retry)


async def refuse_softly(send: Send, refusal: Refusal, block: bytes, headers: RawHeaders) -> None:
    """Send a soft refusal: status 200 and one block. `EventSource` reconnects after it."""
    fields = [*STREAM_HEADERS, *_own_headers(refusal), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": block, "more_body": False})


def _own_headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    fields = dict(refusal.headers)
    if refusal.retry_after is not None:
        fields["retry-after"] = str(refusal.retry_after)
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
