from fastapi import FastAPI

from livepush_asgi import LivePush, MemoryBroker, public

push = LivePush(MemoryBroker(), public("news"))
app = FastAPI(lifespan=push.lifespan)
app.mount("/events", push)
# start: mount
app.mount("/health", push.health())
# end: mount
