"""The stream that holds the logs of all channels, and the requests that it answers. JetStream's API, no more.

https://docs.nats.io/reference/reference-protocols/nats_api_reference
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import randbelow
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from ..history import History
from .connection import Connection, Outgoing
from .entry import Entry, entry_in, entry_of, seconds_of
from .failures import FAILURES
from .turns import Turns

# A mark is set when a log begins, and then at most once in the time for which events are kept.
_MOST_MARKS = 4
# Of batches of messages, which are answered from one request.
_LEAST_VERSION = (2, 11)
# A stream that is lost and made again must not come to the same numbers: they tell what has changed since.
_MOST_FIRST_SEQUENCE = 2**48
_NO_STREAM, _NAME_TAKEN, _WRONG_SEQUENCE, _WRONG_ID = 10059, 10058, 10071, 10070


class JetStreamError(NatsError):
    """Raised when JetStream refuses. `code` is its own number for the situation."""

    def __init__(self, description: str, code: int = 0) -> None:
        super().__init__(description)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How the stream is made, if it is absent. `size` bounds all logs together, in bytes."""

    name: str
    prefix: str
    history: History
    size: int
    replicas: int
    idempotency_window: float

    def configuration(self) -> dict[str, object]:
        """Return what JetStream is asked for."""
        age = 0.0 if self.history.age is None else 2 * self.history.age
        window = self.idempotency_window if not age else min(self.idempotency_window, age)
        return {
            "name": self.name,
            "subjects": [f"{self.log_prefix}.>"],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": self.replicas,
            "max_msgs_per_subject": self.history.events + _MOST_MARKS,
            "max_bytes": self.size,
            "max_age": _nanoseconds(age),
            "duplicate_window": _nanoseconds(window),
            "allow_direct": True,
            "first_seq": 1 + randbelow(_MOST_FIRST_SEQUENCE),
            # What is stored is published once more, after it was stored: that is the live way.
            "republish": {"src": f"{self.log_prefix}.>", "dest": f"{self.prefix}.>"},
        }

    @property
    def log_prefix(self) -> str:
        """What the subjects of the logs begin with. Those of live payloads begin with `prefix`."""
        return f"{self.prefix}-log"


