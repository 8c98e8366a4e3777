"""Failure: an error that ends a command with one line and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager

#: The exit status when something outside of the command is wrong: the port is taken, the server is away.
UNABLE = 1
#: The exit status when an argument is wrong, or a library is missing.
MISTYPED = 2
#: The exit status of a process that got a second SIGINT or SIGTERM, as shells count it.
FORCED = 130


class Failure(Exception):
    """Raised to end a command: the message goes to standard error, the status to the shell."""

    def __init__(self, message: str, status: int = UNABLE) -> None:
        self.status = status
        super().__init__(message)


@contextmanager
def checking_arguments() -> Iterator[None]:
    """Turn the ValueError of a wrong argument into a Failure."""
    try:
        yield
    except ValueError as error:
        raise Failure(str(error), MISTYPED) from None
