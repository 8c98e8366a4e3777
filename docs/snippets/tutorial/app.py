import os
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.middleware.sessions import SessionMiddleware

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, Refusal, RefusalCause

# start: broker
if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisStreamsBroker(redis), SlotCap(redis, cap=5)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(5)
# end: broker


# start: authorize
def authorize(request):
    user = request.scope["session"].get("user")
    if user is None:
        return Refusal(401, "Log in first.")
    return Grant(channels=["board", f"user:{user}"], slot_key=user, replay=20)


push = LivePush(broker, authorize, slots=slots, soft_refusals={RefusalCause.CAP})
# end: authorize

# start: app
app = FastAPI(lifespan=push.lifespan)
app.add_middleware(SessionMiddleware, secret_key=os.environ.get("SESSION_SECRET", "only for this tutorial"))
app.mount("/events", push)

# Stands for your table of users. Yours has hashes, not passwords.
PASSWORDS = {"ada": "lovelace", "alan": "turing"}


def current_user(request: Request):
    if user := request.session.get("user"):
        return user
    raise HTTPException(401, "Log in first.")


User = Annotated[str, Depends(current_user)]


class Login(BaseModel):
    name: str
    password: str


class Message(BaseModel):
    text: str


@app.post("/login")
async def login(request: Request, given: Login):
    if PASSWORDS.get(given.name) != given.password:
        raise HTTPException(403, "Wrong name or password.")
    request.session["user"] = given.name
    return {"user": given.name}


@app.get("/user")
async def user(user: User):
    return {"user": user}


@app.post("/logout")
async def logout(request: Request, user: User):
    request.session.clear()
    done = await push.disconnect(slot_key=user)
    return {"ended": done.streams}


@app.post("/messages")
async def send(message: Message, user: User):
    return {"id": await push.publish("board", {"user": user, "text": message.text})}


# end: app


PAGE = """<!doctype html><title>Board</title>
<form id=login><input name=name placeholder=ada><input name=password placeholder=lovelace type=password>
<button>log in</button></form>
<form id=form hidden><input id=text><button>send</button> <button id=leave type=button>log out</button></form>
<p id=state></p><ul id=board></ul>
<script>
function follow() {
  login.hidden = true; form.hidden = false
  const source = new EventSource("/events/")
  source.onopen = () => state.textContent = "connected"
  source.onerror = () => state.textContent = source.readyState == 2 ? "logged out" : "reconnecting"
  source.addEventListener("livepush.refused", event => state.textContent = JSON.parse(event.data).detail)
  source.onmessage = event => {
    const {user, text} = JSON.parse(event.data)
    const line = document.createElement("li")
    line.textContent = user + ": " + text
    board.append(line)
  }
  source.addEventListener("livepush.gap", () => state.textContent = "some messages are missing: reload")
}
const post = (path, values) => fetch(path, {
  method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(values)
})
login.onsubmit = async event => {
  event.preventDefault()
  if ((await post("/login", Object.fromEntries(new FormData(login)))).ok) follow()
}
form.onsubmit = async event => {
  event.preventDefault()
  if ((await post("/messages", {text: text.value})).ok) text.value = ""
}
leave.onclick = () => post("/logout")
fetch("/user").then(answer => { if (answer.ok) follow() })  // logged in before
</script>"""


@app.get("/", response_class=HTMLResponse)
async def home():
    return PAGE
