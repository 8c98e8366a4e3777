"""One process from start to stop: its run, its signals and its drain, and revocation across processes.

Only http/ and the rooms above it may import it. Start with `run.py`: one run, from start to drain and stop.
`signals.py` starts a drain at SIGTERM and SIGINT; `revoker.py` ends streams in every process.
`arrivals.py` lets the requests of a wave in together; `hooks.py` tells the application of its streams.
"""
