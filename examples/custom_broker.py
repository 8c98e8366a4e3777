"""A broker of one's own: Unix datagram sockets in a folder. Works between the processes of one machine."""

import asyncio
import os
import socket
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from livepush_asgi import BrokerUnavailableError


class FolderSubscription:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / uuid4().hex
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self._path))

    async def get_message(self, *, timeout: float) -> bytes | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                return await loop.sock_recv(self._socket, 65536)
        except TimeoutError:
            return None

    async def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._socket.close()


class FolderBroker:
    """Each subscription is a socket in its channel's folder; publishing sends to every one of them."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)

    def _channel(self, channel: str) -> Path:
        # Any name may name a channel; not any name may name a folder, and paths of sockets are short.
        return self._folder / sha256(channel.encode()).hexdigest()[:16]

    async def publish(self, channel: str, payload: str | bytes) -> int:
        data = payload.encode() if isinstance(payload, str) else payload
        received = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for path in self._channel(channel).glob("*"):
                try:
                    # Waits, in another thread, while the reader's queue is full: nothing is lost.
                    await asyncio.to_thread(sender.sendto, data, str(path))
                    received += 1
                except (FileNotFoundError, ConnectionRefusedError):
                    path.unlink(missing_ok=True)  # Its process is gone.
                except OSError as error:
                    raise BrokerUnavailableError(f"{os.strerror(error.errno or 0)}: {path}") from error
        return received

    async def subscribe(self, channel: str) -> FolderSubscription:
        return FolderSubscription(self._channel(channel))
