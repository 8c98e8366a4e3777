import os

from fastapi import FastAPI

from livepush_asgi import LivePush, MemoryBroker, hmac_publish, jwt_publish, public

push = LivePush(MemoryBroker(), public("news"))

app = FastAPI(lifespan=push.lifespan)
app.mount("/events", push)

# start: publisher
app.mount("/publish", push.publisher(hmac_publish(os.environ["PUBLISH_SECRET"])))
# end: publisher

# start: mercure
mercure = push.publisher(jwt_publish(os.environ["MERCURE_KEY"], ["HS256"]))
app.mount("/.well-known/mercure", mercure)
# end: mercure
