"""A random model of the promise: an event is delivered in order, or the client is told that it was not.

A *story* is a list of operations on several processes that share a server: publishes, connects, cuts, faults,
revocations, restarts. `promise.py` says what a client may expect. `client.py` is a client that comes back
with its last event id. `story.py` tells a story and fails if the promise was broken. `tales.py` invents
stories and shortens those that fail. `found.py` keeps the stories that failed once. All runs in memory and in
virtual time.

`python -m tests.seam 20000` tells as many stories on all cores.
"""
