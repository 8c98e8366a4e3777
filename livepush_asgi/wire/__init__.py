"""The wire format: events, event ids, broker payloads, control events and reasons.

This room has values and pure functions only. No other room writes or reads the fields of an event stream.

Every room may import it; it imports only `errors.py`. Start with `event.py`, the text of an event stream,
and `cursor.py`, the event id of a stream. `parser.py` reads an event stream as a client does.
"""
