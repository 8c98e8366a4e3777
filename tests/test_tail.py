"""The log page's server in a process of its own: real files, real sockets."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest

from livepush_asgi.cli.follow import Note
from livepush_asgi.cli.lines import LINE_LIMIT, Line
from livepush_asgi.cli.tail import BATCH_LINES, Source, records

from .command import EventSource, Serving, event_source
from .valkey import ValkeyProcess

pytestmark = pytest.mark.real_time


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.write_text("".join(f"old {number}\n" for number in range(100)))
    return path


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


def rotate(log: Path) -> None:
    log.rename(log.with_suffix(".1"))


def line_count(found: list[dict[str, object]]) -> int:
    return sum(len(lines) for record in found if isinstance(lines := record.get("lines"), list))


@asynccontextmanager
async def opened(tail: Serving) -> AsyncIterator[EventSource]:
    async with event_source(f"{tail.url}/events") as source:
        await source.next_named("livepush.open")
        yield source


async def history(tail: Serving) -> dict[str, list[dict[str, object]]]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found: dict[str, list[dict[str, object]]] = (await client.get(f"{tail.url}/history")).json()
        return found


async def next_record(source: EventSource) -> dict[str, object]:
    """Return the next record, in five seconds at most."""
    with anyio.fail_after(5):
        event = await source.next()
    assert event is not None
    record: dict[str, object] = json.loads(event.data)
    assert event.event == ("note" if "note" in record else "lines")
    return record


async def history_with(tail: Serving, lines: int) -> list[dict[str, object]]:
    """Return the records once so many lines have been read. The process sets no event of ours."""
    with anyio.fail_after(10):
        while True:
            found = (await history(tail))["records"]
            if line_count(found) >= lines:
                return found


async def test_the_page_and_all_that_it_names_are_served(log: Path) -> None:
    with Serving("tail", str(log)) as tail:
        async with httpx.AsyncClient(base_url=tail.url, trust_env=False) as client:
            page = await client.get("/")
            assert page.headers["content-type"] == "text/html; charset=utf-8"
            named, unseen = set(), re.findall(r'(?:href|src)="(/[^"]+)"', page.text)
            while unseen:
                path = unseen.pop()
                if path not in named:
                    named.add(path)
                    answer = await client.get(path)
                    assert answer.status_code == 200, path
                    unseen += re.findall(r'from "(/[^"]+)"', answer.text)
        assert named == {
            "/favicon.svg", "/base.css", "/tail.css", "/theme.js",
            "/tail.js", "/rows.js", "/sources.js", "/stream.js",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "first"), [((), 50), (("--lines", "3"), 97), (("-n", "3"), 97), (("--from-start",), 0)]
)
async def test_begins_with_the_last_lines(log: Path, options: tuple[str, ...], first: int) -> None:
    with Serving("tail", str(log), *options) as tail:
        (record,) = await history_with(tail, 100 - first)
    assert record == {
        "source": record["source"],
        "name": str(log),
        "first": 1,
        "lines": [f"old {number}" for number in range(first, 100)],
        "replaced": 0,
    }


async def test_lines_arrive_numbered_and_rotation_is_told(log: Path) -> None:
    with Serving("tail", str(log), "--lines", "0") as tail:
        async with opened(tail) as source:
            append(log, "neu: ü\n".encode() + b"caf\xe9\n" + b"x" * (LINE_LIMIT + 9) + b"\n")
            record = await next_record(source)
            assert record == {
                "source": record["source"],
                "name": str(log),
                "first": 1,
                "lines": ["neu: ü", "caf\ufffd", f"{'x' * LINE_LIMIT}… (9 more characters)"],
                "replaced": 1,
            }
            rotate(log)
            append(log, b"new\n")
            events = [await next_record(source)]
            while "lines" not in events[-1]:
                events.append(await next_record(source))
        # Whether the moment without a file was seen is a matter of luck.
        assert [each.get("note") for each in events][-2:] == ["a new file took its place", None]
        assert events[-1]["lines"] == ["new"]
        assert [each["first"] for each in events] == list(range(4, 4 + len(events)))


async def test_a_burst_becomes_few_events_and_no_line_is_missing(log: Path) -> None:
    count = 100_000
    with Serving("tail", str(log), "--lines", "0") as tail:
        async with opened(tail) as source:
            append(log, b"".join(b"burst %d of a hundred thousand\n" % number for number in range(count)))
            numbers: list[int] = []
            events = 0
            with anyio.fail_after(30):
                while len(numbers) < count:
                    record = await next_record(source)
                    lines = record["lines"]
                    assert isinstance(lines, list)
                    assert record["first"] == len(numbers) + 1
                    numbers += [int(line.split()[1]) for line in lines]
                    events += 1
        assert numbers == list(range(count))
        assert events < 100
        # And the process has kept what a page shows, not everything.
        kept = (await history(tail))["records"]
        assert line_count(kept) <= 5000


async def test_standard_input_ends_and_the_page_stays() -> None:
    with Serving("tail", "-") as tail:
        async with opened(tail) as source:
            tail.input.write(b"one\ntwo\n")
            tail.input.flush()
            first = await next_record(source)
            assert (first["name"], first["lines"]) == ("standard input", ["one", "two"])
            tail.input.write(b"three")
            tail.input.close()
            assert [(await next_record(source)).get(key) for key in ("lines", "note")] == [
                ["three"],
                "end of input",
            ]
        assert [record.get("note") for record in (await history(tail))["records"]] == [
            None,
            None,
            "end of input",
        ]
        assert tail.end() == 0


async def test_a_file_that_is_named_twice_is_followed_once(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text("x\n")
    with Serving("tail", str(log), str(other), str(log)) as tail:
        assert [source["name"] for source in (await history(tail))["sources"]] == [str(log), str(other)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_while_lines_come_and_input_is_open(log: Path, number: signal.Signals) -> None:
    with Serving("tail", str(log), "-") as tail:
        async with opened(tail) as source:
            status = await anyio.to_thread.run_sync(tail.end, number)
            assert json.loads((await source.next_named("livepush.close")).data)["reason"] == "drain"
        assert status == 0


async def test_lines_wait_in_the_file_while_redis_is_away(log: Path, own_valkey: ValkeyProcess) -> None:
    with Serving("tail", str(log), "--lines", "0", "--redis", own_valkey.url) as tail:
        async with opened(tail) as source:
            own_valkey.kill()
            append(log, b"while it was away\n")
            await anyio.to_thread.run_sync(own_valkey.start)
            with anyio.fail_after(20):
                gap = await source.next_named("livepush.gap")
            assert json.loads(gap.data) == {"channel": "tail", "reason": "broker"}
            # That is when a page looks into the history.
            (missed,) = await history_with(tail, 1)
            assert missed["lines"] == ["while it was away"]
            assert missed["name"] == f"{os.uname().nodename}:{log}"
            append(log, b"afterwards\n")
            with anyio.fail_after(10):
                while (record := await next_record(source))["first"] != 2:
                    assert record == missed
            assert record["lines"] == ["afterwards"]
        assert tail.end() == 0
        # Not even once, where the server was back before a line was to be published.
        assert tail.rest().count("lines wait, they cannot be published") <= 1


class Nothing:
    name = "nothing"

    def poll(self) -> list[Line | Note]:
        return []

    def close(self) -> None:
        pass


def test_batches_are_split_at_notes_and_at_their_limit() -> None:
    source = Source("id", "app.log", Nothing())
    lines = [Line(str(number)) for number in range(BATCH_LINES + 1)]
    made = list(records(source, [Note("a"), Line("x", replaced=True), Note("b"), Note("c"), *lines]))
    assert [(event, count) for event, _, count in made] == [
        ("note", 1),
        ("lines", 1),
        ("note", 1),
        ("note", 1),
        ("lines", BATCH_LINES),
        ("lines", 1),
    ]
    assert [json.loads(record)["first"] for _, record, _ in made] == [1, 2, 3, 4, 5, 5 + BATCH_LINES]
    assert [json.loads(record).get("replaced") for _, record, _ in made] == [None, 1, None, None, 0, 0]
    assert source.number == BATCH_LINES + 5
