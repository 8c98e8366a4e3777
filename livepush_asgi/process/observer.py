"""Observer: watches a LivePush from outside, as a tracer or a metrics library does."""

from contextlib import AbstractContextManager, nullcontext

from ..stream.stream import Stream
from ..wire.reasons import EndReason


class Observer:
    """Base class of what `LivePush._observe` takes. Each method does nothing unless a subclass overrides it.

    The methods are called in the event loop and return at once. What they raise is logged and affects no
    stream; what `publishing` raises, `publish` raises.
    """

    #: How often `sample` is called while the LivePush runs, in seconds; None for never.
    interval: float | None = None
    #: Whether `recorded` is called.
    records = False

    def sample(self) -> None:
        """Called every `interval` seconds, when the LivePush starts and when it has stopped."""

    def recorded(self, name: str, reason: EndReason | None, value: float) -> None:
        """Called with each value of a histogram. `name` is its name in Statistics. Must not raise."""

    def publishing(self, channel: str) -> AbstractContextManager[object]:
        """Return a context manager around one publish, with its retries."""
        return nullcontext()

    def opened(self, stream: Stream, seconds: float) -> None:
        """Called when the response of a stream starts, so many seconds after its request, in its task."""

    def ended(self, stream: Stream, reason: EndReason, seconds: float) -> None:
        """Called when a stream has closed that was open for so many seconds, in any task of the loop."""
