"""Writes files of the repository into the pages that show them: `python docs/show_files.py`.

A page names a file, or a part of one, in a comment before a block of code:

    <!-- file: docs/snippets/channels/test_channels.py:grant -->

The part `grant` stands in the file between the lines `# start: grant` and `# end: grant`.
"""

import re
from pathlib import Path
from textwrap import dedent

DOCS = Path(__file__).parent
SHOWN = re.compile(
    r"(<!-- file: ([\w./+@-]+)(?::([\w-]+))? -->\n```\w+\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"^ *# (?:start|end): [\w-]+\n", re.MULTILINE)


def content(path: str, part: str | None) -> str:
    """Return the text of a file, or of a part of it, as a page shows it."""
    text = (DOCS.parent / path).read_text()
    if part:
        start, end = (rf"^ *# {which}: {part}\n" for which in ("start", "end"))
        (text,) = re.findall(f"{start}(.*?){end}", text, re.MULTILINE | re.DOTALL)
    text = dedent(MARK.sub("", text)).strip("\n") + "\n"
    # The lines around a mark are blank.
    return re.sub(r"\n{4,}", "\n\n\n", text)


def with_files(page: str) -> str:
    """Return a page with the present content of the files that it shows."""
    return SHOWN.sub(lambda found: found[1] + content(found[2], found[3]) + found[5], page)


if __name__ == "__main__":
    for path in DOCS.rglob("*.md"):
        path.write_text(with_files(path.read_text()))
