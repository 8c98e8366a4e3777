"""Ledger: the leases as the server keeps them. Each call is atomic on the keys of each slot key.

`scripts` says what the keys hold.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...brokers.redis_connection import Argument, Reply
from ...brokers.redis_log import Call
from ...brokers.redis_script import Script
from ...brokers.redis_tag import tag_of
from . import scripts
from .requests import Part
from .server import Server

# A process that was cut off for longer than its leases live brings them back. The tombstones of those that
# were replaced meanwhile live for this many times `ttl`.
GONE_TTLS = 3


class Age(NamedTuple):
    """A lease to renew."""

    id: str
    #: How long ago it was taken, in seconds.
    age: float


class Ledger:
    """The scripts, for one cap.

    With `strict` a lease that has expired does not come back to a slot key that is full by then.
    """

    def __init__(
        self, server: Server, *, prefix: str, cap: int, ttl: float, replace: bool, strict: bool
    ) -> None:
        self._server = server
        self._prefix = prefix
        self._ttl = round(ttl * 1_000_000)
        self._change_arguments = (cap, self._ttl, int(replace), self._ttl * GONE_TTLS, self._ttl)
        self._renew_arguments = (self._ttl, cap if strict else 0)

    def place_of(self, slot_key: str) -> str:
        """Return the name of the server that has a slot key, as far as known."""
        return self._server.place_of(tag_of(slot_key))

    def change(self, parts: Sequence[Part]) -> asyncio.Future[Reply]:
        """Give back and take leases. The future raises one of FAILURES."""
        keys: list[str] = []
        arguments: list[Argument] = [*self._change_arguments]
        for part in parts:
            keys += self._keys(part.slot_key)
            arguments.append(part.words)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._server.start(Call(scripts.CHANGE, tag_of(parts[0].slot_key), keys, arguments), reply)
        return reply

    async def renew(self, slot_key: str, leases: Iterable[Age]) -> tuple[str, ...]:
        """Let leases live for another `ttl`, also those that the server lost. Return those that have ended.

        Raises one of FAILURES.
        """
        pairs = (argument for lease in leases for argument in (lease.id, round(lease.age * 1_000_000)))
        reply = await self._run(scripts.RENEW, slot_key, (*self._renew_arguments, *pairs))
        assert isinstance(reply, list)
        return tuple(id_.decode() for id_ in reply if isinstance(id_, bytes))

    async def count(self, slot_key: str) -> int:
        """Return how many leases live. Raises one of FAILURES."""
        reply = await self._run(scripts.COUNT, slot_key, ())
        assert isinstance(reply, int)
        return reply

    async def _run(self, script: Script, slot_key: str, arguments: Sequence[Argument]) -> Reply:
        return await self._server.run(Call(script, tag_of(slot_key), self._keys(slot_key), arguments))

    def _keys(self, slot_key: str) -> tuple[str, str, str]:
        # The braces put all keys of a slot key into one slot of a cluster, and away from the predecessor's.
        key = f"{self._prefix}{{{tag_of(slot_key)}}}"
        return key, f"{key}:since", f"{key}:gone"
