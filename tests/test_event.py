"""Event and the event-stream text: a strict parser reads back what was written, or writing raised."""

import re
from enum import Enum, IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from livepush_asgi.errors import InvalidEventError, LivePushError
from livepush_asgi.testing import EventStreamParser, ParsedEvent
from livepush_asgi.wire.control import close_block, count_events, gap_block, id_block, open_block, retry_line
from livepush_asgi.wire.event import (
    HEARTBEAT,
    MAX_RETRY,
    PAYLOAD_MARK,
    Event,
    data_of,
    encode_block,
    from_payload,
    payload_bytes,
    to_payload,
)
from livepush_asgi.wire.reasons import EndReason, GapReason

# Everything that ends a line for str.splitlines() but is ordinary data in an event stream.
NOT_LINE_ENDS = ["\v", "\f", "\x1c", "\x1d", "\x1e", "\u0085", "\u2028", "\u2029", "\0", "\ufeff"]

# A number with more digits than Python writes as text.
HUGE = pytest.param(10**5000, id="huge")

# How long an example takes says more about the machine than about the code.
unhurried = settings(deadline=None)


def read(block: bytes) -> ParsedEvent:
    """Parse a block that holds one event and nothing that a parser would pass over."""
    parser = EventStreamParser()
    (event,) = parser.feed(block)
    assert (parser.comments, parser.ignored, parser.empty_blocks) == ([], [], 0)
    assert parser.feed(b"\n") == []
    assert parser.empty_blocks == 1
    return event


def with_line_feeds(text: str) -> str:
    return re.sub(r"\r\n|\r", "\n", text)


def test_the_fields_are_written_in_one_order_and_the_data_last() -> None:
    event = Event("a\nb", event="order", id="7", retry=1500)
    assert event.encode() == b"event: order\nid: 7\nretry: 1500\ndata: a\ndata: b\n\n"


def test_only_the_fields_that_are_there_are_written() -> None:
    assert Event("a").encode() == b"data: a\n\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ("grün €", "grün €"),
        ("grün €".encode(), "grün €"),
        (bytearray(b"abc"), "abc"),
        (memoryview(b"abc"), "abc"),
        ({"order": 7, "name": "grün"}, '{"order":7,"name":"grün"}'),
        ([1, 2.5, True, None], "[1,2.5,true,null]"),
        (None, "null"),
        (True, "true"),
        (7, "7"),
        ({"text": "two\nlines"}, '{"text":"two\\nlines"}'),
    ],
)
def test_data_is_kept_as_text(data: object, text: str) -> None:
    assert Event(data).data == text
    assert read(Event(data).encode()).data == text


def test_without_data_the_event_has_empty_data_and_is_dispatched() -> None:
    assert Event(event="tick").encode() == b"event: tick\ndata: \n\n"
    assert read(Event(event="tick").encode()) == ParsedEvent("tick", "")


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_each_line_end_in_data_begins_another_data_line(line_end: str) -> None:
    assert Event(f"a{line_end}b").encode() == b"data: a\ndata: b\n\n"


@pytest.mark.parametrize(
    ("data", "lines"),
    [("\n", 2), ("a\n", 2), ("\na", 2), ("a\n\nb", 3), ("\r\n\r\n", 3), ("\n\r", 3), ("\r\r\n", 3)],
)
def test_empty_lines_of_data_are_kept(data: str, lines: int) -> None:
    block = Event(data).encode()
    assert block.count(b"data: ") == lines
    assert read(block).data == with_line_feeds(data)


@pytest.mark.parametrize("character", NOT_LINE_ENDS)
def test_no_other_character_ends_a_line(character: str) -> None:
    text = f"a{character}data: b"
    assert Event(text).encode() == f"data: {text}\n\n".encode()
    assert read(Event(text).encode()).data == text


@pytest.mark.parametrize("text", [" a", "  a", "a ", "\ta", ":a", ": a", "data: a", "id: 1"])
def test_data_that_looks_like_syntax_arrives_unchanged(text: str) -> None:
    assert read(Event(text).encode()) == ParsedEvent(data=text)
    assert read(Event("", event=text).encode()).event == text
    assert read(Event("", id=text).encode()).id == text


