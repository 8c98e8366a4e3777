"""docs/reference/servers.md says of each server what the tests show, and names tests that there are."""

import re
from pathlib import Path

from .servers import SERVERS, Server

REPOSITORY = Path(__file__).parent.parent
TEXT = (REPOSITORY / "docs" / "reference" / "servers.md").read_text()


def rows() -> list[list[str]]:
    """Return the cells of the first table, without its head."""
    lines = TEXT.split("|---|---|---|---|---|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def expected(server: Server) -> list[str]:
    """Return what the tests of a server are told to expect, in the words of the table."""
    told = "told, held" if server.hold else "told"
    workers = "told, if all are signalled" if server.keeps_signals_from_workers else "told"
    http2 = "with TLS" if "{pem}" in server.http2 else "yes"
    return [
        server.name,
        "yes",
        "at once",
        "in time",
        told,
        "cut" if server.cuts_at_ctrl_c else told,
        workers if server.two else "none",
        http2 if server.http2 else "none",
    ]


def test_the_table_says_what_the_tests_show() -> None:
    assert rows() == [expected(server) for server in SERVERS]


def test_each_test_that_is_named_exists() -> None:
    named = re.findall(r"`tests/(test_\w+)\.py(?:::(\w+))?`", TEXT)
    assert len(named) >= 10
    for file, name in named:
        assert f"def {name or 'test_'}" in (REPOSITORY / "tests" / f"{file}.py").read_text()


def test_each_option_that_is_named_is_one_that_the_tests_use() -> None:
    bounds = {word for server in SERVERS for word in server.bound.split() if word.startswith("--")}
    assert bounds == {"--timeout-graceful-shutdown", "--graceful-timeout", "--workers-kill-timeout"}
    for option in bounds:
        assert option in TEXT
