"""Findings: what the evidence shows, in plain words, and the verdict. Pure functions.

`diagnose` collects the findings. Each `_about_...` function looks at one question.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from urllib.parse import urlsplit

from ...http.driver import STREAM_HEADERS
from .client import json_object
from .observation import Answer, End, Evidence, Observation, Redirect, Trouble
from .pace import Hold, hold_of, is_disturbed, is_held, pace_of, surely_held
from .proxies import Proxy, Remedy, proxies_of, remedies_for, timing_under

# The outcomes in words; the exit status is the index.
OUTCOMES = ("healthy", "fault", "unexamined")

TROUBLES = {
    Trouble.NAME: "There is no address for this host name.",
    Trouble.REFUSED: "Nobody listens there: the connection is refused.",
    Trouble.TLS: "The TLS handshake fails, as it would in a browser",
    Trouble.CONNECT: "The server cannot be reached",
    Trouble.CLOSED: "The server took the request and closed the connection without an answer",
    Trouble.SILENT: "No answer came",
    Trouble.REDIRECTS: "The redirects do not end; a browser gives up.",
}
REFUSALS = {
    401: "A login is missing: give it with --header 'Authorization: ...' or --header 'Cookie: ...'.",
    403: "It is forbidden. If it needs a login, give that with --header.",
    404: "There is nothing at this path.",
    405: "GET is not allowed there.",
    429: "There are too many streams or requests.",
    503: "The service is not available now.",
}
GATEWAY = {502: "cannot reach the application", 504: "waited for the application too long"}
UNPROBED = "Without a probe the pace of the events is unknown."
ENABLE = f"{UNPROBED} To allow probes: LivePush(..., probe=lambda request: ...)."
# The header of every stream of this package.
CACHE_CONTROL = dict(STREAM_HEADERS)[b"cache-control"].decode()
AGAINST_HEADER = "It is compressed, though Cache-Control: no-transform forbids that."
LARGE_STARTS = " It is compressed only if it begins with a large piece, as after a reconnect."
MSG_MORE = " Linux keeps data for that long if a proxy sends it with MSG_MORE (more will follow)."
# In seconds: a first byte that takes longer is worth a warning.
SLOW_START = 2.0
# In seconds. Linux sends data that a proxy has marked with MSG_MORE after 0.2 s: a shorter period shows that.
CORKED = 0.35


class Severity(StrEnum):
    """How bad a finding is; the worst comes first."""

    #: A browser does not get the events, or gets them late.
    FAULT = "fault"
    #: It could not be examined.
    OPEN = "open"
    #: It works here and may fail elsewhere.
    WARNING = "warning"
    #: Good to know.
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found out. `code` is for programs and stays the same, `text` is for people."""

    severity: Severity
    code: str
    text: str
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, the worst first, and the proxies that are known."""

    findings: tuple[Finding, ...]
    proxies: tuple[Proxy, ...]

    @property
    def status(self) -> int:
        """The exit status. A fault counts more than something that could not be examined."""
        severities = {finding.severity for finding in self.findings}
        return 1 if Severity.FAULT in severities else 2 if Severity.OPEN in severities else 0

    @property
    def outcome(self) -> str:
        """The exit status in one word."""
        return OUTCOMES[self.status]


fault = partial(Finding, Severity.FAULT)
unexamined = partial(Finding, Severity.OPEN)
warning = partial(Finding, Severity.WARNING)
note = partial(Finding, Severity.NOTE)


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return what the evidence shows."""
    proxies = proxies_of(evidence.first, vite=evidence.vite)
    shown = evidence.shown
    found = [
        *_about_trouble(shown),
        *_about_redirects(shown),
        *_about_refusal(shown),
        *_about_type(shown),
        *_about_origin(shown, evidence.origin),
        *_about_the_probe(evidence, shown),
        *_about_pace(evidence, proxies),
        *_about_compression(evidence),
        *_about_headers(shown, proxies),
        *_about_end(evidence, proxies),
        *_about_start(shown),
        *_about_version(shown.answer),
    ]
    order = list(Severity)
    return Diagnosis(tuple(sorted(found, key=lambda finding: order.index(finding.severity))), proxies)


# The head of the answer.


