from fastapi import FastAPI

from livepush_asgi import LivePush, MemoryBroker, public

push = LivePush(MemoryBroker(), public("news"))
app = FastAPI(lifespan=push.lifespan)
app.mount("/events", push)  # new EventSource("/events/")


@app.post("/news")
async def add(title: str):
    await push.publish("news", {"title": title})
