"""A cable is cut while a stream is idle: no end, no reset, and nothing published that could fill a window."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from .network import ADDRESS, Network
from .servers import SERVERS, Server
from .visit import Visit, reader

EVERYWHERE = "0.0.0.0"
PATIENCE = 60.0
LISTENING = (
    Server("uvicorn", "examples.listen {port} 2 uvicorn {app} --fd 3"),
    Server("hypercorn", "examples.listen {port} 2 hypercorn {app} -w 0 --bind fd://3"),
    Server(
        "gunicorn",
        "examples.listen {port} 2 gunicorn {app} -k uvicorn_worker.UvicornWorker --no-control-socket"
        " --bind fd://3",
    ),
    Server("daphne", "examples.listen {port} 2 daphne {app} --fd 3 -v 0"),
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def network() -> Iterator[Network]:
    found = Network()
    with found.entered():
        yield found


async def lose_a_client(server: Server, network: Network, folder: Path, cut: asyncio.Barrier) -> None:
    """Have a client on the other machine open a stream, and wait until the cut is noticed."""
    async with (
        server.serve(folder / server.name, host=EVERYWHERE) as serving,
        Visit(serving.port) as visit,
        asyncio.timeout(PATIENCE),
    ):
        with reader(serving.port, ADDRESS, command=network.there):
            assert (await visit.statistics()).streams == 1
            await cut.wait()
            await visit.until(lambda numbers: numbers.streams == 0, within=PATIENCE)
            assert (await visit.statistics()).ended["disconnect"] == 1


async def lose_one_each(servers: tuple[Server, ...], network: Network, folder: Path) -> None:
    cut = asyncio.Barrier(len(servers) + 1)
    async with asyncio.TaskGroup() as tasks:
        for server in servers:
            tasks.create_task(lose_a_client(server, network, folder, cut))
        await cut.wait()
        network.cut()


async def test_every_server_notices_when_the_kernel_gives_up(network: Network, tmp_path: Path) -> None:
    network.give_up_after(3)
    await lose_one_each(SERVERS, network, tmp_path)


async def test_uvicorn_lets_its_connections_be_given_a_time_limit(network: Network, tmp_path: Path) -> None:
    own = tuple(server for server in SERVERS if "uvicorn" in server.name)
    assert len(own) == 3
    await lose_one_each(own, network, tmp_path)


async def test_a_socket_with_a_time_limit_notices_by_itself(network: Network, tmp_path: Path) -> None:
    await lose_one_each(LISTENING, network, tmp_path)
