"""The adapters to the systems that carry events between processes, behind the ports of `broker.py`.

`memory.py` needs no server. `redis/` and `nats/` each need a client library, which is imported nowhere else.
`mailbox.py` is the subscription that all brokers return, `history.py` has the bounds of a log, `backoff.py`
the delay before the next try. The package root, `testing/` and `cli/` import the brokers; `slots/` uses
`redis/` and `backoff.py`. Start with `mailbox.py` and `memory.py`; docs/brokers.md says how to write one.
"""
