"""Script: a Lua script on the server, sent by its name, and with its text where that is not known yet."""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from ..loop import asyncio_loop
from .batch import Batch
from .redis_connection import Argument, Reply


class Script:
    """The text of a script, and the name that the server has for it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        # Not for security: it is how the server names a script.
        self.name = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    async def run(self, batch: Batch, keys: Sequence[str], arguments: Iterable[Argument]) -> Reply:
        """Run the script once, or not at all. Raises what `Batch.call` raises."""
        rest = (len(keys), *keys, *arguments)
        try:
            return await batch.call(b"EVALSHA", self.name, *rest)
        except NoScriptError:
            # Nothing was done. The text goes along this once, so that it cannot be missing again.
            return await batch.call(b"EVAL", self.text, *rest)

    def submit(
        self, batch: Batch, keys: Sequence[str], arguments: Iterable[Argument]
    ) -> asyncio.Future[Reply]:
        """Run the script without a task, and return what will be its reply. Not to be cancelled."""
        rest = (len(keys), *keys, *arguments)
        reply: asyncio.Future[Reply] = asyncio_loop().create_future()

        def settle(answer: asyncio.Future[Reply]) -> None:
            error = RedisConnectionError("the event loop ended") if answer.cancelled() else answer.exception()
            if isinstance(error, NoScriptError):
                batch.submit(b"EVAL", self.text, *rest).add_done_callback(settle)
            elif error is not None:
                reply.set_exception(error)
            else:
                reply.set_result(answer.result())

        batch.submit(b"EVALSHA", self.name, *rest).add_done_callback(settle)
        return reply

    async def run_asking(self, batch: Batch, keys: Sequence[str], arguments: Iterable[Argument]) -> Reply:
        """Run the script on the node that is about to get its keys."""
        # ASKING is for the next command alone, so there is no second try with the text.
        _, reply = await asyncio.gather(
            batch.submit(b"ASKING"), batch.submit(b"EVAL", self.text, len(keys), *keys, *arguments)
        )
        return reply
