"""`publish CHANNEL -`: each line of a real pipe becomes an event in a real server, in order and in bounds."""

import array
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from redis import Redis
from redis.client import PubSub

from livepush_asgi.testing import EventStreamParser
from livepush_asgi.wire.event import PAYLOAD_MARK, split_position

from .command import ENVIRONMENT, REPOSITORY, Serving, event_source, run, run_process
from .valkey import ValkeyProcess

CHANNEL = "logs"

pytestmark = pytest.mark.real_time


class Publishing:
    """A `publish CHANNEL -` that runs inside a `with` block, and the subscriber that hears it."""

    def __init__(self, process: subprocess.Popen[bytes], listener: PubSub) -> None:
        self._process = process
        self._listener = listener

    @property
    def input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def write(self, data: bytes) -> None:
        self.input.write(data)
        self.input.flush()

    def close_input(self) -> None:
        self.input.close()
        self._process.stdin = None

    def data(self) -> str:
        """Return the data of the next event, in five seconds at most."""
        message = self._listener.get_message(timeout=5)
        assert message is not None
        return data_of(message["data"])

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end, and return the exit status and what was written."""
        status = self._process.wait(timeout=20)
        output, errors = self._process.communicate()
        return status, output.decode(), errors.decode()


def data_of(payload: bytes) -> str:
    (event,) = EventStreamParser().feed(split_position(payload)[1].removeprefix(PAYLOAD_MARK))
    return event.data


@contextmanager
def publishing(valkey: ValkeyProcess, stdin: int = subprocess.PIPE) -> Iterator[Publishing]:
    # Not with asyncio's debug mode, which logs what is slow on a busy machine.
    python = [sys.executable, "-W", "always", "-m", "livepush_asgi"]
    command = [*python, "publish", CHANNEL, "-", "--redis", valkey.url]
    with (
        Redis.from_url(valkey.url) as client,
        client.pubsub(ignore_subscribe_messages=True) as listener,
        subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPOSITORY,
            env=ENVIRONMENT,
        ) as process,
    ):
        listener.subscribe(CHANNEL)
        listener.get_message(timeout=5)
        try:
            yield Publishing(process, listener)
        finally:
            process.kill()


def log_of(valkey: ValkeyProcess) -> list[str]:
    """Return the data of every event in the channel's log."""
    with Redis.from_url(valkey.url) as client:
        return [data_of(*fields.values()) for _, fields in client.xrange(f"livepush:log:{{{CHANNEL}}}")]


def test_each_line_is_an_event(valkey: ValkeyProcess) -> None:
    data = "one\nzwei: ü\r\n\nlatin: ".encode() + b"\xe9\nwithout an end"
    ended = run_process("publish", CHANNEL, "-", "--redis", valkey.url, data=data)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "5 events\n", "")
    assert log_of(valkey) == ["one", "zwei: ü", "", "latin: \ufffd", "without an end"]


@pytest.mark.parametrize(("data", "said"), [(b"", "0 events\n"), (b"one\n", "1 event\n")])
def test_the_end_of_the_input_is_the_end(valkey: ValkeyProcess, data: bytes, said: str) -> None:
    ended = run_process("publish", CHANNEL, "-", "--redis", valkey.url, data=data)
    assert (ended.returncode, ended.stdout) == (0, said)


def test_a_long_input_keeps_its_order(valkey: ValkeyProcess) -> None:
    # More than two pieces of the input.
    lines = [f"line {number} of many".ljust(100, ".") for number in range(2_000)]
    data = "\n".join(lines).encode()
    ended = run_process("publish", CHANNEL, "-", "--redis", valkey.url, data=data)
    assert (ended.returncode, ended.stdout) == (0, "2000 events\n")
    assert log_of(valkey) == lines


async def test_a_page_gets_the_lines_under_the_event_name(valkey: ValkeyProcess) -> None:
    with Serving("demo", "--redis", valkey.url) as demo:
        async with event_source(f"{demo.url}/events?visitor={'a' * 32}") as source:
            await source.next_named("livepush.open")
            ended = run_process(
                "publish", "board", "--event", "note", "--redis", valkey.url, data=b"one\ntwo\n"
            )
            assert ended.stdout == "2 events\n"
            assert [(await source.next_named("note")).data for _ in range(2)] == ["one", "two"]


def test_a_line_is_published_when_it_comes(valkey: ValkeyProcess) -> None:
    with publishing(valkey) as process:
        process.write(b"one\nunfin")
        assert process.data() == "one"
        process.write(b"ished\n")
        assert process.data() == "unfinished"
        process.close_input()
        assert process.end() == (0, "2 events\n", "")


