import in_fastapi
import in_litestar
import in_quart
import pytest
from app import app, push
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

from livepush_asgi.testing import Client

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
import in_django

urlpatterns = [path("answers/<id>", in_django.follow)]
APPS = [app, in_fastapi.app, in_litestar.app, in_quart.app, get_asgi_application()]


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def answer():
    yield "Yes."


@pytest.mark.anyio
@pytest.mark.parametrize("app", APPS, ids=lambda app: type(app).__module__)
async def test_each_framework_answers_in_one_line(app):
    async with push.lifespan():
        client = Client(app)
        assert (await client.request("GET", "/answers/nobody-has-asked")).status == 204
        await push.run("5").start(answer(), restart=True)
        async with client.open("/answers/5") as page:
            assert (await page.next_event()).data == "Yes."
            assert (await page.next_event(name="livepush.end")).json()["state"] == "done"
