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
  // The address names the job, after a reload too.
  const source = new EventSource("/events/?job=" + location.hash.slice(1))
  source.addEventListener("start", () => text.textContent = "")
  source.addEventListener("word", e => text.textContent += e.data + " ")
  source.addEventListener("livepush.gap", () => text.textContent += "[words are missing] ")
  source.addEventListener("end", e => { source.close(); text.textContent += e.data })
}
start.onclick = async () => {
  location.hash = crypto.randomUUID()
  await fetch("/job/" + location.hash.slice(1), {method: "POST"})
  follow()
}
if (location.hash) follow()
</script>"""


def authorize(request):
    return Grant(channels=f"job:{request.query.get('job', '')}", replay="all")


push = LivePush(MemoryBroker(), authorize)


async def words():
    for word in TEXT.split():
        await asyncio.sleep(0.1)
        yield word


async def start(request):
    job = push.publish_job(f"job:{request.path_params['job']}", words(), event="word")
    request.state.jobs.create_task(job)  # A second start of the same job runs nothing.
    return Response(status_code=202)


@asynccontextmanager
async def lifespan(app):
    async with push.lifespan(), asyncio.TaskGroup() as jobs:
        yield {"jobs": jobs}


async def home(request):
    return HTMLResponse(PAGE)


routes = [Route("/", home), Route("/job/{job}", start, methods=["POST"]), Mount("/events", push)]
app = Starlette(routes=routes, lifespan=lifespan)
