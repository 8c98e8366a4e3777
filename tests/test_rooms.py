"""The house: which room may import which, what stays pure, and what `import livepush_asgi` loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "livepush_asgi"

# What each room may import. A room is a folder, or a file at the top of the package.
ARROWS = {
    "errors": "",
    "settings": "",
    "wire": "errors",
    "runtime": "errors settings",
    "dialects": "wire errors",
    "grant": "dialects wire runtime errors",
    "brokers": "wire runtime errors settings",
    "slots": "brokers wire runtime errors settings",
    "hub": "brokers wire runtime errors",
    "stream": "hub slots grant dialects brokers wire runtime errors settings",
    "process": "stream hub slots grant brokers wire runtime errors settings",
    "http": "process stream grant wire runtime errors settings",
    "runs": "process stream hub grant brokers wire runtime errors settings",
    "app": "http dialects runs process stream slots grant brokers wire runtime errors settings",
    "testing": "app http slots grant brokers wire runtime errors settings",
    "metrics": "app process runtime",
    "contrib": "metrics app dialects http runs process stream grant wire runtime errors",
    "cli": "app http slots grant brokers wire runtime errors settings",
}
# Pure functions and values: no event loop, no input or output.
PURE = [
    *(f"wire/{name}" for name in ("cursor", "event", "control", "parser", "reasons", "run_record")),
    *(f"stream/{name}" for name in ("outbox", "recovery")),
    *("dialects", "errors", "grant", "settings", "http/cors"),
]
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = [path for path in FILES if path.name == "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, the package's own as `livepush_asgi.<module>`."""
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


def texts_of(path: Path) -> list[str]:
    """Return the texts and bytes that a file writes down, those of its docstrings left out."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    values = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings
    ]
    return [value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in values]


def rooms_imported(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imported(path) if name.startswith("livepush_asgi.")}
    # `from .. import LivePush` names no room: it takes what the package shows to everybody.
    return names & set(ARROWS)


def test_the_rooms_are_these() -> None:
    assert {room_of(path) for path in FILES} == {*ARROWS, "__init__", "__main__"}


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    allowed = {room, *ARROWS[room].split()}
    offenders = {
        str(path.relative_to(PACKAGE)): rooms_imported(path) - allowed
        for path in FILES
        if room_of(path) == room and rooms_imported(path) - allowed
    }
    assert not offenders


def test_no_arrow_points_back() -> None:
    above: set[str] = set()
    for room, allowed in ARROWS.items():
        assert set(allowed.split()) <= above, f"{room} imports a room that does not stand above it in ARROWS"
        above.add(room)


@pytest.mark.parametrize("name", PURE)
def test_values_know_no_event_loop(name: str) -> None:
    libraries = {each.split(".")[0] for each in imported(PACKAGE / f"{name}.py")}
    assert not libraries & {"anyio", "asyncio", "trio", "socket", "threading"}


def test_only_one_file_of_the_component_handles_signals() -> None:
    found = {str(path.relative_to(PACKAGE)) for path in FILES if "signal" in imported(path)}
    assert {name for name in found if not name.startswith("cli/")} == {"process/signals.py"}


def test_only_one_room_writes_the_fields_of_an_event_stream() -> None:
    """`testing/` reads them too, as a client does, and has texts that try to break them."""
    field = re.compile(r"(^|\n)(data|event|id|retry): ?$|(^|\n)(data|event|id|retry): \S")
    found = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for text in texts_of(path)
        if room_of(path) not in ("wire", "testing") and field.search(text)
    }
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def docstring_of(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


@pytest.mark.parametrize("room", [room for room in ARROWS if (PACKAGE / room).is_dir()])
def test_the_docstring_of_a_room_is_true_about_who_may_import_it(room: str) -> None:
    """The sentence begins with "Only stream/ and the rooms above it", "Every room but wire/" or "Nothing"."""
    sentence = re.search(
        r"(Only|Every|Nothing)([^.;]*) may\s+import it\b", docstring_of(PACKAGE / room / "__init__.py")
    )
    if sentence is None:
        return
    importers = {other for other, allowed in ARROWS.items() if room in allowed.split()}
    named, order = re.findall(r"(\w+)/", sentence[2]), list(ARROWS)
    if sentence[1] == "Every":
        assert importers.isdisjoint(named)
    else:
        above = order[order.index(named[0]) :] if "the rooms above it" in sentence[2] else []
        assert set(named) <= importers <= {*named, *above}


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: str(path.parent.relative_to(PACKAGE.parent)))
def test_what_the_docstring_of_a_folder_names_is_there(path: Path) -> None:
    named = re.findall(r"[\w/]+(?:\.py|\.md|/(?=[\s`.,;:)]))", docstring_of(path))
    places = [path.parent, PACKAGE, PACKAGE.parent]
    assert not [name for name in named if not any((place / name).exists() for place in places)]


def test_the_map_of_the_package_has_every_room_from_top_to_bottom() -> None:
    row = re.compile(r"^    (\w+(?:/|\.py)(?:, \w+(?:/|\.py))*)(?: {2}|$)", re.MULTILINE)
    names = ", ".join(row.findall(docstring_of(PACKAGE / "__init__.py"))).split(", ")
    rooms = [name.removesuffix("/").removesuffix(".py") for name in names]
    assert sorted(rooms) == sorted(ARROWS)
    for room, allowed in ARROWS.items():
        assert all(rooms.index(room) < rooms.index(other) for other in allowed.split()), room


def test_importing_the_package_imports_no_extra() -> None:
    extras = (
        "redis nats asyncpg psycopg starlette fastapi django quart litestar typer rich psutil uvicorn trio "
        "httpx pytest asgiref asgi_lifespan jwt aiokafka prometheus_client opentelemetry"
    )
    program = (
        "import sys, livepush_asgi\n"
        f"found = sorted(set('{extras}'.split()) & set(sys.modules))\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
