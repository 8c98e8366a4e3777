"""What bytes mean: events, event ids, broker payloads, control events, reasons. Pure functions and values.

Every room may import it; it imports only `errors.py`. Start with `event.py`, the text of an event stream,
and `cursor.py`, the event id of a stream.
"""
