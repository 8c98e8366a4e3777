"""What every framework's file begins with: a stream for a route, or the refusal to answer with."""

import logging
from dataclasses import dataclass
from typing import Protocol

from ..answers import soft_block
from ..app import LivePush
from ..carrier import STREAM_HEADERS, RawHeaders
from ..decision import INVALID, REFUSED_ERRORS, refused_for
from ..errors import BrokerUnavailableError, InvalidGrantError
from ..request import Grant, Refusal
from ..service import SSEStream, SSEStreamService, sse_headers
from ..types import Receive, Send

logger = logging.getLogger("livepush_asgi")

RETRY_AFTER = 5
LAST_EVENT_ID = "last-event-id"
LAST_EVENT_ID_QUERY = "last_event_id"


class Fields(Protocol):
    """Header fields, or query parameters, as each framework's own class has them."""

    def get(self, name: str, /) -> str | None:
        """Return one value, None if there is none."""
        ...


def last_event_id(headers: Fields, query: Fields) -> str | None:
    """Return what the client sends as its last event id. See `StreamRequest.last_event_id`."""
    found = headers.get(LAST_EVENT_ID)
    return query.get(LAST_EVENT_ID_QUERY) if found is None else found


def headers_of(refusal: Refusal) -> dict[str, str]:
    """Return the header fields of a refusal, `Retry-After` among them if it has one."""
    retry_after = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return {**refusal.headers, **retry_after}


class SoftRefusalBody:
    """The one block of a soft refusal, where a stream has its bytes. It holds nothing."""

    def __init__(self, block: bytes) -> None:
        self._blocks = [block]

    def __aiter__(self) -> "SoftRefusalBody":
        return self

    async def __anext__(self) -> bytes:
        if not self._blocks:
            raise StopAsyncIteration
        return self._blocks.pop()

    async def aclose(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    async def respond(self, receive: Receive, send: Send, headers: RawHeaders = STREAM_HEADERS) -> None:
        """Send the block as a whole ASGI response."""
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"".join(self._blocks), "more_body": False})


@dataclass
class SoftRefusal:
    """In the place of an SSEStream: 200 and a reconnection time, so that `EventSource` comes back."""

    headers: dict[str, str]
    body: SoftRefusalBody


async def open_for_route(
    service: SSEStreamService | LivePush,
    *,
    channel: str | None,
    slot_key: str | None,
    grant: Grant | None,
    last_event_id: str | None,
    client: object,
) -> SSEStream | SoftRefusal:
    """Open a stream for a channel and a slot key, or for a Grant. Raises Refusal where there is none.

    Not so for the causes in the component's `soft_refusals`, and never in a drain: a process that is
    about to be replaced must not turn its clients away for good.
    """
    if isinstance(service, LivePush):
        service = SSEStreamService.of(service)
    terms = _terms(channel, slot_key, grant)
    try:
        return await service.open_granted(terms, last_event_id=last_event_id, client=client)
    except BrokerUnavailableError as error:
        raise Refusal(503, "No stream can be opened now.", retry_after=RETRY_AFTER) from error
    except REFUSED_ERRORS as error:
        push = service.push
        refused = refused_for(error, push.soft_refusals)
        if not refused.refusal.soft:
            raise refused.refusal from error
        control_events = push.control_events if terms.control_events is None else terms.control_events
        block = soft_block(refused.refusal, refused.cause, push.timing, control_events=control_events)
        return SoftRefusal(sse_headers(), SoftRefusalBody(block))


def _terms(channel: str | None, slot_key: str | None, grant: Grant | None) -> Grant:
    if (channel is None) == (grant is None):
        raise TypeError("name either a channel (and a slot_key) or a grant")
    if grant is None:
        assert channel is not None
        try:
            return Grant(channels=channel, slot_key=slot_key)
        except InvalidGrantError as error:
            # Routes make names of what their clients send.
            logger.info("a client asked for what no grant can have, and got a 400: %s", error)
            raise Refusal(400, INVALID) from error
    if slot_key is not None:
        raise TypeError("a Grant brings its own slot_key")
    return grant
