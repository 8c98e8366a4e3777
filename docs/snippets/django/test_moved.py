from datetime import date

from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import TransactionTestCase
from moved import channel_permission_changed, push, send_event

from livepush_asgi.testing import Client


class MovedTests(TransactionTestCase):
    async def test_a_stream_as_before(self):
        async with Client(push, lifespan=True) as client:
            assert (await client.request("GET", "/?channel=user:1")).status == 403
            assert (await client.request("GET", "/?channel=user:None")).status == 403
            async with client.open("/?channel=news") as stream:
                await sync_to_async(send_event)("news", "message", {"day": date(2026, 11, 29)})
                event = await stream.next_event()
                assert (event.event, event.json()) == ("message", {"day": "2026-11-29"})
                await sync_to_async(send_event)("news", "", "as it is", json_encode=False)
                assert (await stream.next_event()).data == "as it is"

    async def test_a_permission_that_is_taken_away(self):
        user = await User.objects.acreate_user("ada", password="lovelace")
        await self.async_client.aforce_login(user)
        cookies = {"sessionid": self.async_client.cookies["sessionid"].value}
        channel = f"user:{user.pk}"
        async with Client(push, lifespan=True) as client:
            async with client.open(f"/?channel={channel}", cookies=cookies) as stream:
                user.is_active = False
                await user.asave()
                await sync_to_async(channel_permission_changed)(user, channel)
                assert await stream.wait_ended(5) == "revoked"
