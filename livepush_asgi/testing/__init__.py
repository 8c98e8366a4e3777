"""What users test with: a client for endless streams, an event-stream parser, a broker, rules for brokers.

Applications and adapters import it in their tests; inside the package only cli/ does, for the parser. It
needs no pytest. `Client(lifespan=True)` needs asgi-lifespan: `pip install 'livepush_asgi[testing]'`.

Start with `client.py`. `exchange.py` is the server's side of a request and `stream.py` the client's;
`scope.py` and `lifespan.py` do what else a server does. `contract.py` and `history_contract.py` are the rules
of the broker ports as tests, with their helpers in `checks.py`.
"""

from .client import Answer, Client
from .contract import BrokerContract
from .history_contract import HistoryBrokerContract
from .mock import MockBroker
from .parser import EventStreamParser, ParsedEvent
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
