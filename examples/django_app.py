"""Django in one file, streams in front of it and in a view. `uvicorn --app-dir examples django_app:app`"""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.django import sse_streaming_response, uses_database

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="only for this example")

if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisStreamsBroker(redis), SlotCap(redis, cap=20)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(20)

PAGE = """<!doctype html><title>Django</title><pre id=log></pre>
<script>new EventSource("/events").onmessage = e => log.textContent += e.data + "\\n"</script>"""


@uses_database
def authorize(request):
    # Django's ORM works here, and request.cookies["sessionid"] names the session.
    return Grant(channels="news", slot_key=request.query.get("key", "visitors"))


# A browser that gets a 429 does not come back: a soft refusal tells it to try again.
push = LivePush(broker, authorize, slots=slots, soft_refusals={RefusalCause.CAP})


async def home(request):
    return HttpResponse(PAGE)


async def publish(request):
    await push.publish("news", request.body)
    return HttpResponse(status=204)


async def route(request):
    key = request.GET.get("key", "visitors")
    return await sse_streaming_response(push, request, channel="news", slot_key=key)


urlpatterns = [path("", home), path("publish", publish), path("route", route)]
app = LivePushMiddleware(get_asgi_application(), push, path="/events")
