"""FailureLog: logs the failures of an application's callbacks, each kind once in a while."""

import logging
import math
from traceback import walk_tb

from .event_loop import now

logger = logging.getLogger("livepush_asgi")

# A failure of the same kind is logged once in this time, in seconds.
LOG_INTERVAL = 60.0
MAX_KINDS = 100


class FailureLog:
    """Logs each kind of failure once in LOG_INTERVAL, however many clients meet it."""

    def __init__(self) -> None:
        # When each kind was logged last, and how often it has occurred since.
        self._logged: dict[object, tuple[float, int]] = {}

    def log(self, level: int, text: str, *arguments: object, error: BaseException | None = None) -> None:
        """Log a failure; an error with its traceback. Errors of one type from one line are of one kind."""
        kind: object = text
        if error is not None:
            *_, (frame, line) = walk_tb(error.__traceback__)
            kind = type(error), frame.f_code, line
        moment = now()
        since, count = self._logged.get(kind, (-math.inf, 0))
        # The clock of another event loop may be behind.
        if 0 <= moment - since < LOG_INTERVAL:
            self._logged[kind] = since, count + 1
            return
        if len(self._logged) >= MAX_KINDS:
            self._logged.clear()
        self._logged[kind] = moment, 0
        more = f" ({count} more of these since the last line)" if count else ""
        logger.log(level, text + more, *arguments, exc_info=error)
