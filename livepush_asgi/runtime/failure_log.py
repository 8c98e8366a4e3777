"""What is logged, how often, and with which fields: nothing that clients do may fill a log.

Call a logger with `extra=fields("name_of_the_event", server=...)`. A failure that clients can repeat goes
through a FailureLog, a state that begins and ends through a StateLog.
"""

import logging
import math
import time
from traceback import walk_tb

from .event_loop import now

logger = logging.getLogger("livepush_asgi")

# A failure of the same kind is logged once in this time, in seconds, and so is a state.
LOG_INTERVAL = 60.0
# How many kinds of failures are logged in this time. The input of a client may choose the line that raises.
MAX_KINDS = 5
REMEMBERED_KINDS = 100


def fields(event: str, /, **values: object) -> dict[str, object]:
    """Return the `extra` of a log line: the name of what has happened, and the values.

    The prefix keeps them apart from the attributes of a LogRecord and from the fields of an application.
    """
    return {"livepush_event": event, **{f"livepush_{name}": value for name, value in values.items()}}


class FailureLog:
    """Logs each kind of failure once in LOG_INTERVAL, however many clients meet it."""

    def __init__(self) -> None:
        # When each kind was logged last, and how often it has occurred since.
        self._logged: dict[object, tuple[float, int]] = {}

    def log(
        self,
        level: int,
        text: str,
        *arguments: object,
        error: BaseException | None = None,
        about: object = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        """Log a failure; an error with its traceback. Errors of one type from one line are of one kind.

        `about` is what has failed, such as a channel, if each is to be named.
        The field `livepush_more` says how many of the kind were left out since it was logged last.
        """
        kind: object = (text, about)
        if error is not None:
            kind = type(error), *[(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)][-1:]
        moment = _now()
        since, count = self._logged.get(kind, (-math.inf, 0))
        if _is_recent(since, moment) or self._has_logged_enough(moment):
            if kind in self._logged:
                self._logged[kind] = since, count + 1
            return
        if len(self._logged) >= REMEMBERED_KINDS:
            self._logged.clear()
        self._logged[kind] = moment, 0
        more = f" ({count} more of these since the last line)" if count else ""
        logger.log(
            level, text + more, *arguments, exc_info=error, extra={**(extra or {}), "livepush_more": count}
        )

    def _has_logged_enough(self, moment: float) -> bool:
        return sum(_is_recent(since, moment) for since, _ in self._logged.values()) >= MAX_KINDS


class StateLog:
    """Says when to log that a state begins or ends: at most one beginning in LOG_INTERVAL.

    A state that goes on is logged when the time has come, and the end only of a state that was logged: so the
    last line is true.
    """

    def __init__(self) -> None:
        self._logged_at = -math.inf
        self._is_logged = False

    def begins(self) -> bool:
        """Return whether to log it now. Call this whenever the state shows, not only when it begins."""
        moment = _now()
        if self._is_logged or _is_recent(self._logged_at, moment):
            return False
        self._logged_at, self._is_logged = moment, True
        return True

    def ends(self) -> bool:
        """Return whether to log the end. Call this when the state has ended; harmless if there was none."""
        was_logged, self._is_logged = self._is_logged, False
        return was_logged


def _now() -> float:
    # A finalizer may call it where no event loop runs.
    try:
        return now()
    except (RuntimeError, ImportError):
        return time.monotonic()


def _is_recent(since: float, moment: float) -> bool:
    # The clock of another event loop may be behind.
    return 0 <= moment - since < LOG_INTERVAL
