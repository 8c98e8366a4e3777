"""Behind each recipe, the application is stopped and started again: clients and pages survive that."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from livepush_asgi.cli.doctor.examine import Question, examine
from livepush_asgi.cli.doctor.findings import Diagnosis

from . import proxies
from .chromium import Browser
from .proxies import Proxy
from .serving import Serving, WireStream, uvicorn

KINDS = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "caddy": "Caddyfile"}
AWAY = b"retry: 2000\n"
STREAM = "/events?channel=c"

pytestmark = pytest.mark.real_time


class Way(NamedTuple):
    """A server, and a proxy in front of it with the recipe."""

    server: Serving
    proxy: Proxy

    async def publish(self, data: str) -> None:
        path = "/publish?channel=c"
        assert (await self.server.open(path, method="POST", body=data.encode())).status == 200


@pytest.fixture(params=KINDS)
async def way(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Way]:
    made = getattr(proxies, request.param)
    async with (
        uvicorn("tests.apps.browser:app", tmp_path / "log") as server,
        made(server.port, f"recipe/{KINDS[request.param]}", tmp_path) as proxy,
    ):
        yield Way(server, proxy)


async def body(answer: WireStream) -> bytes:
    async with asyncio.timeout(30):
        return await answer.read_body()


async def test_a_client_is_told_to_come_back_while_no_process_listens(way: Way) -> None:
    stream = await way.proxy.open(STREAM)
    await stream.next_event("livepush.open", timeout=30)
    way.server.kill()
    with pytest.raises((EOFError, asyncio.IncompleteReadError)):
        await stream.next_event(timeout=30)
    answer = await way.proxy.open(STREAM)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert await body(answer) == AWAY
    await way.server.start_again()
    again = await way.proxy.open(STREAM)
    await again.next_event("livepush.open", timeout=30)


async def test_the_doctor_knows_the_answer_for_a_stopped_application(way: Way) -> None:
    way.server.kill()
    diagnosis = Diagnosis(await examine(Question(url=f"{way.proxy.url}/events", idle=0)))
    assert (diagnosis.status, diagnosis.findings[0].code) == (2, "restart"), diagnosis


@pytest.mark.parametrize(("method", "path"), [("GET", "/asked"), ("POST", STREAM)])
async def test_other_requests_are_answered_with_the_error(method: str, path: str, way: Way) -> None:
    way.server.kill()
    assert (await way.proxy.open(path, method=method)).status in (502, 503)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 502, 503, 504])
async def test_the_applications_own_refusal_passes(status: int, way: Way) -> None:
    answer = await way.proxy.open(f"/events?channel=c&refuse={status}")
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert await body(answer) != AWAY


async def test_a_page_survives_a_stop_and_a_start(browser: Browser, way: Way) -> None:
    page = browser.open(f"{way.proxy.url}/recorder.html")
    page.evaluate(f"void (window.s = listen('{STREAM}'))")
    page.wait_for("s.data('livepush.open').length === 1")
    way.server.send_signal(signal.SIGTERM)
    await way.server.ended(30)
    # The second one is the proxy's answer: it opens, says when to come back, and ends.
    page.wait_for("s.names().filter((name) => name === 'open').length >= 3")
    # The browser comes back when the proxy says, and not after the 0.2 s of the application.
    assert page.evaluate(
        "s.times[s.names().lastIndexOf('open')] - s.times[s.names().lastIndexOf('open') - 1] > 1900"
    )
    await way.server.start_again()
    page.wait_for("s.data('livepush.open').length === 2")
    await way.publish("after")
    page.wait_for("s.data('message').length === 1")
    # 0 is "connecting": it was never "closed".
    assert page.evaluate("new Set(s.data('error')).size === 1 && s.data('error')[0]") == 0
