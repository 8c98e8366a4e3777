"""The README's code is that of the examples, its commands are the ones that are run, its files are there."""

import re
from pathlib import Path

import pytest

from .test_rooms import ARROWS

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
EXAMPLES = {path.name: path.read_text() for path in (REPOSITORY / "examples").glob("*.py")}
BROKERS = (REPOSITORY / "docs" / "brokers.md").read_text()
AUTHORIZE = (REPOSITORY / "docs" / "authorize.md").read_text()
ROUTES = AUTHORIZE.partition("## Authorize a stream of a route")[2].partition("\n## ")[0]
PAGES = "".join(
    (REPOSITORY / "docs" / name).read_text() for name in ("generators.md", "hooks.md", "subscribe.md")
)
SNIPPETS = re.findall(r"```python\n(.*?)```", README + BROKERS + ROUTES + PAGES, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.split("\n")[0][:40].strip())
def test_every_snippet_is_part_of_an_example_that_is_tested(snippet: str) -> None:
    assert [name for name, text in EXAMPLES.items() if snippet.strip("\n") in text]


def test_every_file_that_is_linked_is_there() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_both_commands_do_all_of_their_own_set_up() -> None:
    demo, tests = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2]
    for command in (demo, tests):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    # Continuous integration ends with the very same command, and leaves nothing out.
    assert (REPOSITORY / ".ci" / "run").read_text().endswith(f"\n{tests.strip()} --everything\n")


# A broker with history is no application: it has to do what the package's own have to.
LONGER = {"postgres_broker.py": 185}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_at_most_sixty_lines(name: str) -> None:
    assert len(EXAMPLES[name].splitlines()) <= LONGER.get(name, 60)


def test_the_list_of_rooms_for_contributors_is_that_of_the_package() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text().split("## Find the room")[1].split("\n\n")[1]
    rooms = re.findall(r"`(\w+)(?:/|\.py)`", text.split("A room imports")[0])
    assert sorted(rooms) == sorted(ARROWS)
