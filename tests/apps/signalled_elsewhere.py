"""`livepush publish CHANNEL -` that gets a signal in a thread which is not the one that waits for a line."""

import signal
import sys
import threading
from pathlib import Path

from livepush_asgi.cli.publish import publish_input

# How the kernel shows that a thread reads standard input, or selects: on x86-64 and on ARM.
WAITING = ("0 0x0 ", "63 0x0 ", "23 ", "270 ", "72 ")


def signal_this_thread(call: Path) -> None:
    """When the other thread waits for a line, send a signal of another kind to this one, and then SIGTERM."""
    for number in (signal.SIGUSR1, signal.SIGTERM):
        while not call.read_text().startswith(WAITING):
            pass
        signal.pthread_kill(threading.get_ident(), number)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    call = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    threading.Thread(target=signal_this_thread, args=(call,)).start()
    sys.stdout.write(f"{publish_input(lambda lines: (len(lines), None))}\n")
