"""One client's stream: its next chunk, its outbox, and its recovery from history.

Only process/ and the rooms above it may import it. Start with `stream.py`: one connection from start to end.
`composer.py` composes the next chunk; `outbox.py` holds the events that wait for a slow client. `recovery.py`
keeps the client's position in each log; `resumption.py` checks the positions of a client that reconnects;
`history_reader.py` reads the events that the client has missed. `source_stream.py` is a stream whose events
come from a generator, which `source.py` runs; `subscriber.py` is a stream that code of this process reads.
"""
