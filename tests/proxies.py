"""Real proxies in front of a port of this machine, each inside an `async with` block.

A configuration is a text, or the name of a file in `docs/proxies`. In it `127.0.0.1:8000` is the
application and 8080 the port that the proxy listens on, as in the documentation; both are replaced here.
"""

import asyncio
import atexit
import contextlib
import functools
import getpass
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .programs import NODE_MODULES, need, need_node_package
from .server_process import free_port
from .serving import WireStream

CONFIGURATIONS = Path(__file__).parent.parent / "docs" / "proxies"
STARTUP_TIMEOUT = 60.0
OPENING_TIMEOUT = 30.0
BETWEEN_TRIES = 0.02
BUILD_TIMEOUT = 300.0

VITE = NODE_MODULES / "vite" / "bin" / "vite.js"
# The configuration around the file that a user copies. nginx writes into the test's folder only.
NGINX = """daemon off; pid nginx.pid; error_log stderr notice; {user}
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy;
  fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  include site.conf;
}}
"""
CADDY = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n"
SVELTE_FILES = {
    "svelte.config.js": "import adapter from '@sveltejs/adapter-node';\n"
    "export default { kit: { adapter: adapter() } };\n",
    "vite.config.js": "import { sveltekit } from '@sveltejs/kit/vite';\n"
    "export default { plugins: [sveltekit()] };\n",
    "src/app.html": "<!doctype html><head>%sveltekit.head%</head><body>%sveltekit.body%</body>\n",
    # Building takes long, so all files that there are go into one application, which has one of them answer.
    "src/hooks.js": "import { env } from '$env/dynamic/public';\n"
    "export const reroute = ({ url }) => `/${env.PUBLIC_FOLDER}${url.pathname}`;\n",
}
SVELTE_SERVER = "+server.js"
MODULE = '{"name": "page", "private": true, "type": "module"}\n'


class Proxy:
    """A proxy in a process of its own, which takes connections when the block begins."""

    def __init__(
        self,
        port: int,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._command = command
        self._directory = directory
        self._environment = {**os.environ, **(environment or {})}
        self._output = directory / "output"
        self._clients: list[WireStream] = []
        self.process: subprocess.Popen[bytes]

    async def __aenter__(self) -> Self:
        self._start()
        try:
            await self._started()
        except BaseException:
            self._kill()
            raise
        return self

    def _start(self) -> None:
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env=self._environment,
                start_new_session=True,
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.abort()
        self._kill()
        # The sockets are closed in the loop's next turn.
        await asyncio.sleep(0)

    async def open(self, path: str, *, method: str = "GET", body: bytes = b"", **headers: str) -> WireStream:
        """Send a request, and return its answer when the head has come."""
        async with asyncio.timeout(OPENING_TIMEOUT):
            stream = await WireStream.open(self.port, path, method=method, body=body, **headers)
        self._clients.append(stream)
        return stream

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._output.read_text(errors="replace")

    async def _started(self) -> None:
        async with asyncio.timeout(STARTUP_TIMEOUT):
            while True:
                assert self.process.poll() is None, self.log
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                # Nothing tells when it listens. Starting takes its time.
                await asyncio.sleep(BETWEEN_TRIES)

    def _kill(self) -> None:
        # The whole group: most proxies are several processes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def configuration(name: str) -> str:
    """Return the text of a file in `docs/proxies`; a text of several lines is one already."""
    return name if "\n" in name else (CONFIGURATIONS / name).read_text()


def nginx(upstream: int, text: str, tmp_path: Path) -> Proxy:
    """Return nginx with a file for its `conf.d`: one `server` block or several."""
    directory, port = _directory(tmp_path, "nginx"), free_port()
    # Its workers are nobody's otherwise, and nobody may not enter a test's folder.
    user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
    (directory / "nginx.conf").write_text(NGINX.format(user=user))
    (directory / "site.conf").write_text(_placed(text, upstream, port))
    command = [need("nginx"), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
    return Proxy(port, command, directory)


def haproxy(upstream: int, text: str, tmp_path: Path) -> Proxy:
    """Return HAProxy with a whole configuration."""
    directory, port = _directory(tmp_path, "haproxy"), free_port()
    (directory / "haproxy.cfg").write_text(_placed(text, upstream, port))
    return Proxy(port, [need("haproxy"), "-db", "-f", "haproxy.cfg"], directory)


def caddy(upstream: int, text: str, tmp_path: Path) -> Proxy:
    """Return Caddy with the sites of a Caddyfile, without its global options."""
    directory, port = _directory(tmp_path, "caddy"), free_port()
    (directory / "Caddyfile").write_text(CADDY + _placed(text, upstream, port))
    command = [need("caddy"), "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    return Proxy(port, command, directory, home)


def vite(upstream: int, text: str, tmp_path: Path) -> Proxy:
    """Return Vite's development server with a `vite.config.js`."""
    need_node_package("vite")
    directory, port = _directory(tmp_path, "vite"), free_port()
    files = {"vite.config.js": _placed(text, upstream, port), "index.html": "<!doctype html>\n"}
    _write_module(directory, files)
    command = [need("node"), str(VITE), "--host", "127.0.0.1", "--port", str(port), "--strictPort"]
    return Proxy(port, command, directory, {"NO_COLOR": "1"})


def sveltekit(upstream: int, text: str, tmp_path: Path) -> Proxy:
    """Return a SvelteKit application, served by adapter-node, whose `[...path]/+server.js` is this.

    The application behind it is the environment variable UPSTREAM. Building takes some seconds, the first
    time.
    """
    need_node_package("@sveltejs/kit")
    directory, port = _directory(tmp_path, "sveltekit"), free_port()
    files = {path.parent.name: path.read_text() for path in CONFIGURATIONS.glob(f"*/{SVELTE_SERVER}")}
    server = configuration(text)
    if server not in files.values():
        files = {"own": server}
    environment = {
        "UPSTREAM": f"http://127.0.0.1:{upstream}",
        "PUBLIC_FOLDER": next(folder for folder in files if files[folder] == server),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "ORIGIN": f"http://127.0.0.1:{port}",
    }
    build = _built(tuple(files.items())) / "build"
    return Proxy(port, [need("node"), str(build)], directory, environment)


@functools.cache
def _built(servers: tuple[tuple[str, str], ...]) -> Path:
    directory = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    routes = {f"src/routes/{folder}/[...path]/{SVELTE_SERVER}": text for folder, text in servers}
    _write_module(directory, {**SVELTE_FILES, **routes})
    done = subprocess.run(
        [need("node"), str(VITE), "build"],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=BUILD_TIMEOUT,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return directory


def _directory(tmp_path: Path, name: str) -> Path:
    # A test may have several of one kind.
    return Path(tempfile.mkdtemp(prefix=name, dir=tmp_path))


def _placed(text: str, upstream: int, port: int) -> str:
    placed = configuration(text).replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    return re.sub(r"\b8080\b", str(port), placed)


def _write_module(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in {"package.json": MODULE, **files}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (directory / "node_modules").symlink_to(NODE_MODULES)
