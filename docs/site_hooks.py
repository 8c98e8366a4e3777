"""What the site's build adds: the table of all error messages, and the examples.

A page links to an example as the repository has it, `../../examples/NAME.py`. On the site the link leads to
the page of all examples, which shows each file where it links to it.
"""

import ast
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "livepush_asgi"
MARK = "<!-- messages -->"
# Commands and tests have messages of their own.
LEFT_OUT = {"cli", "testing"}


def text_of(node: ast.expr) -> str:
    """Return a text as it is written, with … for what is filled in; "" for another expression."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ""


def messages() -> list[tuple[str, str]]:
    """Return each message and the class of its error, in alphabetical order."""
    found: set[tuple[str, str]] = set()
    for path in PACKAGE.rglob("*.py"):
        if LEFT_OUT.isdisjoint(path.relative_to(PACKAGE).parts):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                    text = text_of(node.exc.args[0])
                    name = ast.unparse(node.exc.func)
                    if text.strip("… ") and re.fullmatch(r"\w+Error", name):
                        found.add((text, name))
    return sorted(found, key=lambda pair: pair[0].strip("… ").lower())


def block(name: str) -> str:
    """Return an example as a block of code."""
    kind = {"py": "python", "js": "javascript", "jsx": "jsx"}.get(name.partition(".")[2], "html")
    return f'```{kind} title="examples/{name}"\n{(REPOSITORY / "examples" / name).read_text()}```'


def on_page_markdown(markdown: str, *, page: Any, **options: Any) -> str:
    """Put in the examples and the table, and change the links. mkdocs calls it for each page."""
    markdown = re.sub(
        r"^\[`examples/([\w.]+)`\]\(.*\)$", lambda found: block(found[1]), markdown, flags=re.MULTILINE
    )
    top = "../" * page.file.src_uri.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+examples/(\w+)\.\w+\)", rf"]({top}examples.md#\1)", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+README\.md\)", f"]({top}index.md)", markdown)
    if MARK not in markdown:
        return markdown
    rows = [
        f"| `{name}` | {text.replace('|', chr(92) + '|').replace('<', '&lt;')} |" for text, name in messages()
    ]
    return markdown.replace(MARK, "\n".join(["| Class | Message |", "|---|---|", *rows]))
