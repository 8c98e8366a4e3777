import os

from django.core.asgi import get_asgi_application

from livepush_asgi import LivePushMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django = get_asgi_application()

from live import push  # noqa: E402 - after Django is set up, because it asks for models

application = LivePushMiddleware(django, push, path="/events")
