"""TcpTimeouts: sets TCP_USER_TIMEOUT, the time for which data may be unacknowledged, on stream connections.

ASGI does not report a client that vanishes (a cut cable, a phone in a tunnel). The kernel retransmits the
heartbeats for a quarter of an hour before it closes the connection. This option shortens that time. Linux
only.
https://man7.org/linux/man-pages/man7/tcp.7.html
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from ..settings import Timing
from .asgi import Receive
from .scheduler import Scheduler

#: Host and port.
Address = tuple[str, int]

_OPTION: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
_OPEN_FILES = "/proc/self/fd"
# How many files are checked, or options set, in one turn of the loop; this takes less than a millisecond.
_BATCH = 200


def address_of(client: object) -> Address | None:
    """Return the client address in `scope["client"]`, or None if the server does not provide one."""
    match client:
        # Some servers use port 0 for an unknown address. granian writes the port as text.
        case [str(host), int() | str() as port] if str(port).isdecimal() and int(port):
            return _normalized(host), int(port)
    return None


class Connection(Protocol):
    """A socket: that of Python, or that of an event loop."""

    def getsockopt(self, level: int, option: int, /) -> int:
        """Return the value of a socket option."""
        ...

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """Set the value of a socket option."""
        ...


#: A connection with a timeout: the socket, or the address by which the socket is found.
Limited = Connection | Address


class TcpTimeouts:
    """Sets the option to the send timeout on the connections of streams, and resets it.

    It is set halfway to the first heartbeat. So a wave of clients that connect costs less, and clients that
    soon leave cost nothing. The kernel applies a new value to data that already waits to be acknowledged.

    uvicorn gives access to the socket. Other servers do not. But the socket is an open file of this process
    and the client's address is known, so a scan of all open files finds the sockets of new streams.
    """

    def __init__(self, scheduler: Scheduler, timing: Timing) -> None:
        self._scheduler = scheduler
        # The kernel takes whole milliseconds.
        self._limit = max(1, round(timing.send_timeout * 1000))
        self._delay = min(timing.send_timeout, timing.heartbeat_interval or timing.send_timeout) / 2
        # The value that the last socket had from its server. After a 0 no other is read: that would cost as
        # much as setting it.
        self._preset: int | None = None
        # The sockets whose option is still to be set, in the order of their streams.
        self._waiting: dict[Connection, None] = {}
        self._limits_scheduled = False
        # The sockets that keep the value of their server.
        self._kept: set[Connection] = set()
        self._unmatched: set[Address] = set()
        self._scan_scheduled = False
        # How many streams the connection from an address carries: over HTTP/2 there may be several.
        self._stream_counts: dict[Address, int] = {}
        # The file descriptors of the connections whose option was set.
        self._files: dict[Address, int] = {}

    def limit(self, client: object, receive: Receive | None = None) -> Limited | None:
        """Have the option of a connection set before the first heartbeat. Returns at once.

        `receive` may give access to the socket; else a scan looks for the address, `scope["client"]`. The
        scan finds no socket if that is not the address of the connection: behind a proxy, or on a Unix
        socket. If the server sets the option itself, its connections stay unchanged. Pass the result to
        `release` when the response has ended.
        """
        if _OPTION is None:
            return None
        connection = _connection_of(receive)
        if connection is not None:
            self._waiting[connection] = None
            if not self._limits_scheduled:
                self._limits_scheduled = True
                self._scheduler.call_later(self._delay, self._limit_waiting)
            return connection
        address = address_of(client)
        if address is not None:
            carried = self._stream_counts[address] = self._stream_counts.get(address, 0) + 1
            if carried == 1:
                self._unmatched.add(address)
                if not self._scan_scheduled:
                    self._scan_scheduled = True
                    self._scheduler.call_later(self._delay, self._scan_files)
        return address

    def _limit_waiting(self) -> None:
        for connection in list(islice(self._waiting, _BATCH)):
            del self._waiting[connection]
            if not self._limit_socket(connection):
                self._kept.add(connection)
        self._limits_scheduled = bool(self._waiting)
        if self._waiting:
            self._scheduler.call_later(0.0, self._limit_waiting)

    def _limit_socket(self, connection: Connection) -> bool:
        if self._preset != 0:
            self._preset = _value_of(connection)
        return self._preset == 0 and _set(connection, self._limit)

    def release(self, limited: Limited | None, *, stuck: bool) -> None:
        """Reset the option: the connection may carry other responses, such as a download that pauses.

        If the stream ended because its client is `stuck`, the option stays, or is set now, so that the kernel
        soon closes the connection.
        """
        if isinstance(limited, tuple):
            self._release_address(limited, stuck)
        elif limited in self._waiting:
            del self._waiting[limited]
            if stuck:
                self._limit_socket(limited)
        elif limited in self._kept:
            self._kept.discard(limited)
        elif limited is not None and not stuck:
            _set(limited, 0)

    def _release_address(self, address: Address, stuck: bool) -> None:
        carried = self._stream_counts.pop(address)
        if carried > 1:
            self._stream_counts[address] = carried - 1
            return
        self._unmatched.discard(address)
        file = self._files.pop(address, None)
        if file is not None and not stuck:
            _change_file(file, address, self._limit, 0)

    def _scan_files(self) -> None:
        self._scan_scheduled = False
        sought, self._unmatched = self._unmatched, set()
        with contextlib.suppress(OSError):
            self._scan_batch(sought, iter(os.listdir(_OPEN_FILES)))

    def _scan_batch(self, sought: set[Address], files: Iterator[str]) -> None:
        for _ in range(_BATCH):
            name = next(files, None)
            if name is None or not sought:
                return
            self._limit_if_sought(int(name), sought)
        self._scheduler.call_later(0.0, lambda: self._scan_batch(sought, files))

    def _limit_if_sought(self, file: int, sought: set[Address]) -> None:
        address = _peer(file)
        if address not in sought:
            return
        sought.discard(address)
        # The stream may have ended since the scan began.
        if address in self._stream_counts and _change_file(file, address, 0, self._limit):
            self._files[address] = file


def _connection_of(receive: Receive | None) -> Connection | None:
    """Return the socket if `receive` is a method of an object with a `transport`, as in uvicorn."""
    look_up = getattr(getattr(getattr(receive, "__self__", None), "transport", None), "get_extra_info", None)
    found: Connection | None = look_up("socket") if callable(look_up) else None
    return found


def _change_file(file: int, address: Address, before: int, after: int) -> bool:
    # The server may close the file at any time, in another thread too, and a new file may get its number. So
    # check the address on a duplicate, which stays the same connection.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(file)) as connection:
        # Another value is the server's own.
        is_known = _peer(connection.fileno()) == address and _value_of(connection) == before
        return is_known and _set(connection, after)
    return False


# The value of the option is in milliseconds. A Unix socket has no such option, and uvloop raises ValueError
# for a closed connection.


def _value_of(connection: Connection) -> int | None:
    assert _OPTION is not None
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, _OPTION)
    except (OSError, ValueError):
        return None


def _set(connection: Connection, value: int) -> bool:
    """Set the option. Return whether that worked."""
    assert _OPTION is not None
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _OPTION, value)
    except (OSError, ValueError):
        return False
    return True


def _peer(file: int) -> Address | None:
    """Return the peer address of an open file, or None if the file is no IP connection."""
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
    return (
        (_normalized(found[0]), found[1]) if isinstance(found, tuple) and isinstance(found[0], str) else None
    )


def _normalized(host: str) -> str:
    """Return a host without the IPv6 prefix of a mapped IPv4 address and without an interface name."""
    return host.removeprefix("::ffff:").partition("%")[0]
