"""Files are written, moved and cut by hand, and the clock is a number: nothing here waits."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from livepush_asgi.cli.backlog import Backlog
from livepush_asgi.cli.follow import (
    BITE,
    FORMER_KEPT,
    UNFINISHED_AFTER,
    FileFollower,
    Found,
    InputFollower,
    Note,
)
from livepush_asgi.cli.lines import LINE_LIMIT, Line, LineAssembler


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Log:
    """A log file, what writes to it, and what follows it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.follower: FileFollower | None = None

    def write(self, data: bytes, path: Path | None = None) -> None:
        with (path or self.path).open("ab") as file:
            file.write(data)

    def follow(self, last_lines: int | None = None) -> None:
        self.follower = FileFollower(self.path, last_lines=last_lines, now=self.clock)

    def found(self) -> list[str | Note]:
        """Poll until nothing comes any more. One bite may hold no end of a line."""
        assert self.follower is not None
        found: list[str | Note] = []
        empty = 0
        while empty < 2:
            news = self.follower.poll()
            found += shown(news)
            empty = 0 if news else empty + 1
        return found


def shown(found: Sequence[Found]) -> list[str | Note]:
    return [each if isinstance(each, Note) else each.text for each in found]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "app.log")
    log.write(b"")
    yield log
    if log.follower is not None:
        log.follower.close()


@pytest.mark.parametrize(
    ("content", "count", "expected"),
    [
        (b"", 3, []),
        (b"a\nb\nc\nd\n", 2, ["c", "d"]),
        (b"a\nb\nc\nd\n", 4, ["a", "b", "c", "d"]),
        (b"a\nb\n", 50, ["a", "b"]),
        (b"a\nb\n", 0, []),
        (b"a\n\n\n", 2, ["", ""]),
        (b"a\nb", 1, ["b"]),
        (b"a\nb", 2, ["a", "b"]),
        (b"a\n" + b"x" * (BITE + 7) + b"\nb\n", 2, [f"{'x' * LINE_LIMIT}… (245,767 more characters)", "b"]),
    ],
)
def test_begins_with_the_last_lines(log: Log, content: bytes, count: int, expected: list[str]) -> None:
    log.write(content)
    log.follow(count)
    found = log.found()
    log.clock.seconds += UNFINISHED_AFTER
    assert found + log.found() == expected


def test_begins_with_the_first_line_where_it_is_told_to(log: Log) -> None:
    log.write(b"a\n" * 100)
    log.follow()
    assert log.found() == ["a"] * 100


def test_lines_come_when_they_are_written(log: Log) -> None:
    log.write(b"old\n")
    log.follow(0)
    assert log.found() == []
    log.write(b"one\ntwo\n")
    assert log.found() == ["one", "two"]
    assert log.found() == []
    log.write(b"three\n")
    assert log.found() == ["three"]


def test_a_line_waits_for_its_end_but_not_for_ever(log: Log) -> None:
    log.follow()
    log.write(b"contin")
    assert log.found() == []
    log.write(b"ued\ncontinue? [y/n] ")
    assert log.found() == ["continued"]
    log.clock.seconds += UNFINISHED_AFTER
    assert log.found() == ["continue? [y/n] "]


def test_a_long_file_comes_in_bites(log: Log) -> None:
    lines = [f"line {number}" for number in range(60_000)]
    log.write("".join(f"{line}\n" for line in lines).encode())
    log.follow()
    assert log.follower is not None
    first = log.follower.poll()
    assert 0 < len(first) < BITE
    assert shown(first) + log.found() == lines


def test_after_a_rotation_the_new_file_is_followed(log: Log) -> None:
    log.write(b"a\n")
    log.follow()
    log.write(b"b\nlast")
    log.path.rename(log.path.with_suffix(".1"))
    log.write(b"new\n")
    # What the old file still had comes first, and what is written to it late is not lost either:
    # its writer has it open until it is told.
    assert log.found() == ["a", "b", Note("a new file took its place"), "new"]
    log.write(b" words\nlate\n", log.path.with_suffix(".1"))
    log.write(b"newer\n")
    assert log.found() == ["last words", "late", "newer"]


def test_the_former_file_is_given_up_after_a_while(log: Log) -> None:
    log.follow()
    log.write(b"unfinished")
    assert log.found() == []
    log.path.rename(log.path.with_suffix(".1"))
    log.write(b"")
    assert log.found() == [Note("a new file took its place")]
    log.clock.seconds += FORMER_KEPT + 1
    assert log.found() == ["unfinished"]
    log.write(b"too late\n", log.path.with_suffix(".1"))
    assert log.found() == []


def test_several_rotations_in_a_row(log: Log) -> None:
    log.follow()
    for number in range(3):
        log.write(f"{number}\n".encode())
        assert log.found()[-1] == str(number)
        log.path.rename(log.path.with_suffix(f".{number}"))
    assert log.found() == [Note("the file is gone; waiting for it to come back")]
    log.write(b"3\n")
    assert log.found() == [Note("a new file took its place"), "3"]


