# start: lifespan
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Mount

from livepush_asgi import LivePush, MemoryBroker, public

push = LivePush(MemoryBroker(), public("news"))


@asynccontextmanager
async def lifespan(app):
    # Open here what `authorize` and your views need: clients, pools.
    async with push.lifespan():
        yield
    # All streams have ended here. Close the clients and pools.


app = Starlette(routes=[Mount("/events", push)], lifespan=lifespan)
# end: lifespan
