"""Failure: what a command cannot do, as the line and the exit status that say so."""

#: The command was fine and the world was not: a port taken, a server away.
UNABLE = 1
#: What was typed cannot be meant: a wrong value, a file that is not there.
MISTYPED = 2


class Failure(Exception):
    """Raised to end a command with one line on standard error and an exit status."""

    def __init__(self, message: str, status: int = UNABLE) -> None:
        self.status = status
        super().__init__(message)


def unreadable(name: str, error: OSError) -> Failure:
    """Say why a file cannot be followed."""
    if isinstance(error, FileNotFoundError):
        why = "there is no such file"
    elif isinstance(error, IsADirectoryError):
        why = "it is a directory; name the files in it"
    elif isinstance(error, PermissionError):
        why = "you have no permission to read it"
    else:
        why = error.strerror or str(error)
    return Failure(f"cannot follow {'standard input' if name == '-' else name}: {why}", MISTYPED)
