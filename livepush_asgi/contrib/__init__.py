"""Frameworks: the stream as the response of a route, with the framework's own authentication.

One file per framework, imported by applications alone. Each makes of `route.open_for_route`, where to start
reading, the framework's response and errors. Only cli/ stands as high as this room.
"""
