"""The README's code is that of the examples, its commands are the ones that are run, its files are there."""

import re
from pathlib import Path

import pytest

from .test_rooms import ARROWS

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
EXAMPLES = {path.name: path.read_text() for path in (REPOSITORY / "examples").glob("*.py")}
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.split("\n")[0][:40].strip())
def test_every_snippet_is_part_of_an_example_that_is_tested(snippet: str) -> None:
    assert [name for name, text in EXAMPLES.items() if snippet.strip("\n") in text]


# Links are relative, because the project has no address. The build of the site checks the pages of docs/.
@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_file_and_heading_that_is_linked_is_there(name: str) -> None:
    links = re.findall(r"\]\(((?!http)[^)]+)\)", (REPOSITORY / name).read_text())
    for path, _, heading in (link.partition("#") for link in links):
        assert (REPOSITORY / path).exists(), path
        if heading:
            headings = re.findall(r"^#+ (.+)$", (REPOSITORY / path).read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w-]", "", text.lower().replace(" ", "-")) for text in headings}


def test_both_commands_do_all_of_their_own_set_up() -> None:
    demo, tests = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for command in (demo, tests):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    # Continuous integration ends with the very same command, and leaves nothing out.
    assert (REPOSITORY / ".ci" / "run").read_text().endswith(f"\n{tests.strip()} --everything\n")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_at_most_sixty_lines_unless_it_has_a_whole_login(name: str) -> None:
    assert len(EXAMPLES[name].splitlines()) <= (170 if name.endswith("_login.py") else 60)


def test_the_list_of_rooms_for_contributors_is_that_of_the_package() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text().split("## Find the room")[1].split("\n\n")[1]
    rooms = re.findall(r"`(\w+)(?:/|\.py)`", text.split("A room imports")[0])
    assert sorted(rooms) == sorted(ARROWS)
