"""The brokers over Redis and Valkey, and the connections, pipelines and scripts that `slots/` uses too.

Start with `pubsub.py` (RedisBroker), then `streams.py` (RedisStreamsBroker). Both subscribe as `listening.py`
says, and publish through `pipeline.py`; `slot_router.py` is for a cluster. `log.lua` says what a log is. The
package root imports this folder on the first use of one of the two brokers. No other room but `slots/`
and `cli/` imports it.
"""

from .pubsub import RedisBroker
from .streams import RedisStreamsBroker

__all__ = ["RedisBroker", "RedisStreamsBroker"]
