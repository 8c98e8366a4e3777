"""The tests. In memory wherever possible; what needs a real server says so in its module."""
