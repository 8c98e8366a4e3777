"""Each example is served and used once. Those of the frameworks are in `test_frameworks.py`, the quickstart
and the custom broker in files of their own.
"""

from pathlib import Path

import pytest

from .serving import uvicorn

EXAMPLES = Path(__file__).parent.parent / "examples"
USED_ELSEWHERE = {
    "custom_broker.py": "test_custom_broker.py",
    "quickstart.py": "test_quickstart.py",
    "publisher.py": "test_frameworks.py",
    "plain_asgi.py": "test_frameworks.py",
    "starlette_app.py": "test_frameworks.py",
    "fastapi_app.py": "test_frameworks.py",
    "django_app.py": "test_frameworks.py",
    "quart_app.py": "test_frameworks.py",
    "litestar_app.py": "test_frameworks.py",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_fifteen_lines_push_to_a_page(tmp_path: Path) -> None:
    async with uvicorn("fifteen_lines:app", tmp_path / "log", "--app-dir", "examples") as server:
        stream = await server.open("/events/")
        await stream.next_event("livepush.open")
        assert (await server.open("/", method="POST")).status == 200
        assert (await stream.next_event()).data == '{"hello":"127.0.0.1"}'


async def test_plain_asgi_lets_in_who_has_the_token(tmp_path: Path) -> None:
    async with uvicorn("plain_asgi:app", tmp_path / "log", "--app-dir", "examples") as server:
        refused = await server.open("/events?token=wrong")
        assert (refused.status, refused.headers["content-type"]) == (401, "application/problem+json")
        stream = await server.open("/events?token=let-me-in")
        await stream.next_event("livepush.open")
        await server.open("/", method="POST", body=b"x" * 100_000)
        assert (await stream.next_event()).data == "x" * 100_000


def test_no_example_is_left_out() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")} - {"fifteen_lines.py"}
    assert names == set(USED_ELSEWHERE)
    for name, test in USED_ELSEWHERE.items():
        assert name.removesuffix(".py") in (Path(__file__).parent / test).read_text()
