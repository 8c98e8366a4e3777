"""Starlette: log in, listen, log out. `uvicorn --app-dir examples starlette_login:app`

LOGIN_SECONDS is how long a login lasts; the page prolongs it. A second worker needs LIVEPUSH_REDIS.
"""

import os
import sqlite3
import time
from pathlib import Path
from secrets import token_urlsafe
from tempfile import gettempdir

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from livepush_asgi import Grant, LivePush, MemoryBroker

broker = MemoryBroker()
if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    broker = RedisStreamsBroker(Redis.from_url(url))

SECONDS = float(os.environ.get("LOGIN_SECONDS", "3600"))
USERS = {"ada": "lovelace", "alan": "turing"}
# Stands for the application's database, which answers asynchronously.
path = os.environ.get("DATABASE", Path(gettempdir()) / "starlette_login.sqlite3")
database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
database.execute("CREATE TABLE IF NOT EXISTS logins (id TEXT PRIMARY KEY, user TEXT, expires_at REAL)")


# start: authorize
class User(SimpleUser):
    def __init__(self, name, expires_at):
        super().__init__(name)
        self.expires_at = expires_at


class Logins(AuthenticationBackend):
    async def authenticate(self, connection):
        # The session is in a cookie, which its browser could keep: only the table knows of a logout.
        values = connection.session.get("login"), time.time()
        query = "SELECT user, expires_at FROM logins WHERE id = ? AND expires_at > ?"
        if row := database.execute(query, values).fetchone():
            return AuthCredentials(["authenticated"]), User(*row)


logins = Logins()


async def authorize(request):
    # `request.scope["user"]` was looked up before; a logout since then would go unnoticed.
    found = await logins.authenticate(HTTPConnection(request.scope))
    if found is None:
        raise HTTPException(401, "Log in first.")
    _, user = found
    channels = ["news", f"user:{user.username}"]
    return Grant(channels=channels, slot_key=user.username, expires_at=user.expires_at)


# end: authorize
push = LivePush(broker, authorize)


async def home(request):
    return FileResponse(Path(__file__).with_name("login.html"))


async def log_in(request):
    data = await request.json()
    if not data["password"] or USERS.get(data["user"]) != data["password"]:
        raise HTTPException(401)
    request.session["login"] = token_urlsafe()
    values = request.session["login"], data["user"], time.time() + SECONDS
    database.execute("INSERT INTO logins VALUES (?, ?, ?)", values)
    return JSONResponse({"seconds": SECONDS})


@requires("authenticated", status_code=401)
async def refresh(request):
    values = time.time() + SECONDS, request.session["login"]
    database.execute("UPDATE logins SET expires_at = ? WHERE id = ?", values)
    return JSONResponse({"seconds": SECONDS})


# start: logout
@requires("authenticated", status_code=401)
async def log_out(request):
    # First the permission goes, then the streams.
    database.execute("DELETE FROM logins WHERE id = ?", [request.session.pop("login")])
    await push.disconnect(slot_key=request.user.username)
    return Response(status_code=204)


# end: logout
@requires("authenticated", status_code=401)
async def publish(request):
    await push.publish("news", await request.body())
    return Response(status_code=204)


routes = [
    Route("/", home),
    Route("/login", log_in, methods=["POST"]),
    Route("/refresh", refresh, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
    Route("/publish", publish, methods=["POST"]),
    Mount("/events", push),
]
middleware = [
    Middleware(SessionMiddleware, secret_key=os.environ.get("SESSION_SECRET", "only for this example")),
    Middleware(AuthenticationMiddleware, backend=logins),
]
app = Starlette(routes=routes, middleware=middleware, lifespan=push.lifespan)
