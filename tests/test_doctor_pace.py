"""The doctor's sense of time: what was held back, what it waited for, and what was only a busy machine."""

from dataclasses import replace

import pytest

from livepush_asgi.cli.doctor.examine import LARGE_EVENTS
from livepush_asgi.cli.doctor.findings import Diagnosis
from livepush_asgi.cli.doctor.observation import Evidence, Hold, Observation, Pace, Stall, hold_of, is_held

from .observations import PLAN, arriving


@pytest.mark.parametrize("seed", range(50))
def test_a_busy_machine_does_not_look_like_a_buffer(seed: int) -> None:
    assert not is_held(arriving(jitter=0.07, seed=seed))


@pytest.mark.parametrize(
    "seen",
    [
        arriving(),
        arriving(delay=3.0),
        # This program was stopped for longer than it had been allowed to run.
        arriving(stalls=(Stall(1.6, 1.55),)),
        arriving(stalls=tuple(Stall(n * 0.2, 0.19) for n in range(1, 20))),
        # A pause of somebody else: after it the rest comes in time.
        replace(arriving(stalls=(Stall(1.0, 0.95),)), stalls=[]),
        Observation(plan=PLAN),
    ],
)
def test_what_came_in_time_is_not_held(seen: Observation) -> None:
    assert not is_held(seen)


@pytest.mark.parametrize(
    ("how", "hold"),
    [
        ({"hold_all": True}, Hold("end", 65686)),
        ({"hold_bytes": 300}, Hold("bytes", 300)),
        ({"hold_bytes": 1024}, Hold("bytes", 1024)),
        ({"hold_bytes": 4096}, Hold("bytes", 4096)),
        ({"hold_bytes": 8192}, Hold("bytes", 8192)),
        ({"hold_bytes": 32768}, Hold("bytes", 32768)),
        ({"period": 0.25}, Hold("seconds", 0.25)),
        ({"period": 0.6}, Hold("seconds", 0.6)),
    ],
)
def test_what_events_waited_for_is_told_by_two_sizes(how: dict[str, object], hold: Hold) -> None:
    small, large = arriving(**how), arriving(LARGE_EVENTS, **how)  # type: ignore[arg-type]
    assert is_held(small)
    found = hold_of(small, large)
    assert found.kind == hold.kind
    assert found.amount == pytest.approx(hold.amount, rel=0.15)


def test_a_series_is_measured() -> None:
    pace = Pace(arriving(hold_all=True))
    assert (pace.events, pace.together, len(pace.groups), pace.held) == (40, 40, 1, True)
    assert pace.latest == pytest.approx(1.95)


def test_what_was_late_once_is_no_fault() -> None:
    once = Evidence(first=arriving(hold_all=True), repeated=[arriving()])
    assert Diagnosis(once).status == 0
    thrice = replace(once, repeated=[arriving(period=0.25), arriving()])
    assert Diagnosis(thrice).status == 0


@pytest.mark.parametrize("seed", range(20))
def test_a_buffer_is_known_on_a_busy_machine(seed: int) -> None:
    small = arriving(hold_all=True, jitter=0.07, seed=seed)
    large = arriving(LARGE_EVENTS, hold_all=True, jitter=0.07, seed=seed)
    assert is_held(small)
    assert hold_of(small, large).kind == "end"


def test_what_comes_with_the_next_event_is_held() -> None:
    seen = arriving(replace(PLAN, idle=500))
    # Each comes when the one after it is sent, and the last with the end.
    times = [*(each.sent + 0.02 for each in seen.arrivals[1:]), seen.arrivals[-1].at]
    late = replace(
        seen,
        arrivals=[replace(each, at=at) for each, at in zip(seen.arrivals, times, strict=True)],
    )
    assert is_held(late)
    assert hold_of(late, None) == Hold("next")
    diagnosis = Diagnosis(Evidence(first=late, repeated=[late]))
    assert "until the next one comes" in diagnosis.findings[0].text
