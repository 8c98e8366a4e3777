"""Stream: one open response as a test reads it; each wait has a timeout. StreamEnded: it has ended."""

import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import anyio

from ..runtime.asgi import Message
from ..wire.event import RESERVED_PREFIX
from ..wire.parser import EventStreamParser, ParsedEvent
from .exchange import Exchange

T = TypeVar("T")


class StreamEnded(Exception):
    """Raised when a test waits for something from a stream whose body has ended.

    `reason` is the end reason that the stream gave in its `livepush.close` event, None if it gave none.
    """

    def __init__(self, reason: str | None) -> None:
        self.reason = reason
        given = "without a livepush.close event" if reason is None else f"with the reason {reason!r}"
        super().__init__(f"the stream has ended, {given}")


class Stream(EventStreamParser):
    """An open response, from `Client.open`, and what was read of it so far. One task at a time reads it.

    A method takes messages from the application only as far as it needs them, so a test that calls none
    is a slow client. Each method that waits raises TimeoutError after its timeout, in seconds, and what the
    application raised, if it did.

    `last_event_id` counts all events that were read, also those that `next_event` has not returned yet: a
    message can hold several events. Each event has the id at its place as `last_event_id`.
    """

    def __init__(self, exchange: Exchange, deadline: float, last_event_id: str | None = None) -> None:
        super().__init__(last_event_id or "")
        self.status = 0
        self.headers: Mapping[str, str] = {}
        #: Every message that the application has sent so far, whether read or not.
        self.messages = exchange.messages
        #: All events that were read so far, in order.
        self.received: list[ParsedEvent] = []
        self._exchange = exchange
        self._deadline = deadline
        self._unread: deque[ParsedEvent] = deque()
        self._comments_read = 0
        self._body: list[bytes] = []
        self._ended = False

    async def opened(self) -> None:
        """Wait for the start of the response."""
        await self._within(self._deadline, "the start of the response", self._read_message)

    async def next_event(
        self, timeout: float = 1.0, *, name: str | None = None, control: bool = False
    ) -> ParsedEvent:
        """Return the next event; with `name`, the next one of that name, passing over others.

        The component's own events, `livepush.*`, are passed over unless they are asked for by name
        or with `control=True`. An event that is passed over stays in `received`. Raises StreamEnded at the
        end.
        """

        async def find() -> ParsedEvent:
            while True:
                while self._unread:
                    event = self._unread.popleft()
                    if event.event == name if name is not None else control or not _is_control(event):
                        return event
                await self._read_more()

        return await self._within(timeout, f"an event named {name!r}" if name else "an event", find)

    async def events(self, count: int, timeout: float = 1.0) -> list[ParsedEvent]:
        """Return the next `count` events; each may take `timeout` seconds."""
        return [await self.next_event(timeout) for _ in range(count)]

    async def next_comment(self, timeout: float = 1.0) -> str:
        """Return the next comment, the text after its colon. Events before it can still be read."""

        async def find() -> str:
            while len(self.comments) <= self._comments_read:
                await self._read_more()
            self._comments_read += 1
            return self.comments[self._comments_read - 1]

        return await self._within(timeout, "a comment", find)

    async def read_body(self, timeout: float | None = None) -> bytes:
        """Return the whole body of a response that ends by itself."""
        await self._within(self._deadline if timeout is None else timeout, "the end of the body", self._drain)
        return b"".join(self._body)

    async def wait_ended(self, timeout: float = 1.0) -> str | None:
        """Read to the end, wait until the application has returned, and return the end reason.

        Raises ValueError if the response is no event stream, such as a refusal.
        """
        self._check_event_stream()
        await self.wait_returned(timeout)
        return self.end_reason

    async def wait_returned(self, timeout: float = 1.0) -> None:
        """Read any response to its end, and wait until the application has returned."""
        await self._within(timeout, "the end of the stream", self._drain)
        await self._exchange.settle(timeout)

    async def disconnect(self) -> None:
        """Close the connection, as a client does, and wait until the application has returned.

        Messages that were not read are lost to the client; `messages` has them. Raises what the application
        raised, and TimeoutError if it does not return before the client's deadline.
        """
        self._exchange.leave()
        await self._exchange.settle(self._deadline)

    @property
    def control_events(self) -> list[ParsedEvent]:
        """The component's own events, `livepush.*`, among those that were received."""
        return [event for event in self.received if _is_control(event)]

    @property
    def end_reason(self) -> str | None:
        """The reason in the stream's `livepush.close` event, None if none was read."""
        closing = [event for event in self.received if event.event == f"{RESERVED_PREFIX}close"]
        return str(json.loads(closing[-1].data)["reason"]) if closing else None

    async def _read_more(self) -> None:
        """Read one message of an event stream; raise StreamEnded if there is none."""
        self._check_event_stream()
        if not await self._read_message():
            raise StreamEnded(self.end_reason)

    def _check_event_stream(self) -> None:
        if not self._is_event_stream:
            raise ValueError(f"{self._description} is not an event stream; read_body() reads it")

    async def _read_message(self) -> bool:
        """Read one message and return whether there was one. Raises what the application raised."""
        if self._ended:
            return False
        message = await self._exchange.take()
        if message is None:
            await self._exchange.settle(self._deadline)
            return False
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], _by_name(message)
            return True
        self._ended = not message.get("more_body", False)
        chunk = message.get("body", b"")
        self._body.append(chunk)
        if self._is_event_stream:
            events = self.feed(chunk)
            self.received += events
            self._unread += events
        return True

    async def _drain(self) -> None:
        while await self._read_message():
            pass

    async def _within(self, timeout: float, what: str, wait: Callable[[], Awaitable[T]]) -> T:
        with anyio.move_on_after(timeout):
            return await wait()
        raise TimeoutError(f"{what} did not come within {timeout} s from {self._description}")

    @property
    def _is_event_stream(self) -> bool:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"

    @property
    def _description(self) -> str:
        if not self.status:
            return "the application"
        names = [event.event for event in self.received]
        kind = self.headers.get("content-type", "no content type")
        return f"the response with status {self.status} and {kind} (events so far: {names})"


def _is_control(event: ParsedEvent) -> bool:
    return event.event.startswith(RESERVED_PREFIX)


def _by_name(start: Message) -> dict[str, str]:
    fields: dict[str, str] = {}
    for raw_name, raw_value in start.get("headers", ()):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields
