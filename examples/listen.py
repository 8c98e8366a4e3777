"""Open a listening socket whose connections end when their client acknowledges nothing for so many seconds,
and become a server that takes it as file descriptor 3:

    python listen.py 8000 30 uvicorn app:app --fd 3
    python listen.py 8000 30 hypercorn -w 0 -b fd://3 app:app
    python listen.py 8000 30 daphne --fd 3 app:app

A client that vanished without a word (a cut link, a phone in a tunnel) is noticed then, also while its stream
is idle: the next heartbeat is what it does not acknowledge. Linux only.
"""

import os
import socket
import sys

LISTENING = 3


def main() -> None:
    port, seconds, *server = sys.argv[1:]
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it from the socket that accepts them; milliseconds.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(float(seconds) * 1000))
    listening.bind((os.environ.get("HOST", "127.0.0.1"), int(port)))
    listening.listen(2048)
    os.dup2(listening.fileno(), LISTENING)
    os.set_inheritable(LISTENING, True)
    os.execv(sys.executable, [sys.executable, "-m", *server])


if __name__ == "__main__":
    main()
