"""The smallest application: a page, a stream, a publisher. `uvicorn --app-dir examples fifteen_lines:app`"""

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from livepush_asgi import LivePush, MemoryBroker, public

push = LivePush(MemoryBroker(), public("news"))
PAGE = """<button onclick="fetch('/', {method: 'POST'})">publish</button><pre id=log></pre>
<script>new EventSource("/events/").onmessage = e => log.textContent += e.data + "\\n"</script>"""


async def home(request):
    if request.method == "POST":
        await push.publish("news", {"hello": request.client.host})
    return HTMLResponse(PAGE)


routes = [Route("/", home, methods=["GET", "POST"]), Mount("/events", push)]
app = Starlette(routes=routes, lifespan=push.lifespan)
