"""A cable is cut while a stream is idle: no end, no reset, and nothing published that could fill a window."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path

import pytest

from .network import ADDRESS, Network, available
from .servers import SERVERS, Server
from .visit import Visit, reader

EVERYWHERE = "0.0.0.0"
#: Much more than a heartbeat and `send_timeout` together; without us it would be a quarter of an hour.
PATIENCE = 60.0
#: What hides uvicorn from the component: only the address of the client leads to its connection there.
ROUTES = ("middleware", "starlette", "quart", "litestar", "django")
UVICORN = Server("routes", "uvicorn tests.apps.routes:app --host {host} --port {port} --no-access-log")

pytestmark = pytest.mark.real_time


@pytest.fixture
def network() -> Iterator[Network]:
    if not available():
        pytest.skip(
            "network namespaces cannot be made here: that needs root and `ip`, and no container forbids it"
        )
    found = Network()
    with found.entered():
        yield found


async def lose_a_client(
    server: Server, network: Network, folder: Path, cut: asyncio.Barrier, *, route: str = ""
) -> None:
    """Have a client on the other machine open a stream, and wait until the cut is noticed."""
    log = folder / f"{server.name}{route}"
    async with (
        server.serve(log, host=EVERYWHERE, environment={"ROUTE": route}) as serving,
        Visit(serving.port) as visit,
        asyncio.timeout(PATIENCE),
    ):
        with reader(serving.port, ADDRESS, command=network.there):
            assert (await visit.statistics()).streams == 1
            await cut.wait()
            await visit.until(lambda numbers: numbers.streams == 0, within=PATIENCE)
            assert (await visit.statistics()).ended["disconnect"] == 1


async def lose_one_each(
    network: Network, *losing: Callable[[asyncio.Barrier], Coroutine[None, None, None]]
) -> None:
    """Have all open their streams, and cut the cable for all of them at once."""
    cut = asyncio.Barrier(len(losing) + 1)
    async with asyncio.TaskGroup() as tasks:
        for lose in losing:
            tasks.create_task(lose(cut))
        await cut.wait()
        network.cut()


async def test_every_server_notices(network: Network, tmp_path: Path) -> None:
    await lose_one_each(network, *(partial(lose_a_client, server, network, tmp_path) for server in SERVERS))


async def test_the_route_of_every_framework_notices(network: Network, tmp_path: Path) -> None:
    await lose_one_each(
        network, *(partial(lose_a_client, UVICORN, network, tmp_path, route=route) for route in ROUTES)
    )


async def test_the_kernel_s_own_limit_holds_where_the_address_is_another_s(
    network: Network, tmp_path: Path
) -> None:
    network.give_up_after(3)
    await lose_one_each(network, partial(lose_a_client, UVICORN, network, tmp_path, route="forwarded"))
