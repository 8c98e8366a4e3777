"""Script: a Lua script on the server, sent by its name, and with its text where that is not known yet."""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence

from redis.exceptions import NoScriptError

from .command import Receiver
from .connection import Argument, Reply
from .pipeline import Batch


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

    def send(
        self, batch: Batch, keys: Sequence[str], arguments: Iterable[Argument], receiver: Receiver
    ) -> None:
        """Run the script once, or not at all, without a task; the receiver gets what it returns."""
        rest = (len(keys), *keys, *arguments)
        batch.send(_Run(self, batch, rest, receiver), b"EVALSHA", self.name, *rest)

    async def run_asking(self, batch: Batch, keys: Sequence[str], arguments: Iterable[Argument]) -> Reply:
        """Run the script on the node that is about to get its keys."""
        # ASKING is for the next command alone, so there is no second try with the text.
        _, reply = await asyncio.gather(
            batch.submit(b"ASKING"), batch.submit(b"EVAL", self.text, len(keys), *keys, *arguments)
        )
        return reply


class _Run:
    """A run by name. It begins anew with the text where the server does not know the name."""

    __slots__ = ("_batch", "_receiver", "_rest", "_script")

    def __init__(self, script: Script, batch: Batch, rest: tuple[Argument, ...], receiver: Receiver) -> None:
        self._script = script
        self._batch = batch
        self._rest = rest
        self._receiver = receiver

    def done(self) -> bool:
        return self._receiver.done()

    def set_result(self, reply: Reply, /) -> None:
        self._receiver.set_result(reply)

    def set_exception(self, error: Exception, /) -> None:
        if isinstance(error, NoScriptError):
            self._batch.send(self._receiver, b"EVAL", self._script.text, *self._rest)
        else:
            self._receiver.set_exception(error)
