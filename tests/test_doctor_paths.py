"""The doctor on a real server: straight, through a relay that spoils, and at what is no stream.

All paths are examined at once, because an examination is mostly waiting; each is a test of its own.
"""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
import django
import pytest

from livepush_asgi.cli.doctor.examine import Question, examine
from livepush_asgi.cli.doctor.findings import Diagnosis, Severity

from .command import run
from .relay import Authority, Relay
from .server_process import free_port
from .serving import Serving, uvicorn
from .spoiling_relay import Spoil, SpoilingRelay

# An application runs eight probes at a time, and may hear late that one has ended.
AT_ONCE = 7
TIMEOUT = 10.0

# The relay, the silence asked for, and the code of the worst finding.
BROKEN = {
    "forgotten when silent": (Spoil(idle_limit=2.0, forget=True), 4.0, "stalled", "has forgotten it"),
    "held to the end": (Spoil(hold_all=True), 1.0, "buffered", "until the answer ends"),
    "held until 4 KiB": (Spoil(hold_bytes=4096), 1.0, "buffered", "until about 4 KiB"),
    "held until 16 KiB": (Spoil(hold_bytes=16384), 1.0, "buffered", "until about 16 KiB"),
    "held for a while": (Spoil(hold_seconds=0.6), 1.0, "buffered", "passes them on once in 0."),
    "held by compression": (Spoil(compress="hold"), 1.0, "compression-delays", "compression (gzip)"),
    "held, and compressed": (
        Spoil(compress="flush", hold_all=True),
        1.0,
        "buffered",
        "without that it is no better",
    ),
    "cut off when silent": (Spoil(idle_limit=2.0), 4.0, "cut-idle", "of silence"),
    "cut off in any case": (Spoil(time_limit=3.5), 3.0, "cut-off", "not for its silence"),
    "each piece compressed": (Spoil(compress="members"), 0.0, "compression-ends", "reads the first"),
    "another type": (Spoil(fields={"content-type": "text/plain"}), 0.0, "wrong-type", "text/plain"),
    "a gateway": (Spoil(status="HTTP/1.1 502 Bad Gateway"), 0.0, "gateway", "cannot reach"),
}
FINE = {
    "straight": (Spoil(), ""),
    "compressed and flushed": (Spoil(compress="flush"), "compressed"),
    "a header taken": (Spoil(fields={"cache-control": None}), "header-stripped"),
    "a header changed": (Spoil(fields={"cache-control": "max-age=60"}), "header-changed"),
    "named": (Spoil(fields={"server": "nginx"}), ""),
}
# Paths of the application, the exit status and the code of the worst finding.
DIRECT = {
    "/events": (0, "prompt"),
    "/mounted": (0, "redirect"),
    "/compressed/": (0, "compressed"),
    "/spared/": (0, "prompt"),
    "/unprobed/": (2, "no-probe"),
    "/deaf/": (2, "probe-refused"),
    "/members/": (2, "refused"),
    "/deaf-members/": (2, "refused"),
    "/full/": (2, "refused-softly"),
    "/foreign": (2, "no-livepush"),
    "/nothing": (2, "refused"),
    "/login": (1, "wrong-type"),
    "/old": (1, "wrong-type"),
    "/around": (1, "redirect-loop"),
    "/broken": (1, "gateway"),
}
Diagnoses = Mapping[str, Diagnosis]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    async with uvicorn("tests.apps.probed:app", tmp_path_factory.mktemp("probed") / "log") as serving:
        yield serving


