"""HubCounts: what the hub counts, from the first start of a LivePush on."""

from ..runtime.histogram import Histogram


class HubCounts:
    """The counts of a hub."""

    __slots__ = ("delivered", "lag", "recoveries")

    def __init__(self) -> None:
        #: How many events of the application were delivered, counted once per listener.
        self.delivered = 0
        #: How long events took from the broker's log to the listeners, in seconds. A sample of them.
        self.lag = Histogram(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
        #: How often all channels were subscribed again after one of them had failed.
        self.recoveries = 0
