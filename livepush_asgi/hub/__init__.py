"""The channels of one process: one subscription per channel, however many streams listen.

Only stream/ and the rooms above it may import it. Start with `hub.py`. `channel.py` keeps up the subscription
of a channel and coalesces the deliveries of one turn of the event loop; `logged_channel.py` checks them
against the log; `shared_reads.py` shares reads of the logs between streams; `delivery.py` has the values that
listeners receive.
"""
