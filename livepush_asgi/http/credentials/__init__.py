"""What a client proves its rights with: a JWT, a ticket that opens one stream, signed names of channels.

Only app/, the rooms above it and http/ may import it. Each file is one helper that an `authorize` calls:
`jwt.py` (needs the extra `jwt`; `key_set.py` has the keys of its issuer), `tickets.py` (`redis.py` keeps them
on a server), `signed_channels.py`. `secret.py` checks the secrets of all signatures.
"""
