"""One process from start to stop: its signals, its drain, and revocation across processes.

Only http/ and the rooms above it may import it. Start with `process.py`: a LivePush from its start
to its stop. `signals.py` starts a drain at SIGTERM and SIGINT; `revoker.py` ends streams in every process.
`arrivals.py` lets the requests of a wave in together; `hooks.py` tells the application of its streams.
"""
