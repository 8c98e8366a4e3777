"""Report: the findings as text for people, and as JSON for programs."""

import json
from collections.abc import Iterator
from textwrap import wrap

from .diagnosis import Diagnosis, shown
from .finding import Finding, Severity
from .observation import Evidence
from .pace import pace_of

WIDTH = 96
LABELS = {
    Severity.FAULT: "FAULT",
    Severity.OPEN: "UNKNOWN",
    Severity.WARNING: "warning",
    Severity.NOTE: "note",
}
VERDICTS = {
    "healthy": "Healthy: events come through as they are sent.",
    "fault": "Not healthy.",
    "unexamined": "Not examined to the end.",
}
INDENT = " " * 9


def as_text(url: str, evidence: Evidence, diagnosis: Diagnosis) -> str:
    """Return the report as lines of plain text."""
    lines = [*_head(url, evidence, diagnosis), ""]
    for finding in diagnosis.findings:
        lines += _lines(finding)
    return "\n".join([*lines, "", VERDICTS[diagnosis.outcome]])


def as_json(url: str, evidence: Evidence, diagnosis: Diagnosis) -> str:
    """Return the report as one JSON object. What is in it stays; more may come."""
    report = {
        "version": 1,
        "url": url,
        "outcome": diagnosis.outcome,
        "status": diagnosis.status,
        "proxies": [{"name": proxy.name, "known_by": proxy.known_by} for proxy in diagnosis.proxies],
        "findings": [_record(finding) for finding in diagnosis.findings],
        "answer": _answer(evidence),
        "measured": _measured(evidence),
    }
    return json.dumps(report, indent=2, ensure_ascii=False)


def _head(url: str, evidence: Evidence, diagnosis: Diagnosis) -> Iterator[str]:
    yield url
    seen = shown(evidence)
    for redirect in seen.redirects[:1]:
        yield f"  redirected ({redirect.status}) to {seen.redirects[-1].target}"
    if (answer := seen.answer) is not None:
        facts = [f"{answer.http_version} {answer.status}", answer.media_type or "no type"]
        if seen.first_byte_at is not None:
            facts.append(f"first byte after {1000 * seen.first_byte_at:.0f} ms")
        yield f"  {', '.join(facts)}"
    for proxy in diagnosis.proxies:
        yield f"  through {proxy.name} ({proxy.known_by})"


def _lines(finding: Finding) -> Iterator[str]:
    label = f"{LABELS[finding.severity]:8} "
    yield from wrap(finding.text, WIDTH, initial_indent=label, subsequent_indent=INDENT)
    for remedy in finding.remedies:
        yield f"{INDENT}{remedy.where}:"
        yield from (f"{INDENT}    {line}" for line in remedy.lines)


def _record(finding: Finding) -> dict[str, object]:
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "text": finding.text,
        "remedies": [{"where": remedy.where, "lines": list(remedy.lines)} for remedy in finding.remedies],
    }


def _answer(evidence: Evidence) -> dict[str, object] | None:
    answer = shown(evidence).answer
    if answer is None:
        return None
    return {
        "status": answer.status,
        "http_version": answer.http_version,
        "url": answer.url,
        "content_type": answer.get("content-type"),
        "content_encoding": answer.get("content-encoding"),
        "redirects": [redirect.target for redirect in evidence.first.redirects],
    }


def _measured(evidence: Evidence) -> dict[str, object] | None:
    """Return the figures of the probe, of the last one where it was repeated. Seconds."""
    observation = evidence.repeated[-1] if evidence.repeated else evidence.first
    if not observation.probed:
        return None
    pace = pace_of(observation)
    first = observation.first_byte_at
    return {
        "events": pace.events,
        "groups": len(pace.groups),
        "latest": round(pace.latest, 4),
        "first_byte": round(first, 4) if first is not None else None,
        "stalled": round(max((stall.late for stall in observation.stalls), default=0.0), 4),
        "end": evidence.first.end.value if evidence.first.end is not None else None,
    }
