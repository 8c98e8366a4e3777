"""The stream that holds the logs of all channels: its settings, its messages, and the requests to it.

https://docs.nats.io/reference/reference-protocols/nats_api_reference
"""

import asyncio
import base64
import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from secrets import randbelow
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from ...settings import check_seconds, check_whole
from ...wire.cursor import Position
from ...wire.event import positioned
from ..history import History
from .connection import Connection
from .outgoing import Call

#: The header with a message's position: an event has the first, a mark the second. A mark is no event. It
#: keeps the position of the log's end when the log has no event there.
POSITION, MARK = "Livepush-Position", "Livepush-Mark"
#: The position of a message that another program has added. No log draws this epoch.
FOREIGN = Position("-", 0)
# A log gets a mark when it begins, and then at most one in the time for which events are kept.
_MAX_MARKS = 4
_STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A day, in seconds. A longer window is most likely in milliseconds.
_LONGEST_WINDOW = 24 * 3600
# Direct batch get needs this version.
_LEAST_VERSION = (2, 11)
# A stream that is lost and made again must have other sequences: an equal sequence means an unchanged log.
_MAX_FIRST_SEQUENCE = 2**48
# Error codes of JetStream.
_NO_MESSAGE, _NO_STREAM, _NAME_TAKEN, _WRONG_ID, _WRONG_SEQUENCE = 10037, 10059, 10058, 10070, 10071


