import anyio.to_thread

END = object()


async def in_steps(items):
    """Yield the items of a synchronous generator, which runs in threads."""
    try:
        while (item := await anyio.to_thread.run_sync(next, items, END)) is not END:
            yield item
    finally:
        items.close()