@pytest.fixture(scope="module")
async def diagnoses(server: Serving) -> Diagnoses:
    found: dict[str, Diagnosis] = {}
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def look(name: str, url: str, idle: float = 1.0) -> None:
        found[name] = Diagnosis(await examine(Question(url=url, idle=idle, timeout=TIMEOUT)))

    async def look_through(name: str, spoil: Spoil, idle: float = 1.0) -> None:
        async with limiter, SpoilingRelay(server.port, spoil) as relay:
            await look(name, f"{relay.url}/events", idle)

    async with anyio.create_task_group() as tasks:
        # The longest first.
        for name, (spoil, idle, _, _) in BROKEN.items():
            tasks.start_soon(look_through, name, spoil, idle)
        for name, (spoil, _) in FINE.items():
            tasks.start_soon(look_through, name, spoil)
        for path in DIRECT:
            tasks.start_soon(look, path, server.url + path)
    return found


def codes(diagnosis: Diagnosis, severity: Severity) -> list[str]:
    return [finding.code for finding in diagnosis.findings if finding.severity is severity]


@pytest.mark.parametrize("name", BROKEN)
async def test_each_broken_path_is_named_for_what_it_does(name: str, diagnoses: Diagnoses) -> None:
    _, _, code, said = BROKEN[name]
    diagnosis = diagnoses[name]
    assert (diagnosis.status, codes(diagnosis, Severity.FAULT)) == (1, [code]), diagnosis
    assert said in diagnosis.findings[0].text


@pytest.mark.parametrize("name", FINE)
async def test_what_delays_nothing_is_no_fault(name: str, diagnoses: Diagnoses) -> None:
    _, code = FINE[name]
    diagnosis = diagnoses[name]
    assert (diagnosis.status, codes(diagnosis, Severity.WARNING)) == (0, [code] if code else []), diagnosis
    assert [proxy.name for proxy in diagnosis.proxies] == (["nginx"] if name == "named" else [])


@pytest.mark.parametrize("path", DIRECT)
async def test_each_answer_is_named_for_what_it_is(path: str, diagnoses: Diagnoses) -> None:
    diagnosis = diagnoses[path]
    assert (diagnosis.status, diagnosis.findings[0].code) == DIRECT[path], diagnosis


async def test_a_refused_probe_is_told_from_a_missing_stream(diagnoses: Diagnoses) -> None:
    give = "give what LivePush(..., probe=...) asks for with -H"
    assert give in diagnoses["/deaf/"].findings[0].text
    members = diagnoses["/deaf-members/"].findings[0].text
    assert "401. A login is missing" in members
    assert f"A probe is refused as well, with 404: {give}" in members
    assert give not in diagnoses["/nothing"].findings[0].text
    assert "There is nothing at this path." in diagnoses["/nothing"].findings[0].text
    assert "Routes answer no probes" in diagnoses["/unprobed/"].findings[0].text


async def test_a_compressed_stream_is_told_with_what_mends_it(diagnoses: Diagnoses) -> None:
    (finding,) = [each for each in diagnoses["compressed and flushed"].findings if each.code == "compressed"]
    assert finding.remedies[0].lines == ("gzip off;",)


async def test_the_summary_says_which_silences_were_not_examined(server: Serving) -> None:
    told = await anyio.to_thread.run_sync(lambda: run("doctor", f"{server.url}/events"))
    assert told.returncode == 0, told.stderr
    healthy = "Healthy, but silences longer than 2 s were not examined: --idle 18"
    assert told.stdout.splitlines()[-1] == healthy


async def test_the_command_says_that_a_straight_path_is_healthy(server: Serving) -> None:
    told = await anyio.to_thread.run_sync(lambda: run("doctor", "--idle", "0", f"{server.url}/events"))
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0] == f"{server.url}/events"
    assert lines[1].startswith("  HTTP/1.1 200, text/event-stream, first byte after ")
    assert lines[3].startswith("note     40 of 40 events came at the pace they were sent, the latest ")
    assert lines[-1] == "Healthy, but silences longer than 0 s were not examined: --idle 18"


