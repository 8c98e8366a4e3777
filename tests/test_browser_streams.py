"""What a real browser makes of the streams: one behaviour in each test, on a page that keeps what it sees."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trustme

from livepush_asgi import RedisStreamsBroker

from .chromium import Browser, Page
from .proxies import caddy
from .serving import Serving, uvicorn
from .valkey import ValkeyProcess

APP = "tests.apps.browser:app"
# Speaks HTTP/2 with a browser, under a certificate that nobody knows.
HTTP2 = "https://127.0.0.1:8080 {{\n\ttls {0} {0}\n\treverse_proxy 127.0.0.1:8000\n}}\n"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    async with uvicorn(APP, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


async def post(server: Serving, path: str, body: str = "") -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        answer = await client.post(server.url + path, content=body)
        assert answer.status_code == 200, answer.text


async def asked(server: Serving, name: str) -> object:
    """Return how many streams clients have asked for under a name, refused ones too."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return (await client.get(f"{server.url}/asked")).json()[name]


def certified(directory: Path) -> Path:
    """Return a certificate that nobody knows."""
    certificate = directory / "certificate.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    return certificate


def recorder(browser: Browser, url: str) -> Page:
    return browser.open(f"{url}/recorder.html")


def listen(page: Page, name: str, url: str, options: str = "{}", *, until: str = "open") -> None:
    """Open a stream in the page, under a name, and wait until it has opened."""
    page.evaluate(f"void (window.{name} = listen({json.dumps(url)}, {options}))")
    page.wait_for(f"{name}.names().includes({json.dumps(until)})")


async def test_events_reach_the_listeners_of_their_names(browser: Browser, server: Serving) -> None:
    page = recorder(browser, server.url)
    listen(page, "s", "/events?channel=named", until="livepush.open")
    await post(server, "/publish?channel=named", "two\nlines")
    await post(server, "/publish?channel=named&event=news", "grüße 😀\u2028\u0085")
    await post(server, "/publish?channel=named&event=unknown", "nobody listens to this one")
    await post(server, "/publish?channel=named", "")
    page.wait_for("s.data('message').length === 2")
    assert page.evaluate("s.names()") == ["open", "livepush.open", "message", "news", "message"]
    assert page.evaluate("s.seen.slice(2)") == [
        ["message", "two\nlines"],
        ["news", "grüße 😀\u2028\u0085"],
        ["message", ""],
    ]
    # Each event has an id, so that the browser can say where it was.
    assert page.evaluate("new Set(s.ids.slice(1)).size") == 4
    assert page.complaints == []


