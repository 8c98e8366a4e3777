"""The channels of one process: one subscription each, however many streams listen.

Only stream/ and the rooms above it may import it. Start with `hub.py`. `channel.py` keeps a subscription up
and joins what one turn of the event loop brings; `logged_channel.py` checks that against the log;
`shared_reads.py` reads a log once for all streams that ask for the same; `delivery.py` is what listeners get.
"""
