import json
import os

os.environ |= {"SHOP_TOKEN": "one", "BILLING_TOKEN": "two"}

import own
import pytest

from livepush_asgi.testing import Client


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("token", "channel", "status"),
    [
        ("one", "shop:orders", 200),
        ("one", "billing:paid", 403),
        ("two", "billing:paid", 200),
        ("é", "shop:orders", 401),
        ("", "shop:orders", 401),
    ],
)
async def test_each_publisher_has_channels_of_its_own(token, channel, status):
    async with own.push.lifespan(), Client(own.application) as client:
        body = json.dumps({"channel": channel, "data": 1}).encode()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        answer = await client.request("POST", "/publish", body=body, headers=headers)
        assert answer.status == status
