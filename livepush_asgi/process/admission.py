"""Admission: the cap on the streams of a process, counted from the moment a request is let in."""

import logging
from collections.abc import Sized

from ..errors import ProcessFullError

logger = logging.getLogger("livepush_asgi")

# When the process has fewer streams than this part of its cap, a cap that was reached is said to be over.
# Between the two nothing is logged: streams come and go there all the time.
RECOVERED = 0.9


class Admission:
    """Counts the requests that may become streams: `with admission:` around authorize, slot and opening.

    They count together with the open streams, so that a wave of requests cannot pass the cap while each
    waits for its login or slot. One object serves all requests.
    """

    __slots__ = ("_full", "_limit", "_pending", "_streams")

    def __init__(self, limit: int | None, streams: Sized) -> None:
        self._limit = limit
        self._streams = streams
        self._pending = 0
        self._full = False

    def __enter__(self) -> None:
        """Let a request in. Raises ProcessFullError if the process has all the streams that it may have."""
        if self._limit is not None:
            self._check(self._limit, len(self._streams) + self._pending)
        self._pending += 1

    def __exit__(self, *raised: object) -> None:
        """Stop counting the request: it is a counted stream by now, or none."""
        self._pending -= 1

    def _check(self, limit: int, count: int) -> None:
        if count >= limit:
            if not self._full:
                self._full = True
                logger.warning(
                    "new streams are refused: this process has the %d that Limits(streams=...) allows; "
                    "raise that if it has the memory, or run more processes",
                    limit,
                )
            raise ProcessFullError(limit)
        if self._full and count < RECOVERED * limit:
            self._full = False
            logger.warning("there is room again for new streams: %d of %d are open", count, limit)
