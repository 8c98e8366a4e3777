import asyncio

END = object()


async def in_steps(items):
    """Yield the items of a synchronous generator. Each of its steps is made in a thread."""
    try:
        while True:
            step = asyncio.create_task(asyncio.to_thread(next, items, END))
            # A thread cannot be interrupted.
            if (item := await asyncio.shield(step)) is END:
                return
            yield item
    finally:
        # After the step that it is at.
        step.add_done_callback(lambda _: items.close())
