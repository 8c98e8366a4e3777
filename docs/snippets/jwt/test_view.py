import time

import jwt
import pytest
from view import SECRET, app

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_a_view_refuses_as_a_stream_does():
    token = jwt.encode({"sub": "ada", "exp": int(time.time()) + 60}, SECRET, "HS256")
    async with Client(app) as client:
        assert (await client.request("GET", "/me", cookies={"token": token})).status == 200
        refused = await client.request("GET", "/me")
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
