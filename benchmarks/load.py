"""Load: the clients, a program in C that is built when it is needed (`load.c`), on a core of its own."""

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from .serve import cores

SOURCE = Path(__file__).with_suffix(".c")

Figures = dict[str, float]


def build(folder: Path) -> Path:
    """Build the program, and return where it is. Raises RuntimeError where there is no compiler."""
    program = folder / "load"
    try:
        subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", program, SOURCE], check=True)
    except FileNotFoundError as error:
        raise RuntimeError("the load generator is built by `cc`, which is not installed") from error
    return program


class Load:
    """So many streams, opened one window after the other, inside a `with` block."""

    def __init__(
        self,
        program: Path,
        port: int,
        streams: int,
        path: str = "/events",
        *,
        expect: int = 0,
        times: int = 1,
        seconds: float = 300,
        header: str = "",
        deaf: bool = False,
    ) -> None:
        options = [f"-e{expect}", f"-n{times}", f"-s{seconds}", *["-d"][: int(deaf)]]
        options += [f"-h{header}"] if header else []
        self._command = [str(program), *options, str(port), str(streams), path]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        os.sched_setaffinity(self._process.pid, cores()[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def opened(self) -> Figures:
        """Wait until every stream is open, and return what it took. Raises RuntimeError if one is not."""
        figures = self._next()
        if figures["refused"]:
            raise RuntimeError(f"{figures['refused']:.0f} streams were refused")
        return figures

    def result(self) -> Figures:
        """Wait until every stream has had what is expected, and return what came, and how late.

        It may be called as many `times` as the load was told, each time for as many events more.
        """
        figures = self._next()
        if figures["lost"]:
            raise RuntimeError(f"{figures['lost']:.0f} streams have ended")
        return figures

    def stop(self) -> Figures:
        """Return what has come so far; nothing more is waited for."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.result()

    def _next(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended")
        figures: Figures = json.loads(line)
        return figures
