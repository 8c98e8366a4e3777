"""Frameworks: the stream as the response of a route, with the framework's own authentication.

One file per framework, for applications. Nothing in the package may import it. Start with `route.py`: its
`open_for_route` opens a stream, and each framework's file turns the result into a response or an error.
"""
