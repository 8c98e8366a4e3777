"""HealthEndpoint: answers the health checks of balancers and orchestrators, `/ready` and `/live`."""

import json
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ..grant import Refusal, is_foreign, path_below
from ..process.process import Process
from ..runtime.asgi import ASGIApp, Receive, Scope, Send
from .driver import DISCONNECT_ERRORS
from .responses import answer, refuse

ALLOWED = "GET, HEAD"
# The header `Retry-After` of a 503, in seconds. Balancers ask at intervals of their own.
RETRY_AFTER = 1
# How often the faults of an unhealthy process are looked at, in seconds. With 10,000 channels that takes
# 15 ms, and anybody may ask for it.
LOOK_INTERVAL = 0.25
OK, STOPPED, DRAINING, STARTING, UNHEALTHY = "ok", "stopped", "draining", "starting", "unhealthy"


class HealthEndpoint:
    """The ASGI application of `LivePush.health`. It passes lifespan and WebSockets on to `push`.

    It waits for nothing, since a check that waits for a broker which is away would be late.
    """

    def __init__(
        self,
        push: ASGIApp,
        current_process: Callable[[], Awaitable[Process | None]],
        latest_process: Callable[[], Process | None],
        *,
        unready_after: float,
        dead_after: float,
    ) -> None:
        _check_time("unready_after", unready_after)
        _check_time("dead_after", dead_after)
        if dead_after < unready_after:
            raise ValueError(
                f"dead_after is not below unready_after: {dead_after!r} < {unready_after!r}; a process that "
                "is restarted for its health gets no requests before"
            )
        self._push = push
        self._current_process = current_process
        self._latest_process = latest_process
        self._unready_after = unready_after
        self._dead_after = dead_after
        # For how long the process was broken when the faults were looked at last.
        self._looked_at, self._broken = -math.inf, -1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await self._push(scope, receive, send)
            return
        # The last segment counts, so that it can be mounted, or given single paths, anywhere.
        check = {"ready": self._ready, "live": self._live}.get(path_below(scope).rpartition("/")[2])
        method = scope["method"]
        # A balancer that has left needs no answer.
        with suppress(*DISCONNECT_ERRORS):
            if check is None or is_foreign(scope):
                await refuse(send, Refusal(404), [], body=method != "HEAD")
            elif method not in ("GET", "HEAD"):
                await refuse(send, Refusal(405, headers={"allow": ALLOWED}), [])
            else:
                await _answer(await check(), method, send)

    async def _ready(self) -> str:
        # It starts as the first request would: without a check no request may ever come.
        process = await self._current_process()
        if process is None or not process.running:
            return STOPPED
        if process.draining:
            return DRAINING
        if self._broken_for(process) >= self._unready_after:
            return UNHEALTHY
        return STARTING if process.starting and self._unready_after < math.inf else OK

    async def _live(self) -> str:
        process = self._latest_process()
        if (
            process is None
            or not process.running
            or process.draining
            or self._broken_for(process) < self._dead_after
        ):
            return OK
        return UNHEALTHY

    def _broken_for(self, process: Process) -> float:
        """Return for how long the process has not received all events, in seconds; -1 if it does."""
        if process.healthy:
            self._looked_at = -math.inf
            return -1.0
        now = process.scheduler.now()
        if not 0 <= now - self._looked_at < LOOK_INTERVAL:
            self._looked_at = now
            self._broken = max([fault.seconds for fault in process.faults if not fault.refused], default=-1.0)
        return self._broken if self._broken < 0 else self._broken + now - self._looked_at


async def _answer(status: str, method: str, send: Send) -> None:
    fields = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    if status != OK:
        fields.append((b"retry-after", str(RETRY_AFTER).encode()))
    content = json.dumps({"status": status}).encode()
    await answer(send, 200 if status == OK else 503, fields, content, body=method != "HEAD")


def _check_time(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(
            f"{name} is in seconds, 0 or more, or math.inf to leave the broker out; not {value!r}"
        )
