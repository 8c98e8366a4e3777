"""Tasks and timers on asyncio and trio, and workarounds for the differences between ASGI servers.

Every room but wire/ may import it; it imports only `errors.py` and `settings.py`. Start with `event_loop.py`
(asyncio and trio) and `scheduler.py` (one task for all timers). `inline_send.py` calls `send` outside of the
stream's task. `disconnect.py` waits for `http.disconnect` without a task. `compression.py` warns
of middleware that holds streams back.
"""
