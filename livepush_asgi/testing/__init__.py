"""Test help: an in-memory client for endless streams, a strict event-stream parser, a broker double."""

from .client import Answer, Client
from .mock import MockBroker
from .parser import EventStreamParser, ParsedEvent
from .stream import Stream, StreamEnded

__all__ = [
    "Answer",
    "Client",
    "EventStreamParser",
    "MockBroker",
    "ParsedEvent",
    "Stream",
    "StreamEnded",
]
