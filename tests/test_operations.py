"""The files of examples/operations: they are valid, their commands run, and a restart loses nothing."""

import asyncio
import csv
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from livepush_asgi import LivePush, RedisStreamsBroker, public

from . import proxies
from .programs import need
from .rolling import OPERATIONS, Audience, configuration, is_ready, replace, wait_ready, worker
from .server_process import free_port
from .serving import Serving, WireStream
from .valkey import ValkeyProcess, until

MANIFESTS: dict[str, Any] = {
    document["kind"]: document
    for document in yaml.safe_load_all((OPERATIONS / "kubernetes.yaml").read_text())
}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
UNIT = OPERATIONS / "livepush@.service"
# Without the lines of comments. `Environment` stands once.
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
GRACEFUL = "--timeout-graceful-shutdown"

# A page of HAProxy's that says which workers get requests.
STATISTICS = """
frontend statistics
    bind :{port}
    stats enable
    stats uri /
"""

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_manifest_is_valid(kind: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], "1.34", strict=True)


def test_the_unit_is_valid(tmp_path: Path) -> None:
    # It is there where somebody has installed the application.
    text = UNIT.read_text().replace("/srv/livepush/venv/bin/uvicorn", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", tmp_path / "livepush@8001.service"],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    # It warns of other units of the machine too.
    assert "livepush" not in done.stdout + done.stderr


def kubernetes_command() -> tuple[str, dict[str, str], float]:
    """Return the command, its environment, and how long it has after SIGTERM."""
    environment = {each["name"]: each["value"] for each in CONTAINER["env"] if "value" in each}
    before = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    return shlex.join(CONTAINER["command"]), environment, POD["terminationGracePeriodSeconds"] - before


def systemd_command() -> tuple[str, dict[str, str], float]:
    environment = dict(each.split("=") for each in SETTINGS["Environment"].split())
    return SETTINGS["ExecStart"], environment, float(SETTINGS["TimeoutStopSec"])


COMMANDS = {"kubernetes": kubernetes_command, "systemd": systemd_command}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_times_are_in_order(name: str) -> None:
    command, environment, grace = COMMANDS[name]()
    bound = float(shlex.split(command)[shlex.split(command).index(GRACEFUL) + 1])
    assert float(environment["DRAIN_WINDOW"]) < bound
    # The server's bound begins after the delay. What follows it takes three seconds at most.
    assert float(environment.get("DRAIN_DELAY", "0")) + bound + 3 < grace


@pytest.mark.parametrize("name", COMMANDS)
async def test_the_command_serves_and_stops(name: str, valkey: ValkeyProcess, tmp_path: Path) -> None:
    command, environment, grace = COMMANDS[name]()
    program, *arguments = shlex.split(command.replace("--port 8000", "--port {port}").replace("%i", "{port}"))
    assert Path(program).name == "uvicorn"
    delay = "DRAIN_DELAY" in environment
    environment |= {"LIVEPUSH_REDIS": valkey.url, **({"DRAIN_DELAY": "1"} if delay else {})}
    command = shlex.join(["uvicorn", *arguments]).replace("'{port}'", "{port}")
    async with Serving(command, tmp_path / "log", environment=environment, cwd=OPERATIONS) as server:
        await wait_ready(server)
        for probe in ("livenessProbe", "readinessProbe"):
            path = CONTAINER[probe]["httpGet"]["path"]
            assert (await server.open(path)).status == 200
        stream = await server.open("/events/?channel=news")
        await stream.next_event("livepush.open")
        if delay:
            await run_restart_script(server, tmp_path)
        server.send_signal(signal.SIGTERM)
        if delay:
            while await is_ready(server):  # noqa: ASYNC110  (another process sets no event)
                await asyncio.sleep(0.02)
            # It still takes what a balancer sends before its next check.
            late = await server.open("/events/?channel=news")
            await late.next_event("livepush.open")
        assert (await stream.next_event("livepush.close")).json()["reason"] == "drain"
        assert await server.ended(timeout=grace) in (0, -signal.SIGTERM)


async def run_restart_script(server: Serving, tmp_path: Path) -> None:
    """Run the script with a systemctl that notes its arguments, for a worker that is ready."""
    for program, text in {"systemctl": f'echo "$@" >>{tmp_path}/asked', "sleep": "true"}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = await asyncio.create_subprocess_exec(
        OPERATIONS / "restart.sh", str(server.port), env=environment
    )
    assert await script.wait() == 0
    assert (tmp_path / "asked").read_text() == f"restart livepush@{server.port}\n"


async def states(port: int) -> list[str]:
    """Return the state of each worker, as HAProxy sees it."""
    answer = await WireStream.open(port, "/;csv")
    lines = (await answer.read_chunks()).decode().removeprefix("# ").splitlines()
    answer.abort()
    return [row["status"] for row in csv.DictReader(lines) if row["svname"] in ("one", "two")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proxy", "name", "signals"),
    [
        ("haproxy", "haproxy.cfg", [signal.SIGTERM, signal.SIGTERM]),
        # nginx asks for no readiness: a request to a worker that has gone tries the next one.
        ("nginx", "nginx.conf", [signal.SIGTERM, signal.SIGKILL]),
    ],
)
async def test_a_rolling_restart_loses_and_refuses_nothing(
    proxy: str, name: str, signals: list[signal.Signals], own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    """Two workers are replaced under 100 streams, while events are published and further streams open."""
    environment = {"LIVEPUSH_REDIS": own_valkey.url, "DRAIN_DELAY": "1", "DRAIN_WINDOW": "1"}
    workers = [worker(tmp_path / f"log{number}", environment) for number in range(2)]
    async with workers[0] as first, workers[1] as second, own_valkey.client() as redis:
        await asyncio.gather(wait_ready(first), wait_ready(second))
        text = configuration(name, workers).replace("inter 1s", "inter 250ms")
        statistics = free_port()
        if proxy == "haproxy":
            text += STATISTICS.format(port=statistics)
        push = LivePush(RedisStreamsBroker(redis), public("news"))
        async with (
            getattr(proxies, proxy)(0, text, tmp_path) as front,
            Audience(front.port, 100, push.publish, pace=0.3) as audience,
        ):

            async def noticed() -> None:
                while proxy == "haproxy" and await states(statistics) != ["UP", "UP"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

            async def restart() -> None:
                for each, number in zip(workers, signals, strict=True):
                    await noticed()
                    await replace(each, noticed, number)

            await audience.meanwhile(restart, rate=20, visits=20)
            tally = audience.tally
            # Nobody stays away: the last ones come back too.
            await until(lambda: len(tally.returns) == sum(tally.ends.values()))
    assert (audience.lost, tally.doubled, tally.gaps) == (0, 0, {})
    assert (tally.fatal, tally.attempts) == ({}, {}), f"{tally}\n{first.log}\n{second.log}"
    killed = signals.count(signal.SIGKILL)
    assert set(tally.ends) == ({"drain", "cut"} if killed else {"drain"})
    # Each worker had half of the streams, and those of the first are there again.
    assert len(tally.returns) >= 90
    # Nearly each was told another time to come back.
    assert len(set(tally.told)) > 0.8 * tally.ends["drain"] > 0
