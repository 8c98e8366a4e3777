import pytest
from app import app

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def logged_in(client, name, password):
    answer = await client.request("POST", "/login", json={"name": name, "password": password})
    assert answer.status == 200
    return {"cookie": answer.headers["set-cookie"].partition(";")[0]}


@pytest.mark.anyio
async def test_a_message_reaches_the_others():
    async with Client(app, lifespan=True) as client:
        ada = await logged_in(client, "ada", "lovelace")
        alan = await logged_in(client, "alan", "turing")
        async with client.open("/events/", headers=ada) as stream:
            await client.request("POST", "/messages", json={"text": "hello"}, headers=alan)
            event = await stream.next_event()
            assert event.json() == {"user": "alan", "text": "hello"}


@pytest.mark.anyio
async def test_without_a_login_there_is_no_stream():
    async with Client(app, lifespan=True) as client:
        answer = await client.request("GET", "/events/")
        assert answer.status == 401


@pytest.mark.anyio
async def test_a_logout_ends_the_streams():
    async with Client(app, lifespan=True) as client:
        ada = await logged_in(client, "ada", "lovelace")
        async with client.open("/events/", headers=ada) as stream:
            await client.request("POST", "/logout", headers=ada)
            assert await stream.wait_ended() == "revoked"
