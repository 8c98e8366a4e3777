"""Outbox: the deliveries that wait for one client, bounded in events and in bytes."""

from collections.abc import Sequence

from ..hub.delivery import Delivery
from ..settings import Limits
from ..wire.event import name_line


class OutboxFullError(Exception):
    """Raised by `put` when the outbox is full and the overflow policy drops nothing."""


class Outbox:
    """A queue of at most `limits.outbox_events` deliveries and `limits.outbox_bytes` bytes.

    An empty outbox accepts a single delivery of any size, so that one large event does not block a stream
    for ever.
    """

    __slots__ = ("_bytes", "_dropped", "_items", "_limits", "_most_bytes", "_most_events")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most_bytes = limits.outbox_bytes
        self._most_events = limits.outbox_events
        # None while the outbox is empty, as it nearly always is: this saves memory.
        self._items: list[Delivery] | None = None
        self._bytes = 0
        self._dropped: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._items or ())

    def __bool__(self) -> bool:
        return bool(self._items or self._dropped)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes the outbox holds."""
        return self._bytes

    def put(self, delivery: Delivery) -> None:
        """Add a delivery. If there is no room, drop the oldest or raise OutboxFullError, by the policy."""
        # This runs once for every event and stream, so it calls as little as possible.
        items = self._items
        size = self._bytes + len(delivery.block)
        if items and (size > self._most_bytes or len(items) >= self._most_events):
            self._make_room(len(delivery.block))
            size = self._bytes + len(delivery.block)
        if items:
            items.append(delivery)
        else:
            self._items = [delivery]
        self._bytes = size

    def put_all(self, deliveries: Sequence[Delivery], size: int) -> bool:
        """Add deliveries of `size` bytes in all if there is room for every one. Return whether there was."""
        fits = size + self._bytes <= self._most_bytes
        if fits and len(self) + len(deliveries) <= self._most_events:
            if self._items:
                self._items.extend(deliveries)
            else:
                self._items = list(deliveries)
            self._bytes += size
            return True
        return False

    def take(self) -> list[Delivery]:
        """Remove and return the next deliveries: up to `limits.message_bytes`, or one delivery."""
        taken, most = self._items or [], self._limits.message_bytes
        if self._bytes <= most:
            self._items, self._bytes = None, 0
            return taken
        size = count = 0
        for item in taken:
            if count and size + len(item.block) > most:
                break
            size += len(item.block)
            count += 1
        self._items = taken[count:]
        self._bytes -= size
        return taken[:count]

    def take_all(self) -> list[Delivery]:
        """Remove and return every delivery, and forget what was dropped."""
        taken, self._items, self._bytes, self._dropped = self._items or [], None, 0, None
        return taken

    def take_dropped(self) -> dict[str, int]:
        """Return how many deliveries of each channel were dropped since the last call.

        All of them were older than the deliveries that `take` returns next.
        """
        dropped, self._dropped = self._dropped, None
        return dropped or {}

    def discard_for_history(self) -> list[str]:
        """Discard all deliveries, and return the channels to read on from history.

        Deliveries without a position cannot be read again; they count as dropped. If no delivery has a
        position, nothing is discarded.
        """
        items = self._items or ()
        channels = dict.fromkeys(item.channel for item in items if item.position is not None)
        if channels:
            for item in items:
                if item.position is None:
                    self._drop(item)
            self._items, self._bytes = None, 0
        return list(channels)

    def _make_room(self, needed: int) -> None:
        if self._limits.overflow != "drop_oldest":
            raise OutboxFullError
        while self._items and (
            self._bytes + needed > self._most_bytes or len(self._items) >= self._most_events
        ):
            item = self._items.pop(0)
            self._bytes -= len(item.block)
            self._drop(item)

    def _drop(self, item: Delivery) -> None:
        self._dropped = self._dropped or {}
        self._dropped[item.channel] = self._dropped.get(item.channel, 0) + 1


class LatestOutbox(Outbox):
    """An outbox in which a newer event replaces an older one of the same channel and event name.

    So the number of names bounds the outbox, and a slow client skips to the newest values.
    """

    __slots__ = ("_by_name",)

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self._by_name: dict[tuple[str, bytes], Delivery] = {}

    def put(self, delivery: Delivery) -> None:
        """Add a delivery, and remove an older one of the same name. Raises OutboxFullError."""
        key = _key_of(delivery)
        older = self._by_name.pop(key, None)
        if older is not None and self._items:
            self._items.remove(older)
            self._bytes -= len(older.block)
        super().put(delivery)
        self._by_name[key] = delivery

    def put_all(self, deliveries: Sequence[Delivery], size: int) -> bool:
        """Return False: each delivery may replace an older one, so `put` has to add it."""
        return False

    def take_all(self) -> list[Delivery]:
        """Remove and return every delivery, and forget what was dropped."""
        self._by_name.clear()
        return super().take_all()

    def take(self) -> list[Delivery]:
        """Remove and return the next deliveries, the newest of each name."""
        taken = super().take()
        self._by_name = {_key_of(item): item for item in self._items or ()}
        return taken


def _key_of(delivery: Delivery) -> tuple[str, bytes]:
    return delivery.channel, name_line(delivery.bare or delivery.block)
