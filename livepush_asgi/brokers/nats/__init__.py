"""The brokers over NATS: NatsBroker (without history) and JetStreamBroker (with a log of each channel).

Only this folder imports nats-py, and only the package root imports this folder, on the first use of one of
the two brokers. Start in `broker.py`; then `connection.py` for outages and reconnects, and `log.py` for the
position of an event.
"""

from .broker import NatsBroker
from .jetstream import JetStreamBroker

__all__ = ["JetStreamBroker", "NatsBroker"]
