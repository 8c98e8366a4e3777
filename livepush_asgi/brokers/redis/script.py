"""Lua scripts on the server: called by name, and sent as text if the server does not know the name yet."""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from redis.asyncio import Redis

from ...runtime.event_loop import asyncio_loop
from .connection import Argument, Reply
from .pipeline import Pipeline, Receiver

_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


def tag_of(name: str) -> str:
    """Return the hash tag for the keys of a channel or slot key: its name, with `%`, `{` and `}` escaped.

    A Redis Cluster hashes the text between the braces, so all keys with one tag are on one node. Different
    names have different tags. An empty text would be no tag.
    """
    return name.translate(_ESCAPES) or "%"


class Script:
    """The text of a script, and its SHA-1, which is the server's name for it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.name = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    async def run(self, pipeline: Pipeline, keys: Sequence[str], arguments: Iterable[Argument]) -> Reply:
        """Run the script once, or not at all. Raises what `Pipeline.submit` raises."""
        reply: asyncio.Future[Reply] = asyncio_loop().create_future()
        self.send(pipeline, keys, arguments, reply)
        return await reply

    def send(
        self, pipeline: Pipeline, keys: Sequence[str], arguments: Iterable[Argument], receiver: Receiver
    ) -> None:
        """Run the script once, or not at all. Its reply goes to `receiver`."""
        rest = (len(keys), *keys, *arguments)
        by_text = partial(pipeline.send, receiver, b"EVAL", self.text, *rest)
        pipeline.send(receiver, b"EVALSHA", self.name, *rest, fallback=by_text)

    async def run_asking(
        self, pipeline: Pipeline, keys: Sequence[str], arguments: Iterable[Argument]
    ) -> Reply:
        """Run the script on the node to which its keys are being moved."""
        # ASKING is for the next command alone, so the text is sent at once.
        _, reply = await asyncio.gather(
            pipeline.submit(b"ASKING"), pipeline.submit(b"EVAL", self.text, len(keys), *keys, *arguments)
        )
        return reply


class Call(NamedTuple):
    """A run of a script: all its keys have the hash tag `tag`."""

    script: Script
    tag: str
    keys: Sequence[str]
    arguments: Sequence[Argument]


class OneServer:
    """Runs scripts on one server. A call whose reply is lost is not repeated."""

    verb = "PUBLISH"
    #: Empty: calls have no number by which the server would recognize a repeated one.
    writer = ""

    def __init__(self, redis: Redis, timeout: float) -> None:
        self._pipeline = Pipeline(redis, timeout=timeout, idle_turns=2)

    def start(self, call: Call, receiver: Receiver) -> None:
        """Run a script. Its reply goes to `receiver`, after this method has returned."""
        call.script.send(self._pipeline, call.keys, call.arguments, receiver)

    async def run(self, call: Call) -> Reply:
        """Run a script. Raises one of FAILURES if it did not run, or may not have run."""
        return await call.script.run(self._pipeline, call.keys, call.arguments)
