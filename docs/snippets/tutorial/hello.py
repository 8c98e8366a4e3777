from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from livepush_asgi import LivePush, MemoryBroker, public

push = LivePush(MemoryBroker(), public("board"))
app = FastAPI(lifespan=push.lifespan)
app.mount("/events", push)

PAGE = """<!doctype html><title>Board</title>
<form id=form><input id=text autofocus><button>send</button></form>
<p id=state></p><ul id=board></ul>
<script>
const source = new EventSource("/events/")
source.onmessage = event => {
  const line = document.createElement("li")
  line.textContent = JSON.parse(event.data).text
  board.append(line)
}
source.addEventListener("livepush.gap", () => state.textContent = "some messages are missing")
form.onsubmit = event => {
  event.preventDefault()
  fetch("/messages", {method: "POST", body: text.value})
  text.value = ""
}
</script>"""


@app.get("/", response_class=HTMLResponse)
async def home():
    return PAGE


@app.post("/messages")
async def send(request: Request):
    text = (await request.body()).decode()
    return {"id": await push.publish("board", {"text": text})}
