"""StreamContext: the objects that the streams of one process share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..hub.hub import Hub
from ..runtime.callbacks import Callbacks
from ..runtime.event_loop import Sleep
from ..runtime.failure_log import FailureLog, StateLog
from ..runtime.scheduler import Scheduler
from ..runtime.tcp_timeout import TcpTimeouts
from ..settings import Limits, Timing
from ..wire.encode import Encode
from .counts import StreamCounts

if TYPE_CHECKING:
    from .stream import Stream


@dataclass(slots=True, kw_only=True, eq=False)
class StreamContext:
    """The objects that the streams of one process share. Process creates one."""

    hub: Hub
    #: Makes the sleep of a stream that waits for its next chunk.
    make_sleep: Callable[[], Sleep]
    #: Calls a function in the loop's next turn.
    call_soon: Callable[[Callable[[], object]], object]
    #: Awaits snapshots.
    callbacks: Callbacks
    scheduler: Scheduler
    tcp_timeouts: TcpTimeouts
    timing: Timing
    limits: Limits
    on_asyncio: bool
    #: Whether `send` and `receive` may be stepped outside of the stream's task, if they `can_step`.
    inline_send: bool
    #: What the streams count.
    counts: StreamCounts
    #: Called when the response of a stream starts, with the seconds since its request, if it is not None.
    on_response: "Callable[[Stream, float], None] | None" = None
    #: Encodes the data of snapshots; None for the default.
    encode: Encode | None = None
    #: Whether snapshots fail.
    snapshot_log: StateLog = field(default_factory=StateLog)
    #: Logs the failures of streams and generators.
    failures: FailureLog = field(default_factory=FailureLog)
    #: A client that leaves while a `send` has been waiting for longer than this, in seconds, was slow.
    stall_after: float = field(init=False)

    def __post_init__(self) -> None:
        self.stall_after = 0.5 * self.timing.send_timeout
