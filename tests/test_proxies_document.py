"""What docs/guides/proxies.md shows is what the tests run and what the benchmark measures."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.proxies import ROWS

from .proxies import CONFIGURATIONS, Proxy, caddy, haproxy, nginx
from .recording import ENCODINGS
from .serving import uvicorn

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
DOCUMENT = GUIDES / "proxies.md"
RECIPES = GUIDES / "deploy.md"


def shown(document: Path) -> set[str]:
    """Return the files of `docs/proxies` that a document includes."""
    return set(re.findall(r"^<!-- file: docs/proxies/(\S+) -->$", document.read_text(), re.MULTILINE))


pytestmark = pytest.mark.real_time


def test_every_mended_file_is_shown() -> None:
    mended = {f"mended/{path.name}" for path in (CONFIGURATIONS / "mended").iterdir()}
    assert shown(DOCUMENT) == mended | {"default/vite.config.js", "identity.py"}


def test_every_recipe_is_shown() -> None:
    assert shown(RECIPES) == {f"recipe/{path.name}" for path in (CONFIGURATIONS / "recipe").iterdir()}


def test_every_code_block_is_a_file() -> None:
    assert DOCUMENT.read_text().count("\n```") == 2 * len(shown(DOCUMENT))


@pytest.mark.parametrize(
    ("proxy", "name"), [(nginx, "nginx.conf"), (haproxy, "haproxy.cfg"), (caddy, "Caddyfile")]
)
async def test_a_recipe_passes_each_event_on_as_it_comes(
    proxy: Callable[..., Proxy], name: str, tmp_path: Path
) -> None:
    """A stream under /events, and what is beside it; each event arrives before the next one is published."""
    async with (
        uvicorn("tests.apps.proxied:app", tmp_path / "log", environment={"HEARTBEAT": "600"}) as server,
        proxy(server.port, f"recipe/{name}", tmp_path) as front,
    ):
        stream = await front.open("/events", accept_encoding=ENCODINGS)
        await stream.next_event("livepush.open", timeout=30)
        assert "content-encoding" not in stream.headers
        for text in (b"1", b"2" * 5000, b"3"):
            assert (await front.open("/publish", method="POST", body=text)).status == 200
            assert (await stream.next_event(timeout=30)).data == text.decode()


def test_the_table_has_what_the_benchmark_measures() -> None:
    table = DOCUMENT.read_text().split("<!-- measured")[1].split("<!-- end")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == [row.name for row in ROWS]
    assert [len(row) for row in rows] == [3] * len(ROWS)


async def test_a_stream_with_identity_goes_through_compression(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        uvicorn("identity:app", log, "--app-dir", "docs/proxies") as server,
        nginx(server.port, "broken/nginx.conf", tmp_path) as proxy,
    ):
        stream = await proxy.open("/", accept_encoding=ENCODINGS)
        assert stream.headers["content-encoding"] == "identity"
        await stream.next_event("livepush.open", timeout=30)
