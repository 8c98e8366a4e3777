"""Diagnosis: all findings about what was seen, and the verdict. Pure functions."""

from collections.abc import Iterator
from dataclasses import dataclass

from .answers import (
    about_origin,
    about_redirects,
    about_refusal,
    about_trouble,
    about_type,
    about_version,
)
from .deliveries import about_compression, about_end, about_headers, about_pace, about_start
from .finding import Finding, Severity, unexamined
from .observation import End, Evidence, Observation
from .proxies import Proxy, proxies_of

HEALTHY, FAULTY, UNEXAMINED = 0, 1, 2
OUTCOMES = {HEALTHY: "healthy", FAULTY: "fault", UNEXAMINED: "unexamined"}
ORDER = (Severity.FAULT, Severity.OPEN, Severity.WARNING, Severity.NOTE)
ENABLE = "LivePush(..., probe=lambda request: ...) lets those in who may."


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found, the worst first."""

    findings: tuple[Finding, ...]
    proxies: tuple[Proxy, ...]

    @property
    def status(self) -> int:
        """The exit status: a fault counts more than what could not be examined."""
        severities = {finding.severity for finding in self.findings}
        if Severity.FAULT in severities:
            return FAULTY
        return UNEXAMINED if Severity.OPEN in severities else HEALTHY

    @property
    def outcome(self) -> str:
        """The exit status in a word."""
        return OUTCOMES[self.status]


def diagnose(evidence: Evidence) -> Diagnosis:
    """Say what the evidence shows."""
    proxies = proxies_of(evidence.first, vite=evidence.vite)
    found = sorted(_findings(evidence, proxies), key=lambda finding: ORDER.index(finding.severity))
    return Diagnosis(tuple(found), proxies)


def shown(evidence: Evidence) -> Observation:
    """Return the observation that a report is about: where the probe was refused, the stream without it."""
    ordinary = evidence.ordinary
    return ordinary if ordinary is not None and ordinary.is_stream else evidence.first


def _findings(evidence: Evidence, proxies: tuple[Proxy, ...]) -> Iterator[Finding]:
    seen = shown(evidence)
    yield from about_trouble(seen)
    yield from about_redirects(seen)
    yield from about_refusal(seen)
    yield from about_type(seen)
    yield from about_origin(seen, evidence.origin)
    yield from _about_the_probe(evidence, seen)
    yield from about_pace(evidence, proxies)
    yield from about_compression(evidence)
    yield from about_headers(seen, proxies)
    yield from about_end(evidence, proxies)
    yield from about_start(seen)
    yield from about_version(seen.answer, http2_tried=evidence.http2_tried)


def _about_the_probe(evidence: Evidence, seen: Observation) -> Iterator[Finding]:
    """Say what is known without a probe, if there was none."""
    if not seen.is_stream or seen.probed or "livepush.refused" in seen.other_names:
        return
    if seen.unreadable:
        yield unexamined("unreadable", f"The stream cannot be read: {seen.unreadable}")
    elif evidence.ordinary is not None:
        yield unexamined("probe-refused", f"A stream comes, and a probe is refused. {ENABLE} {_known(seen)}")
    elif "livepush.open" in seen.other_names:
        yield unexamined("no-probe", f"A stream comes, and probes are not enabled. {ENABLE} {_known(seen)}")
    elif seen.chunks:
        yield unexamined(
            "no-livepush", f"An event stream comes, and it is not known to be LivePush's. {_known(seen)}"
        )
    else:
        yield unexamined(
            "nothing-came",
            f"The head of an event stream came, and in {seen.ended_at:.0f} s nothing behind it. A stream of"
            " LivePush begins at once: it is held back, or it is another one.",
        )


def _known(seen: Observation) -> str:
    first = seen.first_byte_at
    text = "Without a probe nothing is known of the pace"
    text += f"; the first byte came after {1000 * first:.0f} ms" if first is not None else ""
    text += f", and {seen.heartbeats} heartbeats since" if seen.heartbeats else ""
    return text + ("; the stream has ended." if seen.end in (End.CLOSED, End.BROKEN) else ".")
