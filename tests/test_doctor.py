"""The doctor's judgement: from what was observed to what is said, without a network."""

import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from livepush_asgi.cli.doctor.examine import Body, Question, Unreadable, header_of, trouble_of, without_probe
from livepush_asgi.cli.doctor.findings import Diagnosis, Severity
from livepush_asgi.cli.doctor.observation import (
    End,
    Evidence,
    Observation,
    Redirect,
    Stall,
    Trouble,
)
from livepush_asgi.cli.doctor.proxies import proxies_of

from .observations import PLAN, SEEN, URL, answer, arriving, cut, held_evidence, no_probe

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "livepush_asgi" / "cli" / "doctor"
DOCUMENTATION = REPOSITORY / "docs" / "guides" / "doctor.md"


def codes(evidence: Evidence) -> list[str]:
    return [finding.code for finding in Diagnosis(evidence).findings]


@pytest.mark.parametrize(
    ("how", "said", "where"),
    [
        ({"hold_all": True}, "until the answer ends, or until more than 64 KiB", "if it is nginx"),
        ({"hold_bytes": 8192}, "until about 8 KiB have come together", "if it is nginx"),
        ({"period": 0.6}, "passes them on once in 0.6 s", "if it is nginx"),
        ({"period": 0.25}, "once in 0.2 s. Linux keeps data for that long", "if it is HAProxy"),
        ({"hold_all": True, "head": answer(server="Caddy")}, "until the answer ends", "Caddy, in"),
    ],
)
def test_a_hold_is_said_in_words_with_what_mends_it(how: dict[str, object], said: str, where: str) -> None:
    diagnosis = Diagnosis(held_evidence(**how))
    worst = diagnosis.findings[0]
    assert (diagnosis.status, worst.code) == (1, "buffered")
    assert said in worst.text
    assert worst.remedies[0].where.startswith(where)


def test_compression_is_to_blame_only_if_it_is_better_without() -> None:
    held = held_evidence(hold_all=True, head=answer(content_encoding="gzip"))
    better = Diagnosis(replace(held, uncompressed=arriving()))
    assert better.findings[0].code == "compression-delays"
    assert better.findings[0].remedies[0].lines == ("gzip off;",)
    no_better = Diagnosis(replace(held, uncompressed=arriving(hold_all=True)))
    assert no_better.findings[0].code == "buffered"
    assert "without that it is no better" in no_better.findings[0].text


