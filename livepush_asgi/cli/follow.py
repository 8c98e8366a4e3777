"""Followers: what a log file, or standard input, has to say since the last time it was asked.

`poll` never waits for lines, and takes a bounded bite. It may wait for the disk: call it in a thread.
"""

import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

from .lines import Line, LineAssembler

# The most bytes that one poll takes. It bounds what is held in memory and the event made of it.
BITE = 256 * 1024

# A line is shown without its end after so many seconds, for programs that ask "continue? [y/n]".
UNFINISHED_AFTER = 1.0

# A program goes on with the file it has open for a moment after the file was renamed.
FORMER_KEPT = 10.0


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened between two lines."""

    text: str


Found = Line | Note


class Follower(Protocol):
    """Something that lines come from."""

    name: str

    def poll(self) -> Sequence[Found]:
        """Return what has come since the last call, in order. Raises OSError if reading fails."""
        ...

    def close(self) -> None:
        """Close what it has opened."""
        ...


class FileFollower:
    """Follows a file by its name, as `tail -F` does: through rotation, truncation and absence."""

    def __init__(
        self, path: Path, *, last_lines: int | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Open the file, at its last lines or at its start. Raises OSError.

        `now` gives seconds of any epoch.
        """
        self.name = str(path)
        self._path = path
        self._now = now
        self._current = _OpenFile(_opened(path), now)
        self._former: list[_OpenFile] = []
        self._trouble: str | None = None
        if last_lines is not None:
            self._current.file.seek(start_of_last_lines(self._current.file, last_lines))

    def poll(self) -> Sequence[Found]:
        """Return what has come since the last call, in order."""
        found: list[Found] = [*self._from_former()]
        lines = self._current.read()
        if lines is None:
            return found + self._look_for_change()
        return found + lines

    def close(self) -> None:
        """Close the file, and those that it took the place of."""
        for each in (*self._former, self._current):
            each.file.close()

    def _from_former(self) -> list[Found]:
        found: list[Found] = []
        for former in list(self._former):
            lines = former.read()
            if lines is not None:
                found += lines
            elif self._now() - former.read_at > FORMER_KEPT:
                found += former.finish()
                self._former.remove(former)
        return found

    def _look_for_change(self) -> list[Found]:
        state = os.fstat(self._current.file.fileno())
        if state.st_size < self._current.file.tell():
            rest = self._current.assembler.flush()
            self._current.file.seek(0)
            return [*rest, Note("the file was cut short; it is read from its start again")]
        try:
            if os.path.samestat(os.stat(self._path), state):
                return self._well() + self._current.unfinished()
            opened = _opened(self._path)
        except FileNotFoundError:
            return self._troubled("the file is gone; waiting for it to come back")
        except OSError as error:
            return self._troubled(f"the new file cannot be read: {error.strerror}")
        self._trouble = None
        self._former.append(self._current)
        self._current = _OpenFile(opened, self._now)
        return [Note("a new file took its place")]

    def _troubled(self, trouble: str) -> list[Found]:
        news: list[Found] = [Note(trouble)] if trouble != self._trouble else []
        self._trouble = trouble
        return news

    def _well(self) -> list[Found]:
        news: list[Found] = [Note("the file is back")] if self._trouble else []
        self._trouble = None
        return news


class InputFollower:
    """Follows a file descriptor that cannot be read without waiting: standard input, mostly."""

    def __init__(self, descriptor: int = 0, name: str = "standard input") -> None:
        os.fstat(descriptor)  # Raises OSError if it is closed.
        self.name = name
        self._descriptor = descriptor
        self._assembler = LineAssembler()
        self._read_at = time.monotonic()
        self.ended = False

    def poll(self) -> Sequence[Found]:
        """Return what has come since the last call, in order."""
        found: list[Found] = []
        taken = 0
        while taken < BITE and not self.ended and select.select([self._descriptor], [], [], 0)[0]:
            data = os.read(self._descriptor, BITE - taken)
            taken += len(data)
            found += self._assembler.feed(data)
            self._read_at = time.monotonic()
            if not data:
                self.ended = True
                found += [*self._assembler.flush(), Note("end of input")]
        if not taken and time.monotonic() - self._read_at >= UNFINISHED_AFTER:
            found += self._assembler.flush()
        return found

    def close(self) -> None:
        """Close nothing: it was open before."""


class _OpenFile:
    def __init__(self, file: FileIO, now: Callable[[], float]) -> None:
        self.file = file
        self.assembler = LineAssembler()
        self.read_at = now()
        self._now = now

    def read(self) -> list[Line] | None:
        """Return the lines of the next bite, None at the end of the file."""
        data = self.file.read(BITE)
        if not data:
            return None
        self.read_at = self._now()
        return self.assembler.feed(data)

    def unfinished(self) -> list[Line]:
        return self.assembler.flush() if self._now() - self.read_at >= UNFINISHED_AFTER else []

    def finish(self) -> list[Line]:
        self.file.close()
        return self.assembler.flush()


def start_of_last_lines(file: FileIO, count: int) -> int:
    """Return the position in a file at which its last lines begin."""
    position = end = file.seek(0, os.SEEK_END)
    if count == 0:
        return end
    # The LF of the last line ends it; the one before is where the last line begins.
    before = count
    while position > 0:
        size = min(BITE, position)
        position -= size
        block = os.pread(file.fileno(), size, position)
        if position + size == end and block.endswith(b"\n"):
            before += 1
        found = block.count(b"\n")
        if found >= before:
            at = size
            for _ in range(before):
                at = block.rindex(b"\n", 0, at)
            return position + at + 1
        before -= found
    return 0


def _opened(path: Path) -> FileIO:
    # Opening a pipe would wait for somebody to write to it, and there is no name to follow it by.
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(0, "it is no ordinary file; send it to standard input and follow `-`")
    return FileIO(path)
