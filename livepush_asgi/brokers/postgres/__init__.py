"""PostgresBroker: pub/sub with history over PostgreSQL, and events in the transactions of an application.

Only slots/ and the rooms above it may import it. `schema.sql` says what a log is and has the functions that
append and read; start there, then `broker.py`. `listening.py` has the connection that LISTENs, `pool.py` the
others, `failures.py` turns the errors of asyncpg
into messages with a fix.
"""

from .broker import PostgresBroker

__all__ = ["PostgresBroker"]
