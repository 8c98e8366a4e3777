"""Outbox: what waits for one client, bounded in events and in bytes."""

from collections import deque
from typing import NamedTuple

from .settings import Limits


class Delivery(NamedTuple):
    """One block on its way to the streams of a channel. The same object waits in every outbox."""

    channel: str
    block: bytes


class OutboxFullError(Exception):
    """Raised by `put` when the outbox is full and its policy is to end the stream."""


class Outbox:
    """A queue of deliveries with room for `limits.outbox_events` and `limits.outbox_bytes`.

    A single delivery larger than all the room is taken when nothing else waits, so that one large
    event does not keep a stream from ever going on.
    """

    __slots__ = ("_bytes", "_dropped", "_items", "_limits")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._items: deque[Delivery] = deque()
        self._bytes = 0
        self._dropped: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        return bool(self._items or self._dropped)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait."""
        return self._bytes

    def put(self, delivery: Delivery) -> None:
        """Add a delivery. Raises OutboxFullError, or drops the oldest, as the policy says."""
        size = self._bytes + len(delivery.block)
        if self._items and (
            size > self._limits.outbox_bytes or len(self._items) >= self._limits.outbox_events
        ):
            self._make_room(len(delivery.block))
            size = self._bytes + len(delivery.block)
        self._items.append(delivery)
        self._bytes = size

    def take(self) -> bytes:
        """Return what waits, joined, up to `limits.message_bytes` or one delivery."""
        items = self._items
        if self._bytes <= self._limits.message_bytes:
            joined = b"".join([item.block for item in items])
            items.clear()
            self._bytes = 0
            return joined
        blocks = [items.popleft().block]
        size = len(blocks[0])
        while items and size + len(items[0].block) <= self._limits.message_bytes:
            blocks.append(items.popleft().block)
            size += len(blocks[-1])
        self._bytes -= size
        return b"".join(blocks)

    def take_dropped(self) -> dict[str, int]:
        """Return how many deliveries of each channel were dropped since last asked.

        All of them were older than what `take` returns next.
        """
        dropped, self._dropped = self._dropped, {}
        return dropped

    def clear(self) -> None:
        """Discard what waits."""
        self._items.clear()
        self._bytes = 0
        self._dropped = {}

    def _make_room(self, needed: int) -> None:
        if self._limits.overflow == "close":
            raise OutboxFullError
        while self._items and (
            self._bytes + needed > self._limits.outbox_bytes or len(self._items) >= self._limits.outbox_events
        ):
            channel, block = self._items.popleft()
            self._bytes -= len(block)
            self._dropped[channel] = self._dropped.get(channel, 0) + 1
