from importlib import import_module

from django.conf import settings
from django.contrib.auth import get_user
from django.http import HttpRequest

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, Refusal, RefusalCause
from livepush_asgi.contrib.django import uses_database


# --8<-- [start:login]
def with_user(stream_request):
    """Return a request with the session and the user, as Django's own middleware finds them."""
    request = HttpRequest()
    sessions = import_module(settings.SESSION_ENGINE)
    request.session = sessions.SessionStore(stream_request.cookies.get(settings.SESSION_COOKIE_NAME))
    request.user = get_user(request)
    return request


@uses_database
def authorize(stream_request):
    request = with_user(stream_request)
    if not request.user.is_authenticated:
        return Refusal(401, "Log in first.")
    key = str(request.user.pk)
    expiry = request.session.get_expiry_date()
    return Grant(channels=["news", f"user:{key}"], slot_key=key, expires_at=expiry)


# --8<-- [end:login]
# --8<-- [start:push]
push = LivePush(
    MemoryBroker(),  # RedisStreamsBroker(Redis.from_url(...)) with several processes
    authorize,
    slots=MemorySlotCap(5),  # SlotCap(redis, cap=5)
    soft_refusals={RefusalCause.CAP},
)
# --8<-- [end:push]
