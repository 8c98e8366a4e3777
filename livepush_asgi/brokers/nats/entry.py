"""Entries: the messages of the stream, as JetStream returns them. Each says where in its log it is."""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from nats.aio.msg import Msg

from ...cursor import Position
from ...event import positioned

# An event carries its position in the one, a mark in the other. A mark is no event: it says how far a log
# has come, when there is no event to say so.
POSITION, MARK = "Livepush-Position", "Livepush-Mark"


class Entry(NamedTuple):
    """One message of a log. `position` is None if something else than this package has put it there."""

    sequence: int
    time: float
    position: Position | None
    is_event: bool
    payload: bytes


def entry_of(message: Msg) -> Entry:
    """Return the entry of a direct answer: the message itself, with headers of the server's added."""
    headers = message.headers or {}
    return _entry(int(headers["Nats-Sequence"]), headers["Nats-Time-Stamp"], headers, message.data)


def entry_in(answer: Mapping[str, Any]) -> Entry:
    """Return the entry that is a part of an answer in JSON."""
    block = base64.b64decode(answer.get("hdrs", ""))
    lines = (line.partition(b":") for line in block.split(b"\r\n")[1:] if line)
    headers = {name.decode("latin-1"): value.decode("latin-1").strip() for name, _, value in lines}
    return _entry(answer["seq"], answer["time"], headers, base64.b64decode(answer.get("data", "")))


def live_payload_of(message: Msg) -> bytes | None:
    """Return what a subscription gets for a message that came live, None if that is nothing."""
    headers = message.headers or {}
    if MARK in headers:
        return None
    try:
        return positioned(Position.parse(headers[POSITION]), message.data)
    except (KeyError, ValueError):
        # Somebody has published past the log.
        return message.data


def seconds_of(stamp: str) -> float:
    """Return a time that the server wrote, in seconds."""
    return datetime.fromisoformat(stamp).timestamp()


def _entry(sequence: int, stamp: str, headers: Mapping[str, str], payload: bytes) -> Entry:
    is_event = POSITION in headers
    try:
        position = Position.parse(headers.get(POSITION if is_event else MARK, ""))
    except ValueError:
        position = None
    return Entry(sequence, seconds_of(stamp), position, is_event, payload)
