import importlib.util
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import pytest
from redis import Redis

from livepush_asgi import History, RedisStreamsBroker, __version__
from livepush_asgi.cli.demo.web import is_local
from livepush_asgi.cli.redis_url import without_password
from livepush_asgi.wire.event import PAYLOAD_MARK, split_position

from .command import ENVIRONMENT, REPOSITORY, Serving, run, run_process
from .server_process import free_port
from .valkey import ValkeyProcess


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_without_a_command_the_commands_are_shown(arguments: tuple[str, ...]) -> None:
    shown = run(*arguments)
    assert shown.returncode == 0
    for command in ("demo", "publish", "doctor"):
        assert f"│ {command} " in shown.stdout
    assert shown.stderr == ""


def test_the_usage_names_the_program() -> None:
    shown = run_process("demo", "--help")
    assert shown.returncode == 0
    assert "Usage: python -m livepush_asgi demo [OPTIONS]" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("demo", "python -m livepush_asgi demo --open --port 0"),
        ("doctor", "python -m livepush_asgi doctor https://example.org/events/"),
        ("publish", "tail -F app.log | python -m livepush_asgi publish logs - --event line"),
    ],
)
def test_each_command_has_help_with_examples(command: str, example: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    assert f" {command} [OPTIONS]" in shown.stdout
    assert f"  {example}\n" in "".join(f"{line.rstrip()}\n" for line in shown.stdout.splitlines())


def test_version() -> None:
    shown = run_process("--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"livepush_asgi {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("publish",), "Missing argument 'CHANNEL'."),
        (
            ("demo", "--redis", "localhost"),
            "'localhost' is not a Redis URL such as redis://localhost:6379/0: ",
        ),
        (("demo", "--redis", "redis://h:70000"), "'redis://h:70000' is not a Redis URL such as "),
        (
            ("publish", "news", "x"),
            "give the Redis of the application with --redis URL, or in LIVEPUSH_REDIS",
        ),
        (("publish", "", "x", "--redis", "redis://h"), "a channel name is not empty"),
        (("publish", "livepush.x", "x", "--redis", "redis://h"), "channel names that begin with 'livepush.'"),
        (("publish", "news", "x", "--event", "livepush.x", "--redis", "redis://h"), "event names that begin"),
        (
            ("publish", "news", "x", "--id", "1\n2", "--redis", "redis://h"),
            "the event id '1\\n2' has a line end",
        ),
        (("demo", "--host", "256.0.0.1"), "no address for the host '256.0.0.1': "),
    ],
)
def test_what_cannot_be_meant_gives_one_line_and_status_2(arguments: tuple[str, ...], message: str) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"livepush: {message}")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_bad_port_gives_one_line_and_status_2(port: str) -> None:
    ended = run("demo", "--port", port)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("livepush: Invalid value for '--port': ")
    assert ended.stderr.count("\n") == 1


def test_a_taken_port_gives_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("demo", "--port", str(port))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"livepush: port {port} of 127.0.0.1 is taken by another program; "
        "take another with --port, 0 for any free one\n"
    )


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    ended = run("demo", "--host", "192.0.2.1")
    assert (ended.returncode, ended.stderr) == (2, "livepush: 192.0.2.1 is not an address of this machine\n")


@pytest.mark.parametrize(
    "arguments",
    [("demo", "--port", "0"), ("publish", "news", "x"), ("publish", "news", "-")],
)
def test_a_redis_that_is_away_gives_one_line_without_the_password(arguments: tuple[str, ...]) -> None:
    port = free_port()
    ended = run(*arguments, "--redis", f"redis://me:hidden@127.0.0.1:{port}/0")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"livepush: Redis at redis://127.0.0.1:{port}/0 cannot be reached: ")
    assert ended.stderr.count("\n") == 1
    assert "hidden" not in ended.stderr


@pytest.mark.slow
def test_a_redis_that_does_not_answer_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        ended = run("demo", "--port", "0", "--redis", f"redis://127.0.0.1:{port}")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"livepush: Redis at redis://127.0.0.1:{port} cannot be reached: no answer within 3 s\n"
    )


def test_a_redis_that_refuses_the_login_says_so(valkey: ValkeyProcess) -> None:
    ended = run("demo", "--port", "0", "--redis", f"redis://me:hidden@127.0.0.1:{valkey.port}/0")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"livepush: Redis at redis://127.0.0.1:{valkey.port}/0 refuses the login: "
    )
    assert "hidden" not in ended.stderr


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:hidden@host:6379/1?password=hidden", "redis://host:6379/1"),
        ("rediss://:h@dd@[::1]/", "rediss://[::1]/"),
        ("unix://me:hidden@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_what_is_secret_in_it(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("a.localhost", True),
        ("192.168.1.2", False),
        ("0.0.0.0", False),
        ("example.org", False),
        ("", False),
        ("localhost.org", False),
    ],
)
def test_which_hosts_are_this_machine_alone(host: str, local: bool) -> None:
    assert is_local(host) is local


