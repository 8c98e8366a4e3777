"""The connection under a stream, where the server lets it be reached: how long it may be silent.

A client that vanished without a word (a cut cable, a phone in a tunnel) shows in nothing that ASGI tells.
Its heartbeats are not acknowledged, but the kernel repeats them for a quarter of an hour before it gives up.
"""

import contextlib
import socket

from .types import Receive


def limit_silence(receive: Receive, seconds: float) -> bool:
    """Have the kernel end the connection when its client takes nothing for so long; return whether it will.

    Only on Linux, and only where `receive` is a method of an object that has the transport, as uvicorn's is.
    https://man7.org/linux/man-pages/man7/tcp.7.html (TCP_USER_TIMEOUT)
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    look_up = getattr(getattr(getattr(receive, "__self__", None), "transport", None), "get_extra_info", None)
    connection = look_up("socket") if callable(look_up) else None
    if option is None or connection is None:
        return False
    # A Unix socket has no such option, nor has a connection that is closed already (ValueError, of uvloop).
    with contextlib.suppress(OSError, ValueError):
        connection.setsockopt(socket.IPPROTO_TCP, option, max(1, round(seconds * 1000)))
        return True
    return False