async def test_a_page_outlives_its_server_and_misses_nothing(
    browser: Browser, own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    environment = {"REDIS_URL": own_valkey.url}
    async with (
        own_valkey.client() as redis,
        uvicorn(APP, tmp_path / "log", environment=environment) as server,
    ):
        broker = RedisStreamsBroker(redis)
        page = recorder(browser, server.url)
        listen(page, "s", "/events?channel=c", until="livepush.open")
        for number in range(10):
            await broker.publish("c", str(number))
        page.wait_for("s.data('message').length === 10")
        server.kill()
        page.wait_for("s.names().includes('error')")
        # Nobody is there to deliver these.
        for number in range(10, 20):
            await broker.publish("c", str(number))
        await server.start_again()
        page.wait_for("s.data('message').length === 20")
        for number in range(20, 30):
            await broker.publish("c", str(number))
        page.wait_for("s.data('message').length === 30")
        assert page.evaluate("s.data('message')") == [str(number) for number in range(30)]
        opened = page.evaluate("s.data('livepush.open').map((data) => JSON.parse(data).resumed)")
        assert opened == [False, True]
        assert page.evaluate("s.data('livepush.gap')") == []


async def test_the_browser_waits_as_long_as_it_is_told(browser: Browser, server: Serving) -> None:
    page = recorder(browser, server.url)
    listen(page, "quick", "/events?channel=retry", until="livepush.open")
    listen(page, "slow", "/slow?channel=retry", until="livepush.open")
    await post(server, "/disconnect?channel=retry")
    page.wait_for("quick.data('livepush.open').length === 2 && slow.data('livepush.open').length === 2")
    expected = ["open", "livepush.open", "livepush.close", "error", "open", "livepush.open"]
    assert page.evaluate("quick.names()") == page.evaluate("slow.names()") == expected
    # 0 is "connecting": the browser comes back by itself.
    assert page.evaluate("[quick.data('error'), slow.data('error')]") == [[0], [0]]
    for name in ("quick", "slow"):
        # Both clocks are the browser's own. It rounds what it tells of the time.
        waited = f"{name}.times[4] - {name}.times[3] + 1"
        assert page.evaluate(f"{waited} >= JSON.parse({name}.data('livepush.close')[0]).retry")
    assert page.evaluate("quick.times[5] < slow.times[5]")


@pytest.mark.parametrize("status", [204, 401, 503])
async def test_a_status_that_is_not_200_is_the_end(browser: Browser, server: Serving, status: int) -> None:
    channel, name = f"stop-{status}", f"stopped-{status}"
    page = recorder(browser, server.url)
    listen(page, "stopped", f"/events?channel={channel}&name={name}&refuse={status}&after=1")
    listen(page, "goes_on", f"/events?channel={channel}&name=goes-on-{status}")
    await post(server, f"/disconnect?channel={channel}")
    page.wait_for("stopped.source.readyState === 2")
    # The other stream shows that there was time to come back.
    for number in range(2, 5):
        page.wait_for(f"goes_on.data('livepush.open').length === {number}")
        await post(server, f"/disconnect?channel={channel}")
    page.wait_for("goes_on.data('livepush.open').length === 5")
    # Once "connecting", once "closed".
    assert page.evaluate("stopped.data('error')") == [0, 2]
    assert (await asked(server, name), await asked(server, f"goes-on-{status}")) == (2, 5)


async def test_a_soft_refusal_is_survived(browser: Browser, server: Serving) -> None:
    page = recorder(browser, server.url)
    listen(page, "first", "/events?channel=soft&key=soft", until="livepush.open")
    page.evaluate("void (window.second = listen('/events?channel=soft&key=soft'))")
    page.wait_for("second.names().includes('error')")
    refused = page.evaluate("JSON.parse(second.data('livepush.refused')[0])")
    assert isinstance(refused, dict)
    assert (refused["reason"], refused["status"]) == ("cap", 429)
    page.evaluate("first.source.close()")
    page.wait_for("second.data('livepush.open').length === 1")
    await post(server, "/publish?channel=soft", "at last")
    page.wait_for("second.data('message').length === 1")
    names = page.evaluate("second.names()")
    assert isinstance(names, list)
    # Refused once, or more often where the first stream's end has taken its time.
    assert names[:-3] == ["open", "livepush.refused", "error"] * (len(names) // 3 - 1)
    assert names[-3:] == ["open", "livepush.open", "message"]


async def test_pages_of_a_listed_origin_get_in_with_their_cookies(browser: Browser, tmp_path: Path) -> None:
    async with uvicorn(APP, tmp_path / "pages") as pages:
        environment = {"ORIGIN": pages.url}
        async with uvicorn(APP, tmp_path / "streams", environment=environment) as streams:
            page = recorder(browser, pages.url)
            page.evaluate("void (document.cookie = 'user=anna; path=/')")
            stream = f"{streams.url}/events?mine&name="
            listen(page, "mine", f"{stream}mine", "{withCredentials: true}", until="livepush.open")
            await post(streams, "/publish?channel=of:anna", "for anna")
            page.wait_for("mine.data('message').length === 1")
            # Without credentials no cookie goes along, and there is nobody to have the stream.
            listen(page, "without", f"{stream}without", until="error")
            assert page.evaluate("without.seen") == [["error", 2]]
            assert await asked(streams, "without as None") == 1

            # The other way round the origin is not on the list. The cookie goes along, and the answer is a
            # stream: it is the browser that keeps it from the page.
            foreign = recorder(browser, streams.url)
            address = f"{pages.url}/events?mine&name=foreign"
            listen(foreign, "foreign", address, "{withCredentials: true}", until="error")
            assert foreign.evaluate("foreign.seen") == [["error", 2]]
            assert await asked(pages, "foreign as anna") == 1
            assert any("CORS" in complaint for complaint in foreign.complaints)


# A browser that sends cookies to other sites. Debian's Chromium does not by itself.
THIRD_PARTIES = {"profile": {"cookie_controls_mode": 0}}


async def test_a_cookie_goes_to_another_site_only_if_it_says_so(
    browser: Browser, server: Serving, tmp_path: Path
) -> None:
    (preferences := tmp_path / "profile" / "Default" / "Preferences").parent.mkdir(parents=True)
    preferences.write_text(json.dumps(THIRD_PARTIES))
    site_file = HTTP2.replace("127.0.0.1:8080", "localhost:8080").format(certified(tmp_path))
    async with (
        uvicorn(APP, tmp_path / "streams", environment={"ORIGIN": server.url}) as streams,
        caddy(streams.port, site_file, tmp_path) as proxy,
    ):
        # The pages are on 127.0.0.1, which is another site.
        site = f"https://localhost:{proxy.port}"

        def open_stream(of: Browser, name: str, cookie: str, until: str) -> None:
            recorder(of, site).evaluate(f"void (document.cookie = {json.dumps(cookie)})")
            url = f"{site}/events?mine&name={name}"
            listen(recorder(of, server.url), name, url, "{withCredentials: true}", until=until)

        with Browser(tmp_path / "profile", "--ignore-certificate-errors") as open_minded:
            open_stream(open_minded, "lax", "user=anna; path=/", "error")
            open_stream(open_minded, "none", "user=anna; path=/; SameSite=None; Secure", "livepush.open")
        assert await asked(streams, "lax as None") == 1
        assert await asked(streams, "none as anna") == 1


MANY = "[...Array(30).keys()].map((n) => listen(`/events?channel=many&name=NAME&n=${n}`))"


async def test_six_streams_over_http_1(browser: Browser, server: Serving) -> None:
    page = recorder(browser, server.url)
    page.evaluate(f"void (window.many = {MANY.replace('NAME', 'six')})")
    opened = "many.filter((one) => one.names().includes('livepush.open')).length"
    page.wait_for(f"{opened} === 6")
    assert await asked(server, "six") == 6
    # The seventh is waiting in the browser for a connection.
    page.evaluate("many[0].source.close()")
    page.wait_for(f"{opened} === 7")
    assert await asked(server, "six") == 7


async def test_thirty_streams_over_http_2(browser: Browser, server: Serving, tmp_path: Path) -> None:
    async with caddy(server.port, HTTP2.format(certified(tmp_path)), tmp_path) as proxy:
        page = recorder(browser, f"https://127.0.0.1:{proxy.port}")
        assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        page.evaluate(f"void (window.many = {MANY.replace('NAME', 'thirty')})")
        page.wait_for("many.every((one) => one.names().includes('livepush.open'))")
        await post(server, "/publish?channel=many", "to all thirty")
        page.wait_for("many.every((one) => one.data('message').length === 1)")
        assert page.evaluate("many.map((one) => one.data('message')[0])") == ["to all thirty"] * 30
        # And there is room for a request besides.
        assert page.evaluate("fetch('/asked').then((answer) => answer.status)") == 200
        assert page.complaints == []
