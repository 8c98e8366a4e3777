"""Who is in a room: `uvicorn --app-dir examples presence:app`, http://127.0.0.1:8000/?user=ann in two tabs"""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from livepush_asgi import Event, Grant, LivePush, MemoryBroker

PAGE = """<!doctype html><title>Who is here</title><p id=users></p><script>
const here = new Set(), source = new EventSource("/events/" + location.search)
const on = (name, change) => source.addEventListener(name, event => {
  change(event.data); users.textContent = [...here].join(", ") })
on("here", data => { here.clear(); JSON.parse(data).forEach(user => here.add(user)) })
on("join", user => here.add(user)); on("leave", user => here.delete(user))</script>"""

streams = Counter()  # How many streams each user has in this process: one for each tab.


def on_open(grant):
    streams[grant.slot_key] += 1
    if streams[grant.slot_key] == 1:
        changes.put_nowait(("join", grant.slot_key))


def on_end(grant, reason, duration, sent):
    streams[grant.slot_key] -= 1
    if not streams[grant.slot_key]:
        del streams[grant.slot_key]
        changes.put_nowait(("leave", grant.slot_key))


def authorize(request):
    user = "".join(filter(str.isalnum, request.query.get("user", "guest")))  # Stands for a login.
    return Grant(channels="room", slot_key=user, snapshot=lambda: Event(sorted(streams), event="here"))


push = LivePush(MemoryBroker(), authorize, on_open=on_open, on_end=on_end)


async def publish_changes():
    while True:  # One task, so that a leave never overtakes its join.
        name, user = await changes.get()
        await push.publish("room", user, event=name)


@asynccontextmanager
async def lifespan(app):
    global changes
    changes = asyncio.Queue()
    publishing = asyncio.create_task(publish_changes())
    async with push.lifespan():
        yield
    publishing.cancel()


app = Starlette(routes=[Route("/", lambda _: HTMLResponse(PAGE)), Mount("/events", push)], lifespan=lifespan)
