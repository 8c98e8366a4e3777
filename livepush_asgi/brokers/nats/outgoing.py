"""The outgoing queue of a connection: messages to publish, and requests that wait for an answer."""

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from functools import partial

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from ...runtime.event_loop import start_task
from .client import Client, Receiver, settle

# The most bytes that are sent before the server has to confirm them. It confirms with the answer to a PING,
# which comes after it has processed all earlier commands.
_MAX_UNCONFIRMED = 1_000_000

_tokens = itertools.count()


@dataclass(slots=True, eq=False)
class Call:
    """A message, and its outcome: the messages with which the server answers.

    A message that is only published has an empty answer when the server has it.
    """

    subject: str
    payload: bytes
    headers: dict[str, str] | None = None
    is_request: bool = False
    token: str = field(default_factory=lambda: f"{next(_tokens):x}")
    answer: list[Msg] = field(default_factory=list)
    outcome: asyncio.Future[list[Msg]] = field(default_factory=asyncio.Future)


class OutgoingQueue:
    """Sends calls in order, and settles each of them once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._calls: dict[str, Call] = {}
        self._waiting: deque[Call] = deque()
        self._unconfirmed = 0
        self._inbox = ""

    def __len__(self) -> int:
        return len(self._calls)

    async def exchange(self, call: Call) -> list[Msg]:
        """Send a message and return its answer. While there is no connection, it waits for the next attempt.

        Raises one of FAILURES; the server may have got the message then.
        """
        self._calls[call.token] = call
        self._waiting.append(call)
        try:
            await self.send_waiting()
            return await call.outcome
        finally:
            del self._calls[call.token]

    def close(self, error: Exception) -> None:
        """Fail all calls: the connection is lost, or an attempt to connect has failed."""
        self._waiting.clear()
        self._unconfirmed = 0
        for call in self._calls.values():
            settle(call.outcome, error)

    def refuse(self, subject: str, error: Exception) -> None:
        """Fail the calls of a subject that the server refuses, given in lower case."""
        for call in self._calls.values():
            if call.subject.lower() == subject:
                settle(call.outcome, error)

    async def send_waiting(self) -> None:
        """Send what waits, if there is a connection."""
        # This never suspends, since nats-py writes to a buffer. So no call can overtake another one.
        while self._waiting and self._client.is_connected and self._unconfirmed <= _MAX_UNCONFIRMED:
            call = self._waiting.popleft()
            if not call.outcome.done():
                await self._send(call)

    async def _send(self, call: Call) -> None:
        # The server counts the headers too, and closes the connection of who sends more than it takes.
        size = len(call.payload) + _size_of(call.headers)
        if size > self._client.max_payload:
            error = NatsError(f"its {size} bytes are more than the server takes (max_payload)")
            settle(call.outcome, error)
            return
        reply = f"{await self._own_inbox()}.{call.token}" if call.is_request else ""
        await self._client.publish(call.subject, call.payload, reply, call.headers)
        self._unconfirmed += size
        if not call.is_request or self._unconfirmed > _MAX_UNCONFIRMED:
            self._client.when_processed(partial(self._note_processed, call))

    def _note_processed(self, call: Call) -> None:
        if not call.is_request:
            settle(call.outcome, call.answer)
        self._unconfirmed = 0
        if self._waiting:
            start_task(self.send_waiting(), "livepush nats sender")

    async def _own_inbox(self) -> str:
        if not self._inbox:
            self._inbox = self._client.new_inbox()
            await self._client.subscribe(f"{self._inbox}.*", future=Receiver(self._take_answer))
        return self._inbox

    def _take_answer(self, message: Msg) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call is not None:
            call.answer.append(message)
            headers = message.headers or {}
            # A message with a status ends a batch.
            if "Status" in headers or "Nats-Num-Pending" not in headers:
                settle(call.outcome, call.answer)


def _size_of(headers: dict[str, str] | None) -> int:
    # https://docs.nats.io/reference/reference-protocols/nats-protocol#hpub
    lines = [f"{name}: {value}\r\n".encode() for name, value in (headers or {}).items()]
    return sum(map(len, lines)) + len(b"NATS/1.0\r\n\r\n") if lines else 0
