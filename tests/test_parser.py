"""The strict parser against the standard's own examples, and its independence of how bytes are chunked."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livepush_asgi.testing import EventStreamParser, ParsedEvent

# How long an example takes says more about the machine than about the code.
unhurried = settings(deadline=None)


def parse(stream: bytes) -> list[ParsedEvent]:
    return EventStreamParser().feed(stream)


def snapshot(parser: EventStreamParser) -> tuple[object, ...]:
    return parser.comments, parser.ignored, parser.empty_blocks, parser.retry, parser.last_event_id


# The examples below are those of section 9.2.6 and 9.2.1 of the standard.


def test_example_of_unnamed_messages() -> None:
    stream = (
        b"data: This is the first message.\n\ndata: This is the second message, it\ndata: has two lines.\n\n"
        b"data: This is the third message.\n\n"
    )
    assert [(event.event, event.data) for event in parse(stream)] == [
        ("message", "This is the first message."),
        ("message", "This is the second message, it\nhas two lines."),
        ("message", "This is the third message."),
    ]


def test_example_of_named_events() -> None:
    stream = b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n"
    assert parse(stream) == [
        ParsedEvent(event="add", data="73857293"),
        ParsedEvent(event="remove", data="2153"),
        ParsedEvent(event="add", data="113411"),
    ]


def test_example_of_three_lines_of_data() -> None:
    assert parse(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [ParsedEvent(data="YHOO\n+2\n10")]


def test_example_of_comment_ids_and_an_unfinished_block() -> None:
    parser = EventStreamParser()
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"
    assert parser.feed(stream) == [
        ParsedEvent(data="first event", id="1", last_event_id="1"),
        ParsedEvent(data="second event", id="", last_event_id=""),
    ]
    assert parser.comments == [" test stream"]
    assert parser.empty_blocks == 1
    assert parser.feed(b"\n") == [ParsedEvent(data=" third event")]


def test_example_of_blocks_with_empty_data() -> None:
    assert parse(b"data\n\ndata\ndata\n\ndata:\n") == [ParsedEvent(data=""), ParsedEvent(data="\n")]


def test_example_of_the_space_after_the_colon() -> None:
    assert parse(b"data:test\n\ndata: test\n\n") == [ParsedEvent(data="test")] * 2


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
def test_each_line_end_ends_lines_and_blocks(line_end: bytes) -> None:
    stream = b"\n".join([b"event: a", b"data: 1", b"", b"data: 2", b"data: 3", b"", b""])
    parser = EventStreamParser()
    assert parser.feed(stream.replace(b"\n", line_end)) == [
        ParsedEvent(event="a", data="1"),
        ParsedEvent(data="2\n3"),
    ]
    assert parser.empty_blocks == 0


def test_line_ends_may_be_mixed() -> None:
    assert parse(b"data: 1\r\ndata: 2\rdata: 3\n\r\n") == [ParsedEvent(data="1\n2\n3")]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\v", "\f", "\x1c", "\x1e", "\0"])
def test_no_other_character_ends_a_line(character: str) -> None:
    assert parse(f"data: a{character}b\n\n".encode()) == [ParsedEvent(data=f"a{character}b")]


def test_a_byte_order_mark_is_skipped_at_the_start_only() -> None:
    mark = "\ufeff".encode()
    assert parse(mark + b"data: 1\n\n") == [ParsedEvent(data="1")]
    assert parse(mark + mark + b"data: 1\n\n") == []
    assert parse(b"data: 1\n\n" + mark + b"data: 2\n\n") == [ParsedEvent(data="1")]
    assert parse(b"data: " + mark + b"\n\n") == [ParsedEvent(data="\ufeff")]


def test_the_last_event_id_persists_until_another_comes() -> None:
    events = parse(b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\ndata: d\n\n")
    assert [(event.id, event.last_event_id) for event in events] == [
        ("1", "1"),
        (None, "1"),
        ("", ""),
        (None, ""),
    ]


def test_an_id_takes_effect_with_its_blank_line_even_without_data() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"id: 7\n") == []
    assert parser.last_event_id == ""
    assert parser.feed(b"\n") == []
    assert parser.last_event_id == "7"
    assert parser.empty_blocks == 1


def test_an_id_with_nul_is_ignored() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"id: 1\nid: 2\x003\ndata: a\n\n") == [
        ParsedEvent(data="a", id="1", last_event_id="1")
    ]
    assert parser.ignored == ["id: 2\x003"]


def test_of_repeated_fields_the_last_counts_except_for_data() -> None:
    assert parse(b"event: a\nevent: b\nid: 1\nid: 2\nretry: 1\nretry: 2\ndata: x\ndata: y\n\n") == [
        ParsedEvent(event="b", data="x\ny", last_event_id="2", id="2", retry=2)
    ]


def test_an_empty_event_name_is_a_message() -> None:
    assert parse(b"event\ndata: a\n\nevent:\ndata: b\n\n") == [ParsedEvent(data="a"), ParsedEvent(data="b")]


def test_a_block_without_data_dispatches_nothing_and_leaves_no_name_behind() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"event: lost\nretry: 5\n\ndata: a\n\n") == [ParsedEvent(data="a")]
    assert (parser.empty_blocks, parser.retry) == (1, 5)


@pytest.mark.parametrize(
    "value",
    [
        b"1" * 5000,
        b"",
        b" ",
        b"-1",
        b"+1",
        b"1.5",
        b"1e3",
        b"0x10",
        b" 1",
        b"1 ",
        b"1_000",
        "٣".encode(),
        "²".encode(),
    ],
)
def test_a_retry_that_is_not_digits_is_ignored(value: bytes) -> None:
    parser = EventStreamParser()
    parser.feed(b"retry: 9\nretry: " + value + b"\n")
    assert parser.retry == 9
    assert len(parser.ignored) == 1


def test_retry_counts_before_its_block_ends() -> None:
    parser = EventStreamParser()
    parser.feed(b"retry: 0020\n")
    assert parser.retry == 20


def test_field_names_are_exact() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"Data: a\n data: b\ndata : c\nDATA\nid : 1\n\n") == []
    assert parser.ignored == ["Data: a", " data: b", "data : c", "DATA", "id : 1"]


def test_the_colon_and_one_space_go_and_nothing_else() -> None:
    assert parse(b"data:\t a: b \n\ndata:: x\n\n") == [ParsedEvent(data="\t a: b "), ParsedEvent(data=": x")]


def test_comments_are_kept_and_do_nothing() -> None:
    parser = EventStreamParser()
    assert parser.feed(b":\n: ping\n:data: no\ndata: a\n:\ndata: b\n\n") == [ParsedEvent(data="a\nb")]
    assert parser.comments == ["", " ping", "data: no", ""]
    assert (parser.empty_blocks, parser.ignored) == (0, [])


def test_blank_lines_that_dispatch_nothing_are_counted() -> None:
    parser = EventStreamParser()
    parser.feed(b"\n\n: ping\n\nretry: 1\n\ndata: a\n\n\n")
    assert parser.empty_blocks == 5


def test_an_unfinished_block_is_not_dispatched() -> None:
    assert parse(b"data: a\n\ndata: b\ndata: c") == [ParsedEvent(data="a")]
    assert parse(b"data: a\n") == []


@pytest.mark.parametrize("wrong", [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
def test_what_is_not_utf8_raises(wrong: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        parse(b"data: " + wrong + b"\n\n")


STREAM = (
    "\ufeff: gru\u00df\r\n\r\nid: 1\u20ac\r\nevent: \U0001f600\r\ndata: a\rdata: \u2028b\n\nretry: 10\r\r"
    "data\n\ndata: x\r\n\r\nid: a\0b\nfoo: bar\n\n\n\rdata: end\n\rdata: lost"
).encode()


def test_a_split_at_any_position_changes_nothing() -> None:
    whole = EventStreamParser()
    events = whole.feed(STREAM)
    assert [event.data for event in events] == ["a\n\u2028b", "", "x", "end"]
    for position in range(len(STREAM) + 1):
        parser = EventStreamParser()
        assert parser.feed(STREAM[:position]) + parser.feed(STREAM[position:]) == events
        assert snapshot(parser) == snapshot(whole)


def test_single_bytes_and_empty_chunks_change_nothing() -> None:
    whole, parser = EventStreamParser(), EventStreamParser()
    events = [event for byte in STREAM for event in parser.feed(bytes([byte])) + parser.feed(b"")]
    assert events == whole.feed(STREAM)
    assert snapshot(parser) == snapshot(whole)


def test_an_event_is_given_out_as_soon_as_its_block_ends() -> None:
    parser = EventStreamParser()
    assert parser.feed(b"data: a\r\n") == []
    assert parser.feed(b"\r") == [ParsedEvent(data="a")]
    assert parser.feed(b"\n") == []
    assert parser.empty_blocks == 0


LINES = st.lists(
    st.sampled_from(
        [
            "",
            "",
            ":",
            ": c",
            "data",
            "data: a",
            "data:\u20ac",
            "id: 1",
            "id",
            "id: \0",
            "event: e",
            "retry: 1",
            "x",
        ]
    ).flatmap(lambda line: st.sampled_from(["\n", "\r", "\r\n"]).map(lambda end: line + end))
).map(lambda lines: "".join(lines).encode())


@unhurried
@given(stream=LINES, cuts=st.lists(st.integers(0, 200)))
def test_any_chunks_of_any_stream_give_the_same(stream: bytes, cuts: list[int]) -> None:
    whole, chunked = EventStreamParser(), EventStreamParser()
    positions = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    events = [event for start, end in pairwise(positions) for event in chunked.feed(stream[start:end])]
    assert events == whole.feed(stream)
    assert snapshot(chunked) == snapshot(whole)
