"""State: the result of an application's snapshot, and the part of it that a client has not been sent yet."""

import inspect
from collections.abc import Callable

from ..runtime.callbacks import Callbacks
from ..wire.encode import Encode
from ..wire.event import event_of


class State:
    """The state for one client. It is owed from `restart` until `take` has returned its last block.

    `snapshot` is a function, async or not. It returns one event or a list (or tuple) of them, each an Event
    or data for one.
    """

    __slots__ = ("_blocks", "_request_count", "_snapshot", "called", "owed")

    def __init__(self, snapshot: Callable[[], object]) -> None:
        self._snapshot = snapshot
        #: Whether the client has not been sent the whole state; its ids then carry the mark of `owed`.
        self.owed = False
        #: Whether the callback was called since the last request: it has what was published before.
        self.called = False
        # The blocks that have not been taken; None until the callback has returned.
        self._blocks: list[bytes] | None = None
        # How often the state was requested: the result of an earlier request is discarded.
        self._request_count = 0

    def restart(self) -> None:
        """Request the state again, from its beginning."""
        self.owed, self.called, self._blocks = True, False, None
        self._request_count += 1

    @property
    def must_read(self) -> bool:
        """Whether the callback has to be called."""
        return self.owed and self._blocks is None

    async def read(
        self,
        callbacks: Callbacks,
        timeout: float,
        encode: Encode | None,
        on_call: Callable[[], object],
    ) -> None:
        """Call the callback, and keep its result unless the state was requested again meanwhile.

        `encode` encodes the data in it; None for the default. `on_call` is called right before the callback,
        in the same turn of the event loop.

        Raises what the callback raises, InvalidEventError, and TimeoutError after `timeout` seconds.
        """
        request, found = await callbacks.result(self._call(on_call), timeout=timeout)
        events = found if isinstance(found, (list, tuple)) else [found]
        blocks = [event_of(item, encode).encode() for item in events]
        if request == self._request_count:
            self._blocks = blocks

    async def _call(self, on_call: Callable[[], object]) -> tuple[int, object]:
        """Return the number of the request that the call answers, and the result."""
        on_call()
        request, self.called = self._request_count, True
        # An async function runs only here, in the task that awaits it.
        found = self._snapshot()
        return request, await found if inspect.isawaitable(found) else found

    def take(self, most: int) -> list[bytes]:
        """Remove and return the next blocks: up to `most` bytes, or one block."""
        blocks, size, count = self._blocks, 0, 0
        if blocks is None:
            return []
        while count < len(blocks) and (not count or size + len(blocks[count]) <= most):
            size += len(blocks[count])
            count += 1
        self._blocks = blocks[count:]
        if not self._blocks:
            self.owed, self._blocks = False, None
        return blocks[:count]
