"""Probe: a timed series of events, by which `python -m livepush_asgi doctor` measures the path to a client.

A client requests it in the query, `?livepush_probe=EVENTS-INTERVAL-IDLE-SIZE`: proxies that drop unknown
header fields keep the query, and a query needs no CORS preflight.
"""

import inspect
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Self

import anyio
import anyio.lowlevel

from ..grant import Decision, Grant, Refusal, StreamRequest
from ..runtime.asgi import Receive, Scope, Send
from ..runtime.failure_log import FailureLog, fields
from ..wire.event import HEARTBEAT, encode_block
from .driver import DISCONNECT_ERRORS, STREAM_HEADERS, RawHeaders

QUERY = "livepush_probe"
EVENT = "livepush.probe"

# The bounds of a plan. The largest one sends 0.4 MB in 100 s, and ten minutes of heartbeats.
BOUNDS = {"events": (1, 100), "interval": (10, 1000), "idle": (0, 600_000), "size": (50, 4096)}
# How many probes of one application run at the same time. Each holds a connection.
MAX_AT_ONCE = 8
# How often a probe checks whether the process drains, in seconds.
DRAIN_CHECK = 0.25
# Request header fields that proxies add. Their names show which proxies a request passed.
PROXY_HEADERS = re.compile(
    r"via|forwarded|x-forwarded-.*|x-real-ip|x-request-start|x-amzn-trace-id|x-amz-cf-id|cf-ray|cdn-loop"
    r"|x-vercel-id|fly-.*|x-envoy-.*|x-azure-.*|x-cloud-trace-context|x-arr-.*|x-varnish"
)
# How much longer than its plan a probe may take, in seconds. Then the probe ends.
GRACE = 30.0

ProbeDecision = bool | Decision
#: Decides which requests may probe: it returns a bool, or a Grant or Refusal as `authorize` does. The
#: channels of the Grant are ignored.
ProbeRule = Callable[[StreamRequest], ProbeDecision | Awaitable[ProbeDecision]]


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """The contents of a probe: `events` of `size` bytes, one per `interval`, then only heartbeats for `idle`.

    Times are in milliseconds.
    """

    events: int
    interval: int
    idle: int
    size: int = 50

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is from {least} to {most}, not {getattr(self, name)}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the value of the query parameter. Raises ValueError."""
        if not re.fullmatch(r"[0-9]{1,6}(-[0-9]{1,6}){2,3}", text):
            raise ValueError("a probe is asked for as EVENTS-INTERVAL-IDLE or EVENTS-INTERVAL-IDLE-SIZE")
        return cls(*map(int, text.split("-")))

    def __str__(self) -> str:
        return f"{self.events}-{self.interval}-{self.idle}-{self.size}"

    @property
    def seconds(self) -> float:
        """How long the probe takes."""
        return (self.events * self.interval + self.idle) / 1000


class Probes:
    """The probes of one application: checks which requests may probe, and bounds how many probes run."""

    def __init__(self, rule: ProbeRule, heartbeat_interval: float | None) -> None:
        self._rule = rule
        self._heartbeat_interval = heartbeat_interval
        self._running = 0
        self._failures = FailureLog()

    async def plan(self, request: StreamRequest) -> ProbePlan:
        """Return the plan of a request. Raises Refusal if the request may not probe."""
        await self._check(request)
        try:
            plan = ProbePlan.parse(request.query[QUERY])
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        if self._running >= MAX_AT_ONCE:
            raise Refusal(429, "Too many probes.", retry_after=5)
        return plan

    async def send(
        self,
        plan: ProbePlan,
        scope: Scope,
        stopped: Callable[[], bool],
        headers: RawHeaders,
        receive: Receive,
        send: Send,
    ) -> None:
        """Send a probe. It ends early when `stopped` returns True, and when the client disconnects."""
        self._running += 1
        try:
            async with anyio.create_task_group() as tasks:
                tasks.cancel_scope.deadline = anyio.current_time() + plan.seconds + GRACE
                tasks.start_soon(_watch, receive, tasks.cancel_scope)
                with suppress(*DISCONNECT_ERRORS):
                    fields = [*STREAM_HEADERS, *headers]
                    await send({"type": "http.response.start", "status": 200, "headers": fields})
                    await _Probe(plan, stopped, send).run(self._heartbeat_interval, scope)
                tasks.cancel_scope.cancel()
        finally:
            self._running -= 1

    async def _check(self, request: StreamRequest) -> None:
        try:
            decision = self._rule(request)
            if inspect.isawaitable(decision):
                decision = await decision
        except Refusal:
            raise
        except Exception as error:
            self._failures.log(
                logging.ERROR,
                "the rule for probes raised; the client got a 500",
                error=error,
                extra=fields("probe_rule_failed"),
            )
            raise Refusal(500) from None
        if isinstance(decision, Refusal):
            raise decision
        if decision is False:
            # The response must not reveal that other requests may probe.
            raise Refusal(404)
        if decision is not True and not isinstance(decision, Grant):
            name = type(decision).__name__
            self._failures.log(
                logging.ERROR,
                "the rule for probes returned %s, not True or False",
                name,
                extra=fields("probe_rule_failed", returned=name),
            )
            raise Refusal(500)


class _Probe:
    """One probe, from the start of its response. Its events carry the milliseconds since then."""

    def __init__(self, plan: ProbePlan, stopped: Callable[[], bool], send: Send) -> None:
        self._plan = plan
        self._stopped = stopped
        self._send = send
        self._start = anyio.current_time()
        self._number = 0
        self._bytes = 0

    async def run(self, heartbeat: float | None, scope: Scope) -> None:
        plan, fields = self._plan, StreamRequest(scope).headers
        facts: dict[str, object] = {
            "heartbeat": heartbeat,
            "http": scope.get("http_version", ""),
            "scheme": scope.get("scheme", ""),
            "telling": sorted(filter(PROXY_HEADERS.fullmatch, fields)),
            "via": fields.get("via", "")[:200],
        }
        await self._send_event(asdict(plan) | facts)
        for number in range(1, plan.events + 1):
            if await self._wait_until(number * plan.interval / 1000):
                await self._send_event({})
        beat = plan.events * plan.interval / 1000
        while heartbeat is not None and (beat := beat + heartbeat) < plan.seconds:
            if await self._wait_until(beat):
                await self._send_body(HEARTBEAT)
        end = "complete" if await self._wait_until(plan.seconds) else "drain"
        await self._send_event({"end": end, "events": self._number - 1, "bytes": self._bytes}, more=False)

    async def _wait_until(self, moment: float) -> bool:
        """Wait until a moment of the probe. Return False at once if the process drains."""
        while not self._stopped():
            left = self._start + moment - anyio.current_time()
            if left <= 0:
                return True
            await anyio.sleep(min(left, DRAIN_CHECK))
        return False

    async def _send_event(self, facts: Mapping[str, object], *, more: bool = True) -> None:
        ms = round(1000 * (anyio.current_time() - self._start))
        data = json.dumps({"n": self._number, "ms": ms, **facts}, separators=(",", ":"))
        block = encode_block(data, event=EVENT)
        self._number += 1
        # The first one is as large as the others: some proxies decide by the first chunk if they compress.
        # The bytes of the comment are random, so that compression cannot shrink them.
        if more and (missing := self._plan.size - len(block)) >= 2:
            block = f":{secrets.token_hex(missing)[: missing - 2]}\n".encode() + block
        await self._send_body(block, more=more)

    async def _send_body(self, body: bytes, *, more: bool = True) -> None:
        self._bytes += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        await anyio.lowlevel.checkpoint()
    scope.cancel()
