"""The control events `livepush.*`, and the field lines that replace them where they are turned off.

Every control event has a name, because a browser does not pass named events to `onmessage`.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from .event import encode_block, id_line
from .reasons import EndReason, GapReason

# A control event, or an id alone. The lines of data begin with `data:`, and they are the last of a block.
_NO_EVENT = re.compile(rb"(?:\A|\n)(?:event: livepush\.|id: [^\n]*\n(?=\n))")


def open_block(
    retry: int,
    id: str | None,
    gaps: Sequence[tuple[str, GapReason]] = (),
    *,
    resumed: bool,
    not_live: Sequence[str] = (),
) -> bytes:
    """Return the open event, with the reconnection time `retry` (ms) and the cursor `id`, and the gap events.

    The last gap event carries the cursor. So a client that disconnects before it has received every gap event
    reconnects with its old cursor, and is sent the gaps again. `not_live` names the channels that the broker
    does not deliver yet. Without `id` the client keeps its last event id.
    """
    # The data repeats `retry`, because EventSource does not show the field to the page.
    # The f-string is faster than `encode_block`: ten thousand clients may reconnect at once.
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
    """Return a gap event: at this point of the stream, events of the channel are missing or may be."""
    block = _gap_block(channel, reason)
    return block if id is None else id_line(id) + block


@lru_cache(maxsize=1024)
def _gap_block(channel: str, reason: GapReason) -> bytes:
    # Cached: after a log was lost, every client that reconnects is sent the same gap.
    return encode_block(_json(channel=channel, reason=reason.value), event="livepush.gap")


def close_block(reason: EndReason, retry: int) -> bytes:
    """Return the close event, the last block of a stream. `retry` is in milliseconds, one per client."""
    return encode_block(_json(reason=reason.value, retry=retry), event="livepush.close", retry=retry)


def refused_block(reason: str, status: int, detail: str | None, retry: int) -> bytes:
    """Return the refused event, the only block of a soft refusal."""
    data: dict[str, object] = {"reason": reason, "status": status, "retry": retry}
    if detail is not None:
        data["detail"] = detail
    return encode_block(_json(**data), event="livepush.refused", retry=retry)


def count_events(blocks: bytes) -> int:
    """Return how many events are in these blocks, without the control events.

    An id alone is no event: a client dispatches nothing without data.
    """
    return blocks.count(b"\n\n") - len(_NO_EVENT.findall(blocks))


def origin_line(channel: str, id: str) -> bytes:
    """Return a comment line with the channel of the next event and the event id after it: see `origin_of`."""
    return f": {json.dumps([channel, id])}\n".encode()


def origin_of(comment: str) -> tuple[str, str]:
    """Return the channel and the event id that `origin_line` has written, given the text after the colon."""
    channel, id = json.loads(comment)
    return channel, id


def id_block(id: str) -> bytes:
    """Return an id without an event, for clients that do not accept control events.

    By the standard the client stores the id as its last event id and dispatches nothing.
    https://html.spec.whatwg.org/multipage/server-sent-events.html#dispatchMessage
    """
    return id_line(id) + b"\n"


def retry_line(retry: int) -> bytes:
    """Return the reconnection time as a bare field line, without the blank line that ends a block.

    A client applies it when it reads the line; the next event completes the block. This is for clients that
    do not accept control events: many of them fail on a block without data.
    """
    return f"retry: {retry}\n".encode()


def _json(**data: object) -> str:
    return json.dumps(data, separators=(",", ":"))
