from django.contrib.auth.models import Group, User
from django.test import AsyncClient, TransactionTestCase
from project import api
from project.asgi import application
from project.live import push
from rest_framework.authtoken.models import Token

from livepush_asgi import LivePush, MemoryBroker
from livepush_asgi.testing import Client

FORM = {"content-type": "application/x-www-form-urlencoded"}


class StreamTests(TransactionTestCase):
    async def logged_in(self, name="ada", **more):
        user = await User.objects.acreate_user(name, password="lovelace", **more)
        # A client of its own for each user: a second login of one client deletes the session of the first.
        client = AsyncClient()
        await client.aforce_login(user)
        return user, client, {"sessionid": client.cookies["sessionid"].value}

    async def test_a_stream_needs_a_login(self):
        async with Client(application, lifespan=True) as client:
            assert (await client.request("GET", "/events")).status == 401

    async def test_a_member_of_a_group_hears_of_it(self):
        user, _, cookies = await self.logged_in()
        group = await Group.objects.acreate(name="editors")
        await user.groups.aadd(group)
        async with Client(application, lifespan=True) as client:
            async with client.open("/events", cookies=cookies) as stream:
                await push.publish("group:editors", "a draft")
                assert (await stream.next_event()).data == "a draft"

    async def test_a_committed_change_arrives(self):
        _, _, cookies = await self.logged_in()
        async with Client(application, lifespan=True) as client:
            async with client.open("/events", cookies=cookies) as stream:
                await client.request("POST", "/rename", body=b"name=Ada", headers=FORM, cookies=cookies)
                assert (await stream.next_event(5)).json() == {"name": "Ada"}

    async def test_what_a_model_signal_publishes_arrives(self):
        _, _, cookies = await self.logged_in()
        async with Client(application, lifespan=True) as client:
            async with client.open("/events", cookies=cookies) as stream:
                await Group.objects.acreate(name="authors")
                event = await stream.next_event(5, name="group")
                assert event.json()["name"] == "authors"

    async def test_a_logout_ends_the_stream(self):
        for path in ("/logout", "/admin/logout/"):
            _, of_user, cookies = await self.logged_in(path, is_staff=True)
            async with Client(application, lifespan=True) as client:
                async with client.open("/events", cookies=cookies) as stream:
                    await of_user.post(path)
                    assert await stream.wait_ended(5) == "revoked"
                assert (await client.request("GET", "/events", cookies=cookies)).status == 401

    async def test_a_user_who_is_deactivated_hears_nothing_more(self):
        user, _, cookies = await self.logged_in()
        async with Client(application, lifespan=True) as client:
            async with client.open("/events", cookies=cookies) as stream:
                user.is_active = False
                await user.asave()
                assert await stream.wait_ended(5) == "revoked"
            assert (await client.request("GET", "/events", cookies=cookies)).status == 401

    async def test_a_token_gets_a_stream(self):
        user, _, _ = await self.logged_in()
        token = await Token.objects.acreate(user=user)
        push = LivePush(MemoryBroker(), api.authorize)
        async with push.lifespan(), Client(push) as client:
            refused = await client.request("GET", "/")
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Token")
            async with client.open("/", headers={"authorization": f"Token {token.key}"}) as stream:
                assert stream.status == 200

    async def test_a_view_streams_too(self):
        _, _, cookies = await self.logged_in()
        async with Client(application, lifespan=True) as client:
            async with client.open("/rooms/kitchen/events", cookies=cookies) as stream:
                await push.publish("room:kitchen", "tea")
                assert (await stream.next_event()).data == "tea"
