"""docs/explanation/guarantees.md: each cell that promises something names a test that exists."""

import ast
import re
from functools import cache

import pytest

from .serving import REPOSITORY

TEXT = (REPOSITORY / "docs" / "explanation" / "guarantees.md").read_text()
NOTE = re.compile(r"\[\^([a-z-]+)\]")
TEST = re.compile(r"`((?:tests|livepush_asgi)/[\w/]+\.py(?:::\w+)*)`")
# What promises nothing needs no test.
NO_PROMISE = {"", "no", "not noticed", "JetStream's own matter: no test"}

HEADER, _, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|")
]
NOTES = dict(re.findall(r"^\[\^([a-z-]+)\]: (.+(?:\n {4}.+)*)", TEXT, flags=re.MULTILINE))
NAMED = sorted(set(TEST.findall(TEXT)))


@cache
def parsed(path: str) -> ast.Module:
    return ast.parse((REPOSITORY / path).read_text())


def has(path: str, names: list[str]) -> bool:
    """Whether a file has a test, or a class of tests, of that name; or tests at all."""
    scope: list[ast.stmt] = parsed(path).body
    for name in names:
        found = [
            node
            for node in scope
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name
        ]
        if not found:
            return False
        scope = found[0].body
    return bool(names) or any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for node in scope
    )


@pytest.mark.parametrize("name", NAMED)
def test_each_test_that_is_named_exists(name: str) -> None:
    path, *names = name.split("::")
    assert has(path, names)


def test_what_does_not_exist_is_found_missing() -> None:
    assert not has("tests/test_seam.py", ["test_contiguous"])
    assert not has("livepush_asgi/testing/contract.py", ["BrokerContract", "test_nothing"])
    assert not has("tests/serving.py", [])


def test_each_cell_that_promises_something_names_a_test() -> None:
    assert len(ROWS) > 10
    for promise, *cells in ROWS:
        assert len(cells) == len(HEADER) - 1, promise
        assert [cell for cell in cells if cell not in NO_PROMISE and not NOTE.findall(cell)] == [], promise


def test_each_note_is_used_and_names_tests_and_nothing_else() -> None:
    used = {name for row in ROWS for cell in row for name in NOTE.findall(cell)}
    assert used == set(NOTES)
    for name, note in NOTES.items():
        assert re.sub(r"[,\s]", "", TEST.sub("", note)) == "", name


def test_the_rules_are_run_over_every_broker_of_the_table() -> None:
    brokers = [broker for cell in HEADER for broker in re.findall(r"`(\w+)`", cell)]
    assert len(brokers) == 6
    assert [broker for broker in brokers if not has("tests/test_contract.py", [f"Test{broker}"])] == []
