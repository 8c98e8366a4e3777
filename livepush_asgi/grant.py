"""StreamRequest, Grant and Refusal: the argument and the results of `authorize`."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from http import HTTPStatus
from typing import Literal
from urllib.parse import parse_qsl

from .dialects import Dialect, RunEnd
from .errors import InvalidGrantError
from .runtime.asgi import Scope
from .wire.cursor import MAX_POSITIONS, Position
from .wire.event import RESERVED_PREFIX

# The end of the year 9999, the last year of a datetime, in seconds since the epoch.
LATEST = 253_402_300_800
# The longest query in bytes, as nginx has it. Parsing blocks the event loop, by half a second for a megabyte,
# and some servers pass on whatever comes.
MAX_QUERY = 8192
# https://www.rfc-editor.org/rfc/rfc9110#name-tokens
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class StreamRequest:
    """A client's request for a stream, as `authorize` sees it."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        #: Whether a mount has matched a path that is not below it; the client gets a 404.
        self.is_foreign = is_foreign(scope)
        self._query: dict[str, str] | None = None

    @property
    def is_too_long(self) -> bool:
        """Whether the query has more than MAX_QUERY bytes; the client gets a 414."""
        return len(self.scope.get("query_string") or b"") > MAX_QUERY

    @cached_property
    def path(self) -> str:
        """The path below the mount point: "/", or a path without a slash at its end."""
        return path_below(self.scope)

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The header fields by lower-case name. Repeated fields are joined with a comma."""
        found: dict[str, str] = {}
        for raw_name, raw_value in self.scope["headers"]:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            joint = "; " if name == "cookie" else ", "
            found[name] = f"{found[name]}{joint}{value}" if name in found else value
        return found

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters by name. For a repeated parameter the last value wins; see `query_all`.

        A query of more than 8 KiB is refused before `authorize`, with a 414. In a route of your own this
        raises the Refusal.
        """
        # Every connect reads it, and on Python 3.11 `cached_property` takes a lock.
        if self._query is None:
            self._query = dict(self._query_pairs())
        return self._query

    def query_all(self, name: str) -> list[str]:
        """Return every value of one query parameter, in order."""
        return [value for key, value in self._query_pairs() if key == name]

    @cached_property
    def cookies(self) -> Mapping[str, str]:
        """The cookies by name. For a repeated name the last value wins; see `cookies_all`."""
        return dict(self._cookie_pairs())

    def cookies_all(self, name: str) -> list[str]:
        """Return every value of one cookie, in order."""
        return [value for key, value in self._cookie_pairs() if key == name]

    @property
    def last_event_id(self) -> str | None:
        """The id after which the client resumes: the header `Last-Event-ID`, or the query's `last_event_id`.

        The query parameter is for clients that cannot set headers; those that stand in for `EventSource`
        (event-source-polyfill, reconnecting-eventsource) call it `lastEventId`. The header takes precedence,
        because `EventSource` repeats the URL unchanged when it reconnects. The value is untrusted text.
        https://html.spec.whatwg.org/multipage/server-sent-events.html#last-event-id
        """
        for name, value in self.scope["headers"]:
            if name.lower() == b"last-event-id":
                return bytes(value).decode("utf-8", "replace")
        found = self.query.get("last_event_id")
        return self.query.get("lastEventId") if found is None else found

    def _cookie_pairs(self) -> list[tuple[str, str]]:
        # A part without `=` is no cookie (RFC 6265, section 4.2.1).
        pairs = (part.split("=", 1) for part in self.headers.get("cookie", "").split(";") if "=" in part)
        return [(name.strip(), value.strip().strip('"')) for name, value in pairs]

    def _query_pairs(self) -> list[tuple[str, str]]:
        query = self.scope.get("query_string")
        if not query:
            return []
        if self.is_too_long:
            raise Refusal(414)
        # Browsers percent-encode the query to ASCII. curl sends UTF-8 unchanged.
        return parse_qsl(bytes(query).decode("utf-8", "replace"), keep_blank_values=True)


def path_below(scope: Scope) -> str:
    """Return the path below the mount point: "/", or a path without a slash at its end.

    By the ASGI specification `path` contains `root_path`, and mounts of Starlette follow it. Mounts of
    Litestar remove the prefix, leave `root_path` unchanged and add a slash. So this function removes
    `root_path` only if `path` begins with it, and only whole segments: `/eventsX` is not below `/events`.
    """
    path = str(scope["path"])
    root = str(scope.get("root_path", "")).rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return "/" + path.strip("/")


