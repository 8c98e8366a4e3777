"""FastAPI: log in, listen, log out. `uvicorn --app-dir examples fastapi_login:app`

LOGIN_SECONDS is how long a login lasts; the page prolongs it. A second worker needs LIVEPUSH_REDIS.
"""

import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe
from tempfile import gettempdir
from typing import Annotated

from fastapi import Body, Cookie, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse

from livepush_asgi import Grant, LivePush, MemoryBroker
from livepush_asgi.contrib.fastapi import depends

broker = MemoryBroker()
if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    broker = RedisStreamsBroker(Redis.from_url(url))

SECONDS = float(os.environ.get("LOGIN_SECONDS", "3600"))
USERS = {"ada": "lovelace", "alan": "turing"}
path = os.environ.get("DATABASE", Path(gettempdir()) / "fastapi_login.sqlite3")


# start: dependencies
def open_database():
    # A session of the database. It is closed before the stream begins, not when the stream ends.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        yield database
    finally:
        database.close()


Database = Annotated[sqlite3.Connection, Depends(open_database)]


@dataclass
class Login:
    id: str
    user: str
    expires_at: float


def current_login(database: Database, login: Annotated[str | None, Cookie()] = None):
    query = "SELECT * FROM logins WHERE id = ? AND expires_at > ?"
    if row := database.execute(query, (login, time.time())).fetchone():
        return Login(*row)
    raise HTTPException(401, "Log in first.")


CurrentLogin = Annotated[Login, Depends(current_login)]


def my_stream(login: CurrentLogin):
    channels = ["news", f"user:{login.user}"]
    return Grant(channels=channels, slot_key=login.user, expires_at=login.expires_at)


push = LivePush(broker, depends(my_stream))
app = FastAPI(lifespan=push.lifespan)
app.mount("/events", push)
# end: dependencies

for each in open_database():
    each.execute("CREATE TABLE IF NOT EXISTS logins (id TEXT PRIMARY KEY, user TEXT, expires_at REAL)")


@app.get("/")
def home():
    return FileResponse(Path(__file__).with_name("login.html"))


@app.post("/login")
def log_in(
    database: Database, response: Response, user: Annotated[str, Body()], password: Annotated[str, Body()]
):
    if not password or USERS.get(user) != password:
        raise HTTPException(401)
    login = token_urlsafe()
    database.execute("INSERT INTO logins VALUES (?, ?, ?)", (login, user, time.time() + SECONDS))
    # With secure=True where the page comes by https.
    response.set_cookie("login", login, httponly=True, samesite="lax")
    return {"seconds": SECONDS}


@app.post("/refresh")
def refresh(login: CurrentLogin, database: Database):
    database.execute("UPDATE logins SET expires_at = ? WHERE id = ?", (time.time() + SECONDS, login.id))
    return {"seconds": SECONDS}


# start: logout
@app.post("/logout", status_code=204)
async def log_out(login: CurrentLogin, database: Database):
    # First the permission goes, then the streams.
    database.execute("DELETE FROM logins WHERE id = ?", [login.id])
    await push.disconnect(slot_key=login.user)


# end: logout
@app.post("/publish", status_code=204)
async def publish(request: Request, login: CurrentLogin):
    await push.publish("news", await request.body())
