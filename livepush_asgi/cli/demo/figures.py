"""The figures of this machine: processor, memory and network, read from the operating system."""

import platform
import time
from dataclasses import asdict, dataclass

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One reading. Shares in percent, memory in bytes, the network in bytes per second."""

    at: float
    cpu: float
    cores: tuple[float, ...]
    load: float
    memory_used: int
    memory_total: int
    swap_used: int
    swap_total: int
    received: float
    sent: float

    def as_dict(self) -> dict[str, object]:
        """Return the reading as JSON has it."""
        return asdict(self)


class Machine:
    """Takes readings. What is a rate is one since the reading before."""

    def __init__(self) -> None:
        # The first call of each only sets the mark that the next one counts from.
        psutil.cpu_percent(percpu=True)
        self._counted = time.monotonic(), *_network_bytes()

    def read(self) -> Figures:
        """Take a reading. Wait a tenth of a second at least between two, or the rates mean nothing."""
        cores = psutil.cpu_percent(percpu=True)
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        received, sent = self._network_rates()
        return Figures(
            at=time.time(),
            cpu=round(sum(cores) / len(cores), 1),
            cores=tuple(cores),
            load=round(psutil.getloadavg()[0], 2),
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            swap_used=swap.used,
            swap_total=swap.total,
            received=received,
            sent=sent,
        )

    def _network_rates(self) -> tuple[float, float]:
        before, received_before, sent_before = self._counted
        self._counted = now, received, sent = time.monotonic(), *_network_bytes()
        seconds = now - before
        return round((received - received_before) / seconds), round((sent - sent_before) / seconds)


def describe() -> dict[str, object]:
    """Return what does not change while the process runs."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "booted": psutil.boot_time(),
    }


def _network_bytes() -> tuple[int, int]:
    # All interfaces and the loopback too. None where the system does not tell, as in some containers.
    counted = psutil.net_io_counters()
    return (counted.bytes_recv, counted.bytes_sent) if counted else (0, 0)
