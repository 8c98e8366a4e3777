"""A Django project in one file: a synchronous view adds an order, and publishes it in its transaction."""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import models, transaction
from django.http import HttpResponse
from django.urls import path

from livepush_asgi import LivePush, LivePushMiddleware, PostgresBroker, public
from livepush_asgi.contrib.django import publish_in_atomic

PORT = os.environ.get("PGPORT", "5432")
DATABASE = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": "postgres",
    "USER": "postgres",
    "HOST": "127.0.0.1",
    "PORT": PORT,
    "OPTIONS": {"server_side_binding": "SERVER_SIDE" in os.environ},
}
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": DATABASE},
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="only here",
)
django = get_asgi_application()
push = LivePush(PostgresBroker(f"postgresql://postgres@127.0.0.1:{PORT}/postgres"), public("orders"))


class Order(models.Model):
    number = models.IntegerField(primary_key=True)

    class Meta:
        app_label = "shop"
        db_table = "orders"


# start: view
def order(request):
    with transaction.atomic():
        order = Order.objects.create(number=int(request.GET["number"]))
        publish_in_atomic(push, "orders", {"order": order.number}, event="order")
        if "cancel" in request.GET:
            raise ValueError("no order, and no event")
    return HttpResponse(status=201)


# end: view


def outside(request):
    try:
        return HttpResponse(publish_in_atomic(push, "orders", {}))
    except RuntimeError as error:
        return HttpResponse(str(error), status=409)


urlpatterns = [path("orders", order), path("outside", outside)]
app = LivePushMiddleware(django, push, path="/events")
