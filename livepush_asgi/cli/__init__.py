"""The command line: `demo`, `publish` and `doctor`, for people who try, feed or examine an application.

Start with `commands`. `demo/` is a page to look at, `publish` sends events from a terminal, `doctor/`
measures what proxies do to events. The rest of the package imports nothing from here. The libraries that
this folder needs come with the extra `cli`.
"""

import sys
from importlib.util import find_spec

# Looked for before anything is imported: a missing library gives one line, and an error inside of one of
# them still shows as a traceback.
NEEDED = ("typer", "rich", "uvicorn", "psutil", "redis", "httpx", "h2")


def main() -> None:
    """Run the command line and end the process with its exit status."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        needs = "needs" if len(missing) == 1 else "need"
        sys.exit(
            f"livepush: {' and '.join(missing)} {needs} to be installed: pip install 'livepush_asgi[cli]'"
        )
    from .commands import run

    sys.exit(run(sys.argv[1:]))
