"""Django with its GZipMiddleware: `/events` is a stream by `contrib.django`, `/own` one in a response of the
view's own, with `Content-Encoding: identity` where the query asks for it; POST `/publish` publishes its body.
"""

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.urls import path

from livepush_asgi import MemoryBroker, MemorySlotCap, SSEStreamService
from livepush_asgi.contrib.django import sse_streaming_response

settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.middleware.gzip.GZipMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests",
)
broker = MemoryBroker()
service = SSEStreamService(broker, MemorySlotCap(20))


async def events(request: HttpRequest) -> HttpResponseBase:
    return await sse_streaming_response(service, request, channel="c")


async def own(request: HttpRequest) -> HttpResponseBase:
    async def never() -> bool:
        return False

    stream = await service.open_stream(channel="c", is_disconnected=never)
    headers = dict(stream.headers)
    if "identity" in request.GET:
        headers["Content-Encoding"] = "identity"
    return StreamingHttpResponse(stream.body, content_type="text/event-stream", headers=headers)


async def publish(request: HttpRequest) -> HttpResponse:
    await broker.publish("c", request.body)
    return HttpResponse()


urlpatterns = [path("events", events), path("own", own), path("publish", publish)]
app = get_asgi_application()
