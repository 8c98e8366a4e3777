"""Litestar's channels, in memory: https://docs.litestar.dev/latest/usage/channels.html"""

from collections.abc import AsyncIterator

from litestar import Litestar, Request, get
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.memory import MemoryChannelsBackend
from litestar.response import ServerSentEvent

from benchmarks.traffic import start_publishing

plugin = ChannelsPlugin(backend=MemoryChannelsBackend(), channels=["c"])


async def publish(channel: str, data: str) -> None:
    await plugin.wait_published(data, channel)


async def messages() -> AsyncIterator[bytes]:
    async with plugin.start_subscription(["c"]) as subscriber:
        async for message in subscriber.iter_events():
            yield message


@get("/events", sync_to_thread=False)
def events() -> ServerSentEvent:
    return ServerSentEvent(messages())


@get("/pub")
async def pub(request: Request) -> str:  # type: ignore[type-arg]
    start_publishing(publish, request.query_params)
    return "ok"


app = Litestar(route_handlers=[events, pub], plugins=[plugin])
