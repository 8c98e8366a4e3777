from asgi import application
from django.contrib.auth.models import Group, User
from django.test import TransactionTestCase
from live import push

from livepush_asgi.testing import Client

FORM = {"content-type": "application/x-www-form-urlencoded"}


class StreamTests(TransactionTestCase):
    async def logged_in(self):
        self.user = await User.objects.acreate_user("ada", password="lovelace")
        await self.async_client.aforce_login(self.user)
        return {"sessionid": self.async_client.cookies["sessionid"].value}

    async def test_a_stream_needs_a_login(self):
        async with Client(application, lifespan=True) as client:
            assert (await client.request("GET", "/events")).status == 401

    async def test_a_member_of_a_group_hears_of_it(self):
        cookies = await self.logged_in()
        group = await Group.objects.acreate(name="editors")
        await self.user.groups.aadd(group)
        async with Client(application, lifespan=True) as client:
            async with client.open("/events", cookies=cookies) as stream:
                await push.publish("group:editors", "a draft")
                assert (await stream.next_event()).data == "a draft"

    async def test_a_committed_change_arrives(self):
        cookies = await self.logged_in()
        async with Client(application, lifespan=True) as client:
            async with client.open("/events", cookies=cookies) as stream:
                await client.request("POST", "/rename", body=b"name=Ada", headers=FORM, cookies=cookies)
                assert (await stream.next_event(5)).json() == {"name": "Ada"}

    async def test_a_logout_ends_the_stream(self):
        cookies = await self.logged_in()
        async with Client(application, lifespan=True) as client:
            async with client.open("/events", cookies=cookies) as stream:
                await client.request("POST", "/logout", cookies=cookies)
                assert await stream.wait_ended(5) == "revoked"

    async def test_a_view_streams_too(self):
        cookies = await self.logged_in()
        async with Client(application, lifespan=True) as client:
            async with client.open("/rooms/kitchen/events", cookies=cookies) as stream:
                await push.publish("room:kitchen", "tea")
                assert (await stream.next_event()).data == "tea"
