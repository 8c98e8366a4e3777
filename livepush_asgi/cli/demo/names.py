"""LocalNames: what is served to this machine alone is not handed to a page from elsewhere."""

import ipaddress

from ...types import ASGIApp, Receive, Scope, Send
from .web import Problem


class LocalNames:
    """Refuses requests that came to a loopback address under a name from outside.

    A page on the web can have its own name point to 127.0.0.1, and its scripts would then read what
    is served there as if it were theirs. What gives them away is the name in the `Host` field.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and not is_local(_host_of(scope)):
            problem = Problem(421, "this page is for this machine; open it as localhost or 127.0.0.1")
            await problem.answer.send(scope, send)
        else:
            await self._app(scope, receive, send)


def is_local(host: str) -> bool:
    """Tell whether a host's name or address means this machine and nothing else."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"host":
            host = bytes(value).decode("latin-1").lower()
            return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    # HTTP/1.0 has no such field, and no browser speaks it.
    return "localhost"
