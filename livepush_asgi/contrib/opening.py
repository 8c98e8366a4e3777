"""What every framework's file begins with: a stream for a route, or the refusal to answer with."""

from ..app import LivePush
from ..errors import BrokerUnavailableError, CapExceededError, NotRunningError, SlotsUnavailableError
from ..request import Grant, Refusal
from ..service import IsDisconnected, SSEStream, SSEStreamService

RETRY_AFTER = 5


async def open_for_route(
    service: SSEStreamService | LivePush,
    *,
    channel: str | None,
    slot_key: str | None,
    grant: Grant | None,
    is_disconnected: IsDisconnected | None = None,
) -> SSEStream:
    """Open a stream for a channel and a slot key, or for a Grant. Raises Refusal where there is none."""
    if isinstance(service, LivePush):
        service = SSEStreamService.of(service)
    if (channel is None) == (grant is None):
        raise TypeError("name either a channel (and a slot_key) or a grant")
    if grant is None:
        assert channel is not None
        grant = Grant(channels=channel, slot_key=slot_key)
    elif slot_key is not None:
        raise TypeError("a Grant brings its own slot_key")
    try:
        return await service.open_granted(grant, is_disconnected)
    except CapExceededError as error:
        raise Refusal(429, str(error), retry_after=error.retry_after) from error
    except (SlotsUnavailableError, NotRunningError, BrokerUnavailableError) as error:
        raise Refusal(503, "No stream can be opened now.", retry_after=RETRY_AFTER) from error
