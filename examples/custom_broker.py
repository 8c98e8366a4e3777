"""A broker of one's own: Unix datagram sockets in a folder. Works between the processes of one machine."""

import socket
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from anyio import move_on_after, to_thread, wait_readable

from livepush_asgi import BrokerUnavailableError

LARGEST = 65536  # What is longer would arrive cut off.


class FolderSubscription:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / uuid4().hex
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))

    async def get_message(self, *, timeout: float) -> bytes | None:
        with move_on_after(timeout):
            # Read when it is there, and not while waiting: what a timeout cuts off is then still there.
            await wait_readable(self._socket)
            return self._socket.recv(LARGEST)
        return None

    async def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._socket.close()


class FolderBroker:
    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def _channel(self, channel: str) -> Path:
        return self._folder / sha256(channel.encode()).hexdigest()[:16]  # Any name becomes a short path.

    async def publish(self, channel: str, payload: str | bytes) -> int:
        data = payload.encode() if isinstance(payload, str) else payload
        if len(data) > LARGEST:
            raise ValueError(f"a payload has at most {LARGEST} bytes here, not {len(data)}")
        received = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(5)
            for path in self._channel(channel).glob("*"):
                try:
                    # Waits, in another thread, while the reader's queue is full.
                    await to_thread.run_sync(sender.sendto, data, str(path))
                    received += 1
                except (FileNotFoundError, ConnectionRefusedError):
                    path.unlink(missing_ok=True)  # Its process is gone.
                except OSError as error:
                    raise BrokerUnavailableError(f"cannot send to {path}: {error}") from error
        return received

    async def subscribe(self, channel: str) -> FolderSubscription:
        return FolderSubscription(self._channel(channel))
