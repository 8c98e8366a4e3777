"""The documentation: each snippet is a file that is run; each name, option, log line and error is there."""

import ast
import asyncio
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest

import livepush_asgi
from livepush_asgi import (
    BrokerTimeouts,
    Cors,
    DrainPolicy,
    History,
    Limits,
    LivePush,
    MemoryBroker,
    RedisStreamsBroker,
    Timing,
    contrib,
    errors,
    public,
    testing,
)
from livepush_asgi.wire.event import from_payload

from .serving import REPOSITORY, uvicorn
from .valkey import ValkeyProcess

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXT = {page.relative_to(DOCS).as_posix(): page.read_text() for page in PAGES}
SNIPPETS = DOCS / "snippets"
PACKAGE = REPOSITORY / "livepush_asgi"


# Nothing is typed twice.

SHOWN = re.compile(r"<!-- file: ([\w./+@-]+)(?::[\w-]+)? -->\n```")


def files() -> list[str]:
    """Return the text of every file that a page may show."""
    return [
        path.read_text() for folder in (SNIPPETS, REPOSITORY / "examples") for path in folder.rglob("*.py")
    ]


@pytest.mark.parametrize("name", TEXT)
def test_each_page_shows_its_files_as_they_are(name: str) -> None:
    with_files: Callable[[str], str] = run_path(str(DOCS / "show_files.py"))["with_files"]
    assert TEXT[name] == with_files(TEXT[name]), "run: python docs/show_files.py"


@pytest.mark.parametrize("name", TEXT)
def test_each_block_of_python_is_a_file_or_a_part_of_one(name: str) -> None:
    for shown, block in re.findall(r"(-->\n)?```python\n(.*?)```", TEXT[name], re.DOTALL):
        assert shown or any(block.strip("\n") in text for text in files()), block


def test_each_snippet_is_shown() -> None:
    shown = {path for text in TEXT.values() for path in SHOWN.findall(text)}
    snippets = {path.relative_to(REPOSITORY).as_posix() for path in SNIPPETS.rglob("*.py")}
    assert snippets - shown == {
        # What the shown parts of the same folder need.
        "docs/snippets/django/project/__init__.py",
        "docs/snippets/django/project/settings.py",
        "docs/snippets/django/test_moved.py",
        # Tests of shown parts, with nothing for a reader to learn.
        "docs/snippets/health/test_health.py",
        "docs/snippets/http_publish/test_own.py",
        "docs/snippets/jwt/test_view.py",
        "docs/snippets/kafka/test_live.py",
        *(f"docs/snippets/runs/test_{name}.py" for name in ("app", "chat", "frameworks", "htmx")),
    }


def test_every_example_is_shown() -> None:
    shown = re.findall(r"^\[`examples/[\w.]+`\]\(../examples/([\w.]+)\)$", TEXT["examples.md"], re.MULTILINE)
    assert set(shown) == {path.name for path in (REPOSITORY / "examples").glob("*.*")}


def prose(name: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", TEXT[name], flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", TEXT)
def test_no_heading_of_a_page_is_there_twice(name: str) -> None:
    headings = re.findall(r"^## .*$", prose(name), re.MULTILINE)
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize("name", TEXT)
def test_each_table_has_a_head(name: str) -> None:
    """A blank line in a table makes text of what follows."""
    tables = re.findall(r"^\n(\|.*\n.*)$", prose(name), re.MULTILINE)
    assert [table for table in tables if not re.search(r"\n\|[-:| ]+\|$", table)] == []


# The tests that the pages show are run as a reader runs them.


