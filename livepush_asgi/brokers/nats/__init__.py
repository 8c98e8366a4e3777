"""The brokers over NATS: NatsBroker (without history) and JetStreamBroker (with a log of each channel).

Only this folder imports nats-py, and nothing in the package imports it but the lazy names of
`livepush_asgi`. Start in `broker.py`; then `connection.py` for what happens when the server goes away, and
`log.py` for how an event gets its position.
"""

from .broker import NatsBroker
from .jetstream import JetStreamBroker

__all__ = ["JetStreamBroker", "NatsBroker"]
