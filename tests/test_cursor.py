"""Positions and cursors: values that cannot be wrong, however they were made, and the text that they are."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livepush_asgi.wire.cursor import (
    MAX_OFFSET,
    MAX_POSITIONS,
    Cursor,
    Position,
    event_id,
    is_cursor,
    log_owed_id,
    tag_of,
)

EPOCHS = st.text("abcXYZ019_-", min_size=1, max_size=16)
OFFSETS = st.integers(0, MAX_OFFSET)
CHANNELS = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())


@given(EPOCHS, OFFSETS)
def test_a_position_is_the_same_however_it_was_made(epoch: str, offset: int) -> None:
    made = Position(epoch, offset)
    for other in (
        Position.parse(str(made)),
        Position(epoch, 0).at(offset),
        Position.of_id(event_id("c", made)),
    ):
        assert other == made
        assert hash(other) == hash(made)
        assert repr(other) == repr(made)
        with pytest.raises(dataclasses.FrozenInstanceError):
            other.offset = 7  # type: ignore[misc]


@pytest.mark.parametrize("offset", [-1, MAX_OFFSET + 1])
def test_an_offset_has_bounds(offset: int) -> None:
    with pytest.raises(ValueError, match="an offset is from 0"):
        Position("e", offset)
    with pytest.raises(ValueError, match="an offset is from 0"):
        Position("e", 0).at(offset)


@pytest.mark.parametrize("offset", ["1", 1.0, True, None])
def test_an_offset_is_a_whole_number(offset: object) -> None:
    with pytest.raises(TypeError, match="an offset is an int"):
        Position("e", offset)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an offset is an int"):
        Position("e", 0).at(offset)  # type: ignore[arg-type]


@pytest.mark.parametrize("epoch", ["", "a" * 17, "a.b", "a,b", "ä", "a\n", 7, None])
def test_an_epoch_is_a_short_plain_word(epoch: object) -> None:
    with pytest.raises(ValueError, match="an epoch is"):
        Position(epoch, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "e", "e.", ".1", "e.01", "e.-1", "e.1 ", "e.1\n", f"e.{MAX_OFFSET + 1}", "e.\u0661"]
)
def test_text_that_is_no_position_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"position|offset"):
        Position.parse(text)
    assert Cursor.parse(text) is None
    entry = Cursor.parse(f"{tag_of('c')}~{text}")
    assert entry is None or entry.positions_in("c") == ()


@given(st.dictionaries(CHANNELS, st.none() | st.builds(Position, EPOCHS, OFFSETS), min_size=1), st.booleans())
def test_a_cursor_reads_what_it_wrote(positions: dict[str, Position | None], owed: bool) -> None:
    cursor = Cursor.of(positions, state_owed=owed)
    assert is_cursor(str(cursor))
    read = Cursor.parse(str(cursor))
    assert read == cursor
    assert cursor.state_owed is owed
    for channel, position in positions.items():
        assert cursor.knows(channel)
        # Another channel may have the same tag; then its position is here too.
        assert position is None or position in cursor.positions_in(channel)


@given(CHANNELS, EPOCHS)
def test_a_cursor_says_that_a_log_is_owed_whole(channel: str, epoch: str) -> None:
    text = log_owed_id(channel, epoch)
    assert is_cursor(text)
    cursor = Cursor.parse(text)
    assert cursor is not None
    assert (cursor.owes_log(channel), cursor.positions_in(channel)) == (True, (Position(epoch, 0),))
    assert not Cursor.of({channel: Position(epoch, 0)}).owes_log(channel)


@pytest.mark.parametrize("text", ["!", "!!e", "!e.1", "!e!", "e!", "!" + "e" * 17])
def test_text_that_names_no_owed_log_is_no_position(text: str) -> None:
    entry = f"{tag_of('c')}~{text}"
    assert not is_cursor(entry)
    assert Cursor({tag_of("c"): text}).positions_in("c") == ()


@pytest.mark.parametrize(
    "text",
    ["~", "!", "abcd", "abc~e.1", "abcde~e.1", "abcd~e.1,", ",abcd~", "äbcd~", "abcd~e.1," * 200, "!!abcd~"],
)
def test_text_that_is_no_cursor_is_none(text: str) -> None:
    assert Cursor.parse(text) is None


def test_a_cursor_has_at_most_so_many_entries() -> None:
    entries = [f"{number:04x}~e.1" for number in range(MAX_POSITIONS + 1)]
    assert Cursor.parse(",".join(entries[:-1])) is not None
    assert Cursor.parse(",".join(entries)) is None


def test_a_cursor_does_not_name_its_channels() -> None:
    assert "secret" not in str(Cursor.of({"secret": Position("e", 1)}))
