"""Guesses whether this process is one of several workers of the same application."""

import multiprocessing
import os
import re
import sys
from collections.abc import Mapping, Sequence

# Servers read the number of workers from their command lines and from these environment variables.
_VARIABLES = ("WEB_CONCURRENCY", "GRANIAN_WORKERS")
_OPTION = re.compile(r"(?:^| )(?:--workers[ =]|-w ?)(\d+)(?= |$)")


def one_of_several() -> bool:
    """Return whether this process seems to be one of several workers.

    Reads the command line, the environment, and whether `multiprocessing` started this process. A number of
    workers in a configuration file, such as gunicorn's, is not seen.
    """
    number = asked_for(sys.argv, os.environ)
    if number is not None:
        return number > 1
    # uvicorn and hypercorn start workers with multiprocessing. So do their reloaders, and granian starts even
    # a single worker that way.
    alone = "--reload" in sys.argv or "granian" in sys.argv[0]
    return multiprocessing.parent_process() is not None and not alone


def asked_for(arguments: Sequence[str], variables: Mapping[str, str]) -> int | None:
    """Return the number of workers that a command line or the environment names, None if neither does."""
    found = _OPTION.findall(" ".join([*arguments[1:], variables.get("GUNICORN_CMD_ARGS", "")]))
    found += [variables[name] for name in _VARIABLES if variables.get(name, "").isdigit()]
    return int(found[0]) if found else None
