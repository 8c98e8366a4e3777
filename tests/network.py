"""Two machines and a cable, made of network namespaces: for what only a cable that is cut can show.

The thread that enters it is on the machine `here` until it leaves, with all that it starts.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The address of the machine here, as the other one knows it.
ADDRESS = "10.213.47.1"
OTHER_ADDRESS = "10.213.47.2"
RETRIES = Path("/proc/sys/net/ipv4/tcp_retries2")
_LIBC = ctypes.CDLL(None, use_errno=True)


def available() -> bool:
    """Return whether namespaces can be made here: on Linux, as root, where nothing forbids it."""
    if shutil.which("ip") is None or not Path("/proc/self/ns/net").exists():
        return False
    name = f"livepush-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    try:
        enters = ["ip", "netns", "exec", name, "sh", "-c", f"echo 15 > {RETRIES}"]
        return subprocess.run(enters, capture_output=True).returncode == 0
    finally:
        _ip("netns", "del", name)


class Network:
    """A machine here, and another one at the end of a cable."""

    def __init__(self) -> None:
        self._here = f"livepush-here-{os.getpid()}"
        self._there = f"livepush-there-{os.getpid()}"

    @property
    def there(self) -> tuple[str, ...]:
        """The beginning of a command line that runs on the other machine."""
        return ("ip", "netns", "exec", self._there)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Build it, and be on the machine here."""
        with open("/proc/self/ns/net") as before:
            try:
                self._build()
                with open(f"/run/netns/{self._here}") as here:
                    _enter(here.fileno())
                yield
            finally:
                _enter(before.fileno())
                for name in (self._here, self._there):
                    subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def cut(self) -> None:
        """Pull the cable out at the other machine: nothing that is sent arrives any more."""
        _ip("-n", self._there, "link", "set", "cable", "down")

    def give_up_after(self, retries: int) -> None:
        """Have the kernel here give up a connection after so many unanswered repetitions, not fifteen."""
        RETRIES.write_text(str(retries))

    def _build(self) -> None:
        for name in (self._here, self._there):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        cable = ["type", "veth", "peer", "name", "cable", "netns", self._there]
        _ip("-n", self._here, "link", "add", "cable", *cable)
        for name, address in ((self._here, ADDRESS), (self._there, OTHER_ADDRESS)):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(namespace: int) -> None:
    # os.setns, which Python has from 3.12 on.
    if _LIBC.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "cannot enter the namespace")
