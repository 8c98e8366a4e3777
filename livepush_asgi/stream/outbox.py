"""Outbox: the deliveries that wait for one client, bounded in events and in bytes."""

from typing import cast

from ..hub.delivery import Batch, Delivery, LogBatch, batch_of, deliveries_of
from ..settings import Limits
from ..wire.event import name_line


class OutboxFullError(Exception):
    """Raised by `put` when the outbox is full and the overflow policy drops nothing."""


class Outbox:
    """A queue of at most `limits.outbox_events` deliveries and `limits.outbox_bytes` bytes.

    An empty outbox accepts a single delivery of any size, so that one large event does not block a stream
    for ever.
    """

    __slots__ = ("_bytes", "_count", "_dropped", "_items", "_limits", "_most_bytes", "_most_events")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most_bytes = limits.outbox_bytes
        self._most_events = limits.outbox_events
        # None while the outbox is empty, as it nearly always is: this saves memory.
        self._items: list[Delivery | LogBatch] | None = None
        # How many deliveries they are. A LogBatch among them has more than one.
        self._count = 0
        self._bytes = 0
        self._dropped: dict[str, int] | None = None

    def __len__(self) -> int:
        return self._count

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
        if items and (size > self._most_bytes or self._count >= self._most_events):
            self._make_room(len(delivery.block))
            items, size = self._items, self._bytes + len(delivery.block)
        if items:
            items.append(delivery)
        else:
            self._items = [delivery]
        self._count += 1
        self._bytes = size

    def put_all(self, batch: Batch) -> bool:
        """Add a batch if there is room for every delivery. Return whether there was."""
        fits = batch.size + self._bytes <= self._most_bytes
        if fits and self._count + batch.count <= self._most_events:
            self._items = self._items or []
            self._items += [batch] if batch.count > 1 and isinstance(batch, LogBatch) else batch.deliveries
            self._count += batch.count
            self._bytes += batch.size
            return True
        return False

    def take(self) -> Batch:
        """Remove and return the next deliveries: up to `limits.message_bytes`, or one delivery."""
        most = self._limits.message_bytes
        if self._bytes <= most:
            return self._take_items()
        items = self._each()
        size = count = 0
        for item in items:
            if count and size + len(item.block) > most:
                break
            size += len(item.block)
            count += 1
        self._items = [*items[count:]]
        self._count -= count
        self._bytes -= size
        return Batch(items[:count], size=size)

    def take_all(self) -> Batch:
        """Remove and return every delivery, and forget what was dropped."""
        self._dropped = None
        return self._take_items()

    def _take_items(self) -> Batch:
        items, count, size = self._items or [], self._count, self._bytes
        self._items, self._count, self._bytes = None, 0, 0
        return batch_of(items) if count > len(items) else Batch(cast("list[Delivery]", items), size=size)

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
                    self._drop(item.channel)
            self._items, self._count, self._bytes = None, 0, 0
        return list(channels)

    def _make_room(self, needed: int) -> None:
        if self._limits.overflow != "drop_oldest":
            raise OutboxFullError
        items = self._each()
        while items and (self._bytes + needed > self._most_bytes or self._count >= self._most_events):
            item = items.pop(0)
            self._count -= 1
            self._bytes -= len(item.block)
            self._drop(item.channel)

    def _each(self) -> list[Delivery]:
        """Return the items, which are deliveries from now on. A change of the list is one of the outbox."""
        items = self._items or []
        if self._count > len(items):
            self._items = items = [*deliveries_of(items)]
        return cast("list[Delivery]", items)

    def _drop(self, channel: str) -> None:
        self._dropped = self._dropped or {}
        self._dropped[channel] = self._dropped.get(channel, 0) + 1


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
            self._count -= 1
            self._bytes -= len(older.block)
        super().put(delivery)
        self._by_name[key] = delivery

    def put_all(self, batch: Batch) -> bool:
        """Return False: each delivery may replace an older one, so `put` has to add it."""
        return False

    def take_all(self) -> Batch:
        """Remove and return every delivery, and forget what was dropped."""
        self._by_name.clear()
        return super().take_all()

    def take(self) -> Batch:
        """Remove and return the next deliveries, the newest of each name."""
        taken = super().take()
        self._by_name = {_key_of(item): item for item in self._each()}
        return taken


def _key_of(delivery: Delivery) -> tuple[str, bytes]:
    return delivery.channel, name_line(delivery.bare or delivery.block)
