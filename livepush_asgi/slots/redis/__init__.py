"""Slots over Redis or Valkey: one cap for all processes that share a server. Start reading in `cap`."""

from .cap import OnError, SlotCap, SlotStatistics

__all__ = ["OnError", "SlotCap", "SlotStatistics"]
