"""The outgoing queue of a connection: messages to publish, and requests that wait for an answer."""

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from nats.aio.msg import Msg
from nats.errors import MaxPayloadError, OutboundBufferLimitError

from ...runtime.event_loop import start_task
from ..timeouts import no_answer
from .client import Client, Receiver
from .failures import PayloadTooLargeError

# The most bytes that are sent before the server has to confirm them. It confirms with the answer to a PING,
# which comes after it has processed all earlier commands.
_MOST_UNCONFIRMED = 1_000_000


@dataclass(slots=True, eq=False)
class Call:
    """A message, and its outcome: the answer of the server, or the error if there is none.

    A message that is only published has an empty answer when the server has it. A request is answered by one
    message, or by `many` up to one with a status.
    """

    subject: str
    payload: bytes
    headers: dict[str, str] | None = None
    is_request: bool = False
    many: bool = False
    token: str = ""
    parts: list[Msg] = field(default_factory=list)
    # The error is a result: asyncio would log an exception that is never retrieved.
    outcome: asyncio.Future[list[Msg] | Exception] = field(default_factory=lambda: asyncio.Future())
    timer: asyncio.TimerHandle | None = None

    def settle(self, outcome: list[Msg] | Exception) -> None:
        """Set the outcome, once."""
        self.stop_timer()
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def start_timer(self, timeout: float, error: Exception) -> None:
        """Fail with an error after `timeout` seconds. Replaces an earlier deadline."""
        self.stop_timer()
        self.timer = asyncio.get_running_loop().call_later(timeout, self.settle, error)

    def stop_timer(self) -> None:
        """Remove the deadline."""
        if self.timer is not None:
            self.timer.cancel()


class OutgoingQueue:
    """Sends calls in order, and settles each of them once."""

    def __init__(self, client: Client, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._is_open = False
        self._calls: dict[str, Call] = {}
        self._waiting: deque[Call] = deque()
        self._unconfirmed = 0
        self._inbox = ""
        self._tokens = itertools.count()

    def __len__(self) -> int:
        return len(self._calls)

    async def exchange(self, call: Call, fault: Exception | None) -> list[Msg]:
        """Send a message and return its outcome. Raises one of FAILURES; the server may have got it then.

        While there is no connection, the message waits for the next attempt to connect. `fault` says why
        there is none.
        """
        call.token = f"{next(self._tokens):x}"
        self._calls[call.token] = call
        self._waiting.append(call)
        if not self._is_open:
            call.start_timer(self._timeout, fault or no_answer(self._timeout))
        try:
            await self._send_waiting()
            outcome = await call.outcome
        finally:
            call.stop_timer()
            del self._calls[call.token]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def open(self) -> None:
        """Send the waiting calls, and all later ones at once: the connection is up."""
        self._is_open = True
        self._unconfirmed = 0
        await self._send_waiting()

    def close(self, error: Exception) -> None:
        """Fail all calls: the connection is lost, or an attempt to connect has failed."""
        self._is_open = False
        self._waiting.clear()
        for call in self._calls.values():
            call.settle(error)

    def refuse(self, subject: str, error: Exception) -> None:
        """Fail the calls of a subject that the server refuses, given in lower case."""
        for call in self._calls.values():
            if call.subject.lower() == subject:
                call.settle(error)

    async def _send_waiting(self) -> None:
        # This never suspends, since nats-py writes to a buffer. So no call can overtake another one.
        while self._waiting and self._is_open and self._unconfirmed <= _MOST_UNCONFIRMED:
            call = self._waiting.popleft()
            if not call.outcome.done():
                await self._send(call)

    async def _send(self, call: Call) -> None:
        call.start_timer(self._timeout, no_answer(self._timeout))
        reply = f"{await self._own_inbox()}.{call.token}" if call.is_request else ""
        try:
            await self._client.publish(call.subject, call.payload, reply, call.headers)
        except OutboundBufferLimitError:
            # With pending_size=0 nats-py raises this while there is no connection.
            call.settle(self._client.fault)
            return
        except MaxPayloadError:
            reason = f"its {len(call.payload)} bytes are more than the server takes (max_payload)"
            call.settle(PayloadTooLargeError(reason))
            return
        self._unconfirmed += len(call.payload)
        if not call.is_request or self._unconfirmed > _MOST_UNCONFIRMED:
            self._client.ping().add_done_callback(partial(self._note_confirmed, call))

    def _note_confirmed(self, call: Call, pong: asyncio.Future[object]) -> None:
        failure = pong.result()
        if isinstance(failure, Exception):
            call.settle(failure)
            return
        if not call.is_request:
            call.settle([])
        was_full = self._unconfirmed > _MOST_UNCONFIRMED
        self._unconfirmed = 0
        if was_full:
            start_task(self._send_waiting(), "livepush nats sender")

    async def _own_inbox(self) -> str:
        if not self._inbox:
            self._inbox = self._client.new_inbox()
            await self._client.subscribe(f"{self._inbox}.*", future=Receiver(self._take_answer))
        return self._inbox

    def _take_answer(self, message: Msg) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call is not None:
            call.parts.append(message)
            if not call.many or "Status" in (message.headers or {}):
                call.settle(call.parts)
