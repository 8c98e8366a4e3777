"""The channels of one process: one subscription each, however many streams listen.

Only stream/ and the rooms above it may import it. Start with `hub.py`. `channel.py` keeps a subscription up,
`logged_channel.py` checks what it brings against the log, and `coalescing.py` joins what one turn of the
event loop brings.
"""
