"""The scripts of a channel's log: `append.lua` and `read.lua`. `log.lua` says what a log is on the server."""

from importlib.resources import files

from ...wire.event import POSITION_MARK
from ..history import History
from .script import Script

# In milliseconds. A log outlives its events, so that a quiet channel keeps its epoch: processes that listen
# ask for it about every minute. An idempotency key is remembered for at least five minutes, and for a day
# where events have no age.
_LEAST_KEEP = 600_000
_LEAST_REMEMBER, _ENDLESS_REMEMBER = 300_000, 86_400_000


def log_scripts(history: History, verb: str) -> tuple[Script, Script]:
    """Return the scripts to append and to read, for logs with these bounds. `verb` is PUBLISH or SPUBLISH."""
    age = None if history.age is None else max(1, round(history.age * 1000))
    constants = {
        "EVENTS": history.events,
        "SIZE": history.size,
        "AGE": age or "false",
        "KEEP": "false" if age is None else max(2 * age, _LEAST_KEEP),
        "REMEMBER": _ENDLESS_REMEMBER if age is None else max(age, _LEAST_REMEMBER),
        "VERB": f"'{verb}'",
        "MARK": "'" + "".join(f"\\{byte:03}" for byte in POSITION_MARK) + "'",
    }
    begin = "".join(f"local {name} = {value}\n" for name, value in constants.items())
    log, append, read = [
        files(__package__).joinpath(name).read_text(encoding="utf-8")
        for name in ("log.lua", "append.lua", "read.lua")
    ]
    return Script(begin + log + append), Script(begin + log + read)