def _about_trouble(observation: Observation) -> Iterator[Finding]:
    trouble, redirects = observation.trouble, observation.redirects
    if trouble is None:
        return
    text = TROUBLES[trouble]
    if trouble is Trouble.SILENT:
        text += (
            f" within {observation.ended_at:.0f} s: the application does not answer, or a proxy holds"
            " an answer back until its end."
        )
    elif not text.endswith("."):
        text += f": {observation.detail}" if observation.detail else "."
    faulty = trouble in (Trouble.REDIRECTS, Trouble.CLOSED)
    if redirects and trouble is not Trouble.REDIRECTS:
        # A server did answer, and sends browsers to where none answers.
        faulty = True
        text = f"It is redirected to {redirects[-1].target}. {text}"
        if urlsplit(redirects[-1].source).netloc != urlsplit(redirects[-1].target).netloc:
            text += (
                " (Behind a proxy that does not pass Host on, applications redirect to their own address.)"
            )
    yield (fault if faulty else unexamined)(trouble.value, text)


def _about_redirects(observation: Observation) -> Iterator[Finding]:
    redirects = observation.redirects
    if not redirects or observation.trouble is Trouble.REDIRECTS:
        return
    target = redirects[-1].target
    if any(map(_leaves_tls, redirects)):
        yield fault(
            "redirect-to-http",
            f"It is redirected from https to {target}, which a browser does not load in a page over TLS. The"
            " application takes the request for http: open the stream at its exact path (with the slash at"
            " its end), and have the server trust X-Forwarded-Proto (uvicorn: --forwarded-allow-ips).",
        )
    elif observation.is_stream:
        yield warning(
            "redirect",
            f"It is redirected ({redirects[0].status}) to {target}. EventSource follows, again with each"
            " reconnect: open that URL directly.",
        )


def _leaves_tls(redirect: Redirect) -> bool:
    return redirect.source.startswith("https:") and redirect.target.startswith("http:")


def _about_refusal(observation: Observation) -> Iterator[Finding]:
    answer = observation.answer
    if answer is None:
        return
    if answer.status == 200:
        yield from _soft_refusals(observation)
    elif answer.status in GATEWAY:
        yield fault("gateway", f"{answer.status}: a proxy {GATEWAY[answer.status]}.")
    elif answer.status == 204:
        yield unexamined("refused", "204: the application ends it here, and EventSource stops for good.")
    else:
        yield unexamined("refused", _refusal(answer, observation.body))


def _refusal(answer: Answer, body: bytes) -> str:
    is_problem = answer.media_type == "application/problem+json"
    detail = json_object(body.decode("utf-8", "replace")).get("detail") if is_problem else None
    parts = [
        f"{'The application answers' if is_problem else 'The answer is'} {answer.status}.",
        REFUSALS.get(answer.status, ""),
        f"It says: {detail}" if detail else "",
        "EventSource stops for good at any status but 200.",
        f"Retry-After: {answer.get('retry-after')}." if answer.get("retry-after") is not None else "",
    ]
    return " ".join(filter(None, parts))


def _soft_refusals(observation: Observation) -> Iterator[Finding]:
    for name, data in observation.others:
        if name == "livepush.refused":
            facts = json_object(data)
            detail = f" It says: {facts['detail']}" if "detail" in facts else ""
            yield unexamined(
                "refused-softly",
                f"The application refuses ({facts.get('reason', 'no reason')}, status"
                f" {facts.get('status', '?')}), and EventSource will come back.{detail}",
            )


def _about_type(observation: Observation) -> Iterator[Finding]:
    answer = observation.answer
    if answer is None or answer.status != 200 or observation.is_stream:
        return
    kind = answer.media_type or "missing"
    text = f"The content type is {kind}, not text/event-stream: EventSource stops for good."
    if kind == "text/html":
        is_login = b"password" in observation.body.lower() or "login" in answer.url
        text += f" It is a page{', it seems for a login' if is_login else ''}"
        text += f", after a redirect to {answer.url}." if observation.redirects else "."
    yield fault("wrong-type", text)


def _about_origin(observation: Observation, origin: str | None) -> Iterator[Finding]:
    answer = observation.answer
    if origin is None or answer is None or answer.status != 200:
        return
    allowed = answer.get("access-control-allow-origin")
    if allowed not in (origin, "*"):
        given = f"it is {allowed}" if allowed else "there is none"
        yield fault(
            "cors",
            f"A page of {origin} may not read it: Access-Control-Allow-Origin has to be that origin,"
            f" and {given}. In the application: LivePush(..., cors=Cors({{{origin!r}}})).",
        )
        return
    cookies = answer.get("access-control-allow-credentials") == "true" and allowed == origin
    yield note("cors-allowed", f"Pages of {origin} may read it, {'with' if cookies else 'without'} cookies.")


