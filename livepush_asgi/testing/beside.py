"""Running an application beside the body of a context, with the body's own errors left as they are."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio

Step = Callable[[], Coroutine[Any, Any, None]]


@asynccontextmanager
async def beside(run: Step, *, finish: Step) -> AsyncIterator[None]:
    """Run `run` beside the body; after the body call `finish`, then cancel what is left of `run`.

    A task group alone would wrap whatever the body raises in an exception group, and no test could
    expect a plain error of the `async with` it stands in. What `finish` raises comes out too, or is
    noted on the body's own error, which is the one to see.
    """
    raised: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            raised = error
        raised = await _finish(finish, raised)
        tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised


async def _finish(finish: Step, raised: BaseException | None) -> BaseException | None:
    try:
        await finish()
    except Exception as error:
        if raised is None:
            return error
        raised.add_note(f"and on leaving: {error!r}")
    return raised