@pytest.mark.parametrize("data", [b"\xff", b"\xc3", b"\xed\xa0\x80", bytearray(b"a\x80")])
def test_bytes_that_are_not_utf8_raise(data: bytes) -> None:
    with pytest.raises(InvalidEventError, match=r"UTF-8, and these bytes are not .* base64"):
        Event(data)


@pytest.mark.parametrize("data", ["\ud800", {"a": "\udfff"}, {"\ud800": 1}])
def test_lone_surrogates_raise(data: object) -> None:
    with pytest.raises(InvalidEventError, match="lone surrogate"):
        Event(data)


def circle() -> object:
    knot: list[object] = []
    knot.append(knot)
    return knot


@pytest.mark.parametrize(
    "data", [object(), {1, 2}, float("nan"), [float("inf")], {(1, 2): 3}, {"a": b"bytes"}, circle(), HUGE]
)
def test_what_json_cannot_hold_raises(data: object) -> None:
    with pytest.raises(InvalidEventError, match=rf"data of type {type(data).__name__} is neither text"):
        Event(data)


def test_an_invalid_event_is_a_value_error_of_the_package() -> None:
    assert issubclass(InvalidEventError, LivePushError)
    assert issubclass(InvalidEventError, ValueError)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\r\nid: 1", "\n"])
def test_a_line_end_in_an_event_name_raises(name: str) -> None:
    with pytest.raises(InvalidEventError, match="has a line end"):
        Event("", event=name)


def test_an_empty_event_name_raises() -> None:
    with pytest.raises(InvalidEventError, match="leave it out"):
        Event("", event="")


@pytest.mark.parametrize("name", [7, b"name", True])
def test_an_event_name_is_text(name: Any) -> None:
    with pytest.raises(InvalidEventError, match=f"an event name is a str, not {type(name).__name__}"):
        Event("", event=name)


@pytest.mark.parametrize("name", ["livepush.", "livepush.close"])
def test_the_components_own_names_raise(name: str) -> None:
    with pytest.raises(InvalidEventError, match="the component's own"):
        Event("", event=name)


@pytest.mark.parametrize("name", ["livepush", "Livepush.close", "my.livepush.close", "a\0b", "error"])
def test_other_event_names_are_free(name: str) -> None:
    assert read(Event("", event=name).encode()).event == name


@pytest.mark.parametrize("id", ["a\nb", "a\rb", "a\0b", "\0"])
def test_a_line_end_or_nul_in_an_id_raises(id: str) -> None:
    with pytest.raises(InvalidEventError, match="a line end or a NUL"):
        Event("", id=id)


@pytest.mark.parametrize("id", [True, 1.0, b"1", [1]])
def test_an_id_is_text_or_a_whole_number(id: Any) -> None:
    with pytest.raises(InvalidEventError, match=f"a str or an int, not {type(id).__name__}"):
        Event("", id=id)


@pytest.mark.parametrize(("id", "text"), [(0, "0"), (42, "42"), (-1, "-1"), ("7", "7"), ("1.5", "1.5")])
def test_ids_are_kept_as_text(id: str | int, text: str) -> None:
    assert Event("", id=id).id == text
    assert read(Event("", id=id).encode()).id == text


def test_an_empty_id_which_makes_a_client_forget_its_place_is_refused() -> None:
    with pytest.raises(InvalidEventError, match="forget its place"):
        Event("", id="")


@pytest.mark.parametrize("id", ["abcd~", "abcd~epoch.7", "!abcd~epoch.7,dcba~", f"abcd~e.{2**63 - 1}"])
def test_an_id_that_reads_as_a_cursor_is_refused(id: str) -> None:
    with pytest.raises(InvalidEventError, match="reads as a cursor"):
        Event("", id=id)
    block = f"event: x\nid: {id}\ndata: forged\n\n".encode()
    with pytest.raises(InvalidEventError, match="reads as a cursor"):
        from_payload(to_payload(block))


@pytest.mark.parametrize("id", ["~", "abc~e.7", "abcd~e.7,", "abcd~e.07", "abcd~e", "!", "abcd~e.7!", "1.5"])
def test_an_id_that_only_looks_like_a_cursor_is_the_publishers_own(id: str) -> None:
    assert Event("", id=id).id == id


