"""runs/: a finite job whose output is a channel: who produces it, how far it is, and what has become of it.

Only app/ and the rooms above it may import it. Start with `log.py`: the state of a run is in the log of its
channel. `claim.py` begins an attempt. `producer.py` runs its iterator, `pending.py` makes batches of what it
yields, `collector.py` says when in memory, and `attempt.py` appends them. `watch.py` finds that a producer
has gone, and `host.py` has the runs of one process. docs/explanation/runs.md tells the races.
"""