def test_a_truncated_file_is_read_from_its_start(log: Log) -> None:
    log.write(b"a\nb\nunfinished")
    log.follow()
    assert log.found() == ["a", "b"]
    os.truncate(log.path, 0)
    log.write(b"c\n")
    assert log.found() == ["unfinished", Note("the file was cut short; it is read from its start again"), "c"]


def test_a_file_that_goes_is_waited_for(log: Log) -> None:
    log.write(b"a\n")
    log.follow()
    log.path.unlink()
    assert log.found() == ["a", Note("the file is gone; waiting for it to come back")]
    assert log.found() == []
    log.write(b"b\n")
    assert log.found() == [Note("a new file took its place"), "b"]


def test_a_file_that_is_moved_away_and_back_goes_on(log: Log) -> None:
    log.write(b"a\n")
    log.follow()
    log.path.rename(log.path.with_suffix(".aside"))
    assert log.found() == ["a", Note("the file is gone; waiting for it to come back")]
    log.path.with_suffix(".aside").rename(log.path)
    log.write(b"b\n")
    assert log.found() == ["b", Note("the file is back")]


def test_what_takes_the_place_may_not_be_a_file(log: Log) -> None:
    log.follow()
    log.path.unlink()
    log.path.mkdir()
    assert log.found() == [Note("the new file cannot be read: Is a directory")]
    assert log.found() == []
    log.path.rmdir()
    log.write(b"a\n")
    assert log.found() == [Note("a new file took its place"), "a"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"plain\n", [Line("plain")]),
        (b"windows\r\n", [Line("windows")]),
        (b"a\rb\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8c\n", [Line("a\rb\x0b\x0c\x1c\x85\u2028c")]),
        ("grün 🎈\n".encode(), [Line("grün 🎈")]),
        (b"caf\xe9\n", [Line("caf\ufffd", replaced=True)]),
        ("already \ufffd\n".encode(), [Line("already \ufffd")]),
        (b"\xe2\x82\n\xac\n", [Line("\ufffd", replaced=True), Line("\ufffd", replaced=True)]),
        (b"nul \x00\n", [Line("nul \x00")]),
    ],
)
def test_decoding(data: bytes, expected: list[Line]) -> None:
    assert LineAssembler().feed(data) == expected
    one_by_one = LineAssembler()
    assert [line for byte in data for line in one_by_one.feed(bytes([byte]))] == expected


@pytest.mark.parametrize("character", ["x", "ü", "€", "🎈"])
@pytest.mark.parametrize("piece", [1000, 65_536, 10_000_000])
@pytest.mark.parametrize("more", [0, 1, 5, 100_000])
def test_a_long_line_is_cut_and_says_by_how_much(character: str, piece: int, more: int) -> None:
    # The odd byte at the start has the cuts fall into the middle of characters.
    data = ("a" + character * (LINE_LIMIT - 1 + more) + "\nnext\n").encode()
    assembler = LineAssembler()
    lines = [
        line for start in range(0, len(data), piece) for line in assembler.feed(data[start : start + piece])
    ]
    said = f"… ({more:,} more characters)" if more else ""
    assert lines == [Line("a" + character * (LINE_LIMIT - 1) + said), Line("next")]
    assert not assembler.pending


def test_a_long_line_that_is_not_utf_8_is_cut_too() -> None:
    (line,) = LineAssembler().feed(b"\xff" * (8 * LINE_LIMIT) + b"\n")
    assert line.replaced
    assert line.text == f"{chr(0xFFFD) * LINE_LIMIT}… ({7 * LINE_LIMIT:,} more characters)"


def test_a_line_without_end_takes_no_memory() -> None:
    assembler = LineAssembler()
    for _ in range(200):
        assert assembler.feed(b"x" * BITE) == []
    (line,) = assembler.flush()
    assert line.text == f"{'x' * LINE_LIMIT}… ({200 * BITE - LINE_LIMIT:,} more characters)"


def test_standard_input_is_followed_to_its_end() -> None:
    reader, writer = os.pipe()
    follower = InputFollower(reader)
    assert follower.poll() == []
    os.write(writer, b"one\ntwo\nunfin")
    assert shown(follower.poll()) == ["one", "two"]
    os.write(writer, b"ished")
    os.close(writer)
    assert shown(follower.poll()) == ["unfinished", Note("end of input")]
    assert follower.ended
    assert follower.poll() == []
    os.close(reader)
    with pytest.raises(OSError, match="Bad file descriptor"):
        InputFollower(reader)


def test_the_backlog_keeps_the_newest_within_its_bounds() -> None:
    backlog = Backlog(max_lines=10, max_characters=100)
    assert backlog.as_json() == "[]"
    for number in range(9):
        backlog.add(f"[{number}]", 3)
    assert backlog.as_json() == "[[6],[7],[8]]"
    backlog.add(f'"{"x" * 95}"', 1)
    assert backlog.as_json() == f'[[8],"{"x" * 95}"]'
    backlog.add(f'"{"y" * 200}"', 1000)
    assert backlog.as_json() == f'["{"y" * 200}"]'
