"""BrokerTimeouts: how long a broker waits for its server, checked once when it is made."""

from dataclasses import dataclass

from ..settings import check_seconds

# The longest times, in seconds. A longer one is most likely in milliseconds.
_LONGEST = {"subscribe": 600, "publish": 600, "ping_interval": 3600, "ping": 600}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerTimeouts:
    """The times for which a broker waits for its server, in seconds.

    `subscribe`: `subscribe` raises BrokerUnavailableError if the server has not confirmed by then.
    `publish`: `publish`, `append` and `read` raise BrokerUnavailableError if the server has not answered by
    then.
    `ping_interval`: a listening connection is tested this often.
    `ping`: a connection on which nothing arrives for this long after a test is given up, and the broker
    reconnects. Connecting may take as long.
    """

    subscribe: float = 2.0
    publish: float = 5.0
    ping_interval: float = 10.0
    ping: float = 5.0

    def __post_init__(self) -> None:
        for name, longest in _LONGEST.items():
            check_seconds(name, getattr(self, name), longest)


def no_answer(timeout: float) -> TimeoutError:
    """Return the error for a server that has not answered within `timeout` seconds."""
    return TimeoutError(f"no answer within {timeout:g} s")
