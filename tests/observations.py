"""What the doctor observes, made up: probes behind all kinds of buffers, cut off, or not there."""

import random
from dataclasses import replace

from livepush_asgi.cli.doctor.examine import LARGE_EVENTS, Question, first_plan
from livepush_asgi.cli.doctor.observation import Answer, Arrival, End, Evidence, Observation, Seen, Stall
from livepush_asgi.http.probe import ProbePlan

URL = "https://example.org/events/"
PLAN = first_plan(Question(url=URL))
HEADERS = (
    ("content-type", "text/event-stream"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)
SEEN = Seen(http="1.1", scheme="https", heartbeat=15.0)


def answer(status: int = 200, *, version: str = "HTTP/1.1", url: str = URL, **fields: str | None) -> Answer:
    changed = {**dict(HEADERS), **{name.replace("_", "-"): value for name, value in fields.items()}}
    headers = tuple((name, value) for name, value in changed.items() if value is not None)
    return Answer(status, version, headers, url)


def arriving(
    plan: ProbePlan = PLAN,
    *,
    delay: float = 0.02,
    hold_bytes: int = 0,
    period: float = 0,
    hold_all: bool = False,
    jitter: float = 0,
    seed: int = 0,
    stalls: tuple[Stall, ...] = (),
    head: Answer | None = None,
) -> Observation:
    """Return what is seen of a probe behind something that holds it back in some way."""
    chance, total = random.Random(seed), (plan.events * plan.interval + plan.idle) / 1000
    sent = [0.0, *((n + 1) * plan.interval / 1000 for n in range(plan.events)), total]
    offsets = [150 + n * plan.size for n in range(plan.events + 1)] + [250 + plan.events * plan.size]

    def passed_on(n: int) -> float:
        if hold_all:
            return total
        if period:
            return min((sent[n] // period + 1) * period, total)
        if hold_bytes:
            full = (offsets[n] + hold_bytes - 1) // hold_bytes * hold_bytes
            return next((sent[m] for m in range(n, len(sent)) if offsets[m] >= full), total)
        return sent[n]

    times = [passed_on(n) + delay + chance.random() * jitter for n in range(len(sent))]
    times = [max(times[: n + 1]) for n in range(len(times))]
    for stall in stalls:
        times = [stall.at if stall.at - stall.late < time < stall.at else time for time in times]
    return Observation(
        plan=plan,
        answer=head or answer(),
        arrivals=[Arrival(n, sent[n], times[n], offsets[n]) for n in range(len(sent))],
        bytes_at=times,
        seen=SEEN,
        end=End.COMPLETE,
        ended_at=times[-1],
        stalls=list(stalls),
    )


def cut(at: float, *, last: float, end: End = End.BROKEN) -> Observation:
    """Return what is seen of a probe that is cut off."""
    whole = arriving()
    return replace(
        whole,
        arrivals=[arrival for arrival in whole.arrivals if arrival.at <= last],
        bytes_at=[*(at for at in whole.bytes_at if at < last), last],
        end=end,
        ended_at=at,
    )


def no_probe(*others: tuple[str, str], **changes: object) -> Observation:
    seen = Observation(
        plan=PLAN, answer=answer(), others=list(others), bytes_at=[0.06], end=End.ENOUGH, ended_at=2.06
    )
    return replace(seen, **changes)  # type: ignore[arg-type]


def held_evidence(**how: object) -> Evidence:
    first = arriving(**how)  # type: ignore[arg-type]
    return Evidence(first=first, repeated=[first], large=arriving(LARGE_EVENTS, **how))  # type: ignore[arg-type]
