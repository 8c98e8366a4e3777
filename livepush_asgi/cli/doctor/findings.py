"""Findings: what the evidence shows, in plain words, and the verdict. Pure functions.

`TEXTS` has the words of every finding. `Diagnosis` decides which of them are true.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import partialmethod
from urllib.parse import urlsplit

from ...http.driver import STREAM_HEADERS
from .observation import (
    Answer,
    End,
    Evidence,
    Pace,
    Trouble,
    hold_of,
    is_disturbed,
    is_held,
    json_object,
)
from .proxies import Proxy, Remedy, limit_over, proxies_of, remedies_for, timing_under

# The outcomes in one word; the exit status is the index.
OUTCOMES = ("healthy", "fault", "unexamined")
# The header of every stream of this package.
CACHE_CONTROL = dict(STREAM_HEADERS)[b"cache-control"].decode()
# In seconds. Linux sends data that a proxy has marked with MSG_MORE after 0.2 s: a shorter period shows that.
CORKED = 0.35
# In seconds: a first byte that takes longer is worth a warning.
SLOW_START = 2.0

UNPROBED = "Without a probe the pace of the events is unknown."
GIVE = "give what LivePush(..., probe=...) asks for with -H, such as -H 'X-Probe: ...'."
BUSY = "others run, ask again in a while."
# The words of each finding, by its code. They may name the `evidence`, and its `first`, `latest` and `shown`
# observation.
TEXTS = {
    # No answer.
    "name": "There is no address for this host name.",
    "connection-refused": "Nobody listens there: the connection is refused.",
    "tls": "The TLS handshake fails, as it would in a browser: {shown.detail}",
    "unreachable": "The server cannot be reached: {shown.detail}",
    "closed-before-the-answer": "The server took the request and closed the connection without an answer:"
    " {shown.detail}",
    "no-answer": "No answer came within {shown.ended_at:.0f} s: the application does not answer, or a proxy"
    " holds an answer back until its end.",
    "redirect-loop": "The redirects do not end; a browser gives up.",
    "redirect-to-http": "It is redirected from https to {target}, which a browser does not load in a page"
    " over TLS. The application takes the request for http: open the stream at its exact path (with the slash"
    " at its end), and have the server trust X-Forwarded-Proto (uvicorn: --forwarded-allow-ips).",
    "redirect": "It is redirected ({status}) to {target}. EventSource follows, again with each reconnect:"
    " open that URL directly.",
    # An answer that is no stream.
    "gateway": "{status}: a proxy {failed}.",
    "refused": "{words}",
    "refused-softly": "The application refuses ({said[reason]}, status {said[status]}), and EventSource will"
    " come back.",
    "wrong-type": "The content type is {kind}, not text/event-stream: EventSource stops for good.{page}",
    "cors": "A page of {evidence.origin} may not read it: {needed}, and {given}. In the application:"
    " LivePush(..., cors=Cors({{{evidence.origin!r}}}{credentials})).",
    "cors-allowed": "Pages of {evidence.origin} may read it, {how} cookies.",
    # A stream that is no probe.
    "unreadable": "The stream cannot be read: {shown.unreadable}",
    "probe-refused": f"A stream comes, and a probe is refused: {{advice}} {UNPROBED}",
    "no-probe": f"A stream comes, and no probe. {UNPROBED} Either the application does not allow probes, with"
    " LivePush(..., probe=lambda request: ...), or a route serves this stream. Routes answer no probes:"
    " examine a mounted LivePush behind the same proxies.",
    "restart": "A proxy answers for the application, of which no process listens, and has clients come back"
    " after a while. Ask again when the application runs.",
    "no-livepush": f"A stream comes, with no sign of LivePush. {UNPROBED}",
    "nothing-came": "The head of an event stream came, and no byte in {shown.ended_at:.0f} s after it. A"
    " stream of LivePush begins at once: a proxy holds it back, or it is another application's.",
    # How the events came.
    "compression-ends": "Each piece is compressed by itself, as a file of its own. A browser reads the"
    " first.",
    "compression-delays": "Held back by compression ({first.compression}): {late}. Uncompressed they come at"
    " once.",
    "buffered": "Held back: {late}. Something on the way {waits}",
    "busy": "This machine is too busy: the doctor stalled for {latest.longest_stall:.1f} s. Try again.",
    "prompt": "{latest.expected} of {latest.expected} events came at the pace they were sent, the latest"
    " {behind:.0f} ms behind the promptest.",
    "slow-start": "The first byte came after {shown.first_byte_at:.1f} s: a slow application, or a proxy held"
    " it back.",
    "compressed": "It is compressed{how}",
    # How the stream ended.
    "drain": "The application ends its streams to shut down: ask again.",
    "stalled": "After {first.last_byte_at:.1f} s nothing came any more, and the connection was not closed:"
    " something on the way has forgotten it. A shorter heartbeat prevents that.",
    "cut-idle": "The stream was {how} after {first.silence:.1f} s of silence. The application sends a"
    " heartbeat every {first.seen.heartbeat:g} s: make that shorter, or the limit longer.",
    "cut-off": "The stream was {how} {first.ended_at:.1f} s after its beginning, and not for its silence."
    " Something on the way limits how long an answer may take, or the application has ended.",
    "silence": "The stream survived a silence of {evidence.idle:g} s. The application's silences last up to"
    " {first.seen.heartbeat:g} s: try --idle {longer:.0f}.",
    # The header and the version.
    "header-stripped": f"A proxy took Cache-Control: {CACHE_CONTROL} away. Caches and compressors after it do"
    " not know that they have to leave the stream alone.",
    "header-changed": "A proxy changed Cache-Control to {given!r}: {missing} is missing.",
    "header-taken": "X-Accel-Buffering: no did not come through. An nginx takes it for itself, as it should."
    " If another proxy takes it, an nginx after that buffers the stream.",
    "http-1": "{version}: a browser opens at most six connections to an origin, over all its tabs.",
    "http-2": "HTTP/2: a browser can have many streams at a time.",
}
LEADS_THERE = " (A redirect to {target} leads there.{why})"
OWN_ADDRESS = " Behind a proxy that does not pass Host on, applications redirect to their own address."
GATEWAY = {502: "cannot reach the application", 504: "waited for the application too long"}
REFUSALS = {
    204: "The application ends the stream here.",
    401: "A login is missing: give it with --header 'Authorization: ...' or --header 'Cookie: ...'.",
    403: "It is forbidden. If it needs a login, give that with --header.",
    404: "There is nothing at this path.",
    405: "GET is not allowed there.",
    429: "There are too many streams or requests.",
    503: "The service is not available now.",
}
# The sentences about a proxy that holds events back, by what it waits for.
HOLDS = {
    "next": "keeps the end of each event until the next one comes.",
    "end": "waits until the answer ends, or until more than {size} have come together.",
    "bytes": "waits until about {size} have come together.",
    "seconds": "passes them on once in {amount:.1f} s.",
}
MSG_MORE = " Linux keeps data for that long if a proxy sends it with MSG_MORE (more will follow)."
NO_BETTER = " (The answer is also compressed, {first.compression}; without that it is no better.)"
LARGE_STARTS = " It is compressed only if it begins with a large piece, as after a reconnect."
FORBIDDEN = ", though Cache-Control: no-transform forbids that. "
FLUSHED = "Each event is flushed, so that none is late."
HTTP_3 = " HTTP/3 is offered (Alt-Svc), and browsers may use it."


class Severity(StrEnum):
    """How bad a finding is; the worst comes first."""

    FAULT = "fault"  # a browser does not get the events, or gets them late
    OPEN = "open"  # it could not be examined
    WARNING = "warning"  # it works here and may fail elsewhere
    NOTE = "note"  # good to know


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found out. `code` is for programs and stays the same, `text` is for people."""

    severity: Severity
    code: str
    text: str
    remedies: tuple[Remedy, ...] = ()


