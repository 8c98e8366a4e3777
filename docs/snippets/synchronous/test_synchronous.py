import threading

import pytest

from livepush_asgi import Grant, LivePush, MemoryBroker
from livepush_asgi.testing import Client


class Sessions:
    """Stands for a database that blocks, and that belongs to a thread."""

    def find(self, key):
        assert threading.current_thread() is not event_loop_thread
        return {"abc": "ada"}[key]


sessions = Sessions()
event_loop_thread = threading.current_thread()

# start: authorize
from asgiref.sync import sync_to_async


@sync_to_async
def authorize(request):
    user = sessions.find(request.cookies["session"])
    return Grant(channels=f"user:{user}", slot_key=user)


# end: authorize
push = LivePush(MemoryBroker(), authorize)


# start: view
def view(request):
    push.publish_sync("user:ada", {"hello": "world"})


# end: view


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_both_run_in_a_thread():
    async with Client(push, lifespan=True) as client:
        async with client.open("/", cookies={"session": "abc"}) as stream:
            await sync_to_async(view, thread_sensitive=False)(None)
            assert (await stream.next_event()).data == '{"hello":"world"}'
