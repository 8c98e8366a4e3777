"""`publish --url`: the command speaks to a real publisher over HTTP, with the words and statuses of Redis."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest

from .apps.publisher import SECRET
from .command import COMMAND, ENVIRONMENT, REPOSITORY, run
from .server_process import free_port
from .serving import Serving, WireStream, uvicorn

APP = "tests.apps.publisher:app"
pytestmark = pytest.mark.real_time


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Serving]:
    async with uvicorn(APP, tmp_path / "log", environment={"MAX_BODY": "4000"}) as server:
        yield server


async def stream_of(server: Serving) -> WireStream:
    stream = await server.open("/events")
    await stream.next_event("livepush.open")
    return stream


async def told(*arguments: str) -> tuple[int, str, str]:
    """Run `publish` in this process, in a thread, and return the status and what it wrote."""
    done = await asyncio.to_thread(run, "publish", *arguments)
    return done.returncode, done.stdout, done.stderr


async def piped(data: bytes, *arguments: str, **environment: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, "publish", *arguments],
        input=data,
        capture_output=True,
        cwd=REPOSITORY,
        env={**ENVIRONMENT, **environment},
        timeout=30,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_one_event_signed_or_with_a_token(server: Serving) -> None:
    stream, url = await stream_of(server), f"{server.url}/publish"
    options = ("--event", "x", "--id", "7", "--url", url, "--secret", SECRET)
    assert await told("news", "é 1", *options) == (0, "1 event\n", "")
    event = await stream.next_event()
    assert (event.event, event.data, event.last_event_id) == ("x", "é 1", "7")
    token = jwt.encode({"mercure": {"publish": ["news"]}}, SECRET, "HS256")
    url = f"{server.url}/.well-known/mercure"
    assert await told("news", "2", "--url", url, "--token", token) == (0, "1 event\n", "")
    assert (await stream.next_event()).data == "2"
    status, output, errors = await told("jobs", "2", "--url", url, "--token", token)
    assert (status, output) == (1, "")
    assert errors == f"livepush: {url} answers 403: You may not publish to 'jobs'.\n"


@pytest.mark.slow
async def test_each_line_of_the_input_in_order(server: Serving) -> None:
    """More lines than one request carries, and more bytes than this application takes in one."""
    stream = await stream_of(server)
    lines = [f"line {number} {'x' * (number % 50)}" for number in range(450)]
    environment = {"LIVEPUSH_URL": f"{server.url}/publish", "LIVEPUSH_SECRET": SECRET}
    data = "\r\n".join(lines).encode()
    assert await piped(data, "news", "-", "--event", "line", **environment) == (0, "450 events\n", "")
    assert [(await stream.next_event("line")).data for _ in lines] == lines


@pytest.mark.slow
async def test_a_line_that_is_refused_is_named(server: Serving) -> None:
    stream = await stream_of(server)
    environment = {"LIVEPUSH_URL": f"{server.url}/publish", "LIVEPUSH_SECRET": SECRET}
    data = b"one\ntwo\n" + b"x" * 5000 + b"\nfour"
    status, output, errors = await piped(data, "news", **environment)
    assert (status, output) == (1, "")
    assert "answers 413: The body has more than 4,000 bytes.; line 3 may be missing, the lines" in errors
    assert [(await stream.next_event()).data for _ in range(2)] == ["one", "two"]


@pytest.mark.slow
async def test_what_is_outside_is_status_1(server: Serving) -> None:
    url = f"{server.url}/publish"
    closed = f"http://user:password@127.0.0.1:{free_port()}/publish"
    for arguments, words in [
        (("--url", url), "answers 401: Sign the request"),
        (("--url", url, "--secret", SECRET[::-1]), "answers 401: X-Signature is not the signature"),
        (("--url", f"{server.url}/elsewhere"), "answers 405: Method Not Allowed"),
        (("--url", closed), "/publish cannot be reached: "),
        (("--url", f"{server.url}/moved"), "redirects to https://example.org/publish/: give that URL"),
        (("--url", f"{server.url}/broken"), "answers 502: Bad Gateway"),
        (("--url", f"{server.url}/list"), "answers 500: Internal Server Error"),
    ]:
        status, output, errors = await told("news", "x", *arguments)
        assert (status, output) == (1, "")
        assert errors.startswith("livepush: http://127.0.0.1:")
        assert words in errors
        assert len(errors.splitlines()) == 1
    status, _, errors = await piped(b"x\n", "news", "-", "--url", closed)
    assert status == 1
    assert "password" not in errors


async def test_what_is_typed_takes_precedence_over_a_variable(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = f"redis://127.0.0.1:{free_port()}"
    monkeypatch.setitem(ENVIRONMENT, "LIVEPUSH_REDIS", closed)
    typed = await told("news", "x", "--url", f"{server.url}/publish", "--secret", SECRET)
    assert typed == (0, "1 event\n", "")
    monkeypatch.setitem(ENVIRONMENT, "LIVEPUSH_URL", f"{server.url}/publish")
    status, _, errors = await told("news", "x")
    assert status == 2
    assert "leave one of them out" in errors
    status, _, errors = await told("news", "x", "--redis", closed)
    assert status == 1
    assert closed.removeprefix("redis://") in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--url", "redis://h"), "'redis://h' is not a URL such as https://example.org/publish/"),
        (("--url", "example.org/publish"), "is not a URL such as"),
        (("--url", "http://"), "is not a URL such as"),
        (
            ("--url", "http://h", "--redis", "redis://h"),
            "--url or LIVEPUSH_URL takes no --redis or LIVEPUSH_REDIS",
        ),
        (("--url", "http://h", "--namespace", "n"), "takes no --namespace"),
        (("--url", "http://h", "--secret", "short"), "a secret has at least 16 bytes"),
        (("--url", "http://h", "--secret", SECRET, "--token", "t"), "--secret or --token, not both"),
        (("--url", "http://h", "--token", "a\nb"), "a token is of ASCII characters"),
        (("--url", "http://h", "--event", "livepush.x"), "event names that begin"),
        (("--url", "http://h", "--id", ""), "an empty event id"),
    ],
    ids=lambda value: "-".join(value)[:50] if isinstance(value, tuple) else None,
)
async def test_what_is_mistyped_is_status_2(arguments: tuple[str, ...], words: str) -> None:
    status, output, errors = await told("news", "x", *arguments)
    assert (status, output) == (2, "")
    assert words in errors
    assert len(errors.splitlines()) == 1
