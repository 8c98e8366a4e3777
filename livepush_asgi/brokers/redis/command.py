"""A command as it is sent, and who waits for its reply."""

from typing import Protocol

from .connection import Argument, Reply


class Receiver(Protocol):
    """Takes a reply, once. A future is one; another one costs no turn of the event loop."""

    def done(self) -> bool:
        """Whether nobody waits any more."""

    def set_result(self, reply: Reply, /) -> None:
        """Take the reply. Never waits, never raises."""

    def set_exception(self, error: Exception, /) -> None:
        """Take an error reply, or why there is none."""


def pack(arguments: tuple[Argument, ...]) -> bytes:
    """Return a command as it is sent. Text is UTF-8, whatever the client is set to.

    https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
    """
    parts: list[int | bytes] = [len(arguments)]
    for argument in arguments:
        data = _encode(argument)
        parts += (len(data), data)
    return (b"*%d\r\n" + b"$%d\r\n%b\r\n" * len(arguments)) % tuple(parts)


def _encode(argument: Argument) -> bytes:
    if isinstance(argument, str):
        return argument.encode()
    return argument if isinstance(argument, bytes) else b"%d" % argument