def test_an_id_with_more_digits_than_python_writes_raises() -> None:
    with pytest.raises(InvalidEventError, match="too large"):
        Event("", id=10**5000)


@pytest.mark.parametrize("retry", [-1, True, 1.5, "3000", MAX_RETRY + 1, HUGE])
def test_a_retry_that_no_client_can_keep_raises(retry: Any) -> None:
    with pytest.raises(InvalidEventError, match="retry is a whole number of milliseconds"):
        Event("", retry=retry)


@pytest.mark.parametrize("retry", [0, 1, MAX_RETRY])
def test_a_retry_is_read_back(retry: int) -> None:
    assert read(Event("", retry=retry).encode()).retry == retry


class Name(str, Enum):  # noqa: UP042  (it differs from StrEnum in str() and format(), which is the point)
    PAID = "order-paid"


class Plain(StrEnum):
    PAID = "order-paid"


class Number(int, Enum):
    SEVEN = 7


class OtherNumber(IntEnum):
    SEVEN = 7


@pytest.mark.parametrize("name", [Name.PAID, Plain.PAID], ids=["str", "StrEnum"])
def test_members_of_enums_stand_for_their_text(name: str) -> None:
    event = Event(name, event=name, id=name)
    assert read(event.encode()) == ParsedEvent("order-paid", "order-paid", "order-paid", "order-paid")
    assert {type(event.data), type(event.event), type(event.id)} == {str}


@pytest.mark.parametrize("number", [Number.SEVEN, OtherNumber.SEVEN], ids=["int", "IntEnum"])
def test_members_of_enums_stand_for_their_number(number: int) -> None:
    assert Event("", id=number, retry=number).encode() == b"id: 7\nretry: 7\ndata: \n\n"


class TwoFaced(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "x\nid: forged"

    def __format__(self, form: str) -> str:
        return "x\nid: forged"


def test_a_text_with_another_face_cannot_forge_fields() -> None:
    event = Event(TwoFaced("data"), event=TwoFaced("name"), id=TwoFaced("id"))
    assert event.encode() == b"event: name\nid: id\ndata: data\n\n"


def test_an_event_is_a_value() -> None:
    assert Event("a", id=1) == Event("a", id="1")
    assert hash(Event({"a": 1})) == hash(Event('{"a":1}'))
    with pytest.raises(AttributeError):
        Event("a").data = "b"  # type: ignore[misc]


def test_an_event_keeps_no_hold_of_what_it_was_made_from() -> None:
    state = {"a": 1}
    event = Event(state)
    state["a"] = 2
    assert event.data == '{"a":1}'


def test_a_heartbeat_dispatches_nothing_and_ends_no_block() -> None:
    parser = EventStreamParser()
    assert parser.feed(HEARTBEAT) == []
    assert parser.feed(b"data: a\n" + HEARTBEAT + b"data: b\n\n") == [ParsedEvent(data="a\nb")]
    assert (parser.comments, parser.empty_blocks) == (["", ""], 0)


def test_a_block_comes_back_from_its_payload() -> None:
    block = Event("a", event="e").encode()
    assert to_payload(block) == PAYLOAD_MARK + block
    assert from_payload(to_payload(block)) == block


@pytest.mark.parametrize("payload", [b"hello", b"", b"a\r\nb", "grün".encode()])
def test_a_plain_payload_becomes_the_data_of_an_event(payload: bytes) -> None:
    assert read(from_payload(payload)) == ParsedEvent(data=with_line_feeds(payload.decode()))


@pytest.mark.parametrize(
    "payload",
    [
        b"x\n\nevent: livepush.close\ndata: {}\n\n",
        b"x\nid: 1\nretry: 0",
        b"x\rid: 1\r\revent: y",
        b"\n\n: comment",
        b"1data: x\n\n",
    ],
)
def test_a_plain_payload_cannot_bring_its_own_fields(payload: bytes) -> None:
    assert read(from_payload(payload)) == ParsedEvent(data=with_line_feeds(payload.decode()))


@pytest.mark.parametrize("payload", [b"\xff", b"\xff0data: x\n\n", b"\xff2data: x\n\n", b"\xc3", b"a\xff1"])
def test_a_plain_payload_that_is_not_utf8_raises(payload: bytes) -> None:
    with pytest.raises(InvalidEventError, match="UTF-8"):
        from_payload(payload)


def test_no_text_begins_with_the_mark() -> None:
    with pytest.raises(UnicodeDecodeError):
        PAYLOAD_MARK.decode()


# Ordinary characters seldom break a format; these do.
HOSTILE = ["\r", "\n", "\0", ":", " ", "\ufeff", "\u2028", "a", "é", "id", "data: "]
UTF8 = st.text() | st.lists(st.sampled_from(HOSTILE)).map("".join)
TEXT = UTF8 | st.lists(st.sampled_from([*HOSTILE, "\ud800"])).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda values: st.lists(values) | st.dictionaries(TEXT, values),
    max_leaves=10,
)


