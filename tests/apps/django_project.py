"""The one configuration that Django takes in a process. Tests override what they need differently."""

import atexit
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import django
from django.conf import settings


def configure() -> None:
    """Configure Django, unless it has been done. The database comes into being with the first query."""
    if settings.configured:
        return
    # A file: an in-memory database of SQLite is never closed, and closing is looked at.
    path = Path(gettempdir()) / uuid4().hex
    atexit.register(path.unlink, missing_ok=True)
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": path}
    apps = [f"django.contrib.{name}" for name in ("auth", "contenttypes", "sessions")]
    apps.append("rest_framework.authtoken")
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": database},
        INSTALLED_APPS=apps,
        SECRET_KEY="for tests",
        USE_TZ=True,
    )
    django.setup()