def cases() -> Iterator[tuple[str, Evidence, int, list[str]]]:
    """Name evidence, and say the exit status and the codes that it leads to."""
    fine = ["prompt", "silence", "http-1"]
    yield "healthy", Evidence(first=arriving(), idle=2), 0, fine
    yield "a long silence borne", Evidence(first=arriving(), idle=20), 0, ["prompt", "http-1"]
    flushed = arriving(head=answer(content_encoding="gzip"))
    yield "compressed and flushed", Evidence(first=flushed, idle=2), 0, ["compressed", *fine]
    unread = Evidence(first=arriving(), unread_encoding="br", idle=2)
    yield "compressed, unreadable", unread, 0, ["compressed", *fine]
    taken = arriving(head=answer(cache_control=None))
    yield "a header taken away", Evidence(first=taken, idle=2), 0, ["header-stripped", *fine]
    changed = arriving(head=answer(cache_control="public, max-age=60"))
    yield "a header changed", Evidence(first=changed, idle=2), 0, ["header-changed", *fine]
    added = arriving(head=answer(cache_control="private, no-cache, no-transform"))
    yield "a header added to", Evidence(first=added, idle=2), 0, fine
    eaten = arriving(head=answer(x_accel_buffering=None))
    yield "eaten", Evidence(first=eaten, idle=2), 0, ["prompt", "header-taken", "silence", "http-1"]
    nginx = arriving(head=answer(x_accel_buffering=None, server="nginx"))
    yield "eaten by nginx", Evidence(first=nginx, idle=2), 0, fine
    late = arriving(delay=5)
    yield "slow to start", Evidence(first=late, idle=2), 0, ["slow-start", *fine]
    stopped = arriving(stalls=(Stall(1.6, 1.55),))
    yield "too busy", Evidence(first=stopped, idle=20), 2, ["busy", "http-1"]
    two = arriving(head=answer(version="HTTP/2"))
    yield "HTTP/2", Evidence(first=two, idle=20), 0, ["prompt", "http-2"]
    # Cut off.
    silent = Evidence(first=cut(7.0, last=2.1), idle=60)
    yield "silence", replace(silent, steady=arriving()), 1, ["cut-idle", "prompt", "http-1"]
    yield "time", replace(silent, steady=cut(7.0, last=6.9)), 1, ["cut-off", "prompt", "http-1"]
    closed = Evidence(first=cut(7.0, last=2.1, end=End.CLOSED), steady=arriving(), idle=60)
    yield "closed", closed, 1, ["cut-idle", "prompt", "http-1"]
    yield "cut in the series", Evidence(first=cut(1.03, last=1.0), idle=2), 1, ["cut-off", "http-1"]
    forgotten = Evidence(first=cut(19.0, last=2.1, end=End.SILENT), idle=2)
    yield "forgotten", forgotten, 1, ["stalled", "prompt", "http-1"]
    draining = Evidence(first=replace(arriving(), end=End.DRAIN), idle=20)
    yield "draining", draining, 2, ["drain", "prompt", "http-1"]
    # Not a probe.
    opened = no_probe(("livepush.open", "{}"))
    yield "not enabled", Evidence(first=opened), 2, ["no-probe", "http-1"]
    forbidden = no_probe(answer=answer(404), others=[])
    yield "refused", Evidence(first=forbidden, ordinary=opened), 2, ["probe-refused", "http-1"]
    yield "somebody else's", Evidence(first=no_probe(("message", "x"))), 2, ["no-livepush", "http-1"]
    nothing = no_probe(bytes_at=[], end=End.SILENT, ended_at=19)
    yield "nothing came", Evidence(first=nothing), 2, ["nothing-came", "http-1"]
    softly = no_probe(("livepush.refused", '{"reason":"cap","status":429}'), end=End.CLOSED)
    yield "softly", Evidence(first=softly), 2, ["refused-softly", "http-1"]
    for status in (204, 400, 401, 403, 404, 405, 429, 500, 503):
        refused = no_probe(answer=answer(status, content_type="text/plain"))
        yield str(status), Evidence(first=refused, ordinary=refused), 2, ["refused"]
    for status in (502, 504):
        yield str(status), Evidence(first=no_probe(answer=answer(status))), 1, ["gateway"]
    page = no_probe(answer=answer(content_type="text/html; charset=utf-8"), body=b"<p>Password")
    yield "a page", Evidence(first=page), 1, ["wrong-type", "http-1"]
    for trouble in Trouble:
        status = 1 if trouble in (Trouble.REDIRECTS, Trouble.CLOSED) else 2
        yield trouble.value, Evidence(first=Observation(plan=PLAN, trouble=trouble)), status, [trouble.value]
    # Redirects and origins.
    slash = [Redirect(307, URL[:-1], URL)]
    yield "slash", Evidence(first=replace(arriving(), redirects=slash), idle=20), 0, ["redirect", *fine[::2]]
    inside = [Redirect(307, URL[:-1], "http://application:8000/events/")]
    lost = Evidence(first=Observation(plan=PLAN, trouble=Trouble.NAME, redirects=inside))
    yield "to the inside", lost, 1, ["name", "redirect-to-http"]
    down = [Redirect(307, URL[:-1], URL.replace("https", "http"))]
    first = replace(arriving(), redirects=down)
    yield "down", Evidence(first=first, idle=20), 1, ["redirect-to-http", *fine[::2]]
    foreign = Evidence(first=arriving(), origin="https://app.example", idle=20)
    yield "no CORS", foreign, 1, ["cors", *fine[::2]]
    other = arriving(head=answer(access_control_allow_origin="https://other.example"))
    yield "another's CORS", replace(foreign, first=other), 1, ["cors", *fine[::2]]
    allowed = arriving(head=answer(access_control_allow_origin="https://app.example"))
    yield "CORS", replace(foreign, first=allowed), 0, ["cors-allowed", *fine[::2]]


CASES = list(cases())


@pytest.mark.parametrize(("name", "evidence", "status", "found"), CASES, ids=[case[0] for case in CASES])
def test_what_was_seen_leads_to_what_is_said(
    name: str, evidence: Evidence, status: int, found: list[str]
) -> None:
    assert (Diagnosis(evidence).status, codes(evidence)) == (status, found)


def test_a_heartbeat_and_a_limit_are_advised_for_a_silence() -> None:
    seen = replace(cut(62.0, last=2.1), answer=answer(server="nginx/1.27.0"))
    worst = Diagnosis(Evidence(first=seen, steady=arriving(), idle=75)).findings[0]
    assert "after 59.9 s of silence" in worst.text
    assert [remedy.lines for remedy in worst.remedies] == [
        ("LivePush(..., timing=Timing(heartbeat_interval=29))",),
        ("proxy_read_timeout 120s;",),
    ]


def test_the_advised_limit_is_that_of_the_recipe() -> None:
    seen = replace(cut(7.0, last=2.1), answer=answer(server="nginx/1.27.0"))
    worst = Diagnosis(Evidence(first=seen, steady=arriving(), idle=18)).findings[0]
    (line,) = worst.remedies[1].lines
    assert line in (REPOSITORY / "docs/proxies/recipe/nginx.conf").read_text()


