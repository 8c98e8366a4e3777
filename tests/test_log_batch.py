"""A batch of a log is what its deliveries are, made when somebody looks at one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livepush_asgi import Event, InvalidEventError, Limits, Position
from livepush_asgi.hub.delivery import Batch, Delivery, LogBatch, batch_of, delivery_of
from livepush_asgi.stream.outbox import Outbox
from livepush_asgi.wire.event import to_payload

BEFORE = Position("epoch", 7)


def payload(number: int) -> bytes:
    """Return a payload of one of the kinds that there are, the same for each number."""
    kinds = (
        to_payload(Event(f"token {number}").encode()),
        to_payload(Event("two\nlines", event="named").encode()),
        to_payload(Event("with an id", id=f"own {number}").encode()),
        to_payload(b": comment\n\n"),
        b"plain text of another program",
    )
    return kinds[number % len(kinds)]


def log_batch(size: int, first: int = 0) -> LogBatch:
    return LogBatch("news", BEFORE.at(BEFORE.offset + first), [payload(first + each) for each in range(size)])


def made_one_by_one(size: int) -> list[Delivery]:
    return [delivery_of("news", payload(each), BEFORE.at(BEFORE.offset + 1 + each)) for each in range(size)]


def contents(batch: Batch) -> object:
    return (
        list(batch.deliveries),
        batch.joined,
        batch.count,
        batch.size,
        batch.position,
        batch.has_gap,
        batch.places(b": comment"),
    )


@given(size=st.integers(1, 12), start=st.integers(0, 12), end=st.integers(0, 12))
def test_a_batch_of_a_log_and_each_part_of_it_are_what_their_deliveries_are(
    size: int, start: int, end: int
) -> None:
    each = made_one_by_one(size)
    assert contents(log_batch(size)) == contents(Batch(each))
    assert log_batch(size).channel == Batch(each).channel
    assert contents(log_batch(size).part(start, end)) == contents(Batch(each[start:end]))
    # A part is the same whether somebody has looked at the whole or not.
    looked = log_batch(size)
    assert list(looked.deliveries) == each
    assert contents(looked.part(start, end)) == contents(Batch(each[start:end]))


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_batches_that_follow_each_other_are_one(sizes: list[int]) -> None:
    batches, first = [], 0
    for size in sizes:
        batches.append(log_batch(size, first))
        first += size
    joined = batch_of(batches)
    assert isinstance(joined, LogBatch)
    assert contents(joined) == contents(Batch(made_one_by_one(first)))


@pytest.mark.parametrize(
    "other",
    [
        log_batch(2, 3),
        LogBatch("other", BEFORE.at(9), [payload(0)]),
        LogBatch("news", Position("later", 9), [payload(0)]),
        delivery_of("news", payload(0), BEFORE.at(10)),
    ],
)
def test_what_does_not_follow_in_the_same_log_keeps_its_order_all_the_same(
    other: Delivery | LogBatch,
) -> None:
    items = [log_batch(2), other]
    each = [*log_batch(2).deliveries, *(other.deliveries if isinstance(other, LogBatch) else [other])]
    assert contents(batch_of(items)) == contents(Batch(each))


def test_a_list_that_its_owner_changes_later_changes_nothing() -> None:
    payloads = [payload(0), payload(1)]
    batch = LogBatch("news", BEFORE, payloads)
    payloads.clear()
    assert contents(batch) == contents(Batch(made_one_by_one(2)))


def test_a_payload_that_is_no_event_raises() -> None:
    with pytest.raises(InvalidEventError):
        LogBatch("news", BEFORE, [payload(0), b"\xfe"])


@given(
    parts=st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=12),
    events=st.integers(1, 20),
    room=st.integers(1, 1000),
    message=st.integers(1, 500),
    overflow=st.sampled_from(["drop_oldest", "close", "resume", "latest"]),
    taking=st.sets(st.integers(0, 12)),
)
def test_an_outbox_has_the_same_bytes_whether_a_batch_comes_whole_or_one_by_one(
    parts: list[tuple[int, bool]], events: int, room: int, message: int, overflow: str, taking: set[int]
) -> None:
    limits = Limits(
        outbox_events=events,
        outbox_bytes=room,
        message_bytes=message,
        overflow=overflow,  # type: ignore[arg-type]
    )
    whole, single = Outbox(limits), Outbox(limits)
    first = 0
    for number, (size, is_batch) in enumerate(parts):
        batch = log_batch(size, first)
        first += size
        if len(whole) + size > events or whole.waiting_bytes + batch.size > room:
            # Whichever policy there is, it is another one's test.
            assert is_batch is False or not whole.put_all(batch)
            break
        if not (is_batch and whole.put_all(batch)):
            for delivery in batch.deliveries:
                whole.put(delivery)
        for delivery in batch.deliveries:
            single.put(delivery)
        if number in taking:
            assert contents(whole.take()) == contents(single.take())
        assert (len(whole), whole.waiting_bytes, bool(whole)) == (
            len(single),
            single.waiting_bytes,
            bool(single),
        )
    assert whole.discard_for_history() == single.discard_for_history()
    assert (len(whole), whole.waiting_bytes) == (0, 0)