def is_foreign(scope: Scope) -> bool:
    """Return whether a mount has matched a path that is not below it.

    A mount of Litestar at `/events` also matches `/eventsX`, and passes on the rest of the path, `X/`.
    """
    path = str(scope.get("path", ""))
    return bool(path) and not path.startswith("/")


Replay = Literal["new", "last", "all"] | int
Snapshot = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Permission for one stream: its channels, and the terms.

    The stream takes a slot of `slot_key`; without a slot key it takes none. The stream ends at `expires_at`,
    the end of the client's login (an aware datetime, or seconds since the epoch). `control_events` overrides
    the setting of the LivePush, for a client that does not accept `livepush.*` events.

    `replay` decides where a client without a position begins in channels with history: "new" sends only new
    events, "last" begins with the last event (the latest value), "all" with the first event of the channel,
    and a number N with the N newest events that the log has. "all" is owed all: if the log has dropped its
    oldest events, or has more than `Limits.replay_events`, the client is sent a gap, `expired` or `overflow`,
    before what is left. "last" and a number begin without a gap. Over a broker without history, such as
    RedisBroker, any other `replay` than "new" is an error: the client gets a 500, and the log says why.

    `snapshot` is a function, async or not, that returns the state: one event or a list of them, each an Event
    or data for one. It is the state of all the channels: the component calls it before the first event of a
    stream that did not resume, and again at a gap, once for all gaps that are known then. Events that were
    published before the call are not sent after it, so write the state before you publish. The stream is
    subscribed before the call, so changes that are published during the call are delivered after the
    snapshot, which may have them too. Events that a `replay` has asked for are older than the state; a new
    client gets them after it.

    Raises InvalidGrantError, a ValueError, for a text that cannot name a channel or slot key. Raises
    TypeError for a name that is not text, and for a snapshot that is not callable.
    """

    channels: str | Iterable[str]
    slot_key: str | None = None
    expires_at: datetime | float | None = None
    control_events: bool | None = None
    replay: Replay = "new"
    snapshot: Snapshot | None = None
    #: The channels in the order given, without duplicates.
    channel_names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    #: `expires_at` in seconds since the epoch.
    expiry: float | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = (self.channels,) if isinstance(self.channels, str) else _names(self.channels)
        for channel in given:
            check_channel(channel)
        if not given and not isinstance(self, SourceGrant):
            raise InvalidGrantError(
                "a Grant names at least one channel; to refuse a client, return a Refusal"
            )
        if len(given) > MAX_POSITIONS:
            raise InvalidGrantError(
                f"a stream has at most {MAX_POSITIONS} channels, or its id outgrows a header"
            )
        names = given if len(given) == 1 else tuple(dict.fromkeys(given))
        object.__setattr__(self, "channels", names)
        object.__setattr__(self, "channel_names", names)
        expiry = None
        if self.expires_at is not None:
            expiry = _timestamp(self.expires_at)
            object.__setattr__(self, "expires_at", expiry)
        object.__setattr__(self, "expiry", expiry)
        if self.replay != "new":
            _check_replay(self.replay)
        if self.slot_key is not None:
            check_slot_key(self.slot_key)
        if self.snapshot is not None and not callable(self.snapshot):
            raise TypeError(
                f"snapshot is a function that returns the state, not {self.snapshot!r:.200}; "
                "for a value that is known already: lambda: value"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGrant(Grant):
    """Permission for one stream whose events come from a generator: it has no channels."""

    channels: tuple[()] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGrant(Grant):
    """Permission for one stream of a run's output, which ends with the run: `Run.grant` returns it.

    A client without an event id begins after `begin`. The stream is written in the `dialect`. `follow` is
    called when the stream opens, and returns a function that is called when it has closed. `end` says how
    the run has ended, if it has, and `ended_at` is the offset of the record of it.
    """

    run_id: str
    attempt: str
    begin: Position
    dialect: Dialect = field(repr=False, compare=False)
    follow: Callable[[], Callable[[], None]] = field(repr=False, compare=False)
    end: RunEnd | None = field(default=None, repr=False, compare=False)
    ended_at: int = field(default=0, repr=False, compare=False)
    replay: Replay = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAccess:
    """Permission for one client to read a run: the function that `LivePush.runs` takes returns it.

    The stream takes a slot of `slot_key`, and ends at `expires_at`, as with a Grant. With `may_cancel=False`
    the client gets a 403 when it cancels the run.

    Raises what Grant raises for these values, and TypeError for a `may_cancel` that is no bool.
    """

    slot_key: str | None = None
    expires_at: datetime | float | None = None
    may_cancel: bool = True
    #: `expires_at` in seconds since the epoch.
    expiry: float | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.may_cancel, bool):
            raise TypeError(
                f"may_cancel is True or False, not {self.may_cancel!r:.100}; is an `await` missing in front "
                "of what tells it?"
            )
        if self.slot_key is not None:
            check_slot_key(self.slot_key)
        object.__setattr__(self, "expiry", None if self.expires_at is None else _timestamp(self.expires_at))


class Refusal(Exception):
    """The answer to a client that gets no stream. `authorize` returns or raises it.

    `status` is the HTTP status. After a 204 `EventSource` stops without an error. A 4xx or 5xx has an
    `application/problem+json` body, with `detail` as text for the client. A browser's `EventSource`
    reconnects only after a 200; `soft=True` answers 200 with a reconnection time and a `livepush.refused`
    event, and ends the response. `retry_after` is in seconds. Each argument is an attribute too.
    """

    def __init__(
        self,
        status: int = 403,
        detail: str | None = None,
        *,
        soft: bool = False,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(status, int) or (status != HTTPStatus.NO_CONTENT and not 400 <= status <= 599):
            raise ValueError(f"a refusal's status is 204 or from 400 to 599, not {status!r}")
        if retry_after is not None and (not isinstance(retry_after, int) or retry_after < 0):
            raise ValueError(f"retry_after is a whole number of seconds from 0 up, not {retry_after!r}")
        self.status = int(status)
        self.detail = detail
        self.soft = soft
        self.retry_after = retry_after
        self.headers = {_checked_name(name): _checked_value(value) for name, value in (headers or {}).items()}
        super().__init__(f"{self.status} {detail or self.title}")

    @property
    def title(self) -> str:
        """The standard phrase of the status."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return "Refused"


