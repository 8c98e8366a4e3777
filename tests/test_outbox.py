"""The outbox alone: bounds in events and bytes, both policies, messages of bounded size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livepush_asgi import Limits
from livepush_asgi.hub.delivery import Delivery
from livepush_asgi.stream.outbox import Outbox, OutboxFullError


def joined(outbox: Outbox) -> bytes:
    return outbox.take().joined


def filled(limits: Limits, *blocks: bytes) -> Outbox:
    outbox = Outbox(limits)
    for block in blocks:
        outbox.put(Delivery("c", block))
    return outbox


def test_everything_that_waits_is_taken_at_once() -> None:
    outbox = filled(Limits(), b"one", b"two", b"three")
    assert joined(outbox) == b"onetwothree"
    assert not outbox
    assert outbox.waiting_bytes == 0


def test_a_message_is_no_larger_than_its_limit_or_one_event() -> None:
    outbox = filled(Limits(message_bytes=6), b"aaa", b"bbb", b"c", b"dddddddd", b"e")
    assert [joined(outbox) for _ in range(4)] == [b"aaabbb", b"c", b"dddddddd", b"e"]
    assert not outbox


@pytest.mark.parametrize("limits", [Limits(outbox_events=2, overflow="close"), Limits(outbox_bytes=6)])
def test_a_full_outbox_refuses_under_close(limits: Limits) -> None:
    outbox = filled(limits, b"aaa", b"bbb")
    with pytest.raises(OutboxFullError):
        outbox.put(Delivery("c", b"ccc"))
    assert joined(outbox) == b"aaabbb"


def test_an_event_larger_than_all_room_is_taken_when_nothing_waits() -> None:
    outbox = filled(Limits(outbox_bytes=4), b"much too large")
    with pytest.raises(OutboxFullError):
        outbox.put(Delivery("c", b"x"))
    assert joined(outbox) == b"much too large"


def test_drop_oldest_makes_room_and_says_what_went() -> None:
    outbox = Outbox(Limits(outbox_events=2, overflow="drop_oldest"))
    for channel, block in [("a", b"1"), ("b", b"2"), ("a", b"3"), ("a", b"4")]:
        outbox.put(Delivery(channel, block))
    assert outbox.take_dropped() == {"a": 1, "b": 1}
    assert outbox.take_dropped() == {}
    assert joined(outbox) == b"34"


@given(
    sizes=st.lists(st.integers(1, 40), max_size=60),
    events=st.integers(1, 10),
    room=st.integers(1, 100),
    message=st.integers(1, 100),
    taking=st.sets(st.integers(0, 60)),
)
def test_no_interleaving_exceeds_the_bounds_or_changes_the_order(
    sizes: list[int], events: int, room: int, message: int, taking: set[int]
) -> None:
    limits = Limits(outbox_events=events, outbox_bytes=room, message_bytes=message, overflow="drop_oldest")
    outbox, taken, dropped = Outbox(limits), b"", 0
    blocks = [bytes([number]) * size for number, size in enumerate(sizes)]
    for number, block in enumerate(blocks):
        outbox.put(Delivery("c", block))
        assert len(outbox) <= events
        assert outbox.waiting_bytes <= room or len(outbox) == 1
        if number in taking:
            dropped += sum(outbox.take_dropped().values())
            taken += joined(outbox)
    dropped += sum(outbox.take_dropped().values())
    while outbox:
        taken += joined(outbox)
    numbers = list(dict.fromkeys(taken))
    assert numbers == sorted(numbers)
    assert taken == b"".join(blocks[number] for number in numbers)
    assert dropped + len(numbers) == len(blocks)