@dataclass(init=False)
class Diagnosis:
    """What the evidence shows: the findings, the worst first, and the proxies that are known.

    Each `_judge_...` method looks at one question.
    """

    findings: list[Finding]
    proxies: tuple[Proxy, ...]
    #: The `--idle` that would cover the silences of the application, in seconds; None if they were examined.
    unexamined_silence: float | None

    def __init__(self, evidence: Evidence) -> None:
        self.findings = []
        self.proxies = proxies_of(evidence.first, vite=evidence.vite)
        self._evidence = evidence
        self._first, self._latest, self._shown = evidence.first, evidence.latest, evidence.shown
        self.unexamined_silence = self._unexamined_silence()
        self._judge()
        order = list(Severity)
        self.findings.sort(key=lambda finding: order.index(finding.severity))

    @property
    def status(self) -> int:
        """The exit status. A fault counts more than something that could not be examined."""
        severities = {finding.severity for finding in self.findings}
        return 1 if Severity.FAULT in severities else 2 if Severity.OPEN in severities else 0

    @property
    def outcome(self) -> str:
        """The exit status in one word."""
        return OUTCOMES[self.status]

    def _judge(self) -> None:
        shown, answer = self._shown, self._shown.answer
        if shown.trouble is not None:
            self._judge_trouble(shown.trouble)
        if shown.redirects and shown.trouble is not Trouble.REDIRECTS:
            self._judge_redirects()
        if answer is None:
            return
        if answer.status != 200:
            self._judge_refusal(answer)
            return
        self._judge_origin(answer)
        if not shown.is_stream:
            self._judge_type(answer)
        else:
            if not shown.probed:
                self._judge_unprobed()
            self._judge_pace()
            self._judge_compression()
            self._judge_headers(answer)
            if self._first.probed:
                self._judge_end()
        if answer.http_version == "HTTP/2":
            self.note("http-2")
        else:
            offered = "h3" in (answer.get("alt-svc") or "")
            self.note("http-1", add=HTTP_3 if offered else "", version=answer.http_version)

    def _find(
        self, severity: Severity, code: str, *remedies: Remedy, add: str = "", **values: object
    ) -> None:
        """Add a finding. `add` is more of its text; the `values` fill the places in the text."""
        seen = {"evidence": self._evidence, "first": self._first, "latest": self._latest}
        text = (TEXTS[code] + add).format(**seen, shown=self._shown, **values)
        self.findings.append(Finding(severity, code, text, remedies))

    fault = partialmethod(_find, Severity.FAULT)
    unexamined = partialmethod(_find, Severity.OPEN)
    warning = partialmethod(_find, Severity.WARNING)
    note = partialmethod(_find, Severity.NOTE)

    def _judge_trouble(self, trouble: Trouble) -> None:
        redirects, add, target, why = self._shown.redirects, "", "", ""
        faulty = trouble in (Trouble.REDIRECTS, Trouble.CLOSED)
        if redirects and trouble is not Trouble.REDIRECTS:
            # A server did answer, and sends browsers to where none answers.
            faulty, add, target = True, LEADS_THERE, redirects[-1].target
            if urlsplit(redirects[-1].source).netloc != urlsplit(target).netloc:
                why = OWN_ADDRESS
        severity = Severity.FAULT if faulty else Severity.OPEN
        self._find(severity, trouble.value, add=add, target=target, why=why)

    def _judge_redirects(self) -> None:
        redirects = self._shown.redirects
        target = redirects[-1].target
        if any(each.source.startswith("https:") and each.target.startswith("http:") for each in redirects):
            self.fault("redirect-to-http", target=target)
        elif self._shown.is_stream:
            self.warning("redirect", status=redirects[0].status, target=target)

    def _judge_refusal(self, answer: Answer) -> None:
        if answer.status in GATEWAY:
            self.fault("gateway", status=answer.status, failed=GATEWAY[answer.status])
            return
        is_problem = answer.media_type == "application/problem+json"
        problem = json_object(self._shown.body.decode("utf-8", "replace")) if is_problem else {}
        words = [
            f"{'The application answers' if is_problem else 'The answer is'} {answer.status}.",
            REFUSALS.get(answer.status, ""),
            f"It says: {problem['detail']}" if "detail" in problem else "",
            "EventSource stops for good at any status but 200.",
            f"Retry-After: {answer.get('retry-after')}." if answer.get("retry-after") else "",
        ]
        if self._evidence.only_probe_refused and self._first.answer is not None:
            words.append(f"A probe is refused as well, with {self._first.answer.status}: {GIVE}")
        self.unexamined("refused", words=" ".join(filter(None, words)))

    def _judge_type(self, answer: Answer) -> None:
        page, kind = "", answer.media_type or "missing"
        if kind == "text/html":
            is_login = b"password" in self._shown.body.lower() or "login" in answer.url
            page = f" It is a page{', it seems for a login' if is_login else ''}"
            page += f", after a redirect to {answer.url}." if self._shown.redirects else "."
        self.fault("wrong-type", kind=kind, page=page)

    def _judge_origin(self, answer: Answer) -> None:
        origin, allowed = self._evidence.origin, answer.get("access-control-allow-origin")
        if origin is None:
            return
        cookies = answer.get("access-control-allow-credentials") == "true" and allowed == origin
        needed, given = "Access-Control-Allow-Origin has to be that origin", allowed
        if allowed == origin and self._evidence.has_cookie:
            needed = "with cookies Access-Control-Allow-Credentials has to be true"
            given = answer.get("access-control-allow-credentials")
        if cookies or (allowed in (origin, "*") and not self._evidence.has_cookie):
            self.note("cors-allowed", how="with" if cookies else "without")
            return
        credentials = ", credentials=True" if self._evidence.has_cookie else ""
        self.fault(
            "cors",
            needed=needed,
            given=f"it is {given}" if given else "there is none",
            credentials=credentials,
        )

    def _judge_unprobed(self) -> None:
        shown, others = self._shown, dict(self._shown.others)
        if "livepush.refused" in others:
            said = {"reason": "no reason", "status": "?", **json_object(others["livepush.refused"])}
            add = " It says: {said[detail]}" if "detail" in said else ""
            self.unexamined("refused-softly", add=add, said=said)
        elif shown.unreadable:
            self.unexamined("unreadable")
        elif self._evidence.ordinary is not None:
            answer = self._first.answer
            busy = answer is not None and answer.status == 429
            self.unexamined("probe-refused", advice=BUSY if busy else GIVE)
        elif not others and re.fullmatch(rb"retry:\s*\d+\s*", shown.body):
            self.unexamined("restart")
        elif "livepush.open" in others:
            self.unexamined("no-probe")
        elif shown.bytes_at:
            self.unexamined("no-livepush")
        else:
            self.unexamined("nothing-came")

    def _judge_pace(self) -> None:
        latest, pace = self._latest, Pace(self._latest)
        if self._first.trailing:
            self.fault("compression-ends", *remedies_for("compressed", self.proxies))
        elif self._evidence.held:
            self._judge_hold()
        elif is_disturbed(latest):
            self.unexamined("busy")
        elif pace.events and pace.events == latest.expected:
            self.note("prompt", behind=1000 * pace.latest)
        if (self._shown.first_byte_at or 0.0) > SLOW_START and not is_held(self._shown):
            self.warning("slow-start")

    def _judge_hold(self) -> None:
        latest, uncompressed = self._latest, self._evidence.uncompressed
        pace, compressed = Pace(latest), self._first.compression is not None
        late = "the last event before a silence comes when that is over"
        if pace.grouped:
            late = f"events come {pace.together} at a time, up to {pace.latest:.1f} s late"
        if compressed and uncompressed is not None and not is_held(uncompressed):
            add = LARGE_STARTS if self._evidence.large_starts_compressed else ""
            self.fault("compression-delays", *remedies_for("compressed", self.proxies), add=add, late=late)
            return
        hold = hold_of(latest, self._evidence.large)
        corked = hold.kind == "seconds" and hold.amount < CORKED
        size = f"{hold.amount:.0f} bytes" if hold.amount < 1000 else f"{hold.amount / 1024:.0f} KiB"
        self.fault(
            "buffered",
            *remedies_for("corked" if corked else "buffered", self.proxies),
            add=(MSG_MORE if corked else "") + (NO_BETTER if compressed else ""),
            late=late,
            waits=HOLDS[hold.kind].format(size=size, amount=hold.amount),
        )

    def _judge_compression(self) -> None:
        """Say that the stream is compressed, if that delays nothing."""
        first, unread = self._first, self._evidence.unread_encoding
        if unread is not None:
            how, add = f" ({unread}), which the doctor cannot read: measured without.", ""
        elif first.compression is not None and first.is_stream and not self._evidence.held:
            how = FORBIDDEN + (FLUSHED if first.series else "Whether that holds events back is unknown.")
            add = LARGE_STARTS if first.series and self._evidence.large_starts_compressed else ""
        else:
            return
        self.warning("compressed", *remedies_for("compressed", self.proxies), add=add, how=how)

    def _judge_headers(self, answer: Answer) -> None:
        """Say which header fields of a stream of this package did not come through unchanged."""
        if not self._shown.probed and not any(name.startswith("livepush.") for name, _ in self._shown.others):
            return
        given = answer.get("cache-control")
        if given is None:
            self.warning("header-stripped")
        elif missing := [word for word in CACHE_CONTROL.split(", ") if word not in given]:
            self.warning("header-changed", given=given, missing=" and ".join(missing))
        if answer.get("x-accel-buffering") is None and "nginx" not in {each.name for each in self.proxies}:
            self.note("header-taken")

    def _judge_end(self) -> None:
        first, evidence = self._first, self._evidence
        idle = remedies_for("idle", self.proxies, limit_over(first.seen.heartbeat, first.silence))
        how, steady = "closed" if first.end is End.CLOSED else "broken off", evidence.steady
        if first.end is End.DRAIN:
            self.unexamined("drain")
        elif first.end is End.SILENT:
            heartbeat = timing_under("heartbeat_interval", max(evidence.idle, 1) / 2)
            self.fault("stalled", heartbeat, *idle)
        elif first.cut_for_silence and not (steady is not None and steady.cut):
            self.fault("cut-idle", timing_under("heartbeat_interval", first.silence / 2), *idle, how=how)
        elif first.cut:
            lifetime = timing_under("max_lifetime", 0.9 * first.ended_at)
            self.fault("cut-off", lifetime, *remedies_for("limit", self.proxies), how=how)
        elif self.unexamined_silence is not None:
            self.note("silence", longer=self.unexamined_silence)

    def _unexamined_silence(self) -> float | None:
        heartbeat, evidence = self._first.seen.heartbeat, self._evidence
        survived = self._first.end is End.COMPLETE and not evidence.held
        return heartbeat * 1.2 if survived and evidence.idle < heartbeat else None
