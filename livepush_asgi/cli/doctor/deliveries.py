"""Deliveries: how the events of a stream came, what was done to them, and how it ended. Pure functions."""

from collections.abc import Iterator, Sequence

from ...http.driver import STREAM_HEADERS
from .finding import Finding, fault, note, unexamined, warning
from .observation import Answer, End, Evidence, Observation
from .pace import Hold, hold_of, is_disturbed, is_held, pace_of, surely_held
from .proxies import Proxy
from .remedies import heartbeat_under, lifetime_under, remedies_for

# What a stream of this component says of itself.
CACHE_CONTROL = dict(STREAM_HEADERS)[b"cache-control"].decode()
STOUT = " It is compressed only if it begins with much, as after a reconnect."
# A first byte that takes longer than this is worth a word, in seconds.
SLOW_START = 2.0
# Linux sends what was corked after 200 ms. Events that are held by it come once in so long, and some more.
CORKED = 0.35


def about_pace(evidence: Evidence, proxies: Sequence[Proxy]) -> Iterator[Finding]:
    """Say whether events were held back, and by what."""
    first = evidence.first
    again = evidence.repeated[-1] if evidence.repeated else first
    if first.rest:
        yield fault(
            "compression-ends",
            "Each piece is compressed by itself, as a file of its own, of which a browser reads the first.",
            *remedies_for("compressed", proxies),
        )
        return
    if not first.series:
        return
    if not surely_held(evidence):
        yield from _disturbed(again) if is_disturbed(again) else _prompt(again)
        return
    compression = first.answer.compression if first.answer is not None else None
    if compression is not None and evidence.plain is not None and not is_held(evidence.plain):
        yield fault(
            "compression-delays",
            f"Held back by compression ({compression}): {_how_late(again)}. Uncompressed they come at once."
            f"{STOUT if evidence.stout else ''}",
            *remedies_for("compressed", proxies),
        )
        return
    hold = hold_of(again, evidence.weighed)
    text = f"Held back: {_how_late(again)}. {_waits_for(hold)}"
    if compression is not None:
        text += f" (It is compressed with {compression} too; without that it is no better.)"
    kind = "corked" if hold.kind == "seconds" and hold.amount < CORKED else "buffered"
    yield fault("buffered", text, *remedies_for(kind, proxies))


def about_compression(evidence: Evidence) -> Iterator[Finding]:
    """Say that the stream is compressed, if that delays nothing."""
    answer = evidence.first.answer
    if evidence.unread_encoding is not None:
        yield warning(
            "compressed",
            f"It is compressed ({evidence.unread_encoding}), which cannot be read here: the rest was measured"
            " without.",
        )
    elif answer is not None and answer.compression and evidence.first.is_stream and not evidence.first.series:
        yield warning(
            "compressed",
            f"It is compressed ({answer.compression}), though Cache-Control: no-transform forbids it. Whether"
            " that holds events back is not known.",
        )
    elif _compressed(answer) and evidence.first.series and not surely_held(evidence):
        yield warning(
            "compressed",
            "It is compressed, though Cache-Control: no-transform forbids it. Each event is flushed, so that"
            f" none is late.{STOUT if evidence.stout else ''}",
        )


def about_headers(observation: Observation, proxies: Sequence[Proxy]) -> Iterator[Finding]:
    """Say which header fields of the component did not come through as they were sent."""
    answer = observation.answer
    ours = observation.probed or any(name.startswith("livepush.") for name in observation.other_names)
    if answer is None or not observation.is_stream or not ours:
        return
    given = answer.get("cache-control")
    if given is None:
        yield warning(
            "header-stripped",
            f"Cache-Control: {CACHE_CONTROL} was taken away on the way: what caches or compresses behind"
            " that is not told to leave the stream alone.",
        )
    elif missing := [word for word in CACHE_CONTROL.split(", ") if word not in given]:
        yield warning(
            "header-changed",
            f"Cache-Control was changed on the way to {given!r}: {' and '.join(missing)} is missing.",
        )
    if answer.get("x-accel-buffering") is None and "nginx" not in {proxy.name for proxy in proxies}:
        yield note(
            "header-taken",
            "X-Accel-Buffering: no did not come through. An nginx takes it for itself, as it should; if"
            " another has taken it, an nginx behind that is not told.",
        )


