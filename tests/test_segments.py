"""Segments is a queue of events, whatever is added, dropped and read in between."""

import gc
import random
from collections import deque

import pytest

from livepush_asgi.brokers.segments import SEGMENT, Segments


@pytest.mark.parametrize("seed", range(200))
def test_it_is_a_queue(seed: int) -> None:
    draw = random.Random(seed)
    events, model = Segments(), deque[tuple[bytes, float]]()
    for number in range(draw.randint(1, 200)):
        match draw.choice(("append", "extend", "drop", "drop many")):
            case "append":
                events.append(b"%d" % number, number)
                model.append((b"%d" % number, number))
            case "extend":
                added = [b"%d/%d" % (number, each) for each in range(draw.randint(0, 3 * SEGMENT))]
                events.extend(added, number)
                model.extend((payload, number) for payload in added)
            case kind:
                for _ in range(min(len(model), 1 if kind == "drop" else draw.randint(1, 2 * SEGMENT))):
                    assert events.oldest_time == model[0][1]
                    assert events.drop_oldest() == model.popleft()[0]
        assert events.count == len(model)
        start, end = draw.randint(0, len(model) + 5), draw.randint(0, len(model) + 2 * SEGMENT)
        assert events.part(start, end) == tuple(payload for payload, _ in list(model)[start:end])


def test_an_empty_one_has_no_oldest_event() -> None:
    with pytest.raises(IndexError):
        Segments().drop_oldest()
    with pytest.raises(IndexError):
        _ = Segments().oldest_time


def test_the_garbage_collector_leaves_nearly_all_events_out() -> None:
    """Or each full collection would stop the event loop of a process with a million events."""
    events = Segments()
    for number in range(100 * SEGMENT):
        events.append(b"event %d" % number, number)
    for _ in range(3):
        gc.collect()
    visited = [values for values in gc.get_referents(events) if isinstance(values, list)]
    assert sum(map(len, visited)) <= 4 * 100
    assert not any(gc.is_tracked(segment) for values in visited for segment in values)
