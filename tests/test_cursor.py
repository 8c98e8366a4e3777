"""Positions and cursors: values that cannot be wrong, however they were made, and the text that they are."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livepush_asgi.cursor import MOST_OFFSET, MOST_POSITIONS, Cursor, Position

EPOCHS = st.text("abcXYZ019_-", min_size=1, max_size=16)
OFFSETS = st.integers(0, MOST_OFFSET)


@given(EPOCHS, OFFSETS)
def test_a_position_is_the_same_however_it_was_made(epoch: str, offset: int) -> None:
    made = Position(epoch, offset)
    for other in (Position.parse(str(made)), Position(epoch, 0).at(offset)):
        assert other == made
        assert hash(other) == hash(made)
        assert repr(other) == repr(made)
        with pytest.raises(dataclasses.FrozenInstanceError):
            other.offset = 7  # type: ignore[misc]


@pytest.mark.parametrize("offset", [-1, MOST_OFFSET + 1])
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
    "text", ["", "e", "e.", ".1", "e.01", "e.-1", "e.1 ", "e.1\n", f"e.{MOST_OFFSET + 1}", "e.\u0661"]
)
def test_text_that_is_no_position_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"position|offset"):
        Position.parse(text)
    assert Cursor.parse(text) is None


@given(st.dictionaries(EPOCHS, OFFSETS, min_size=1, max_size=MOST_POSITIONS))
def test_a_cursor_reads_what_it_wrote(offsets: dict[str, int]) -> None:
    cursor = Cursor.of(Position(epoch, offset) for epoch, offset in offsets.items())
    assert Cursor.parse(str(cursor)) == cursor
    assert cursor.offsets == offsets