def test_a_log_file_is_followed_through_its_rotation(valkey: ValkeyProcess, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("old\n")
    with subprocess.Popen(
        ["tail", "-F", "-s", "0.1", log], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as tail:
        assert tail.stdout is not None
        with publishing(valkey, stdin=tail.stdout.fileno()) as process:
            assert process.data() == "old"
            log.rename(tmp_path / "app.log.1")
            log.write_text("new\n")
            assert process.data() == "new"
            tail.terminate()
            assert process.end() == (0, "2 events\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_while_it_waits_for_a_line(valkey: ValkeyProcess, number: signal.Signals) -> None:
    with publishing(valkey) as process:
        process.write(b"one\nunfinished")
        assert process.data() == "one"
        process.send_signal(number)
        assert process.end() == (0, "1 event, and stopped before the end of the input\n", "")
    assert log_of(valkey) == ["one"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does not show what a thread waits for")
def test_a_signal_that_another_thread_gets_ends_it_too() -> None:
    """The kernel chooses the thread. No call of the one that waits is interrupted then."""
    program = [sys.executable, "-m", "tests.apps.signalled_elsewhere"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.wait(timeout=20) == 0
            assert process.communicate()[0] == b"(0, False)\n"
        finally:
            process.kill()


def test_a_signal_lets_the_lines_be_published_that_were_read(own_valkey: ValkeyProcess) -> None:
    with publishing(own_valkey) as process:
        process.write(b"one\n")
        assert process.data() == "one"
        own_valkey.pause()
        process.write(b"two\nthree\n")
        wait_until_read(process.input)
        process.send_signal(signal.SIGTERM)
        own_valkey.resume()
        assert process.end() == (0, "3 events, and stopped before the end of the input\n", "")
    assert log_of(own_valkey) == ["one", "two", "three"]


def test_a_second_signal_does_not_wait(own_valkey: ValkeyProcess) -> None:
    with publishing(own_valkey) as process:
        process.write(b"one\n")
        assert process.data() == "one"
        own_valkey.pause()
        process.write(b"two\n")
        wait_until_read(process.input)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        status, output, _ = process.end()
        assert (status, output) == (130, "")


def test_a_broken_broker_ends_it_with_the_line_that_may_be_missing(own_valkey: ValkeyProcess) -> None:
    with publishing(own_valkey) as process:
        process.write(b"one\ntwo\n")
        assert [process.data(), process.data()] == ["one", "two"]
        own_valkey.kill()
        process.write(b"three\nfour\n")
        status, output, errors = process.end()
    assert (status, output) == (1, "")
    assert errors.startswith(f"livepush: cannot publish: Redis at 127.0.0.1:{own_valkey.port}: ")
    assert errors.endswith("; line 3 may be missing, the lines before it are published\n")
    assert errors.count("\n") == 1


def test_what_cannot_be_published_waits_in_the_pipe(own_valkey: ValkeyProcess) -> None:
    with publishing(own_valkey) as process:
        process.write(b"one\n")
        assert process.data() == "one"
        own_valkey.pause()
        process.write(b"two\n")
        wait_until_read(process.input)
        # It has a piece under way and reads nothing more: the pipe fills, and the writer waits.
        os.set_blocking(process.input.fileno(), False)
        storm, written = b"a line of a storm\n" * 200_000, 0
        with contextlib.suppress(BlockingIOError):
            while written < len(storm):
                written += os.write(process.input.fileno(), storm)
        assert 0 < written <= 128 * 1024
        own_valkey.resume()
        process.close_input()
        assert process.end()[0] == 0


def test_a_line_that_no_event_can_hold_ends_it(valkey: ValkeyProcess) -> None:
    data = b"one\ntwo\n" + b"x" * (1024 * 1024 + 1) + b"\nfour\n"
    ended = run_process("publish", CHANNEL, "-", "--redis", valkey.url, data=data)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "livepush: line 3 has more than the 1,048,576 bytes that an event may have\n"
    assert log_of(valkey) == ["one", "two"]


def test_the_longest_line_is_published(valkey: ValkeyProcess) -> None:
    ended = run_process("publish", CHANNEL, "-", "--redis", valkey.url, data=b"x" * 1024 * 1024 + b"\ntwo\n")
    assert ended.stdout == "2 events\n"
    assert list(map(len, log_of(valkey))) == [1024 * 1024, 3]


def test_one_id_is_not_for_many_lines() -> None:
    ended = run("publish", CHANNEL, "-", "--id", "7", "--redis", "redis://h")
    assert ended.returncode == 2
    assert ended.stderr == "livepush: --id is for one event: give DATA too, or leave --id out\n"


def wait_until_read(pipe: IO[bytes]) -> None:
    """Return when the process has read all that was written to it."""
    waiting = array.array("i", [1])
    while waiting[0]:
        fcntl.ioctl(pipe.fileno(), termios.FIONREAD, waiting)
