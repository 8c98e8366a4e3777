"""Publishing one event from the command line."""

import sys

import anyio

from .. import Event, InvalidEventError
from ..errors import BrokerUnavailableError
from ..event import to_payload
from ..request import check_channel
from .backend import Backend, backend_at
from .failure import MISTYPED, Failure

# An outbox holds so much by default: what is larger would not reach a page.
DATA_LIMIT = 1024 * 1024


def publish_once(
    channel: str, data: str, event: str | None, id: str | None, url: str, namespace: str | None = None
) -> int:
    """Publish one event and return how many listeners the broker gave it to. Raises Failure."""
    try:
        check_channel(channel)
        block = Event(_read_input() if data == "-" else data, event=event, id=id).encode()
    except (InvalidEventError, ValueError) as error:
        raise Failure(str(error), MISTYPED) from None
    return anyio.run(_publish, backend_at(url, namespace), channel, block)


async def _publish(backend: Backend, channel: str, block: bytes) -> int:
    try:
        return await backend.broker.publish(channel, to_payload(block))
    except BrokerUnavailableError as error:
        raise Failure(str(error)) from None
    finally:
        await backend.aclose()


def _read_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise Failure("no data: give it as an argument, or send it to standard input", MISTYPED)
    data = sys.stdin.buffer.read(DATA_LIMIT + 1)
    if len(data) > DATA_LIMIT:
        raise Failure(
            f"standard input has more than the {DATA_LIMIT:,} bytes that an event may have", MISTYPED
        )
    return data.removesuffix(b"\n").removesuffix(b"\r")