@unhurried
@given(
    data=TEXT | st.binary() | JSON,
    name=st.none() | TEXT,
    id=st.none() | TEXT | st.integers(),
    retry=st.none() | st.integers(),
)
@example(data="\r", name=None, id=None, retry=None)
@example(data="", name="\ufeff", id="\ufeff", retry=0)
def test_what_is_written_is_read_back_or_raises(
    data: object, name: str | None, id: str | int | None, retry: int | None
) -> None:
    try:
        event = Event(data, event=name, id=id, retry=retry)
    except InvalidEventError:
        return
    kept_id = None if id is None else str(id)
    assert read(event.encode()) == ParsedEvent(
        name if name is not None else "message",
        with_line_feeds(str(event.data)),
        kept_id or "",
        kept_id,
        retry,
    )


@unhurried
@given(payload=st.binary() | UTF8.map(str.encode))
def test_any_plain_payload_is_one_event_with_data_alone_or_raises(payload: bytes) -> None:
    assume(not payload.startswith(PAYLOAD_MARK))
    try:
        block = from_payload(payload)
    except InvalidEventError:
        return
    assert read(block) == ParsedEvent(data=with_line_feeds(payload.decode()))


@unhurried
@given(data=UTF8)
def test_the_data_of_a_plain_block_can_be_had_back(data: str) -> None:
    assert data_of(encode_block(data)) == with_line_feeds(data)


@unhurried
@given(events=st.lists(st.builds(Event, UTF8, id=st.none() | st.integers())))
def test_blocks_one_after_the_other_are_a_stream(events: list[Event]) -> None:
    stream = b"".join(event.encode() for event in events)
    read_back = EventStreamParser().feed(stream)
    assert [(event.data, event.id) for event in read_back] == [
        (with_line_feeds(str(event.data)), event.id) for event in events
    ]


def test_a_broker_is_given_text_or_bytes() -> None:
    given = ["ä", "ä".encode(), bytearray(b"\xc3\xa4"), memoryview(b"\xc3\xa4")]
    assert [payload_bytes(payload) for payload in given] == ["ä".encode()] * 4
    for payload in ({"a": 1}, 5, None, ["a"]):
        with pytest.raises(TypeError, match=r"publishes text or bytes, not .*json\.dumps"):
            payload_bytes(payload)


OWN_BLOCKS = [
    HEARTBEAT,
    id_block("c~e.1"),
    retry_line(1000) + id_block("c~e.1"),
    open_block(1000, "c~e.1", [("c", GapReason.EPOCH)], resumed=False),
    gap_block("c", GapReason.BROKER, "c~e.1"),
    close_block(EndReason.DRAIN, 1000),
]
WORDS = st.sampled_from(["event: livepush.open", "id: 7", "data: x", "", "\n", "a"])


@given(
    st.lists(
        st.one_of(
            st.sampled_from(OWN_BLOCKS),
            st.builds(
                lambda words, name, id: Event("".join(words), name, id).encode(),
                st.lists(WORDS),
                st.sampled_from([None, "news"]),
                st.sampled_from([None, "7"]),
            ),
        )
    )
)
@unhurried
def test_the_events_of_the_application_are_counted_as_a_client_sees_them(blocks: list[bytes]) -> None:
    joined = b"".join(blocks)
    seen = [event for event in EventStreamParser().feed(joined) if not event.event.startswith("livepush.")]
    assert count_events(joined) == len(seen)
