"""The scenarios beside nchan, an nginx module in C. Events come from another process: over HTTP to nchan, and
through Valkey to the component, whose figures have Valkey's processor time and memory in them.

All that serves has one core: nginx, or the component and Valkey. The publisher is beside the load.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.programs import program
from tests.server_process import free_port

from .bench import APP, Bench
from .elsewhere import start_publisher
from .load import Figures
from .result import Case
from .serve import Server, cpu_of

CONFIGURATION = Path(__file__).with_suffix(".conf")
MODULE = Path(os.environ.get("NCHAN_MODULE", "/usr/lib/nginx/modules/ngx_nchan_module.so"))
MISSING = f"nchan is not installed ({MODULE}) and left out: apt-get install libnginx-mod-nchan"


def nchan_cases(bench: Bench) -> list[Case]:
    """Return nchan, where it is installed, and the component on both brokers."""
    installed = program("nginx") is not None and MODULE.exists()
    if not installed:
        print(MISSING, file=sys.stderr)
    own = [
        Case("RedisBroker", lambda: through_valkey(bench, "RedisBroker")),
        Case("RedisStreamsBroker", lambda: through_valkey(bench, "RedisStreamsBroker")),
    ]
    return [Case("nchan", lambda: nchan(bench)), *own] if installed else own


def nchan(bench: Bench) -> Figures:
    with ExitStack() as running:

        def publish(server: Server) -> None:
            running.callback(start_publisher(bench, str(server.port), "benchmarks.post").wait)

        return {**bench.deliver(nginx(bench), publish), "valkey_us": 0}


def nginx(bench: Bench) -> Server:
    port, folder = free_port(), bench.folder / "nchan"
    folder.mkdir(exist_ok=True)
    text = CONFIGURATION.read_text().replace("MODULE", str(MODULE)).replace("PORT", str(port))
    (folder / "nchan.conf").write_text(text)
    command = [program("nginx") or "nginx", "-p", str(folder), "-c", "nchan.conf", "-e", "stderr"]
    return Server(command, port, bench.folder / "server.log")


def through_valkey(bench: Bench, broker: str) -> Figures:
    with bench.valkey(serving=True) as valkey, ExitStack() as running:
        before, environment = 0.0, {"REDIS_URL": valkey.url, "BROKER": broker}

        def publish(server: Server) -> None:
            nonlocal before
            before = cpu_of(valkey.pid)
            running.callback(start_publisher(bench, valkey.url, environment=environment).wait)

        figures = bench.deliver(bench.serve(APP, environment, beside=[valkey.pid]), publish)
        used = cpu_of(valkey.pid) - before
        return {**figures, "valkey_us": 1e6 * used / max(1, figures["events"])}
