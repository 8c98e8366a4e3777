"""Reads the body of a publisher: JSON, or the form of a Mercure publisher. Pure functions.

https://mercure.rocks/spec#publication
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl

from ...errors import InvalidEventError, InvalidGrantError
from ...grant import Refusal, check_channel
from ...wire.cursor import Position
from ...wire.encode import Encode, encoded
from ...wire.event import Event

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
#: The longest Idempotency-Key.
MAX_KEY = 255
# How deep arrays and objects of a JSON body may be nested.
MAX_DEPTH = 100
# The longest detail of an error that repeats something of the request.
MAX_DETAIL = 200
_SINGLE = frozenset({"channel", "channels", "data", "event", "id", "retry", "expected_position"})
_ITEM = _SINGLE - {"channels"}
# https://www.rfc-editor.org/rfc/rfc9651#name-strings
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE = re.compile(r"[!#-+\--:<-~]+")


@dataclass(frozen=True, slots=True)
class Publication:
    """One event for one channel. `index` is its place in a batch, None if the request is no batch."""

    channel: str
    event: Event
    expected_position: Position | None = None
    index: int | None = None

    def key(self, key: str | None) -> str | None:
        """Return the idempotency key of this event, for the key of its request.

        Brokers remember keys for each channel. The header cannot have a line end, so that a key of a batch is
        never that of another request.
        """
        return key if key is None or self.index is None else f"{key}\n{self.index}"


@dataclass(frozen=True, slots=True)
class Content:
    """What a request asks for. `form` says which answer it gets: "single", "channels", "items", "mercure"."""

    form: str
    publications: Sequence[Publication]


class Reader:
    """Reads bodies. `encode` is that of the LivePush; `max_batch` bounds the events of one request."""

    def __init__(self, encode: Encode | None, max_batch: int) -> None:
        self._encode = encode
        self._max_batch = max_batch

    def read(self, kind: str, body: bytes) -> Content:
        """Return what a body asks for. Raises Refusal."""
        return self._form(body) if kind == FORM else self._json(body)

    def _json(self, body: bytes) -> Content:
        value = _members(_parsed(body), "The body")
        if "items" not in value:
            _check_names(value, _SINGLE, "The body")
            if ("channel" in value) == ("channels" in value):
                _refuse("The body has one of channel, channels and items.")
            event, expected = self._event(value, "The body")
            if "channel" in value:
                return Content("single", [Publication(_channel(value["channel"]), event, expected)])
            channels = self._channels(value["channels"])
            if expected is not None and len(channels) > 1:
                _refuse("expected_position is for one channel.")
            return Content("channels", [Publication(channel, event, expected) for channel in channels])
        _check_names(value, frozenset({"items"}), "The body with items")
        items = self._bounded(value["items"], "items")
        return Content("items", [self._item(item, index) for index, item in enumerate(items)])

    def _item(self, item: object, index: int) -> Publication:
        place = f"Item {index}"
        members = _members(item, place)
        _check_names(members, _ITEM, place)
        if "channel" not in members:
            _refuse(f"{place} has no channel.")
        event, expected = self._event(members, place)
        return Publication(_channel(members["channel"]), event, expected, index)

    def _event(self, members: Mapping[str, object], place: str) -> tuple[Event, Position | None]:
        if "data" not in members:
            _refuse(f'{place} has no data. An event without data has the data "".')
        expected = members.get("expected_position")
        if not (expected is None or isinstance(expected, str)):
            _refuse(f"{place} has an expected_position that is no id of an event.")
        try:
            position = None if expected is None else Position.of_id(expected)
        except ValueError:
            _refuse(f"{place} has an expected_position that is no id of an event.")
        named = {name: members.get(name) for name in ("event", "id", "retry")}
        return self._made(members["data"], place, **named), position

    def _made(self, data: object, place: str, event: object, id: object, retry: object) -> Event:
        try:
            # Event validates the types of its arguments.
            Event("", event, id, retry)  # type: ignore[arg-type]
        except InvalidEventError as error:
            _refuse(f"{place}: {error}")
        try:
            text = data if self._encode is None else encoded(data, self._encode)
            return Event(text, event, id, retry)  # type: ignore[arg-type]
        except InvalidEventError:
            # The error may be one of the application's `encode`, with internals.
            _refuse(f"{place}: an event cannot have this data.")

    def _channels(self, value: object) -> list[str]:
        return list(dict.fromkeys(_channel(name) for name in self._bounded(value, "channels")))

    def _bounded(self, value: object, name: str) -> Sequence[object]:
        if not isinstance(value, list) or not value:
            _refuse(f"{name} is an array, and not empty.")
        if len(value) > self._max_batch:
            raise Refusal(413, f"One request has at most {self._max_batch} {name}.")
        return value

    def _form(self, body: bytes) -> Content:
        fields: dict[str, list[str]] = {}
        try:
            pairs = parse_qsl(
                body.decode(), keep_blank_values=True, errors="strict", max_num_fields=self._max_batch + 100
            )
        except ValueError:
            _refuse("The body is no form in UTF-8, or has too many fields.")
        for name, value in pairs:
            fields.setdefault(name, []).append(value)
        channels = self._channels(fields.get("topic", []))
        single = {}
        for name in ("data", "id", "type", "retry"):
            values = fields.get(name, [])
            if len(values) > 1:
                _refuse(f"The form has {name} more than once.")
            single[name] = values[0] if values else ""
        retry = single["retry"]
        if retry and not re.fullmatch(r"[0-9]{1,10}", retry):
            _refuse("retry is a whole number of milliseconds.")
        event = self._made(
            single["data"],
            "The form",
            single["type"] or None,
            single["id"] or None,
            int(retry) if retry else None,
        )
        return Content("mercure", [Publication(channel, event) for channel in channels])


def media_type(content_type: str) -> str:
    """Return the media type of a header `Content-Type`, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def idempotency_key(value: str | None) -> str | None:
    """Return the key of a header `Idempotency-Key`. Raises Refusal for an invalid one.

    It is a string in quotes; one without quotes, as many clients send it, is the same key.
    https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
    """
    if value is None:
        return None
    if (quoted := _QUOTED.fullmatch(value.strip())) is not None:
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _BARE.fullmatch(value.strip()):
        key = value.strip()
    else:
        key = ""
    if not 1 <= len(key) <= MAX_KEY:
        _refuse(f'Idempotency-Key is one string of 1 to {MAX_KEY} ASCII characters, such as "order-7-paid".')
    return key