Decision = Grant | Refusal
Authorize = Callable[[StreamRequest], Decision | Awaitable[Decision]]


@dataclass(frozen=True, slots=True)
class _GrantToAll:
    grant: Grant

    def __call__(self, request: StreamRequest) -> Grant:
        return self.grant


def public(*channels: str, slot_key: str | None = None) -> Authorize:
    """Return an `authorize` that grants these channels to every client. All share the slots of `slot_key`."""
    return _GrantToAll(Grant(channels=channels, slot_key=slot_key))


def check_channel(channel: object) -> None:
    """Raise InvalidGrantError for a text that cannot name a channel, and TypeError for another type."""
    if not isinstance(channel, str):
        raise TypeError(f"a channel name is a str, not {type(channel).__name__}")
    if not channel:
        raise InvalidGrantError("a channel name is not empty")
    if channel.startswith(RESERVED_PREFIX):
        raise InvalidGrantError(f"channel names that begin with {RESERVED_PREFIX!r} are the component's own")
    if not channel.isascii():
        _check_text("channel name", channel)


def check_slot_key(slot_key: object) -> None:
    """Raise InvalidGrantError for a text that cannot be a slot key, and TypeError for another type."""
    if not isinstance(slot_key, str):
        raise TypeError(f"a slot key is a str, or None for no slot, not {type(slot_key).__name__}")
    if not slot_key:
        raise InvalidGrantError("a slot key is not empty; None takes no slot")
    if not slot_key.isascii():
        _check_text("slot key", slot_key)


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidGrantError(f"a {what} with a lone surrogate is no text: {text[:200]!r}") from None


def _names(channels: object) -> tuple[str, ...]:
    if not isinstance(channels, Iterable):
        raise TypeError(f"channels is the name of a channel, or several names, not {channels!r:.100}")
    return tuple(channels)


def _check_replay(replay: object) -> None:
    if replay in ("last", "all"):
        return
    if isinstance(replay, bool) or not isinstance(replay, int) or replay < 0:
        raise InvalidGrantError(f"replay is 'new', 'last', 'all' or a number of events, not {replay!r:.200}")


def _timestamp(moment: datetime | float) -> float:
    if isinstance(moment, datetime):
        if moment.utcoffset() is None:
            raise ValueError(
                "expires_at needs a time zone: a naive datetime means another moment on another server"
            )
        return min(moment.timestamp(), LATEST)
    if isinstance(moment, bool) or not isinstance(moment, (int, float)) or not -LATEST <= moment <= LATEST:
        raise ValueError(
            "expires_at is an aware datetime, or seconds since the epoch before the year 10000 (is it in "
            f"milliseconds? divide by 1000), or None for no end; not {moment!r}"
        )
    return float(moment)


def _checked_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"this cannot name a header field: {text!r}")
    return text


def _checked_value(text: str) -> str:
    if any(character in text for character in "\r\n\0"):
        raise ValueError(f"a header field cannot hold line ends: {text!r}")
    text.encode("latin-1")
    return text
