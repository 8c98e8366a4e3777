"""The figures of this machine: processor, memory and network, read from the operating system."""

import platform
import time

import psutil


class Machine:
    """Takes readings. A rate is the average since the reading before."""

    def __init__(self) -> None:
        # The first call only starts the measurement that the next call returns.
        psutil.cpu_percent(percpu=True)
        self._counted = time.monotonic(), *_network_bytes()

    def read(self) -> dict[str, object]:
        """Return a reading: shares in percent, memory in bytes, the network in bytes per second.

        Wait at least a tenth of a second between two readings, or the rates mean nothing.
        """
        cores = psutil.cpu_percent(percpu=True)
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        received, sent = self._network_rates()
        return {
            "at": time.time(),
            "cpu": round(sum(cores) / len(cores), 1),
            "cores": cores,
            "load": round(psutil.getloadavg()[0], 2),
            "memory_used": memory.total - memory.available,
            "memory_total": memory.total,
            "swap_used": swap.used,
            "swap_total": swap.total,
            "received": received,
            "sent": sent,
        }

    def _network_rates(self) -> tuple[int, int]:
        before, received_before, sent_before = self._counted
        self._counted = now, received, sent = time.monotonic(), *_network_bytes()
        seconds = now - before
        return round((received - received_before) / seconds), round((sent - sent_before) / seconds)


def describe() -> dict[str, object]:
    """Return the facts that stay the same while the process runs."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "booted": psutil.boot_time(),
    }


def _network_bytes() -> tuple[int, int]:
    # All interfaces, the loopback too. Some containers do not tell: psutil returns None there.
    counted = psutil.net_io_counters()
    return (counted.bytes_recv, counted.bytes_sent) if counted else (0, 0)