class Entry(NamedTuple):
    """One message of a log."""

    position: Position
    sequence: int
    is_event: bool = True
    payload: bytes = b""
    #: When the server has stored it, as it writes times.
    time: str = ""


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
        window: float,
    ) -> None:
        if not _STREAM_NAME.fullmatch(name):
            raise ValueError(f"a stream's name is 1 to 64 letters, digits, '-' and '_', not {name!r}")
        check_whole("max_size", size)
        check_whole("replicas", replicas)
        check_seconds("idempotency_window", window, _LONGEST_WINDOW)
        self._connect = connect
        self._name = name
        self._age = history.age
        self._locks: WeakValueDictionary[tuple[Connection, str], asyncio.Lock] = WeakValueDictionary()
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
            "max_msgs_per_subject": history.events + _MAX_MARKS,
            "max_bytes": size,
            "max_age": int(kept * 1e9),
            "duplicate_window": int(min(window, kept or window) * 1e9),
            "allow_direct": True,
            "first_seq": 1 + randbelow(_MAX_FIRST_SEQUENCE),
            # The server republishes each event after it has stored it. Subscriptions get the copy.
            "republish": {"src": f"{self.log_prefix}.>", "dest": f"{prefix}.>"},
        }

    def lock(self, key: str) -> asyncio.Lock:
        """Return the lock of a key, the same one for all callers on this event loop."""
        return self._locks.setdefault((self._connect(), key), asyncio.Lock())

    async def add(self, subject: str, payload: bytes, headers: dict[str, str]) -> dict[str, Any] | None:
        """Add a message and return JetStream's answer, None if a condition in the headers does not hold."""
        return _parse(await self._request(subject, payload, headers), _WRONG_ID, _WRONG_SEQUENCE)

    async def last(self, subject: str) -> Entry | None:
        """Return the last message of a subject. The leader answers; a direct get may come from a replica."""
        query = json.dumps({"last_by_subj": subject}).encode()
        reply = await self._request(f"$JS.API.STREAM.MSG.GET.{self._name}", query)
        answer = _parse(reply, _NO_MESSAGE, _NO_STREAM)
        if answer is None:
            return None
        message = answer["message"]
        lines = base64.b64decode(message.get("hdrs", "")).decode("latin-1").split("\r\n")[1:]
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return _entry(message["seq"], headers, base64.b64decode(message.get("data", "")))

    async def get(self, **query: str | int) -> list[Entry]:
        """Return the messages for a query as direct get takes it: one, unless it has a `batch`."""
        answer = await self._request(f"$JS.API.DIRECT.GET.{self._name}", json.dumps(query).encode())
        parts = [(message.headers or {}, message.data) for message in answer if not _status(message)]
        return [_entry(int(headers["Nats-Sequence"]), headers, payload) for headers, payload in parts]

    def age_of(self, entry: Entry) -> float:
        """Return how long ago a message was stored, in seconds, by the server's clock."""
        return time.time() + self._skew - datetime.fromisoformat(entry.time).timestamp()

    async def oldest(self, subject: str) -> Entry | None:
        """Return the first message of a subject that is not older than events are kept."""
        since = 0.0 if self._age is None else time.time() + self._skew - self._age
        start = datetime.fromtimestamp(since, UTC).isoformat()
        return next(iter(await self.get(next_by_subj=subject, start_time=start)), None)

    async def clear(self, subject: str, sequence: int) -> None:
        """Remove the messages of a subject up to and including a sequence."""
        query = json.dumps({"filter": subject, "seq": sequence + 1}).encode()
        _parse(await self._request(f"$JS.API.STREAM.PURGE.{self._name}", query))

    async def _request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None
    ) -> list[Msg]:
        """Return the server's answer. Makes the stream before, if it is absent."""
        await self._ensure()
        with contextlib.suppress(NoRespondersError):
            return await self._send(subject, payload, headers)
        # The stream was lost or removed. Nothing was added, so it is safe to try again.
        self._is_ensured = False
        await self._ensure()
        return await self._send(subject, payload, headers)

    async def _send(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> list[Msg]:
        answer = await self._connect().exchange(Call(subject, payload, headers, is_request=True))
        status = _status(answer[-1])
        if status == "503":
            raise NoRespondersError
        # 204 ends a batch, 404 means that there is no such message.
        if status not in ("", "204", "404"):
            description = (answer[-1].headers or {}).get("Description", "")
            raise NatsError(f"JetStream refuses with status {status} {description}")
        return answer

    async def _ensure(self) -> None:
        if not self._is_ensured:
            async with self.lock(""):
                if not self._is_ensured:
                    await self._make()

    async def _make(self) -> None:
        info, create = (f"$JS.API.STREAM.{verb}.{self._name}" for verb in ("INFO", "CREATE"))
        configuration = json.dumps(self._configuration).encode()
        answer = (
            _parse(await self._send(info, b""), _NO_STREAM)
            or _parse(await self._send(create, configuration), _NAME_TAKEN)
            # Another process has made it meanwhile.
            or _parse(await self._send(info, b""))
            or {}
        )
        if self._connect().server_version < _LEAST_VERSION:
            raise NatsError("the server is too old, JetStreamBroker needs NATS 2.11")
        for setting in ("subjects", "republish", "allow_direct"):
            found, wanted = answer["config"].get(setting), self._configuration[setting]
            if found != wanted:
                raise NatsError(
                    f"the stream {self._name!r} is there with {setting} {found!r} instead of {wanted!r}; "
                    "name another stream or prefix"
                )
        self._skew = datetime.fromisoformat(answer["ts"]).timestamp() - time.time()
        self._is_ensured = True


def _parse(answer: list[Msg], *expected_errors: int) -> dict[str, Any] | None:
    """Return what an answer says, None if it is one of the expected errors."""
    parsed: dict[str, Any] = json.loads(answer[0].data)
    error = parsed.get("error")
    if error is None:
        return parsed
    if error.get("err_code") in expected_errors:
        return None
    raise NatsError(error.get("description", "JetStream refuses"))


def _status(message: Msg) -> str:
    return (message.headers or {}).get("Status", "")


def _entry(sequence: int, headers: Mapping[str, str], payload: bytes) -> Entry:
    is_event = POSITION in headers
    try:
        position = Position.parse(headers.get(POSITION if is_event else MARK, ""))
    except ValueError:
        position = FOREIGN
    return Entry(position, sequence, is_event, payload, headers.get("Nats-Time-Stamp", ""))
