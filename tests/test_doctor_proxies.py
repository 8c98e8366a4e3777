"""The doctor behind real proxies: each broken one is named for what it does, and its own advice mends it.

All are examined at once, because an examination is mostly waiting; each is a test of its own.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import anyio
import pytest
import trustme

from livepush_asgi.cli.doctor.examine import Question, examine
from livepush_asgi.cli.doctor.findings import Diagnosis, Severity

from . import proxies
from .programs import need, need_node_package, node_package, program
from .proxies import Proxy, configuration
from .serving import uvicorn
from .spoiling_relay import Spoil, SpoilingRelay

# An application runs eight probes at a time, and may hear late that one has ended: some proxies hold on to a
# stream whose client has gone.
AT_ONCE = 3
APPLICATIONS = 4
TIMEOUT = 10.0
SILENCE = 3.0
STRAIGHT = Spoil()
# Where lines are put in that are not there yet, and how many words of a line tell what it sets.
ANCHORS = {"nginx": ("location / {", 1), "haproxy": ("defaults", 2), "caddy": (":8080 {", 1), "vite": ("", 1)}
TITLES = {"nginx": "nginx", "haproxy": "HAProxy", "caddy": "Caddy", "vite": "Vite"}
IGNORING = "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;\n"
VITE = """export default { server: { proxy: { '/events': {
target: 'http://127.0.0.1:8000',
proxyTimeout: 2000,
} } } };
"""
CADDY = """:8080 {
reverse_proxy 127.0.0.1:8000 {
transport http {
read_timeout 2s
}
}
}
"""


@dataclass(frozen=True, slots=True)
class Broken:
    """A configuration and what is wrong with it: the code, and the name of the proxy if it can be known."""

    kind: str
    text: str
    code: str
    named: str | None
    idle: float = 1.0
    #: What stands between the proxy and the application.
    before: Spoil = STRAIGHT


BROKEN = {
    "nginx compresses": Broken("nginx", configuration("broken/nginx.conf"), "compression-delays", "nginx"),
    "nginx buffers": Broken(
        "nginx",
        configuration("default/nginx.conf").replace("0;\n", f"0;\n{IGNORING}"),
        "buffered",
        "nginx",
    ),
    "nginx cuts": Broken(
        "nginx",
        configuration("default/nginx.conf").replace("0;\n", "0;\nproxy_read_timeout 2s;\n"),
        "cut-idle",
        "nginx",
        SILENCE,
    ),
    "haproxy waits": Broken("haproxy", configuration("default/haproxy.cfg"), "buffered", None),
    "haproxy compresses": Broken(
        "haproxy",
        configuration("broken/haproxy.cfg").replace("defaults\n", "defaults\noption http-no-delay\n"),
        "compression-delays",
        None,
        before=Spoil(fields={"cache-control": None}),
    ),
    "haproxy cuts": Broken(
        "haproxy",
        configuration("mended/haproxy.cfg").replace("server 60s", "server 2s"),
        "cut-idle",
        None,
        SILENCE,
    ),
    "caddy compresses": Broken("caddy", configuration("broken/Caddyfile"), "compression-delays", "Caddy"),
    "caddy cuts": Broken("caddy", CADDY, "cut-idle", "Caddy", SILENCE),
    "vite forgets": Broken("vite", VITE, "stalled", "Vite", SILENCE),
}
FINE = {
    "nginx, default": ("nginx", "default/nginx.conf"),
    "nginx, mended": ("nginx", "mended/nginx.conf"),
    "haproxy, mended": ("haproxy", "mended/haproxy.cfg"),
    "caddy, default": ("caddy", "default/Caddyfile"),
    "caddy, mended": ("caddy", "mended/Caddyfile"),
    "nginx, recipe": ("nginx", "recipe/nginx.conf"),
    "haproxy, recipe": ("haproxy", "recipe/haproxy.cfg"),
    "caddy, recipe": ("caddy", "recipe/Caddyfile"),
    "vite, default": ("vite", "default/vite.config.js"),
    "sveltekit, mended": ("sveltekit", "mended/+server.js"),
}
# Its process ends with the first stream.
FAILING = "sveltekit, default"
TLS = "nginx, over TLS"
OVER_TLS = """server {{
    listen 8080 ssl http2;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    location / {{ proxy_pass http://127.0.0.1:8000; }}
}}
"""
Diagnoses = Mapping[str, Diagnosis]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def ports(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Iterator[int]]:
    """Give the ports of the applications, in turn."""
    directory = tmp_path_factory.mktemp("probed")
    async with AsyncExitStack() as stack:
        servers = []
        for number in range(APPLICATIONS):
            # With h11 the end of an answer to HTTP/1.0 is the end of its connection, which nginx buffers.
            server = uvicorn("tests.apps.probed:app", directory / f"log{number}", "--http", "h11")
            servers.append(await stack.enter_async_context(server))
        yield cycle(server.port for server in servers)


def proxy(kind: str, text: str, port: int, directory: Path) -> Proxy:
    made = getattr(proxies, kind)(port, text, directory)
    assert isinstance(made, Proxy)
    return made


def installed(kind: str) -> bool:
    package = {"vite": "vite", "sveltekit": "@sveltejs/kit"}.get(kind)
    return node_package(package) is not None if package else program(kind) is not None


def needed(kind: str) -> None:
    """Leave the test out, or fail it, if what it needs is not installed."""
    package = {"vite": "vite", "sveltekit": "@sveltejs/kit"}.get(kind)
    if package:
        need_node_package(package)
    else:
        need(kind)


def advised(kind: str, text: str, diagnosis: Diagnosis) -> str:
    """Return a configuration with the lines that the doctor has printed, as a user puts them in."""
    anchor, words = ANCHORS[kind]
    rows = text.splitlines()
    for line in lines_for(kind, diagnosis):
        places = [index for index, row in enumerate(rows) if row.split()[:words] == line.split()[:words]]
        for index in places:
            rows[index] = line
        if not places:
            after = next(index for index, row in enumerate(rows) if row.strip().startswith(anchor))
            rows.insert(after + 1, line)
    return "\n".join([*rows, ""])


def lines_for(kind: str, diagnosis: Diagnosis) -> Sequence[str]:
    remedies = [remedy for finding in diagnosis.findings for remedy in finding.remedies]
    return [line for remedy in remedies if TITLES[kind] in remedy.where for line in remedy.lines]


@pytest.fixture(scope="module")
async def diagnoses(ports: Iterator[int], tmp_path_factory: pytest.TempPathFactory) -> Diagnoses:
    found: dict[str, Diagnosis] = {}
    limiters: dict[int, anyio.CapacityLimiter] = {}
    directory = tmp_path_factory.mktemp("proxies")

    async def look(
        kind: str, text: str, idle: float, before: Spoil = STRAIGHT, scheme: str = "http"
    ) -> Diagnosis:
        port = next(ports)
        async with (
            limiters.setdefault(port, anyio.CapacityLimiter(AT_ONCE)),
            SpoilingRelay(port, before) as relay,
            proxy(kind, text, relay.port if before != STRAIGHT else port, directory) as front,
        ):
            url = f"{scheme}://127.0.0.1:{front.port}/events"
            question = Question(url=url, idle=idle, timeout=TIMEOUT, insecure=True)
            return Diagnosis(await examine(question))

    async def look_and_mend(name: str, broken: Broken) -> None:
        found[name] = await look(broken.kind, broken.text, broken.idle, broken.before)
        text = advised(broken.kind, broken.text, found[name])
        found[f"{name}, advised"] = await look(broken.kind, text, broken.idle, broken.before)

    async def look_at_tls() -> None:
        certificate = directory / "certificate.pem"
        trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        found[TLS] = await look("nginx", OVER_TLS.format(certificate=certificate), 1.0, scheme="https")

    async def look_once(name: str, kind: str, file: str) -> None:
        found[name] = await look(kind, configuration(file), 1.0)

    files = {**FINE, FAILING: ("sveltekit", "default/+server.js")}

    if installed("sveltekit"):
        # It is built here, which blocks, and not while others are examined.
        for name in (FAILING, "sveltekit, mended"):
            proxy("sveltekit", files[name][1], next(ports), directory)
    async with anyio.create_task_group() as tasks:
        for name, broken in reversed(BROKEN.items()):
            if installed(broken.kind):
                tasks.start_soon(look_and_mend, name, broken)
        if installed("nginx"):
            tasks.start_soon(look_at_tls)
        for name, (kind, file) in files.items():
            if installed(kind):
                tasks.start_soon(look_once, name, kind, file)
    return found


def faults(diagnosis: Diagnosis) -> list[str]:
    return [finding.code for finding in diagnosis.findings if finding.severity is Severity.FAULT]


@pytest.mark.parametrize("name", BROKEN)
async def test_each_broken_way_is_named_for_what_it_does(name: str, diagnoses: Diagnoses) -> None:
    broken = BROKEN[name]
    needed(broken.kind)
    diagnosis = diagnoses[name]
    assert (diagnosis.status, faults(diagnosis)) == (1, [broken.code]), diagnosis
    assert broken.named in {None, *(proxy.name for proxy in diagnosis.proxies)}


@pytest.mark.parametrize("name", BROKEN)
async def test_the_lines_that_it_prints_mend_it(name: str, diagnoses: Diagnoses) -> None:
    broken = BROKEN[name]
    needed(broken.kind)
    assert lines_for(broken.kind, diagnoses[name])
    mended = diagnoses[f"{name}, advised"]
    assert (mended.status, faults(mended)) == (0, []), mended


@pytest.mark.parametrize("name", FINE)
async def test_no_false_alarm_behind_a_proxy_that_is_well(name: str, diagnoses: Diagnoses) -> None:
    needed(FINE[name][0])
    assert (diagnoses[name].status, faults(diagnoses[name])) == (0, []), diagnoses[name]


async def test_a_forward_that_fails_is_said_to_give_no_answer(diagnoses: Diagnoses) -> None:
    needed("sveltekit")
    assert (diagnoses[FAILING].status, faults(diagnoses[FAILING])) == (1, ["closed-before-the-answer"])


async def test_http_2_is_tried_where_it_is_offered(diagnoses: Diagnoses) -> None:
    needed("nginx")
    found = [finding.code for finding in diagnoses[TLS].findings]
    assert (diagnoses[TLS].status, found) == (0, ["prompt", "silence", "http-2"])
