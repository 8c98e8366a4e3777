"""OpenStreams: the streams of one run, found by slot key and by channel without looking at all of them."""

from collections.abc import Iterable

import anyio

from ..hub.hub import Hub
from ..slots import Lease
from ..stream.stream import Stream
from ..wire.reasons import EndReason, StreamState
from .revocation import Revocation

# How long a stream that is revoked may take to send what was published before, in seconds; then it is cut.
LAST_WORDS = 1.0


class Ending:
    """Streams that have to close. `count` says how many of them were not ending before."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self.left = {stream for stream in streams if stream.state is not StreamState.CLOSED}
        self.count = sum(stream.reason is None for stream in self.left)
        self.done = anyio.Event()

    def closed(self, stream: Stream) -> None:
        """Take note that a stream has closed."""
        self.left.discard(stream)
        if not self.left:
            self.done.set()


class OpenStreams:
    """The open streams. Channels are looked up in the hub, which knows the listeners of each."""

    def __init__(self) -> None:
        self.all: set[Stream] = set()
        # Most keys have one stream, which needs no set of its own.
        self._by_key: dict[str, Stream | set[Stream]] = {}
        self._endings: list[Ending] = []

    def add(self, stream: Stream) -> None:
        """Take note of an open stream."""
        self.all.add(stream)
        key = stream.grant.slot_key
        if key is not None:
            known = self._by_key.setdefault(key, stream)
            if isinstance(known, set):
                known.add(stream)
            elif known is not stream:
                self._by_key[key] = {known, stream}

    def discard(self, stream: Stream) -> None:
        """Forget a stream that has closed."""
        self.all.discard(stream)
        key = stream.grant.slot_key
        if key is not None:
            known = self._by_key.get(key)
            if isinstance(known, set):
                known.discard(stream)
            if known is stream or not known:
                self._by_key.pop(key, None)
        for ending in self._endings:
            ending.closed(stream)

    def of_key(self, slot_key: str) -> list[Stream]:
        """Return the streams of a slot key."""
        known = self._by_key.get(slot_key)
        return list(known) if isinstance(known, set) else [] if known is None else [known]

    def revoke(self, hub: Hub, revocation: Revocation) -> Ending:
        """Have the streams end that a revocation matches. Returns at once; see `closed`."""
        if revocation.slot_key is not None:
            found = self.of_key(revocation.slot_key)
        else:
            listeners = hub.listeners(revocation.channel or "")
            found = [listener for listener in listeners if isinstance(listener, Stream)]
        ending = Ending(stream for stream in found if revocation.matches(stream.grant))
        for stream in list(ending.left):
            stream.end(EndReason.REVOKED)
        return ending

    async def closed(self, ending: Ending) -> None:
        """Return when the streams have closed; cut those that take too long."""
        # Some may have closed since they were told to end.
        ending.left &= self.all
        if not ending.left:
            return
        self._endings.append(ending)
        try:
            with anyio.move_on_after(LAST_WORDS):
                await ending.done.wait()
        finally:
            self._endings.remove(ending)
            for stream in list(ending.left):
                stream.abort(EndReason.REVOKED)


class Opening:
    """Hears that a slot is replaced while its stream is not made yet, and tells the stream."""

    def __init__(self) -> None:
        self._stream: Stream | None = None
        self._replaced = False

    def became(self, stream: Stream, lease: Lease | None) -> None:
        """Hand over to the stream what happens to its slot."""
        self._stream = stream
        if lease is not None and lease.on_replaced is not None:
            # This one is needed no more then, unless the cap has kept what it was given.
            lease.on_replaced = stream.replaced
        if self._replaced:
            stream.replaced()

    def replace(self) -> None:
        """Hear that the slot goes to a newer stream."""
        self._replaced = True
        if self._stream is not None:
            self._stream.replaced()