def _parsed(body: bytes) -> object:
    try:
        value: object = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        _refuse(f"The body is no JSON: {error}.")
    except UnicodeDecodeError:
        _refuse("The body is not UTF-8.")
    except ValueError:
        _refuse("The body has a number that is too long.")
    except RecursionError:
        _refuse(TOO_DEEP)
    # Only a body with so many brackets can be nested too deep.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _check_depth(value)
    return value


TOO_DEEP = f"The body is nested deeper than {MAX_DEPTH} levels."


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner += [one for one in each.values() if isinstance(one, (dict, list))]
            elif isinstance(each, list):
                inner += [one for one in each if isinstance(one, (dict, list))]
        if not inner:
            return
        level = inner
    _refuse(TOO_DEEP)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object. A parser in front of this one may take the other of two members with one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse("The body has an object with two members of the same name.")
    return found


def _refuse_constant(name: str) -> NoReturn:
    _refuse(f"The body is no JSON: {name}.")


def _members(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        _refuse(f"{place} is no JSON object.")
    return value


def _check_names(members: Mapping[str, object], allowed: frozenset[str], place: str) -> None:
    if unknown := [name for name in members if name not in allowed]:
        _refuse(f"{place} has an unknown member: {unknown[0]!r}.")


def _channel(name: object) -> str:
    try:
        check_channel(name)
    except (InvalidGrantError, TypeError) as error:
        _refuse(f"{error}.")
    assert isinstance(name, str)
    return name


def _refuse(detail: str) -> NoReturn:
    raise Refusal(400, detail if len(detail) <= MAX_DETAIL else detail[: MAX_DETAIL - 1] + "…")
