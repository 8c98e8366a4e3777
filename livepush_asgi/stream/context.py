"""StreamContext: the objects that the streams of one process share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ..hub.hub import Hub
from ..runtime.callbacks import Callbacks
from ..runtime.event_loop import Sleep
from ..runtime.failure_log import FailureLog
from ..runtime.scheduler import Scheduler
from ..runtime.tcp_timeout import TcpTimeouts
from ..settings import Limits, Timing
from ..wire.encode import Encode


@dataclass(slots=True, kw_only=True, eq=False)
class StreamContext:
    """The objects that the streams of one process share. The run creates one."""

    hub: Hub
    #: Makes the sleep of a stream that waits for its next chunk.
    make_sleep: Callable[[], Sleep]
    #: Awaits snapshots.
    callbacks: Callbacks
    scheduler: Scheduler
    tcp_timeouts: TcpTimeouts
    timing: Timing
    limits: Limits
    on_asyncio: bool
    #: Whether `send` and `receive` may be stepped outside of the stream's task, if they `can_step`.
    inline_send: bool
    #: Encodes the data of snapshots; None for the default.
    encode: Encode | None = None
    #: Whether the last snapshot failed. The first failure is logged, and the first success after it.
    snapshots_fail: bool = False
    #: Logs the failures of generators.
    failures: FailureLog = field(default_factory=FailureLog)
