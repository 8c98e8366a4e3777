"""The house: imports point one way, the core needs anyio alone, and every file is a small room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "livepush_asgi"

# Each line may import from the lines above it, and within itself where it says so.
LAYERS = [
    {"types", "errors", "reasons", "cursor"},
    {"event", "settings", "loop", "cors"},
    {"request", "broker", "slots", "clock", "control", "drain", "statistics"},
    {"outbox", "snapshot", "publishing", "connection", "admission", "namespace", "revocation"},
    {"framework_errors", "turn"},
    {"topic", "timekeeper", "commands", "places", "producer"},
    {"logged_topic", "shared_reads", "publisher"},
    {"hub"},
    {"reading"},
    {"feed", "direct"},
    {"departure"},
    {"stream", "waiting"},
    {"carrier", "open_streams"},
    {"review"},
    {"revoker"},
    {"run"},
    {"answers", "probe", "decision"},
    {"endpoint"},
    {"app"},
    {"middleware", "service", "brokers", "testing"},
    {"contrib", "cli"},
]
# Within a line: who may import whom.
BESIDE = {("request", "broker")}
# Pure functions and values: no event loop, no input or output.
PURE = {
    "cursor",
    "types",
    "errors",
    "reasons",
    "event",
    "control",
    "request",
    "settings",
    "cors",
    "outbox",
    "places",
}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] in ("brokers", "slots", "contrib", "testing", "cli"):
        return (
            "slots" if parts == ("slots", "__init__") else parts[0] + "/" if parts[0] == "slots" else parts[0]
        )
    return parts[0]


def level_of(room: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if room in layer)


def imported(path: Path) -> set[str]:
    """Return the rooms of the package and the libraries that a file imports, wherever in it."""
    found = set()
    package = ("livepush_asgi", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join([*base, *([node.module] if node.module else [])]))
            if not node.module:
                found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imported(path) if name.startswith("livepush_asgi.")}
    # `from .. import LivePush` names no room: it takes what the package shows to everybody.
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__", "testing"):
        return
    if room in ("brokers", "slots/"):
        allowed = {"broker", "cursor", "slots", "errors", "event", "types", "brokers", "settings", "loop"}
        assert rooms_imported(path) <= allowed
        return
    for other in rooms_imported(path) - {room}:
        assert level_of(other) < level_of(room), f"{room} imports {other}"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in PURE], ids=lambda path: path.stem)
def test_values_know_no_event_loop(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(path)}
    assert not libraries & {"anyio", "asyncio", "trio", "socket", "threading"}


def test_only_one_file_touches_the_process() -> None:
    rooms = {room_of(path) for path in FILES if imported(path) & {"signal"}}
    assert rooms <= {"drain", "cli"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_the_package_imports_no_extra() -> None:
    extras = "redis nats starlette fastapi django quart litestar typer rich psutil uvicorn trio httpx pytest"
    program = (
        "import sys, livepush_asgi\n"
        f"found = sorted(set('{extras}'.split()) & set(sys.modules))\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