async def test_a_report_for_programs(server: Serving) -> None:
    told = await anyio.to_thread.run_sync(
        lambda: run(
            "doctor", "--json", "--idle", "0", "-H", "Authorization: Bearer me", f"{server.url}/members/"
        )
    )
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert list(report) == [
        "version",
        "url",
        "outcome",
        "status",
        "proxies",
        "findings",
        "answer",
        "measured",
    ]
    assert (report["version"], report["outcome"], report["status"]) == (1, "healthy", 0)
    assert {finding["code"] for finding in report["findings"]} == {"prompt", "silence", "http-1"}
    assert report["answer"] == {
        "status": 200,
        "http_version": "HTTP/1.1",
        "url": f"{server.url}/members/",
        "content_type": "text/event-stream",
        "content_encoding": None,
        "redirects": [],
    }
    assert (report["measured"]["events"], report["measured"]["end"]) == (40, "complete")


async def test_the_command_ends_with_the_status_of_what_was_found(server: Serving) -> None:
    page = await anyio.to_thread.run_sync(lambda: run("doctor", f"{server.url}/login"))
    assert (page.returncode, page.stdout.splitlines()[-1]) == (1, "Not healthy.")
    nobody = await anyio.to_thread.run_sync(lambda: run("doctor", f"http://127.0.0.1:{free_port()}/"))
    assert nobody.returncode == 2
    assert "UNKNOWN  Nobody listens there: the connection is refused." in nobody.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("example.org",), "'example.org' is no URL such as https://example.org/events/"),
        (("--idle", "601", "http://h/"), "the silence is from 0 to 600 seconds, not 601"),
        (("-H", "Cookie", "http://h/"), "'Cookie' is no header field such as 'Authorization: Bearer ...'"),
    ],
)
def test_what_cannot_be_meant_gives_one_line(arguments: tuple[str, ...], message: str) -> None:
    told = run("doctor", *arguments)
    assert (told.returncode, told.stdout, told.stderr) == (2, "", f"livepush: {message}\n")


async def test_a_page_of_another_origin(server: Serving) -> None:
    found: dict[str, Diagnosis] = {}

    async def look(origin: str) -> None:
        question = Question(url=f"{server.url}/events", idle=0, origin=origin)
        found[origin] = Diagnosis(await examine(question))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look, "https://app.example")
        tasks.start_soon(look, "https://evil.example")
    allowed, refused = found["https://app.example"], found["https://evil.example"]
    assert (allowed.status, refused.status) == (0, 1)
    assert "cors-allowed" in codes(allowed, Severity.NOTE)
    assert codes(refused, Severity.FAULT) == ["cors"]


async def test_a_certificate_that_nobody_vouches_for(server: Serving, tmp_path: Path) -> None:
    relay = Relay(server.port, tls=Authority(tmp_path).server_context)
    url = f"https://localhost:{relay.port}/events"
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve)
        distrusted = Diagnosis(await examine(Question(url=url, idle=0)))
        insecure = Diagnosis(await examine(Question(url=url, idle=0, insecure=True)))
        tasks.cancel_scope.cancel()
    assert (distrusted.status, distrusted.findings[0].code) == (2, "tls")
    assert "certificate" in distrusted.findings[0].text
    assert insecure.status == 0
    # The application was asked without TLS, so somebody stands before it.
    assert [proxy.known_by for proxy in insecure.proxies] == ["https here, http at the application"]


async def test_pieces_that_django_compresses_one_by_one(tmp_path: Path) -> None:
    async with uvicorn("tests.apps.gzip_django:app", tmp_path / "log", "--lifespan", "off") as server:

        async def publish() -> None:
            while True:
                await server.open("/publish", method="POST", body=b"hello")
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish)
            diagnosis = Diagnosis(await examine(Question(url=f"{server.url}/own", idle=3)))
            tasks.cancel_scope.cancel()
    # It is no application that can be probed, and what is wrong shows all the same; in Django 6 nothing is.
    first = (2, "no-probe") if django.VERSION >= (6,) else (1, "compression-ends")
    assert (diagnosis.status, diagnosis.findings[0].code) == first, diagnosis
    assert "no-probe" in {finding.code for finding in diagnosis.findings}