def ran(folder: Path, *command: str, **environment: str) -> str:
    path = [str(REPOSITORY), str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", *command],
        cwd=folder,
        # The plugins of all libraries that are installed here take four seconds to load.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


SHOWN_TESTS = sorted({path.parent.name for path in SNIPPETS.glob("*/test_*.py")} - {"django"})


@pytest.mark.real_time
@pytest.mark.slow
@pytest.mark.parametrize("folder", SHOWN_TESTS)
def test_the_tests_of_a_page_pass(folder: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-p", "anyio", "--rootdir", str(SNIPPETS / folder)]
    assert " passed" in ran(SNIPPETS / folder, "pytest", *options, "-c", os.devnull)


@pytest.mark.real_time
@pytest.mark.slow
def test_the_tests_of_the_page_about_django_pass() -> None:
    output = ran(SNIPPETS / "django", "django", "test", DJANGO_SETTINGS_MODULE="project.settings")
    assert "Ran 10 tests" in output
    # Neither the tests of the page nor those of the move tell more than once that signals are not heard.
    assert output.count("streams are not drained") <= 1


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("app", "channel"), [("tutorial/hello", "board"), ("home", "news"), ("asgi/lifespan", "news")]
)
async def test_an_application_is_served(app: str, channel: str, tmp_path: Path) -> None:
    folder, _, module = f"docs/snippets/{app}".rpartition("/")
    async with uvicorn(f"{module}:app", tmp_path / "log", "--app-dir", folder) as server:
        stream = await server.open("/events/")
        await stream.next_event("livepush.open")
        path, body = {"board": ("/messages", b"hello"), "news": ("/news?title=hello", b"")}[channel]
        if (await server.open(path, method="POST", body=body)).status == 200:
            assert "hello" in (await stream.next_event()).data
        else:
            assert module == "lifespan"
    assert "Traceback" not in server.log


@pytest.mark.real_time
async def test_the_tutorial_over_two_workers(valkey: ValkeyProcess, tmp_path: Path) -> None:
    """All streams of both workers hear each message, and one that comes back gets what it missed."""
    options = ("--app-dir", "docs/snippets/tutorial", "--workers", "2")
    environment = {"LIVEPUSH_REDIS": valkey.url}
    kind = {"content_type": "application/json"}
    async with uvicorn("app:app", tmp_path / "log", *options, environment=environment) as server:
        assert (await server.open("/events/")).status == 401
        ada, alan = [
            (await server.open("/login", method="POST", body=json.dumps(login).encode(), **kind))
            .headers["set-cookie"]
            .partition(";")[0]
            for login in ({"name": "ada", "password": "lovelace"}, {"name": "alan", "password": "turing"})
        ]
        streams = [await server.open("/events/", cookie=cookie) for cookie in [ada] * 5 + [alan]]
        for stream in streams:
            await stream.next_event("livepush.open")
        refused = await server.open("/events/", cookie=ada)
        await refused.next_event("livepush.refused")
        for text in ("one", "two"):
            body = json.dumps({"text": text}).encode()
            await server.open("/messages", method="POST", body=body, cookie=ada, **kind)
        for stream in streams:
            assert [json.loads((await stream.next_event()).data)["text"] for _ in range(2)] == ["one", "two"]
        streams[-1].close()
        first = next(event for event in streams[-1].events if event.event == "message").last_event_id
        again = await server.open("/events/", cookie=alan, last_event_id=first)
        assert json.loads((await again.next_event()).data) == {"user": "ada", "text": "two"}


@pytest.mark.real_time
async def test_a_task_publishes_once(valkey: ValkeyProcess) -> None:
    """From a process that was forked, as Celery's workers are, and again when the task is repeated."""
    program = """
import os, tasks
for _ in range(2):
    if (child := os.fork()) == 0:
        tasks.report_ready(7, "https://example.org/report")
        tasks.publisher.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    async with valkey.client() as client:
        broker = RedisStreamsBroker(client)
        await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-W", "error", "-c", program],
            cwd=SNIPPETS / "publish",
            env={"LIVEPUSH_REDIS": valkey.url, "PYTHONPATH": str(REPOSITORY)},
            check=True,
        )
        page = await broker.read("user:7", 0, 10)
        assert [from_payload(record.payload) for record in page.records] == [
            b'event: report-ready\ndata: {"url":"https://example.org/report"}\n\n'
        ]
        await broker.aclose()


@pytest.mark.real_time
def test_the_log_lines_are_shown_as_the_page_says() -> None:
    program = "import logging_setup, logging; logging.getLogger('livepush_asgi').info('a line')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SNIPPETS / "operate", capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith("INFO livepush_asgi: a line\n")


# The reference has every public name.


def shown_names() -> list[str]:
    return [name for text in TEXT.values() for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)]


def test_every_public_name_is_in_the_reference_once() -> None:
    names = shown_names()
    assert len(names) == len(set(names))
    ours = {f"livepush_asgi.{name}" for name in livepush_asgi.__all__}
    ours |= {f"livepush_asgi.testing.{name}" for name in testing.__all__}
    # The same object, shown where it is used most.
    ours.remove("livepush_asgi.MockBroker")
    assert ours - set(names) == set()


def test_every_framework_is_in_the_reference() -> None:
    names = shown_names()
    for path in Path(contrib.__file__).parent.glob("*.py"):
        if path.stem not in ("__init__", "route", "kafka", "opentelemetry", "prometheus", "rest_framework"):
            for function in ("sse_streaming_response", "run_response", "event_stream_response"):
                assert f"livepush_asgi.contrib.{path.stem}.{function}" in names


# Options.

OPTIONS = TEXT["reference/options.md"]
SETTINGS = [Timing, Limits, DrainPolicy, History, BrokerTimeouts, Cors]


def section(text: str, title: str) -> dict[str, list[str]]:
    """Return the cells of the rows below a heading, by the first cell."""
    below = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.strip("|").split(" | ")] for row in re.findall(r"^\| `.*$", below, re.M)
    ]
    return {row[0].strip(" `"): row[1:] for row in rows}


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_setting_is_there_with_its_default(kind: type) -> None:
    rows = section(OPTIONS, kind.__name__)
    fields = dataclasses.fields(kind)
    assert list(rows) == [field.name for field in fields]
    for field in fields:
        if field.default is not dataclasses.MISSING:
            default = (
                rows[field.name][0].strip("`").replace(",", "") if isinstance(field.default, int) else None
            )
            assert rows[field.name][0].strip("`") == repr(field.default) or default == str(field.default)


@pytest.mark.parametrize(
    "name",
    [
        "LivePush",
        "Grant",
        "Refusal",
        "RunAccess",
        "MemorySlotCap",
        "SlotCap",
        "PublishGrant",
        "hmac_publish",
        "jwt_publish",
        "jwt_claims",
        "MemoryTickets",
        "RedisTickets",
        "ChannelSigner",
    ],
)
def test_every_argument_is_there(name: str) -> None:
    arguments = list(inspect.signature(getattr(livepush_asgi, name)).parameters)
    assert list(section(OPTIONS, name)) == arguments


@pytest.mark.parametrize("name", ["publisher", "runs", "health"])
def test_every_argument_of_a_method_is_there_with_its_default(name: str) -> None:
    _, *arguments = inspect.signature(getattr(LivePush, name)).parameters.values()
    rows = section(OPTIONS, f"LivePush.{name}")
    assert list(rows) == [argument.name for argument in arguments]
    for argument in arguments:
        if argument.default is not argument.empty:
            assert rows[argument.name][0] == f"`{argument.default}`"


@pytest.mark.parametrize("name", ["demo", "publish", "doctor"])
def test_every_option_of_the_command_is_there(name: str) -> None:
    rows = section(TEXT["reference/command.md"], f"`livepush {name}`")
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "livepush_asgi", name, "--help"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [re.split(r" {2,}", line) for line in re.findall(r"^│ (-.*)│$", shown, re.MULTILINE)]
    options = {frozenset(cell for cell in cells if cell.startswith("-")) for cells in lines}
    assert {frozenset(re.findall(r"--?[\w-]+", row)) for row in rows} == options - {
        frozenset({"--help", "-h"})
    }


# Figures.


def test_the_sizes_follow_from_what_was_measured() -> None:
    rows = re.findall(
        r"^\| ([\d,]+) \| (\d+) \| ([\d.]+) % \| (\d+) MiB \| ([\d,]+) and ([\d,]+) \|$",
        TEXT["guides/operate.md"],
        re.M,
    )
    assert len(rows) == 3
    for row in rows:
        streams, processes, busy, memory, *files = (float(cell.replace(",", "")) for cell in row)
        each = streams / processes
        # An event every two seconds, 18 µs each, and 5.4 % of a core for 19,800 idle streams.
        assert busy == pytest.approx(100 * each / 2 * 18e-6 + 5.4 * each / 19_800, rel=0.1)
        assert memory == pytest.approx(44 + each * (12.8 + 3.6) / 1024, abs=1)
        assert each < files[0]
        assert 2 * streams < files[1]


@pytest.mark.parametrize("channels", [1, 2, 10, 50, 128])
async def test_an_id_is_as_long_as_the_page_says(channels: int) -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \|$", TEXT["guides/channels.md"], re.MULTILINE)
    push = LivePush(MemoryBroker(), public(*(f"metric:{number}" for number in range(channels))))
    async with push.lifespan(), testing.Client(push) as client, client.open("/") as stream:
        await push.publish("metric:0", 1)
        event = await stream.next_event()
    assert dict(rows)[str(channels)] == str(len(event.last_event_id))


# Log lines.

# Calls of a logger that write nothing.
LOOKS = (".isEnabledFor", ".setLevel")
LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR"}


def plain(text: str) -> str:
    """Return the text of a log line as the page writes it."""
    text = re.sub(r"%\.\d+f|%[a-z]", "…", text).replace("`", "")
    return text.replace("(…….… to …….…)", "(… to …)").replace("(….… to ….…)", "(… to …)")


def text_of(node: ast.expr) -> list[str]:
    """Return the texts that an expression may stand for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)]
    if isinstance(node, ast.IfExp):
        return text_of(node.body) + text_of(node.orelse)
    return []


