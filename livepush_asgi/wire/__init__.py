"""What bytes mean: events, event ids, payloads of a broker, control events and reasons.

Values and pure functions, and the only room that writes or reads the fields of an event stream.

Every room may import it; it imports only `errors.py`. Start with `event.py`, the text of an event stream,
and `cursor.py`, the event id of a stream.
"""
