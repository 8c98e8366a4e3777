"""One step of an event's way at a time, in one process and without a socket."""
