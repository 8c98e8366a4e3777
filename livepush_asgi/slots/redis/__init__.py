"""Slots over Redis or Valkey: one cap for all processes that share a server.

Nothing in the package imports this but the application that chooses it; it needs redis-py. Start with `cap`,
the public object. `leases` has what a process holds and what it sends in batches, `scripts` what the server
does.
"""

from .cap import OnError, SlotCap, SlotStatistics

__all__ = ["OnError", "SlotCap", "SlotStatistics"]
