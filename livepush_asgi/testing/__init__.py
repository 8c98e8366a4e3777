"""Help for tests: a client for endless streams, an event-stream parser, a mock broker, tests for brokers.

Applications and adapters import it in their tests. Nothing in the package may import it. It needs no pytest.
`Client(lifespan=True)` needs asgi-lifespan: `pip install 'livepush_asgi[testing]'`.

Start with `client.py`, which calls an application. `exchange.py` is the server's side of a request,
`stream.py` the client's side; `lifespan.py` runs the lifespan. `contract.py` tests whether a broker keeps to
its port.
"""

from ..wire.parser import EventStreamParser, ParsedEvent
from .client import Answer, Client
from .contract import BrokerContract, HistoryBrokerContract
from .mock import MockBroker
from .stream import Stream, StreamEnded

__all__ = [
    "Answer",
    "BrokerContract",
    "Client",
    "EventStreamParser",
    "HistoryBrokerContract",
    "MockBroker",
    "ParsedEvent",
    "Stream",
    "StreamEnded",
]
