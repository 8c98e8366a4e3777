"""Publishes the events of one request in order, and says what has become of each."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from ...errors import BrokerUnavailableError, InvalidEventError, InvalidGrantError, PositionConflictError
from ...grant import Refusal
from ...wire.cursor import Position, event_id
from ...wire.event import Event
from .content import Content, Publication

AWAY = (
    "The broker is away. The event may have been published: repeat the request, with the same "
    "Idempotency-Key."
)
NOT_TRIED = "Not published, since an event before it was not."
CONFLICT = "The log has gone on past expected_position."
NOT_TAKEN = "The broker does not take this event."
# In seconds, with a 503.
RETRY_AFTER = 2


#: `LivePush.publish`.
Publish = Callable[..., Awaitable[str | None]]


class Problem(Refusal):
    """A refusal with further members of its problem details."""

    def __init__(
        self, status: int, detail: str, *, retry_after: int | None = None, **members: object
    ) -> None:
        super().__init__(status, detail, retry_after=retry_after)
        self.members: Mapping[str, object] = members


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a 200 and its media type."""

    content: bytes
    media_type: bytes = b"application/json"


class Publishing:
    """Publishes by `push.publish`. `keeps_history` says whether the broker keeps a log."""

    def __init__(self, publish: Publish, *, keeps_history: bool) -> None:
        self._publish = publish
        self._keeps_history = keeps_history

    async def publish(self, content: Content, key: str | None) -> Answer:
        """Publish the events in order. Raises Refusal if at least one of them may be missing.

        The first event that the broker does not take ends the request: a later one must not come before it
        when the request is repeated.
        """
        self._check_history(content, key)
        if content.form == "items":
            return await self._publish_items(content.publications, key)
        ids: dict[str, str | None] = {}
        for publication in content.publications:
            if content.form == "mercure" and not self._keeps_history:
                publication = _with_id(publication)
            ids[publication.channel] = await self._publish_one(publication, key)
        match content.form:
            case "channels":
                return _json({"ids": ids})
            case "mercure":
                # An update of Mercure has one id; that of the first topic is the canonical one.
                return Answer(str(next(iter(ids.values()))).encode(), b"text/plain; charset=utf-8")
        return _json({"id": ids[content.publications[0].channel]})

    async def _publish_items(self, publications: Sequence[Publication], key: str | None) -> Answer:
        results: list[object] = []
        away: Problem | None = None
        for publication in publications:
            if away is not None:
                results.append(_failed("not_published", NOT_TRIED))
                continue
            try:
                results.append({"id": await self._publish_one(publication, key)})
            except Problem as problem:
                if problem.status == 409:
                    results.append(_failed("conflict", CONFLICT, **problem.members))
                elif problem.status == 400:
                    results.append(_failed("invalid", NOT_TAKEN))
                else:
                    away = problem
                    results.append(_failed("unavailable", AWAY))
        if away is not None:
            raise Problem(503, AWAY, retry_after=RETRY_AFTER, items=results)
        return _json({"items": results})

    async def _publish_one(self, publication: Publication, key: str | None) -> str | None:
        channel = publication.channel
        try:
            return await self._publish(
                channel,
                publication.event,
                idempotency_key=publication.key(key),
                expected_position=publication.expected_position,
            )
        except PositionConflictError as error:
            last = event_id(channel, error.last) if isinstance(error.last, Position) else None
            raise Problem(409, CONFLICT, last=last) from None
        except BrokerUnavailableError:
            raise Problem(503, AWAY, retry_after=RETRY_AFTER) from None
        except (InvalidEventError, InvalidGrantError):
            raise Problem(400, NOT_TAKEN) from None

    def _check_history(self, content: Content, key: str | None) -> None:
        if self._keeps_history:
            return
        expects = any(publication.expected_position is not None for publication in content.publications)
        if key is not None or expects:
            raise Refusal(
                400,
                "The application's broker keeps no history, so it can promise neither Idempotency-Key nor "
                "expected_position.",
            )


def _with_id(publication: Publication) -> Publication:
    """Return a publication whose event has an id: an update of Mercure always has one."""
    event = publication.event
    if event.id is None:
        event = Event(event.data, event.event, f"urn:uuid:{uuid4()}", event.retry)
    return Publication(publication.channel, event)


def _failed(code: str, message: str, **members: object) -> object:
    return {"error": {"code": code, "message": message, **members}}


def _json(value: object) -> Answer:
    return Answer(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
