"""The command line: `demo`, `tail`, `publish` and `doctor`. What it needs comes with the extra `cli`."""

import sys
from importlib.util import find_spec

# By the name that is imported. Asked for before anything is, so that what is missing gives a line
# and not a traceback, while an error inside one of them still shows as what it is.
NEEDED = ("typer", "rich", "uvicorn", "psutil", "redis", "httpx")


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