@pytest.mark.parametrize(
    ("allowed", "given"),
    [
        (None, "Access-Control-Allow-Origin has to be that origin, and there is none"),
        ("*", "Access-Control-Allow-Origin has to be that origin, and it is *"),
        (
            "https://app.example",
            "with cookies Access-Control-Allow-Credentials has to be true, and there is none",
        ),
    ],
)
def test_a_page_with_cookies_needs_credentials(allowed: str | None, given: str) -> None:
    asked = Evidence(
        first=arriving(head=answer(access_control_allow_origin=allowed)),
        origin="https://app.example",
        has_cookie=True,
        idle=20,
    )
    worst = Diagnosis(asked).findings[0]
    assert (worst.code, worst.severity) == ("cors", Severity.FAULT)
    assert given in worst.text
    assert "cors=Cors({'https://app.example'}, credentials=True)" in worst.text
    head = answer(access_control_allow_origin="https://app.example", access_control_allow_credentials="true")
    assert "cors-allowed" in codes(replace(asked, first=arriving(head=head)))


def test_a_proxy_that_answers_for_a_stopped_application_is_known() -> None:
    seen = no_probe(others=[], body=b"retry: 2000\n", end=End.CLOSED)
    assert codes(Evidence(first=seen)) == ["restart", "http-1"]


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (arriving(), []),
        (arriving(head=answer(server="uvicorn")), []),
        (arriving(head=answer(server="nginx/1.27.0")), ["nginx"]),
        (arriving(head=answer(server="cloudflare", cf_ray="8a-FRA")), ["Cloudflare"]),
        (arriving(head=answer(server="Caddy, uvicorn", via="1.1 Caddy")), ["Caddy"]),
        (arriving(head=answer(via="1.1 abc.cloudfront.net (CloudFront)")), ["Amazon CloudFront"]),
        (arriving(head=answer(x_vercel_id="fra1::x", server="Vercel")), ["Vercel"]),
        (arriving(head=answer(server="Fly/1 (2026)", fly_request_id="01-fra")), ["Fly.io"]),
        (arriving(head=answer(via="1.1 google")), ["Google Cloud"]),
        (arriving(head=answer(server="somebody")), ["a proxy"]),
        (arriving(head=answer(via="1.1 somebody")), ["a proxy"]),
        (replace(arriving(), seen=replace(SEEN, telling=("x-amzn-trace-id",))), ["AWS ALB"]),
        (replace(arriving(), seen=replace(SEEN, telling=("x-forwarded-for",))), ["a proxy"]),
        (replace(arriving(), seen=replace(SEEN, via="1.1 varnish")), ["Varnish"]),
        (replace(arriving(), seen=replace(SEEN, scheme="http")), ["a proxy"]),
        (arriving(head=answer(version="HTTP/2")), ["a proxy"]),
    ],
)
def test_proxies_are_named_by_what_they_leave(seen: Observation, names: list[str]) -> None:
    assert [proxy.name for proxy in proxies_of(seen)] == names


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (caused(httpx.ConnectError("x"), socket.gaierror(-2, "unknown")), Trouble.NAME),
        (caused(httpx.ConnectError("x"), ssl.SSLCertVerificationError("self-signed")), Trouble.TLS),
        (
            caused(httpx.ConnectError("x"), ExceptionGroup("all", [ConnectionRefusedError()])),
            Trouble.REFUSED,
        ),
        (httpx.ConnectTimeout("x"), Trouble.CONNECT),
        (httpx.RemoteProtocolError("x"), Trouble.CLOSED),
    ],
)
def test_trouble_is_named_by_its_cause(error: Exception, trouble: Trouble) -> None:
    assert trouble_of(error) is trouble


def test_a_question_is_checked_and_keeps_the_query() -> None:
    question = Question(url="http://h/e?channel=a#x", origin="https://app.example", headers=(("A", "b"),))
    assert question.url_for(PLAN) == "http://h/e?channel=a&livepush_probe=40-50-2000-50"
    assert without_probe(question.url_for(PLAN)) == "http://h/e?channel=a"
    assert question.url_for(None) == "http://h/e?channel=a#x"
    assert question.fields(("gzip",)) == {
        "Accept": "text/event-stream",
        "Cache-Control": "no-store",
        "Accept-Encoding": "gzip",
        "User-Agent": "livepush-doctor",
        "Origin": "https://app.example",
        "A": "b",
    }
    assert header_of("Cookie: a=b:c") == ("Cookie", "a=b:c")


def test_what_is_no_utf_8_is_unreadable() -> None:
    with pytest.raises(Unreadable):
        Body(no_probe()).feed(b"data: \xff\n\n", 0.0)
    with pytest.raises(Unreadable):
        Body(no_probe(answer=answer(content_encoding="gzip"))).feed(b"data: x\n\n", 0.0)
    with pytest.raises(Unreadable, match="zstd"):
        Body(no_probe(answer=answer(content_encoding="zstd")))


def test_the_documentation_names_every_code() -> None:
    source = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
    codes = set(re.findall(r'(?:fault|unexamined|warning|note)\(\s*"([a-z0-9-]+)"', source))
    codes |= {trouble.value for trouble in Trouble}
    rows = [line for line in DOCUMENTATION.read_text().splitlines() if line.startswith("| ")]
    assert set(re.findall("`([a-z0-9-]+)`", "".join(rows))) == codes
