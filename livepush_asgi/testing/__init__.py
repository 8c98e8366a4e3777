"""Test help: an in-memory client for endless streams, a strict event-stream parser, a broker double, and the
rules of the broker ports as tests.
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
