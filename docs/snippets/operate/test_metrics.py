import pytest
from prometheus_client import REGISTRY, generate_latest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.contrib.prometheus import collector
from livepush_asgi.metrics import CONTENT_TYPE, text
from livepush_asgi.testing import Client

push = LivePush(MemoryBroker(), public("news"))


# start: text
async def metrics(request):
    return Response(text(push), media_type=CONTENT_TYPE)


# end: text

# start: collector
REGISTRY.register(collector(push))
# end: collector

app = Starlette(routes=[Route("/metrics", metrics), Mount("/events", push)], lifespan=push.lifespan)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_the_numbers_of_a_process():
    async with Client(app, lifespan=True) as client:
        async with client.open("/events/") as stream:
            await push.publish("news", "hello")
            await stream.next_event()
            page = (await client.request("GET", "/metrics")).body.decode()
        assert "\nlivepush_streams 1\n" in page
        assert page.endswith("# EOF\n")
        assert b"\nlivepush_events_delivered_total 1.0\n" in generate_latest(REGISTRY)
