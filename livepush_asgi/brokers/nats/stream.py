"""The stream that holds the logs of all channels: its settings, its messages, and the requests to it.

https://docs.nats.io/reference/reference-protocols/nats_api_reference
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from secrets import randbelow
from typing import Any, NamedTuple, TypeVar

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from ...settings import check_seconds, check_whole
from ...wire.cursor import Position
from ...wire.event import positioned
from ..history import History
from .connection import Connection
from .outgoing import Call

Result = TypeVar("Result")

#: The header with a message's position: an event has the first, a mark the second. A mark is no event. It
#: keeps the position of the log's end when the log has no event there.
POSITION, MARK = "Livepush-Position", "Livepush-Mark"
#: The position of a message that another program has added. No log draws this epoch.
FOREIGN = Position("-", 0)
# A log gets a mark when it begins, and then at most one in the time for which events are kept.
_MOST_MARKS = 4
_STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A day, in seconds. A longer window is most likely in milliseconds.
_LONGEST_WINDOW = 24 * 3600
# Direct batch get needs this version.
_LEAST_VERSION = (2, 11)
# A stream that is lost and made again must have other sequences: an equal sequence means an unchanged log.
_MOST_FIRST_SEQUENCE = 2**48
# Error codes of JetStream.
_NO_MESSAGE, _NO_STREAM, _NAME_TAKEN, _WRONG_ID, _WRONG_SEQUENCE = 10037, 10059, 10058, 10070, 10071


class JetStreamError(NatsError):
    """Raised when JetStream refuses. `code` is its error code, 0 if it has named none."""

    def __init__(self, description: str, code: int = 0) -> None:
        super().__init__(description)
        self.code = code


class Entry(NamedTuple):
    """One message of a log."""

    position: Position
    sequence: int
    time: float = 0.0
    is_event: bool = True
    payload: bytes = b""


def live_payload_of(message: Msg) -> bytes | None:
    """Return the payload that a subscription gets for a live message, None for a mark."""
    headers = message.headers or {}
    if MARK in headers:
        return None
    try:
        return positioned(Position.parse(headers[POSITION]), message.data)
    except (KeyError, ValueError):
        # Another program has published it past the log.
        return message.data


class Stream:
    """Requests to one stream, which is made if it is absent. Raises one of FAILURES.

    `size` bounds all logs together, in bytes.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        name: str,
        prefix: str,
        history: History,
        *,
        size: int,
        replicas: int,
        idempotency_window: float,
    ) -> None:
        if not _STREAM_NAME.fullmatch(name):
            raise ValueError(f"a stream's name is 1 to 64 letters, digits, '-' and '_', not {name!r}")
        check_whole("max_size", size)
        check_whole("replicas", replicas)
        check_seconds("idempotency_window", idempotency_window, _LONGEST_WINDOW)
        self._connect = connect
        self._name = name
        self._age = history.age
        self._is_ensured = False
        #: How far the server's clock is ahead, in seconds.
        self._skew = 0.0
        #: The prefix of the logs' subjects. The subjects of live payloads begin with `prefix`.
        self.log_prefix = f"{prefix}-log"
        kept = 2 * (self._age or 0.0)
        # As JetStream takes it; times are in nanoseconds.
        self._configuration = {
            "name": name,
            "subjects": [f"{self.log_prefix}.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": replicas,
            "max_msgs_per_subject": history.events + _MOST_MARKS,
            "max_bytes": size,
            "max_age": int(kept * 1e9),
            "duplicate_window": int(min(idempotency_window, kept or idempotency_window) * 1e9),
            "allow_direct": True,
            "first_seq": 1 + randbelow(_MOST_FIRST_SEQUENCE),
            # The server republishes each event after it has stored it. Subscriptions get the copy.
            "republish": {"src": f"{self.log_prefix}.>", "dest": f"{prefix}.>"},
        }

    def lock(self, key: str) -> asyncio.Lock:
        """Return the lock of a key, the same one for all callers on this event loop."""
        return self._connect().lock(key)

    async def use(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Make the stream if it is absent, and act. Raises JetStreamError if another one has its name."""
        await self._ensure()
        try:
            return await act()
        except JetStreamError as error:
            if error.code != _NO_STREAM:
                raise
        # The stream was lost or removed. The event was not added, so it is safe to try again.
        self._is_ensured = False
        await self._ensure()
        return await act()

    async def _ensure(self) -> None:
        if not self._is_ensured:
            async with self.lock(""):
                if not self._is_ensured:
                    await self._make()

    async def _make(self) -> None:
        info = f"STREAM.INFO.{self._name}"
        answer = await self._call(info, {}, _NO_STREAM)
        if answer is None:
            answer = await self._call(f"STREAM.CREATE.{self._name}", self._configuration, _NAME_TAKEN)
        if answer is None:
            # Another process has made it meanwhile.
            answer = await self._call(info, {}) or {}
        if self._connect().server_version < _LEAST_VERSION:
            raise JetStreamError("the server is too old, JetStreamBroker needs NATS 2.11")
        for setting in ("subjects", "republish", "allow_direct"):
            found, wanted = answer["config"].get(setting), self._configuration[setting]
            if found != wanted:
                raise JetStreamError(
                    f"the stream {self._name!r} is there with {setting} {found!r} instead of {wanted!r}; "
                    "name another stream or prefix"
                )
        self._skew = _seconds_of(answer["ts"]) - time.time()
        self._is_ensured = True

    async def store(self, subject: str, payload: bytes, headers: dict[str, str], after: int) -> int | None:
        """Add a message if the subject's last one has the sequence `after`; 0 means that there is none.

        Return its sequence, None if another message came first, or the same was there already.
        """
        condition = {"Nats-Expected-Last-Subject-Sequence": str(after)}
        answer = await self._publish(subject, payload, {**headers, **condition}, _WRONG_SEQUENCE)
        return None if answer is None or answer.get("duplicate") else int(answer["seq"])

    async def known(self, subject: str, message_id: str) -> int | None:
        """Return the sequence of the message that was added with this id, None if the id is not remembered.

        JetStream compares ids before it looks at the condition here, which no stream can meet.
        """
        headers = {"Nats-Msg-Id": message_id, "Nats-Expected-Last-Msg-Id": "-"}
        answer = await self._publish(subject, b"", headers, _WRONG_ID)
        return None if answer is None else int(answer["seq"])

    async def last(self, subject: str) -> Entry | None:
        """Return the last message of a subject. The leader answers; a direct get may come from a replica."""
        answer = await self._call(f"STREAM.MSG.GET.{self._name}", {"last_by_subj": subject}, _NO_MESSAGE)
        if answer is None:
            return None
        message = answer["message"]
        lines = base64.b64decode(message.get("hdrs", "")).decode("latin-1").split("\r\n")[1:]
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        payload = base64.b64decode(message.get("data", ""))
        return _entry(message["seq"], message["time"], headers, payload)

    async def at(self, sequence: int) -> Entry | None:
        """Return the message with a sequence."""
        return await self._get({"seq": sequence})

    async def next(self, subject: str, sequence: int) -> Entry | None:
        """Return the first message of a subject from a sequence on."""
        return await self._get({"next_by_subj": subject, "seq": sequence})

    async def oldest(self, subject: str) -> Entry | None:
        """Return the first message of a subject that is not older than events are kept."""
        if self._age is None:
            return await self.next(subject, 1)
        since = datetime.fromtimestamp(time.time() + self._skew - self._age, UTC)
        return await self._get({"next_by_subj": subject, "start_time": since.isoformat()})

    async def page(self, subject: str, sequence: int, limit: int, size: int) -> list[Entry]:
        """Return up to `limit` messages of a subject from a sequence on, in little more than `size` bytes."""
        return await self._get_all(
            {"next_by_subj": subject, "seq": sequence, "batch": limit, "max_bytes": size}
        )

    async def clear(self, subject: str, sequence: int) -> None:
        """Remove the messages of a subject up to and including a sequence."""
        await self._call(f"STREAM.PURGE.{self._name}", {"filter": subject, "seq": sequence + 1})

    def is_old(self, entry: Entry) -> bool:
        """Return whether a message is older than events are kept."""
        return self._age is not None and time.time() + self._skew - entry.time > self._age

    async def _get(self, query: Mapping[str, object]) -> Entry | None:
        return next(iter(await self._get_all(query)), None)

    async def _get_all(self, query: Mapping[str, object]) -> list[Entry]:
        call = Call(f"$JS.API.DIRECT.GET.{self._name}", json.dumps(query).encode(), is_request=True)
        answer = await self._connect().exchange(call)
        # 204 ends a batch, 404 means that there is no such message.
        if _status(answer[-1]) not in ("", "204", "404"):
            raise _refusal(answer[-1])
        return [_entry_of(part) for part in answer if not _status(part)]

    async def _call(
        self, path: str, query: Mapping[str, object], expected_error: int = 0
    ) -> dict[str, Any] | None:
        return await self._publish(f"$JS.API.{path}", json.dumps(query).encode(), None, expected_error)

    async def _publish(
        self, subject: str, payload: bytes, headers: dict[str, str] | None, expected_error: int
    ) -> dict[str, Any] | None:
        """Return the answer, None if it is the expected error."""
        (answer,) = await self._connect().exchange(Call(subject, payload, headers, is_request=True))
        if _status(answer):
            raise _refusal(answer)
        parsed: dict[str, Any] = json.loads(answer.data)
        error = parsed.get("error")
        if error is None:
            return parsed
        if error.get("err_code") == expected_error:
            return None
        raise JetStreamError(error.get("description", "JetStream refuses"), error.get("err_code", 0))


def _refusal(answer: Msg) -> JetStreamError:
    if _status(answer) == "503":
        return JetStreamError("JetStream does not answer for the stream; is JetStream enabled?", _NO_STREAM)
    description = (answer.headers or {}).get("Description", "")
    return JetStreamError(f"JetStream refuses with status {_status(answer)} {description}")


def _status(message: Msg) -> str:
    return (message.headers or {}).get("Status", "")


def _entry_of(message: Msg) -> Entry:
    """Return the entry of a direct answer: the message itself, with headers added by the server."""
    headers = message.headers or {}
    return _entry(int(headers["Nats-Sequence"]), headers["Nats-Time-Stamp"], headers, message.data)


def _entry(sequence: int, stamp: str, headers: Mapping[str, str], payload: bytes) -> Entry:
    is_event = POSITION in headers
    try:
        position = Position.parse(headers.get(POSITION if is_event else MARK, ""))
    except ValueError:
        position = FOREIGN
    return Entry(position, sequence, _seconds_of(stamp), is_event, payload)


def _seconds_of(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
