"""One client's stream: what it is sent next, what waits for it, and where it is in the logs of its channels.

Only process/ and the rooms above it may import it. Start with `stream.py`: one connection from start to end.
`composer.py` decides what goes out next; `outbox.py` holds what a slow client has not taken yet.
`recovery.py` knows where the client is in the logs, `resumption.py` whether they have the positions that it
has brought, and `history_reader.py` reads what it has not got.
"""
