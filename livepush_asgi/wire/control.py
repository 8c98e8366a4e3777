"""The component's own blocks: the `livepush.*` events and the field lines that go without an event.

All control events are named, because named events never reach a page's `onmessage`.
"""

import json
from collections.abc import Sequence
from functools import lru_cache

from .event import encode_block
from .reasons import EndReason, GapReason


def opening(
    retry: int,
    id: str | None,
    gaps: Sequence[tuple[str, GapReason]] = (),
    *,
    resumed: bool,
    not_live: Sequence[str] = (),
) -> bytes:
    """Return the first block of a stream: the reconnection time (ms), the cursor, and what was resumed.

    Behind it the `gaps` that the client has to be told of. The cursor comes with the last of them: a client
    that is cut off before it has heard of all comes back with the cursor it had, and is told again.
    `not_live` names the channels that the broker does not deliver yet. Without `id` the client keeps its own.
    """
    # `retry` stands in the data too, because EventSource keeps the field to itself.
    # Written out and not encoded: every connect of ten thousand that come back at once waits for it.
    waiting = f',"not_live":{json.dumps(not_live, separators=(",", ":"))}' if not_live else ""
    data = f'data: {{"resumed":{"true" if resumed else "false"},"retry":{retry}{waiting}}}\n\n'
    if not gaps:
        head = f"retry: {retry}\n" if id is None else f"retry: {retry}\nid: {id}\n"
        return f"{head}event: livepush.open\n{data}".encode()
    *others, (channel, reason) = gaps
    blocks = [gap_block(channel, reason) for channel, reason in others]
    head = f"retry: {retry}\nevent: livepush.open\n{data}"
    return b"".join([head.encode(), *blocks, gap_block(channel, reason, id)])


def gap_block(channel: str, reason: GapReason, id: str | None = None) -> bytes:
    """Return the block that says: at this point events of the channel are, or may be, missing."""
    block = _gap_block(channel, reason)
    return block if id is None else f"id: {id}\n".encode() + block


@lru_cache(maxsize=1024)
def _gap_block(channel: str, reason: GapReason) -> bytes:
    # Ten thousand clients that come back to a log that was lost are all told the same.
    return encode_block(_json(channel=channel, reason=reason.value), event="livepush.gap")


def close_block(reason: EndReason, retry: int) -> bytes:
    """Return the last block of a stream. `retry` is in milliseconds and each client's own."""
    return encode_block(_json(reason=reason.value, retry=retry), event="livepush.close", retry=retry)


def refused_block(reason: str, status: int, detail: str | None, retry: int) -> bytes:
    """Return the one block of a soft refusal."""
    data: dict[str, object] = {"reason": reason, "status": status, "retry": retry}
    if detail is not None:
        data["detail"] = detail
    return encode_block(_json(**data), event="livepush.refused", retry=retry)


def id_block(id: str) -> bytes:
    """Return an id without an event, for clients that cannot have the control events.

    By the standard it becomes the last event id and nothing is dispatched.
    https://html.spec.whatwg.org/multipage/server-sent-events.html#dispatchMessage
    """
    return f"id: {id}\n\n".encode()


def retry_line(retry: int) -> bytes:
    """Return the reconnection time as a bare field line, without the blank line that ends a block.

    A client takes it as soon as it reads the line; the next event completes the block. For clients
    that cannot have the control events, since many of them choke on a block without data.
    """
    return f"retry: {retry}\n".encode()


def _json(**data: object) -> str:
    return json.dumps(data, separators=(",", ":"))