def about_end(evidence: Evidence, proxies: Sequence[Proxy]) -> Iterator[Finding]:
    """Say how the probe ended, if not as it should."""
    first = evidence.first
    heartbeat = _heartbeat(first)
    if not first.probed:
        return
    if first.end is End.DRAIN:
        yield unexamined("drain", "The application is giving up its streams just now: ask again.")
    elif first.end is End.SILENT:
        yield fault(
            "stalled",
            f"After {first.ended_at - first.silence:.1f} s nothing came any more, and the connection was not"
            " closed: something on the way has forgotten it. A shorter heartbeat keeps it from that.",
            heartbeat_under(max(evidence.idle, 1.0)),
            *remedies_for("idle", proxies),
        )
    elif first.cut:
        yield _cut(evidence, proxies)
    elif evidence.idle < heartbeat and not surely_held(evidence):
        yield note(
            "silence",
            f"A silence of {evidence.idle:g} s was borne; the application's own are up to {heartbeat:g} s:"
            f" try --idle {heartbeat * 1.2:.0f}.",
        )


def about_start(observation: Observation) -> Iterator[Finding]:
    """Say that it began late, if it did and nothing worse is known of it."""
    at = observation.first_byte_at
    if observation.is_stream and at is not None and at > SLOW_START and not is_held(observation):
        yield warning(
            "slow-start",
            f"The first byte came after {at:.1f} s: a slow application, or a proxy that holds back"
            " everything for so long.",
        )


def _compressed(answer: Answer | None) -> bool:
    return answer is not None and answer.compression is not None


def _prompt(observation: Observation) -> Iterator[Finding]:
    pace = pace_of(observation)
    expected = observation.plan.events if observation.plan else 0
    if pace.events == expected:
        yield note(
            "prompt",
            f"{pace.events} of {expected} events came at the pace they were sent, the latest"
            f" {1000 * pace.latest:.0f} ms behind the promptest.",
        )


def _disturbed(observation: Observation) -> Iterator[Finding]:
    longest = max(stall.late for stall in observation.stalls)
    yield unexamined(
        "busy",
        f"This machine is too busy to tell: this program was stopped for {longest:.1f} s. Try again.",
    )


def _how_late(observation: Observation) -> str:
    pace = pace_of(observation)
    if not pace.grouped:
        return "the last event before a silence comes when that is over"
    return f"events come {pace.together} at a time, up to {pace.latest:.1f} s late"


def _waits_for(hold: Hold) -> str:
    if hold.kind == "seconds":
        text = f"Something on the way passes them on once in {hold.amount:.1f} s."
        if hold.amount < CORKED:
            text += (
                " So long Linux keeps what a proxy has sent with the word that more is to come (MSG_MORE)."
            )
        return text
    if hold.kind == "next":
        return "Something on the way keeps the end of each event until the next one comes."
    if hold.kind == "bytes":
        return f"Something on the way waits until about {_kibibytes(hold.amount)} have come together."
    if hold.at_least:
        return (
            "Something on the way waits until the answer ends, or until more than"
            f" {_kibibytes(hold.amount)} have come together."
        )
    return "Something on the way waits until the answer ends."


def _kibibytes(amount: float) -> str:
    return f"{amount:.0f} bytes" if amount < 1000 else f"{amount / 1024:.0f} KiB"


def _cut(evidence: Evidence, proxies: Sequence[Proxy]) -> Finding:
    first, busy = evidence.first, evidence.busy
    how = "closed" if first.end is End.CLOSED else "broken off"
    if first.cut_for_silence and not (busy is not None and busy.cut):
        return fault(
            "cut-idle",
            f"The stream was {how} after {first.silence:.1f} s of silence. The application's heartbeat comes"
            f" each {_heartbeat(first):g} s: make that shorter, or the limit longer.",
            heartbeat_under(first.silence),
            *remedies_for("idle", proxies),
        )
    return fault(
        "cut-off",
        f"The stream was {how} {first.ended_at:.1f} s after its beginning, and not for its silence. Something"
        " on the way limits how long an answer may take, or the application has ended.",
        lifetime_under(first.ended_at),
        *remedies_for("limit", proxies),
    )


def _heartbeat(observation: Observation) -> float:
    heartbeat = observation.seen.heartbeat if observation.seen is not None else None
    return heartbeat if heartbeat is not None else 0.0