class Stream:
    """Requests about one stream, which is made when it is absent."""

    def __init__(self, connection: Connection, settings: StreamSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._turns = Turns(*FAILURES)
        #: On which of the link's connections the stream was last seen.
        self._checked = 0
        #: How far the server's clock is ahead, in seconds.
        self._skew = 0.0

    async def ensure(self) -> None:
        """Make the stream if it is absent. Raises JetStreamError for one that is of no use here."""
        if self._is_checked:
            return
        async with self._turns.of("ensure"):
            if not self._is_checked:
                await self._ensure()

    async def _ensure(self) -> None:
        name = self._settings.name
        answer = await self._call(f"STREAM.INFO.{name}", {}, {_NO_STREAM})
        if "error" in answer:
            answer = await self._call(f"STREAM.CREATE.{name}", self._settings.configuration(), {_NAME_TAKEN})
        if "error" in answer:
            # Somebody else has made it meanwhile.
            answer = await self._call(f"STREAM.INFO.{name}", {}, set())
        self._check(answer["config"])
        self._skew = seconds_of(answer["ts"]) - time.time() if "ts" in answer else 0.0
        self._checked = self._connection.generation

    @property
    def _is_checked(self) -> bool:
        return self._checked > 0 and self._checked == self._connection.generation

    def forget(self) -> None:
        """Have the next `ensure` look again."""
        self._checked = 0

    async def store(self, subject: str, payload: bytes, headers: dict[str, str], after: int) -> int | None:
        """Add a message if the subject's last one has the sequence `after`; 0 is none.

        Return the message's sequence, None if another one came first, or the same was there already.
        """
        guard = {"Nats-Expected-Last-Subject-Sequence": str(after)}
        answer = await self._publish(Outgoing(subject, payload, headers={**headers, **guard}))
        if _code(answer) == _WRONG_SEQUENCE:
            return None
        return None if answer.get("duplicate") else int(_checked(answer)["seq"])

    async def known(self, subject: str, idempotency: str) -> int | None:
        """Return the sequence of the message that was added with this id, if it is remembered.

        JetStream compares ids before it looks for the condition here, which no stream can meet.
        """
        headers = {"Nats-Msg-Id": idempotency, "Nats-Expected-Last-Msg-Id": "-"}
        answer = await self._publish(Outgoing(subject, b"", headers=headers))
        return None if _code(answer) == _WRONG_ID else int(_checked(answer)["seq"])

    async def last(self, subject: str) -> Entry | None:
        """Return the last message of a subject, as the leader of the stream has it."""
        path = f"STREAM.MSG.GET.{self._settings.name}"
        answer = await self._call(path, {"last_by_subj": subject}, {10037})
        if "error" in answer:
            return None
        return entry_in(answer["message"])

    async def at(self, sequence: int) -> Entry | None:
        """Return the message with a sequence."""
        return await self._get({"seq": sequence})

    async def next(self, subject: str, sequence: int) -> Entry | None:
        """Return the first message of a subject from a sequence on."""
        return await self._get({"next_by_subj": subject, "seq": sequence})

    async def oldest(self, subject: str) -> Entry | None:
        """Return the first message of a subject that is not older than events are kept."""
        age = self._settings.history.age
        if age is None:
            return await self.next(subject, 1)
        since = datetime.fromtimestamp(time.time() + self._skew - age, UTC)
        return await self._get({"next_by_subj": subject, "start_time": since.isoformat()})

    async def page(self, subject: str, sequence: int, limit: int, size: int) -> list[Entry]:
        """Return up to `limit` messages of a subject from a sequence on, in little more than `size` bytes."""
        query = {"next_by_subj": subject, "seq": sequence, "batch": limit, "max_bytes": size}
        return [entry_of(part) for part in await self._ask_direct(query, many=True) if not _status(part)]

    async def clear(self, subject: str, sequence: int) -> None:
        """Remove the messages of a subject up to and with a sequence."""
        path = f"STREAM.PURGE.{self._settings.name}"
        await self._call(path, {"filter": subject, "seq": sequence + 1}, set())

    def is_old(self, entry: Entry) -> bool:
        """Whether a message is older than events are kept."""
        age = self._settings.history.age
        return age is not None and time.time() + self._skew - entry.time > age

    def _check(self, found: Mapping[str, Any]) -> None:
        if self._connection.version < _LEAST_VERSION:
            raise JetStreamError("the server is too old, JetStreamBroker needs NATS 2.11")
        wanted = self._settings.configuration()
        for name in ("subjects", "republish", "allow_direct"):
            if found.get(name) != wanted[name]:
                raise JetStreamError(
                    f"the stream {self._settings.name!r} is there with {name} {found.get(name)!r} instead of "
                    f"{wanted[name]!r}; name another stream or prefix"
                )

    async def _get(self, query: Mapping[str, object]) -> Entry | None:
        (answer,) = await self._ask_direct(query, many=False)
        return None if _status(answer) == "404" else entry_of(answer)

    async def _ask_direct(self, query: Mapping[str, object], *, many: bool) -> list[Msg]:
        subject = f"$JS.API.DIRECT.GET.{self._settings.name}"
        answer = await self._connection.request(Outgoing(subject, json.dumps(query).encode()), many=many)
        if _status(answer[-1]) not in ("", "204", "404"):
            self._refuse(answer[-1])
        return answer

    async def _publish(self, message: Outgoing) -> dict[str, Any]:
        (answer,) = await self._connection.request(message)
        return self._parsed(answer)

    async def _call(self, path: str, query: Mapping[str, object], expected: set[int]) -> dict[str, Any]:
        (answer,) = await self._connection.request(Outgoing(f"$JS.API.{path}", json.dumps(query).encode()))
        parsed = self._parsed(answer)
        return parsed if _code(parsed) in expected else _checked(parsed)

    def _parsed(self, answer: Msg) -> dict[str, Any]:
        if _status(answer):
            self._refuse(answer)
        parsed: dict[str, Any] = json.loads(answer.data)
        return parsed

    def _refuse(self, answer: Msg) -> None:
        if _status(answer) == "503":
            raise JetStreamError("nobody answers for the stream; is JetStream enabled?", _NO_STREAM)
        description = (answer.headers or {}).get("Description", "")
        raise JetStreamError(f"JetStream refuses with status {_status(answer)} {description}")


def is_absent(error: Exception) -> bool:
    """Whether the stream was not there."""
    return isinstance(error, JetStreamError) and error.code == _NO_STREAM


def _code(answer: Mapping[str, Any]) -> int | None:
    return answer["error"].get("err_code", 0) if "error" in answer else None


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise JetStreamError(answer["error"].get("description", "JetStream refuses"), _code(answer) or 0)
    return answer


def _status(message: Msg) -> str:
    return (message.headers or {}).get("Status", "")


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
