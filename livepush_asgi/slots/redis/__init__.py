"""Slots over Redis or Valkey: one cap for all processes that share a server.

The package root imports this folder on the first use of SlotCap; it needs redis-py. Start with `cap`, the
public class. `leases` holds the leases of a process and sends batches of requests, `store` runs them on the
server.
"""

from .cap import OnError, SlotCap, SlotStatistics

__all__ = ["OnError", "SlotCap", "SlotStatistics"]
