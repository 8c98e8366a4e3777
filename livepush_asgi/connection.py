"""The connections under the streams: how long each may be silent before the kernel ends it.

A client that vanished without a word (a cut cable, a phone in a tunnel) shows in nothing that ASGI tells.
Its heartbeats are not acknowledged, but the kernel repeats them for a quarter of an hour before it gives up.
TCP_USER_TIMEOUT has it give up sooner: https://man7.org/linux/man-pages/man7/tcp.7.html. Linux only.
"""

import contextlib
import os
import socket
from collections.abc import Iterator

from .clock import Clock
from .settings import Timing
from .types import Receive

#: Host and port.
Address = tuple[str, int]

_OPTION: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
_OPEN_FILES = "/proc/self/fd"
# So many files are looked at in one go: less than a millisecond.
_AT_ONCE = 200


def address_of(client: object) -> Address | None:
    """Return where a client is connected from, of what `scope["client"]` says; None where it is not told."""
    match client:
        # Zero is a server's "unknown"; granian writes the number as text.
        case [str(host), int() | str() as port] if str(port).isdecimal() and int(port):
            return _plain(host), int(port)
    return None


def limit_silence(receive: Receive, seconds: float) -> bool:
    """Have the kernel end the connection when its client takes nothing for so long; return whether it will.

    Only where `receive` is a method of an object that has the transport, as uvicorn's is.
    """
    look_up = getattr(getattr(getattr(receive, "__self__", None), "transport", None), "get_extra_info", None)
    connection = look_up("socket") if callable(look_up) else None
    return connection is not None and _limit(connection, seconds)


class Connections:
    """Limits the silence of a process's connections to the time that a send may take.

    ASGI hides the connection and most servers keep it to themselves. But it is an open file of this process,
    and the address of its client is known: one look through all of them, soon after, finds those that came.
    """

    def __init__(self, clock: Clock, timing: Timing) -> None:
        self._clock = clock
        self._seconds = timing.send_timeout
        # Nothing is unacknowledged for long before the first heartbeat; the kernel counts from there.
        self._delay = min(timing.send_timeout, timing.heartbeat_interval or timing.send_timeout) / 2
        self._sought: set[Address] = set()

    def limit(self, client: object, receive: Receive | None = None) -> None:
        """Limit one connection: at once if `receive` leads to it, or before its first heartbeat.

        `client` is what `scope["client"]` says. Nothing is done where that is not the connection's own:
        behind a proxy, or on a Unix socket.
        """
        if _OPTION is None or (receive is not None and limit_silence(receive, self._seconds)):
            return
        address = address_of(client)
        if address is not None:
            if not self._sought:
                self._clock.call_later(self._delay, self._look)
            self._sought.add(address)

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            self._go_on(self._sought, iter(os.listdir(_OPEN_FILES)))
        self._sought = set()

    def _go_on(self, sought: set[Address], files: Iterator[str]) -> None:
        for _ in range(_AT_ONCE):
            name = next(files, None)
            if name is None or not sought:
                return
            _limit_if_sought(int(name), sought, self._seconds)
        self._clock.call_later(0.0, lambda: self._go_on(sought, files))


def _limit_if_sought(file: int, sought: set[Address], seconds: float) -> None:
    found = _peer(file)
    if found not in sought:
        return
    # The server may close the file at any time, in a thread too, and the next one gets its number: so it
    # is made sure of, with a second one for the same connection.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(file)) as connection:
        if _peer(connection.fileno()) == found and _limit(connection, seconds):
            sought.discard(found)


def _peer(file: int) -> Address | None:
    """Return who is at the other end of an open file, None if it is no connection over IP."""
    try:
        connection = socket.socket(fileno=file)
    except OSError:
        return None
    try:
        found = connection.getpeername()
    except OSError:
        return None
    finally:
        connection.detach()
    return (_plain(found[0]), found[1]) if isinstance(found, tuple) and isinstance(found[0], str) else None


def _limit(connection: socket.socket, seconds: float) -> bool:
    if _OPTION is None:
        return False
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _OPTION, max(1, round(seconds * 1000)))
    except (OSError, ValueError):
        # A Unix socket has no such option, nor has a connection that is closed (ValueError, of uvloop).
        return False
    return True


def _plain(host: str) -> str:
    """Return an address as all write it: no mapped form of IPv4, no name of an interface."""
    return host.removeprefix("::ffff:").partition("%")[0]
