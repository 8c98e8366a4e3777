"""The brokers over NATS: NatsBroker (without history) and JetStreamBroker (with a log of each channel).

Only this folder imports nats-py. Read `broker.py` first, then `connection.py`; for JetStream `jetstream.py`.
"""

from .broker import NatsBroker
from .jetstream import JetStreamBroker

__all__ = ["JetStreamBroker", "NatsBroker"]