def test_publish_tells_how_many_listeners_there_were(valkey: ValkeyProcess) -> None:
    none = run("publish", "news", "nobody hears", "--redis", valkey.url)
    assert (none.returncode, none.stdout, none.stderr) == (0, "0 listeners\n", "")
    with Redis.from_url(valkey.url) as client, client.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("news")
        listener.get_message(timeout=5)
        one = run("publish", "news", "hello", "--event", "greeting", "--id", "7", "--redis", valkey.url)
        assert (one.returncode, one.stdout, one.stderr) == (0, "1 listener\n", "")
        message = listener.get_message(timeout=5)
        assert message is not None
        assert split_position(message["data"])[1] == PAYLOAD_MARK + b"event: greeting\nid: 7\ndata: hello\n\n"


DAY = 86_400


@pytest.mark.real_time
@pytest.mark.parametrize("namespace", [None, "shop"])
@pytest.mark.parametrize(
    ("age", "kept"), [(None, -1), (7 * DAY, 7 * DAY), (3600, DAY)], ids=["endless", "a week", "an hour"]
)
async def test_publish_keeps_a_log_for_as_long_as_the_application_does(
    age: float | None, kept: int, namespace: str | None, valkey: ValkeyProcess
) -> None:
    channel = "news" if namespace is None else f"{namespace}:news"
    async with valkey.client() as client:
        application = RedisStreamsBroker(client, history=History(age=age))
        await application.append(channel, b"1")
        options = () if namespace is None else ("--namespace", namespace)
        for data in ("one", "two"):
            told = await anyio.to_thread.run_sync(
                partial(run, "publish", "news", data, "--redis", valkey.url, *options)
            )
            assert (told.returncode, told.stderr) == (0, "")
        assert kept - 10 <= await client.ttl(f"livepush:log:{{{channel}}}") <= kept
        assert await client.ttl(f"livepush:log:{{{channel}}}:head") == (-1 if age is None else 2 * kept)
        assert len((await application.read(channel, 0, 10)).records) == 3


@pytest.mark.real_time
async def test_publish_drops_no_event_that_the_application_keeps(valkey: ValkeyProcess) -> None:
    """The log has been quiet for a while: what is left of its own time is no age."""
    async with valkey.client() as client:
        application = RedisStreamsBroker(client, history=History(age=7 * DAY))
        await application.append("news", b"1")
        await client.expire("livepush:log:{news}", 60)
        told = await anyio.to_thread.run_sync(lambda: run("publish", "news", "two", "--redis", valkey.url))
        assert told.returncode == 0
        assert await client.ttl("livepush:log:{news}") > 6 * DAY


def test_publish_says_that_it_may_not_look(valkey: ValkeyProcess) -> None:
    with Redis.from_url(valkey.url) as admin:
        admin.execute_command("ACL", "SETUSER", "cron", "reset", "on", ">pw", "+@all", "~*", "&*", "-pttl")
        told = run("publish", "news", "x", "--redis", valkey.url.replace("://", "://cron:pw@"))
        admin.execute_command("ACL", "DELUSER", "cron")
    assert told.returncode == 1
    assert told.stderr.startswith("livepush: cannot publish: ")
    assert told.stderr.endswith("; allow it: ACL SETUSER cron +pttl\n")


def test_publish_refuses_what_is_not_utf_8(valkey: ValkeyProcess) -> None:
    ended = run("publish", "news", "\udcff", "--redis", valkey.url)
    assert ended.returncode == 2
    assert ended.stderr.startswith("livepush: text with a lone surrogate cannot be written as UTF-8: ")


def test_a_missing_extra_gives_one_line(tmp_path: Path) -> None:
    # What the package itself needs, and no more.
    for name in ("anyio", "idna", "typing_extensions", "sniffio"):
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            origin = Path(found.origin)
            source = origin.parent if origin.name == "__init__.py" else origin
            (tmp_path / source.name).symlink_to(source)
    ended = subprocess.run(
        [sys.executable, "-S", "-m", "livepush_asgi", "demo"],
        cwd=REPOSITORY,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    # From the doctor, 1 would say that the path has a fault.
    assert ended.returncode == 2
    assert ended.stderr == (
        "livepush: typer and rich and uvicorn and psutil and redis and httpx and h2 need to be installed: "
        "pip install 'livepush_asgi[cli]'\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_told_to_end_is_no_failure(number: signal.Signals) -> None:
    with Serving("demo") as demo:
        assert demo.end(number) == 0
        assert demo.rest() == ""


def test_all_interfaces_are_told_to_be_open_to_everyone() -> None:
    with Serving("demo", "--host", "0.0.0.0") as demo:
        assert demo.url.startswith("http://127.0.0.1:")
        assert demo.end() == 0
        assert demo.rest() == "Everyone who can reach this machine can open it.\n"
