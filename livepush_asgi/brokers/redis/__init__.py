"""The brokers over Redis and Valkey, and what `slots/` shares with them: connections, pipelines and scripts.

Start with `pubsub.py` (RedisBroker), then `streams.py` (RedisStreamsBroker). The package root imports this
folder when one of the two brokers is asked for; apart from that only `slots/` imports it.
"""

from .pubsub import RedisBroker
from .streams import RedisStreamsBroker

__all__ = ["RedisBroker", "RedisStreamsBroker"]
