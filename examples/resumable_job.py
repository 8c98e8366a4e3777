"""A job that outlives its page: start, reload, read on. `uvicorn --app-dir examples resumable_job:app`"""

import asyncio
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from livepush_asgi import Grant, LivePush, MemoryBroker

TEXT = "Every word comes once and in order, however often the page is loaded again."
PAGE = """<!doctype html><title>A job</title><button id=start>start a job</button><p id=text></p><script>
function follow() {
  const source = new EventSource("/events/?job=" + location.hash.slice(1))  // The address names the job.
  source.addEventListener("start", () => text.textContent = "")
  source.addEventListener("word", e => text.textContent += e.data + " ")
  source.addEventListener("livepush.gap", () => text.textContent += "[words are missing] ")
  source.addEventListener("end", e => { source.close(); text.textContent += e.data })
}
start.onclick = () => {
  location.hash = crypto.randomUUID()
  fetch("/job/" + location.hash.slice(1), {method: "POST"}).then(follow)
}
if (location.hash) follow()</script>"""


def authorize(request):
    return Grant(channels=f"job:{request.query.get('job', '')}", replay="all")


push = LivePush(MemoryBroker(), authorize)
jobs = set()


async def words():
    for word in TEXT.split():
        await asyncio.sleep(0.1)
        yield word


async def start(request):
    job = asyncio.create_task(push.publish_job("job:" + request.path_params["job"], words(), event="word"))
    jobs.add(job)
    job.add_done_callback(jobs.discard)
    return Response(status_code=202)  # For a second start of the same job too, which runs nothing.


@asynccontextmanager
async def lifespan(app):
    async with push.lifespan():
        yield
        for job in jobs:
            job.cancel()  # The server stops. The readers are told {"error": "cancelled"}.
        await asyncio.gather(*jobs, return_exceptions=True)


page = Route("/", lambda request: HTMLResponse(PAGE))
routes = [page, Route("/job/{job}", start, methods=["POST"]), Mount("/events", push)]
app = Starlette(routes=routes, lifespan=lifespan)