def _about_version(answer: Answer | None) -> Iterator[Finding]:
    if answer is None or answer.status != 200:
        return
    if answer.http_version == "HTTP/2":
        yield note("http-2", "HTTP/2: a browser can have many streams at a time.")
        return
    text = f"{answer.http_version}: a browser opens at most six connections to an origin, over all its tabs."
    if "h3" in (answer.get("alt-svc") or ""):
        text += " HTTP/3 is offered (Alt-Svc), and browsers may use it."
    yield note("http-1", text)


def _about_the_probe(evidence: Evidence, seen: Observation) -> Iterator[Finding]:
    """Say what is known of a stream that is no probe."""
    if not seen.is_stream or seen.probed or "livepush.refused" in seen.other_names:
        return
    if seen.unreadable:
        yield unexamined("unreadable", f"The stream cannot be read: {seen.unreadable}")
    elif evidence.ordinary is not None:
        yield unexamined("probe-refused", f"A stream comes, and a probe is refused. {ENABLE}")
    elif "livepush.open" in seen.other_names:
        yield unexamined("no-probe", f"A stream comes, and probes are not enabled. {ENABLE}")
    elif seen.bytes_at:
        yield unexamined("no-livepush", f"A stream comes, with no sign of LivePush. {UNPROBED}")
    else:
        yield unexamined(
            "nothing-came",
            f"The head of an event stream came, and no byte in {seen.ended_at:.0f} s after it. A stream of"
            " LivePush begins at once: a proxy holds it back, or it is another application's.",
        )


def _about_headers(observation: Observation, proxies: Sequence[Proxy]) -> Iterator[Finding]:
    """Say which header fields of a stream of this package did not come through unchanged."""
    answer = observation.answer
    ours = observation.probed or any(name.startswith("livepush.") for name in observation.other_names)
    if answer is None or not observation.is_stream or not ours:
        return
    given = answer.get("cache-control")
    if given is None:
        yield warning(
            "header-stripped",
            f"A proxy took Cache-Control: {CACHE_CONTROL} away. Caches and compressors after it do not know"
            " that they have to leave the stream alone.",
        )
    elif missing := [word for word in CACHE_CONTROL.split(", ") if word not in given]:
        yield warning(
            "header-changed",
            f"A proxy changed Cache-Control to {given!r}: {' and '.join(missing)} is missing.",
        )
    if answer.get("x-accel-buffering") is None and "nginx" not in {proxy.name for proxy in proxies}:
        yield note(
            "header-taken",
            "X-Accel-Buffering: no did not come through. An nginx takes it for itself, as it should. If"
            " another proxy takes it, an nginx after that buffers the stream.",
        )


# How the events came, and how the stream ended.


def _about_pace(evidence: Evidence, proxies: Sequence[Proxy]) -> Iterator[Finding]:
    first, latest = evidence.first, evidence.latest
    if first.trailing:
        yield fault(
            "compression-ends",
            "Each piece is compressed by itself, as a file of its own. A browser reads the first.",
            remedies_for("compressed", proxies),
        )
    elif not first.series:
        return
    elif surely_held(evidence):
        yield _hold(evidence, latest, proxies)
    elif is_disturbed(latest):
        longest = max(stall.late for stall in latest.stalls)
        yield unexamined(
            "busy", f"This machine is too busy: the doctor stalled for {longest:.1f} s. Try again."
        )
    elif (pace := pace_of(latest)).events == latest.expected:
        yield note(
            "prompt",
            f"{pace.events} of {latest.expected} events came at the pace they were sent, the latest"
            f" {1000 * pace.latest:.0f} ms behind the promptest.",
        )


