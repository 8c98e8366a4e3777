"""Pending: what an iterator has yielded and the log has not taken, and the records that are due with it."""

from collections.abc import Callable

from ..brokers.history import History
from ..wire.event import PAYLOAD_MARK

# A record is appended after so many events or bytes. One has to be in the log at all times, so a log that
# keeps less has them more often. No batch has more, but for a single item.
RENEW_EVENTS, RENEW_BYTES = 100, 256 * 1024
# How much an iterator may be ahead of the broker, in bytes, but for its last item.
AHEAD_BYTES = 1024 * 1024


class Pending:
    """The payloads of one run that wait for the log, in order: at most `ahead`, and AHEAD_BYTES."""

    def __init__(self, history: History, ahead: int) -> None:
        #: Whether the next batch has a record, however small it is.
        self.must_renew = False
        #: Whether the batch that was made last has one, after its items.
        self.renews = False
        #: How many bytes of items were put into batches.
        self.batched_bytes = 0
        self._payloads: list[bytes] = []
        self._size = 0
        self._ahead = ahead
        self._most_events = min(RENEW_EVENTS, max(1, history.events // 2))
        self._most_bytes = min(RENEW_BYTES, history.size // 2)
        # Items and bytes since the last record.
        self._events = self._bytes = 0
        # How many of the payloads are in the batch, and their bytes without marks.
        self._in_batch = self._batch_bytes = 0

    def __len__(self) -> int:
        return len(self._payloads)

    @property
    def has_room(self) -> bool:
        """Whether the iterator may go on."""
        return len(self._payloads) < self._ahead and self._size < AHEAD_BYTES

    def accept(self, block: bytes) -> bool:
        """Take a block if there is room. Return whether there was."""
        # As `has_room`, without a call: this runs once for every item.
        if len(self._payloads) >= self._ahead or self._size >= AHEAD_BYTES:
            return False
        self._payloads.append(PAYLOAD_MARK + block)
        self._size += len(block)
        return True

    def make_batch(self, make_record: Callable[[int], bytes]) -> list[bytes]:
        """Return what waits, up to the next record, and with the record if it is due.

        `make_record` returns the record for so many items of the batch before it.
        """
        batch = self._payloads[: self._most_events - self._events]
        size = sum(map(len, batch))
        while len(batch) > 1 and self._bytes + size > self._most_bytes:
            size -= len(batch.pop())
        self.batched_bytes += size
        self._bytes += size
        self._events += len(batch)
        self._in_batch, self._batch_bytes = len(batch), size - len(batch) * len(PAYLOAD_MARK)
        self.renews = self.must_renew or self._events >= self._most_events or self._bytes >= self._most_bytes
        if self.renews:
            self.must_renew, self._events, self._bytes = False, 0, 0
            batch.append(make_record(self._in_batch))
        return batch

    def drop_batch(self) -> None:
        """Forget the batch that was made last: the log has it."""
        del self._payloads[: self._in_batch]
        self._size -= self._batch_bytes
        self._in_batch = self._batch_bytes = 0
