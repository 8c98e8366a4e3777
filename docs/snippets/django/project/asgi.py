import os

from django.core.asgi import get_asgi_application

from livepush_asgi import LivePushMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django = get_asgi_application()

# Imported when Django is set up.
from project.live import push

application = LivePushMiddleware(django, push, path="/events")
