"""Report: the findings as text for people, and as JSON for programs."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from textwrap import wrap

from .findings import Diagnosis, Finding, Severity
from .observation import Evidence, Pace

WIDTH = 96
LABELS = {Severity.FAULT: "FAULT", Severity.OPEN: "UNKNOWN"}
# By the exit status.
VERDICTS = ("Healthy: events come through as they are sent.", "Not healthy.", "Not examined to the end.")
EXCEPT = "Healthy, but silences longer than {idle:g} s were not examined: --idle {longer:.0f}"
INDENT = " " * 9


def as_text(url: str, evidence: Evidence, diagnosis: Diagnosis) -> str:
    """Return the report as lines of plain text."""
    findings = [line for finding in diagnosis.findings for line in _lines(finding)]
    head = _head(url, evidence, diagnosis)
    return "\n".join([*head, "", *findings, "", _verdict(evidence, diagnosis)])


def as_json(url: str, evidence: Evidence, diagnosis: Diagnosis) -> str:
    """Return the report as one JSON object. Later versions may add fields, and keep these."""
    answer, latest = evidence.shown.answer, evidence.latest
    pace, first = Pace(latest), latest.first_byte_at
    report = {
        "version": 1,
        "url": url,
        "outcome": diagnosis.outcome,
        "status": diagnosis.status,
        "proxies": [asdict(proxy) for proxy in diagnosis.proxies],
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "answer": answer
        and {
            "status": answer.status,
            "http_version": answer.http_version,
            "url": answer.url,
            "content_type": answer.get("content-type"),
            "content_encoding": answer.get("content-encoding"),
            "redirects": [redirect.target for redirect in evidence.first.redirects],
        },
        # The last measurement of the first probe, in seconds.
        "measured": {
            "events": pace.events,
            "groups": len(pace.groups),
            "latest": round(pace.latest, 4),
            "first_byte": round(first, 4) if first is not None else None,
            "stalled": round(latest.longest_stall, 4),
            "end": evidence.first.end,
        }
        if latest.probed
        else None,
    }
    return json.dumps(report, indent=2, ensure_ascii=False)


def _verdict(evidence: Evidence, diagnosis: Diagnosis) -> str:
    longer = diagnosis.unexamined_silence
    if diagnosis.status == 0 and longer is not None:
        return EXCEPT.format(idle=evidence.idle, longer=longer)
    return VERDICTS[diagnosis.status]


def _head(url: str, evidence: Evidence, diagnosis: Diagnosis) -> Iterator[str]:
    yield url
    shown = evidence.shown
    for redirect in shown.redirects[:1]:
        yield f"  redirected ({redirect.status}) to {shown.redirects[-1].target}"
    if (answer := shown.answer) is not None:
        facts = [f"{answer.http_version} {answer.status}", answer.media_type or "no type"]
        if shown.first_byte_at is not None:
            facts.append(f"first byte after {1000 * shown.first_byte_at:.0f} ms")
        yield f"  {', '.join(facts)}"
    for proxy in diagnosis.proxies:
        yield f"  through {proxy.name} ({proxy.known_by})"


def _lines(finding: Finding) -> Iterator[str]:
    label = f"{LABELS.get(finding.severity, finding.severity.value):8} "
    yield from wrap(finding.text, WIDTH, initial_indent=label, subsequent_indent=INDENT)
    for remedy in finding.remedies:
        yield f"{INDENT}{remedy.where}:"
        yield from (f"{INDENT}    {line}" for line in remedy.lines)