def _assigned(tree: ast.Module, name: str) -> list[str]:
    """Return the texts that a module assigns to a variable, alone or as the last of several."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                target, value = target.elts[-1], value.elts[-1]
            if isinstance(target, ast.Name) and target.id == name:
                found += text_of(value)
    return found


def _logged_by(call: ast.Call, tree: ast.Module) -> dict[str, str | None]:
    """Return the lines that a call may log, with their level, None for lines that a variable holds."""
    assert isinstance(call.func, ast.Attribute)
    level: str | None
    if call.func.attr == "_log_failure":
        level, text = "ERROR", call.args[0]
    elif call.func.attr == "log":
        level, text = ast.unparse(call.args[0]).removeprefix("logging."), call.args[1]
    else:
        level, text = LEVELS[call.func.attr], call.args[0]
    rest = ""
    if isinstance(text, ast.BinOp):
        text, rest = text.left, "…"
    if isinstance(text, ast.Name):
        return {plain(each) + rest: None for each in _assigned(tree, text.id)}
    return {plain(each): level for each in text_of(text)}


def _fields_of(call: ast.Call) -> str:
    """Return the event and the names in `extra=fields("event", name=...)`, as the page writes them."""
    extra = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
    if extra is None:
        return ""
    assert isinstance(extra, ast.Call)
    assert isinstance(extra.args[0], ast.Constant)
    names = ", ".join(f"`{keyword.arg}`" for keyword in extra.keywords)
    return f"`{extra.args[0].value!s}`" + (f": {names}" if names else "")


def logged() -> dict[str, tuple[str | None, str]]:
    """Return every line that the package can log, with its level and its fields."""
    found: dict[str, tuple[str | None, str]] = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            # A FailureLog, called `failures`, passes on what it gets, and so does `_log_failure`.
            if (
                isinstance(node, ast.Call)
                and re.fullmatch(r"\w*logger\.\w+|\S*failures\.log|\S*\._log_failure", ast.unparse(node.func))
                and path.name != "failure_log.py"
            ):
                if ast.unparse(node.func).endswith(LOOKS):
                    continue
                lines = _logged_by(node, tree)
                assert lines, f"{path.name}:{node.lineno}: no text in this call"
                given = _fields_of(node)
                if ast.unparse(node.func).endswith("._log_failure"):
                    (given,) = {
                        _fields_of(call)
                        for function in ast.walk(tree)
                        if isinstance(function, ast.FunctionDef) and function.name == "_log_failure"
                        for call in ast.walk(function)
                        if isinstance(call, ast.Call) and call.keywords
                    }
                found.update({text: (level, given) for text, level in lines.items() if text})
    return found


def test_every_log_line_is_there_and_no_other() -> None:
    page = TEXT["reference/log-lines.md"]
    rows = re.findall(r"^\| (DEBUG|INFO|WARNING|ERROR) \| `(.*?)` \| (.*?) ?\| (.+) \|$", page, re.MULTILINE)
    told = {text: level for level, text, _, _ in rows}
    lines = logged()
    assert len(lines) > 40
    assert sorted(set(lines) - set(told)) == [], "log lines that docs/reference/log-lines.md lacks"
    assert sorted(set(told) - set(lines)) == [], "log lines that no call writes any more"
    assert {
        text: (told[text], level) for text, (level, _) in lines.items() if level not in (None, told[text])
    } == {}
    shown = {text: given for _, text, given, _ in rows}
    assert {text: given for text, (_, given) in lines.items() if given != shown[text]} == {}
    # Those of the level DEBUG are for the people who mend this package.
    assert [text for text, (_, given) in lines.items() if not given and told[text] != "DEBUG"] == []


def test_all_loggers_have_the_name_that_the_page_says() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    loggers = set(re.findall(r'logger = logging\.getLogger\("([\w.]+)"\)', source))
    assert loggers == {"livepush_asgi", "livepush_asgi.streams"}
    for name in loggers:
        assert f"`{name}`" in TEXT["reference/log-lines.md"]


# Errors.


def test_every_error_is_there_with_what_to_do() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", TEXT["reference/errors.md"], re.MULTILINE)
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert {row[0] for row in rows} == classes


def test_every_refusal_of_the_component_is_there() -> None:
    page = TEXT["reference/errors.md"]
    source = (PACKAGE / "http" / "authorize.py").read_text()
    refusals = re.findall(r'Error: \((\d+), "([^"]+)", RefusalCause\.(\w+)\)', source)
    assert len(refusals) >= 6
    for status, detail, cause in refusals:
        assert f"| {status} | {detail} | `{livepush_asgi.RefusalCause[cause]}` |" in page
