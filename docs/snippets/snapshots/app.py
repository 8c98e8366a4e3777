import asyncio

from livepush_asgi import Event, Grant, LivePush, MemoryBroker

# Stands for a table of a database. Each change of a row raises its version.
stock = {item: {"item": item, "version": 1, "count": 10} for item in ("tea", "milk")}


# start: grant
async def read_stock():
    rows = list(stock.values())  # await session.execute(select(Stock)) ...
    return Event(rows, event="stock")


def authorize(request):
    return Grant(channels="stock", snapshot=read_stock)


push = LivePush(MemoryBroker(), authorize)
# end: grant


# start: publish
async def sell(item):
    row = {**stock[item], "version": stock[item]["version"] + 1, "count": stock[item]["count"] - 1}
    stock[item] = row  # Commit first,
    await push.publish("stock", row, event="item")  # and then publish the whole row.


# end: publish
# start: shared
class SharedRead:
    """Reads once for all clients that wait, and begins no read before the call that it answers."""

    def __init__(self, read):
        self._read = read
        self._running = self._next = None

    async def __call__(self):
        if self._next is None:
            self._next = asyncio.create_task(self._read_after(self._running))
        # A client that leaves cancels its own wait alone.
        return await asyncio.shield(self._next)

    async def _read_after(self, running):
        if running is not None:
            await asyncio.wait([running])
        self._running, self._next = self._next, None
        return await self._read()


# end: shared
