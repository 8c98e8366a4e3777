"""Orders in PostgreSQL. The event of an order is in the transaction that adds it: there are both, or neither.

`DATABASE_URL=postgresql://user@localhost/database uvicorn --app-dir examples postgres_orders:app`
"""

import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from livepush_asgi import LivePush, PostgresBroker, public

URL = os.environ.get("DATABASE_URL", "postgresql://localhost/postgres")
TABLES = """
CREATE TABLE IF NOT EXISTS orders (id serial PRIMARY KEY, item text NOT NULL);
CREATE TABLE IF NOT EXISTS stock (item text PRIMARY KEY, pieces int NOT NULL);
INSERT INTO stock VALUES ('tea', 3) ON CONFLICT DO NOTHING;
"""
PAGE = """<!doctype html><title>Orders</title>
<button onclick="fetch('/orders/tea', {method: 'POST'})">Tea</button><pre id=log></pre><script>
new EventSource("/events").onmessage = e => log.textContent += e.data + "\\n"</script>"""

broker = PostgresBroker(URL)
push = LivePush(broker, public("orders"))


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(URL) as pool, broker, push.lifespan():
        await pool.execute(TABLES)
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/events", push)


@app.get("/", response_class=HTMLResponse)
async def home():
    return PAGE


# start: order
@app.post("/orders/{item}", status_code=201)
async def order(item: str):
    async with app.state.pool.acquire() as connection, connection.transaction():
        number = await connection.fetchval("INSERT INTO orders (item) VALUES ($1) RETURNING id", item)
        await push.publish_in(connection, "orders", {"order": number, "item": item})
        taken = "UPDATE stock SET pieces = pieces - 1 WHERE item = $1 AND pieces > 0"
        if await connection.execute(taken, item) != "UPDATE 1":
            # The transaction rolls back: there is no order, and nobody hears of one.
            raise HTTPException(409, f"no {item} is left")
    return {"order": number}


# end: order
