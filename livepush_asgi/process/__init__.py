"""One process from start to stop: its run, its signals and its drain, and revocation across processes.

Only http/ and the rooms above it may import it. Start with `run.py`: what lives from start to stop, the drain
included. `signals.py` hears that the server shuts down; `revoker.py` ends streams in every process.
"""
