"""The event loop and the ASGI server: tasks, timers, and what differs between loops and between servers.

Every room but wire/ may import it; it imports only `errors.py` and `settings.py`. Start with `event_loop.py`
(asyncio and trio) and `scheduler.py` (one task for all timers). `inline_send.py` calls `send` outside of the
stream's task, `disconnect.py` hears from `receive` that a client has left.
"""
