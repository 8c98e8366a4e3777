"""RunReader: the output of a run, read by Python code."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from ..grant import RunGrant
from ..stream.run_stream import end_behind, offset_of
from ..stream.subscriber import SubscriberStream
from ..wire.cursor import Position
from ..wire.parser import ParsedEvent
from ..wire.reasons import GapReason, RunState
from ..wire.run_record import RunFollower, record_of
from .subscriber import Gap, Subscriber


class OpenedRun(NamedTuple):
    """What a RunReader has opened. `gap` precedes its items."""

    stream: SubscriberStream
    follower: RunFollower
    grant: RunGrant
    leave_watch: Callable[[], None]
    gap: Gap | None


class RunReader(Subscriber):
    """The output of a run, for `async with` and then `async for`: `Run.read` returns it.

    It yields a Received for each event, and a Gap where events are missing. Their ids are what `read` takes
    as `last_event_id`. However slow its reader is, it holds up neither the producer nor another reader.
    """

    def __init__(
        self,
        open: Callable[[str | None], Awaitable[OpenedRun]],
        last_event_id: str | None,
    ) -> None:
        super().__init__(self._open_run, last_event_id)
        #: How the run has ended, as far as this reader has met its end.
        self.state = RunState.RUNNING
        #: How many events the run had, if its end has been met and says so.
        self.count: int | None = None
        #: The text of the RunFailedError that has ended it, if the end has been met.
        self.error: str | None = None
        self._open_reader = open
        self._first_id = last_event_id
        self._follower = RunFollower("")
        self._grant: RunGrant | None = None
        self._leave_watch: Callable[[], None] | None = None
        self._over = False

    async def _open_run(self) -> SubscriberStream:
        opened = await self._open_reader(self._first_id)
        self._follower, self._grant, self._leave_watch = opened.follower, opened.grant, opened.leave_watch
        if opened.gap is not None:
            self._items.append(opened.gap)
        return opened.stream

    def _leave(self, stream: SubscriberStream) -> None:
        leave, self._leave_watch = self._leave_watch, None
        if leave is not None:
            leave()
        super()._leave(stream)

    async def _read(self, stream: SubscriberStream) -> bool:
        return not self._over and await super()._read(stream)

    def _take_block(self, block: bytes) -> None:
        if not self._over:
            super()._take_block(block)

    def _take_control(self, event: ParsedEvent) -> None:
        super()._take_control(event)
        if self._items and isinstance(gap := self._items[-1], Gap):
            offset = offset_of(gap.id, gap.channel)
            self._follower.meet_gap(offset)
            if self._grant is not None and (end := end_behind(self._grant, offset)) is not None:
                self._over, self.state, self.count, self.error = True, end.state, end.count, end.error

    def _passes(self, comments: Sequence[str]) -> bool:
        record = record_of(f":{comments[0]}\n\n".encode()) if comments else None
        position = Position.of_id(self._id)
        self._over = not self._follower.take(record, position.offset)
        end = self._follower.end
        if end is not None and not self._over:
            assert self._stream is not None
            told = self._stream.context.hub.end_of(self._channel)
            self._over = told is None or told.epoch != position.epoch or told.offset <= position.offset
        if self._over and end is not None:
            self.state, self.count, self.error = end.state, end.count, end.error
        if self._follower.lacks_beginning:
            self._items.append(Gap(self._channel, GapReason.EPOCH, self._id))
        return end is None and not self._over
