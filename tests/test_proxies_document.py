"""What docs/guides/proxies.md shows is what the tests run and what the benchmark measures."""

import re
from pathlib import Path

import pytest

from benchmarks.proxies import ROWS

from .proxies import CONFIGURATIONS, configuration, nginx
from .recording import ENCODINGS
from .serving import uvicorn

DOCUMENT = Path(__file__).parent.parent / "docs" / "guides" / "proxies.md"
BLOCKS = re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.real_time


@pytest.mark.parametrize(("name", "text"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_configuration_is_the_file_that_is_run(name: str, text: str) -> None:
    assert text == configuration(name)


def test_every_mended_file_is_shown() -> None:
    mended = {f"mended/{path.name}" for path in (CONFIGURATIONS / "mended").iterdir()}
    assert {name for name, _ in BLOCKS} == mended | {"default/vite.config.js", "identity.py"}


def test_every_code_block_is_a_file() -> None:
    assert DOCUMENT.read_text().count("\n```") == 2 * len(BLOCKS)


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
