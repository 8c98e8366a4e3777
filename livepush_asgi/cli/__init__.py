"""The command line: `demo`, `publish` and `doctor`, for people who try, feed or examine an application.

Nothing in the package may import it. Start with `commands.py`, the options of all commands. `demo/` serves
a page, `publish.py` publishes events from a terminal, `doctor/` measures what proxies do to events. The extra
`cli` installs the libraries that this folder needs.
"""

import sys
from importlib.util import find_spec

from .failure import MISTYPED

# Looked for before anything is imported: a missing library gives one line, and an error inside of one of
# them still shows as a traceback.
NEEDED = ("typer", "rich", "uvicorn", "psutil", "redis", "httpx", "h2")


def main() -> None:
    """Run the command line and end the process with its exit status."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        needs = "needs" if len(missing) == 1 else "need"
        names = " and ".join(missing)
        sys.stderr.write(f"livepush: {names} {needs} to be installed: pip install 'livepush_asgi[cli]'\n")
        # Not 1: from the doctor that says that the path has a fault.
        sys.exit(MISTYPED)
    from .commands import run

    sys.exit(run(sys.argv[1:]))