def _hold(evidence: Evidence, latest: Observation, proxies: Sequence[Proxy]) -> Finding:
    compression, uncompressed = evidence.first.compression, evidence.uncompressed
    pace = pace_of(latest)
    late = "the last event before a silence comes when that is over"
    if pace.grouped:
        late = f"events come {pace.together} at a time, up to {pace.latest:.1f} s late"
    if compression is not None and uncompressed is not None and not is_held(uncompressed):
        return fault(
            "compression-delays",
            f"Held back by compression ({compression}): {late}. Uncompressed they come at once."
            f"{LARGE_STARTS if evidence.large_starts_compressed else ''}",
            remedies_for("compressed", proxies),
        )
    hold = hold_of(latest, evidence.large)
    text = f"Held back: {late}. {_waits_for(hold)}"
    if compression is not None:
        text += f" (The answer is also compressed, {compression}; without that it is no better.)"
    return fault("buffered", text, remedies_for("corked" if _is_corked(hold) else "buffered", proxies))


def _waits_for(hold: Hold) -> str:
    size = f"{hold.amount:.0f} bytes" if hold.amount < 1000 else f"{hold.amount / 1024:.0f} KiB"
    match hold.kind:
        case "seconds":
            text = f"Something on the way passes them on once in {hold.amount:.1f} s."
            return text + (MSG_MORE if _is_corked(hold) else "")
        case "next":
            return "Something on the way keeps the end of each event until the next one comes."
        case "bytes":
            return f"Something on the way waits until about {size} have come together."
    tried = f", or until more than {size} have come together" if hold.amount else ""
    return f"Something on the way waits until the answer ends{tried}."


def _is_corked(hold: Hold) -> bool:
    return hold.kind == "seconds" and hold.amount < CORKED


def _about_compression(evidence: Evidence) -> Iterator[Finding]:
    """Say that the stream is compressed, if that delays nothing."""
    first = evidence.first
    if evidence.unread_encoding is not None:
        text = (
            f"It is compressed ({evidence.unread_encoding}), which the doctor cannot read: measured without."
        )
    elif first.compression is None or not first.is_stream or surely_held(evidence):
        return
    elif first.series:
        text = f"{AGAINST_HEADER} Each event is flushed, so that none is late."
        text += LARGE_STARTS if evidence.large_starts_compressed else ""
    else:
        text = f"{AGAINST_HEADER} Whether that holds events back is unknown."
    yield warning("compressed", text)


def _about_end(evidence: Evidence, proxies: Sequence[Proxy]) -> Iterator[Finding]:
    first = evidence.first
    if not first.probed:
        return
    if first.end is End.DRAIN:
        yield unexamined("drain", "The application ends its streams to shut down: ask again.")
    elif first.end is End.SILENT:
        yield fault(
            "stalled",
            f"After {first.ended_at - first.silence:.1f} s nothing came any more, and the connection was not"
            " closed: something on the way has forgotten it. A shorter heartbeat prevents that.",
            (timing_under("heartbeat_interval", max(evidence.idle, 1) / 2), *remedies_for("idle", proxies)),
        )
    elif first.cut:
        yield _cut(evidence, proxies)
    elif evidence.idle < first.heartbeat and not surely_held(evidence):
        yield note(
            "silence",
            f"The stream survived a silence of {evidence.idle:g} s. The application's silences last up to"
            f" {first.heartbeat:g} s: try --idle {first.heartbeat * 1.2:.0f}.",
        )


def _cut(evidence: Evidence, proxies: Sequence[Proxy]) -> Finding:
    first, steady = evidence.first, evidence.steady
    how = "closed" if first.end is End.CLOSED else "broken off"
    if first.cut_for_silence and not (steady is not None and steady.cut):
        return fault(
            "cut-idle",
            f"The stream was {how} after {first.silence:.1f} s of silence. The application sends a heartbeat"
            f" every {first.heartbeat:g} s: make that shorter, or the limit longer.",
            (timing_under("heartbeat_interval", first.silence / 2), *remedies_for("idle", proxies)),
        )
    return fault(
        "cut-off",
        f"The stream was {how} {first.ended_at:.1f} s after its beginning, and not for its silence. Something"
        " on the way limits how long an answer may take, or the application has ended.",
        (timing_under("max_lifetime", 0.9 * first.ended_at), *remedies_for("limit", proxies)),
    )


def _about_start(observation: Observation) -> Iterator[Finding]:
    at = observation.first_byte_at
    if observation.is_stream and at is not None and at > SLOW_START and not is_held(observation):
        yield warning(
            "slow-start",
            f"The first byte came after {at:.1f} s: a slow application, or a proxy held it back.",
        )
