"""Django: log in, listen, log out. `uvicorn --app-dir examples django_login:app`

Browsers have a session, and programs a token of Django REST framework, which POST /token returns.
LOGIN_SECONDS is how long a session lasts; the page prolongs it. A second worker needs LIVEPUSH_REDIS.
"""

import json
import os
from pathlib import Path
from tempfile import gettempdir

import django
from django.conf import settings

database = os.environ.get("DATABASE", str(Path(gettempdir()) / "django_login.sqlite3"))
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for this example",
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}},
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "rest_framework.authtoken",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
)
django.setup()

from django.contrib.auth import authenticate, login, logout  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.http import FileResponse, HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import ensure_csrf_cookie  # noqa: E402
from rest_framework.authentication import TokenAuthentication  # noqa: E402
from rest_framework.authtoken.models import Token  # noqa: E402

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, Refusal  # noqa: E402
from livepush_asgi.contrib.django import user_of_sync, uses_database  # noqa: E402
from livepush_asgi.contrib.rest_framework import authenticated  # noqa: E402

call_command("migrate", verbosity=0)
if not User.objects.exists():
    User.objects.create_user("ada", password="lovelace")

broker = MemoryBroker()
if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    broker = RedisStreamsBroker(Redis.from_url(url))

SECONDS = int(os.environ.get("LOGIN_SECONDS", "3600"))


# start: authorize
@uses_database
def by_session(request):
    key = request.cookies.get(settings.SESSION_COOKIE_NAME)
    session = Session.objects.filter(session_key=key).first()
    user = user_of_sync(request)
    if session is None or not user.is_authenticated:
        return Refusal(401, "Log in first.")
    channels = ["news", f"user:{user.pk}"]
    return Grant(channels=channels, slot_key=str(user.pk), expires_at=session.expire_date)


# end: authorize
# start: token
@authenticated(authenticators=[TokenAuthentication()])
def by_token(request):
    user = request.user
    return Grant(channels=["news", f"user:{user.pk}"], slot_key=str(user.pk))


def authorize(request):
    return by_token(request) if "authorization" in request.headers else by_session(request)


# end: token
push = LivePush(broker, authorize)


@ensure_csrf_cookie
def home(request):
    return FileResponse(Path(__file__).with_name("login.html").open("rb"))


def prolong(request):
    request.session.set_expiry(SECONDS)
    return JsonResponse({"seconds": SECONDS})


def log_in(request):
    data = json.loads(request.body)
    user = authenticate(username=data["user"], password=data["password"])
    if user is None:
        return HttpResponse(status=401)
    login(request, user)
    return prolong(request)


def refresh(request):
    return prolong(request) if request.user.is_authenticated else HttpResponse(status=401)


# start: logout
def log_out(request):
    user = request.user
    if not user.is_authenticated:
        return HttpResponse(status=401)
    # First the permission goes, then the streams.
    logout(request)
    Token.objects.filter(user=user).delete()
    push.disconnect_sync(slot_key=str(user.pk))
    return HttpResponse(status=204)


# end: logout


def token(request):
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    return JsonResponse({"token": Token.objects.get_or_create(user=request.user)[0].key})


def publish(request):
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    push.publish_sync("news", request.body)
    return HttpResponse(status=204)


urlpatterns = [
    path("", home),
    path("login", log_in),
    path("refresh", refresh),
    path("logout", log_out),
    path("token", token),
    path("publish", publish),
]
app = LivePushMiddleware(get_asgi_application(), push, path="/events")
