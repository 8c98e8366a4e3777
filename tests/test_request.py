"""StreamRequest, Grant, Refusal and public: what authorize sees, and what it may answer."""

import math
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from http import HTTPStatus
from typing import Any

import litestar
import pytest
from litestar.types import Receive as LitestarReceive
from litestar.types import Scope as LitestarScope
from litestar.types import Send as LitestarSend
from starlette.applications import Starlette
from starlette.routing import Mount

from livepush_asgi import InvalidGrantError, LivePush, MemoryBroker
from livepush_asgi.grant import (
    MAX_QUERY,
    Grant,
    Refusal,
    StreamRequest,
    check_channel,
    is_foreign,
    path_below,
    public,
)
from livepush_asgi.runtime.asgi import Receive, Scope, Send
from livepush_asgi.testing import Client


def request(**scope: Any) -> StreamRequest:
    return StreamRequest({"path": "/", "query_string": b"", "headers": [], **scope})


def test_headers_are_found_by_lower_case_name_and_joined() -> None:
    headers = [(b"X-One", b"1"), (b"accept", b"a"), (b"Accept", b"b"), (b"x-text", "grün".encode("latin-1"))]
    assert request(headers=headers).headers == {"x-one": "1", "accept": "a, b", "x-text": "grün"}


def test_query_parameters_are_decoded() -> None:
    found = request(query_string=b"a=1&b=x+y&c=%C3%BC&d=&e&a=2")
    assert found.query == {"a": "2", "b": "x y", "c": "ü", "d": "", "e": ""}
    assert found.query_all("a") == ["1", "2"]
    assert found.query_all("z") == []


@pytest.mark.parametrize(("raw", "text"), [("ü".encode(), "ü"), (b"\xff", "\ufffd"), (b"%FF", "\ufffd")])
def test_a_query_that_is_not_encoded_as_it_should_be_is_read_as_utf8(raw: bytes, text: str) -> None:
    assert request(query_string=b"a=" + raw).query == {"a": text}


def test_a_scope_without_a_query_string_has_no_parameters() -> None:
    assert StreamRequest({"path": "/", "headers": []}).query == {}


async def test_a_query_that_is_too_long_is_refused_before_anybody_reads_it() -> None:
    asked: list[StreamRequest] = []

    def authorize(request: StreamRequest) -> Grant:
        asked.append(request)
        return Grant(channels=request.query["channel"])

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = await client.request(method, "/?channel=c&x=" + "x" * MAX_QUERY)
            assert (answer.status, len(answer.body) < 100) == (414, True)
        assert not asked
        async with client.open("/?channel=c&x=" + "x" * (MAX_QUERY - 12)) as stream:
            assert (await stream.next_event(control=True)).event == "livepush.open"
    with pytest.raises(Refusal, match="414"):
        assert request(query_string=b"x" * (MAX_QUERY + 1)).query_all("x")


def test_cookies_are_read_from_all_cookie_fields() -> None:
    headers = [(b"cookie", b'a=1; b="two"; c=x=y'), (b"cookie", b"d="), (b"other", b"e=5")]
    assert request(headers=headers).cookies == {"a": "1", "b": "two", "c": "x=y", "d": ""}


@pytest.mark.parametrize("field", [b"", b"novalue", b";;", b" ; "])
def test_what_is_no_cookie_is_passed_over(field: bytes) -> None:
    assert request(headers=[(b"cookie", field)]).cookies == {}


def test_there_is_no_last_event_id_on_a_first_visit() -> None:
    assert request().last_event_id is None


def test_the_last_event_id_is_utf8_in_the_header() -> None:
    assert request(headers=[(b"Last-Event-ID", "7€".encode())]).last_event_id == "7€"
    assert request(headers=[(b"last-event-id", b"\xff")]).last_event_id == "\ufffd"


def test_the_last_event_id_may_stand_in_the_query() -> None:
    assert request(query_string=b"last_event_id=7%E2%82%AC").last_event_id == "7€"
    assert request(query_string=b"lastEventId=7%E2%82%AC").last_event_id == "7€"


def test_the_header_wins_over_the_query() -> None:
    found = request(query_string=b"last_event_id=old", headers=[(b"last-event-id", b"new")])
    assert found.last_event_id == "new"


@pytest.mark.parametrize(
    ("path", "root_path", "below"),
    [
        # A server's own: the whole path, root_path where there is one.
        ("/", "", "/"),
        ("/events", "", "/events"),
        ("/events/a/b", "", "/events/a/b"),
        ("/api/events", "/api", "/events"),
        # Starlette's mount: the whole path, the prefix appended to root_path.
        ("/events/", "/events", "/"),
        ("/events", "/events", "/"),
        ("/events/a/b", "/events", "/a/b"),
        ("/events/a/b/", "/events", "/a/b"),
        ("/api/events/a", "/api/events", "/a"),
        # Litestar's mount: the prefix gone, a slash at the end, root_path as the server gave it.
        ("/a/b/", "", "/a/b"),
        ("/a/", "/api", "/a"),
        # Mounts that leave nothing of the path.
        ("", "/events", "/"),
        ("", "", "/"),
        # A root_path with a slash at its end, or of nothing else.
        ("/api/a", "/api/", "/a"),
        ("/a", "/", "/a"),
        # Whole segments only.
        ("/eventsX", "/events", "/eventsX"),
        ("/eventsX/a", "/events", "/eventsX/a"),
        ("/event", "/events", "/event"),
        ("//events//a//", "", "/events//a"),
    ],
)
def test_the_path_below_the_mount(path: str, root_path: str, below: str) -> None:
    assert path_below({"path": path, "root_path": root_path}) == below
    assert request(path=path, root_path=root_path).path == below


def test_a_scope_without_root_path_is_mounted_nowhere() -> None:
    assert path_below({"path": "/events/a"}) == "/events/a"


@pytest.mark.parametrize(
    ("path", "foreign"), [("X/", True), ("X", True), ("/X", False), ("/", False), ("", False)]
)
def test_a_path_cut_inside_a_segment_is_foreign(path: str, foreign: bool) -> None:
    assert is_foreign({"path": path}) is foreign


class Paths:
    """An application that records the path below its mount."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(path_below(scope))
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})


def in_litestar(app: Any) -> Any:
    @litestar.asgi("/events", is_mount=True, copy_scope=True)
    async def mounted(scope: LitestarScope, receive: LitestarReceive, send: LitestarSend) -> None:
        await app(scope, receive, send)

    return litestar.Litestar([mounted])


def in_starlette(app: Any) -> Any:
    return Starlette(routes=[Mount("/events", app), Mount("/v1", routes=[Mount("/events", app)])])


@pytest.mark.parametrize(
    ("path", "below"),
    [("/events/", "/"), ("/events/a/b", "/a/b"), ("/events/gr%C3%BCn", "/grün"), ("/v1/events/a", "/a")],
)
async def test_the_path_below_a_real_starlette_mount(path: str, below: str) -> None:
    paths = Paths()
    async with Client(in_starlette(paths)) as client:
        assert (await client.request("GET", path)).status == 200
        assert (await client.request("GET", "/eventsX")).status == 404
    assert paths.seen == [below]


@pytest.mark.parametrize(
    ("path", "below"),
    [("/events", "/"), ("/events/", "/"), ("/events/a/b", "/a/b"), ("/events/gr%C3%BCn", "/grün")],
)
async def test_the_path_below_a_real_litestar_mount(path: str, below: str) -> None:
    paths = Paths()
    async with Client(in_litestar(paths)) as client:
        assert (await client.request("GET", path)).status == 200
    assert paths.seen == [below]


@pytest.mark.parametrize("framework", [in_litestar, in_starlette])
async def test_no_mount_serves_a_path_that_only_begins_alike(framework: Any) -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with push.lifespan(), Client(framework(push)) as client:
        assert (await client.request("GET", "/eventsX")).status == 404
        assert (await client.request("HEAD", "/eventsX/a")).status == 404
        async with client.open("/events/a") as stream:
            assert stream.status == 200


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        ("news", ("news",)),
        (["a", "b", "a"], ("a", "b")),
        (("b", "a"), ("b", "a")),
        ((name for name in "abc"), ("a", "b", "c")),
        (["events:ü 1"], ("events:ü 1",)),
    ],
    ids=["one", "repeated", "ordered", "iterator", "unicode"],
)
def test_a_grant_names_its_channels_once_each(channels: Any, names: tuple[str, ...]) -> None:
    grant = Grant(channels=channels)
    assert grant.channels == grant.channel_names == names


@pytest.mark.parametrize("channels", [[], (), iter(())], ids=["list", "tuple", "iterator"])
def test_a_grant_of_nothing_is_a_mistake(channels: Any) -> None:
    with pytest.raises(ValueError, match="at least one channel"):
        Grant(channels=channels)


@pytest.mark.parametrize("channels", [None, 7])
def test_a_grant_of_what_are_no_names_says_what_it_takes(channels: Any) -> None:
    with pytest.raises(
        TypeError, match=f"channels is the name of a channel, or several names, not {channels}"
    ):
        Grant(channels=channels)


BAD_CHANNELS = [
    pytest.param("", ValueError, "is not empty", id="empty"),
    pytest.param("livepush.x", ValueError, "the component's own", id="reserved"),
    pytest.param("\ud800", ValueError, "lone surrogate", id="surrogate"),
    pytest.param(7, TypeError, "a str, not int", id="number"),
    pytest.param(b"news", TypeError, "a str, not bytes", id="bytes"),
    pytest.param(None, TypeError, "a str, not NoneType", id="none"),
]


@pytest.mark.parametrize(("channel", "error", "text"), BAD_CHANNELS)
def test_what_cannot_name_a_channel_raises(channel: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_channel(channel)
    with pytest.raises(error, match=text):
        Grant(channels=["news", channel])
    with pytest.raises(error, match=text):
        public("news", channel)


@pytest.mark.parametrize(
    ("key", "error"),
    [("", InvalidGrantError), ("\ud800", InvalidGrantError), (7, TypeError), (b"key", TypeError)],
)
def test_a_slot_key_is_text_or_nothing(key: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="a slot key"):
        Grant(channels="news", slot_key=key)
    with pytest.raises(error, match="a slot key"):
        public("news", slot_key=key)


MOMENT = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expires_at", "expiry"),
    [
        (None, None),
        (MOMENT, 1893456000.0),
        (MOMENT.astimezone(timezone(timedelta(hours=5))), 1893456000.0),
        (1893456000, 1893456000.0),
        (0.5, 0.5),
    ],
    ids=["none", "utc", "zone", "int", "float"],
)
def test_an_expiry_is_a_moment(expires_at: Any, expiry: float | None) -> None:
    assert Grant(channels="news", expires_at=expires_at).expiry == expiry


class Nowhere(tzinfo):
    def utcoffset(self, moment: datetime | None) -> None:
        return None

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> None:
        return None


@pytest.mark.parametrize(
    "moment", [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=Nowhere())], ids=["naive", "nowhere"]
)
def test_an_expiry_without_a_time_zone_raises(moment: datetime) -> None:
    with pytest.raises(ValueError, match="needs a time zone"):
        Grant(channels="news", expires_at=moment)


@pytest.mark.parametrize(
    "moment",
    [math.nan, math.inf, 1.9e12, True, "tomorrow", MOMENT.date()],
    ids=["nan", "never", "milliseconds", "bool", "text", "date"],
)
def test_what_is_no_moment_raises(moment: Any) -> None:
    with pytest.raises(ValueError, match="an aware datetime, or seconds since the epoch"):
        Grant(channels="news", expires_at=moment)


def test_a_grant_is_a_value() -> None:
    grant = Grant(channels=["a", "b"], slot_key="k", expires_at=MOMENT)
    assert grant == Grant(channels=("a", "b", "a"), slot_key="k", expires_at=MOMENT.timestamp())
    with pytest.raises(AttributeError):
        grant.slot_key = "other"  # type: ignore[misc]


def test_a_refusal_is_403_unless_it_says_otherwise() -> None:
    refusal = Refusal()
    assert (refusal.status, refusal.title, refusal.detail, str(refusal)) == (
        403,
        "Forbidden",
        None,
        "403 Forbidden",
    )
    assert (refusal.soft, refusal.retry_after, refusal.headers) == (False, None, {})


def test_a_refusal_can_be_raised() -> None:
    with pytest.raises(Refusal, match="401 log in first") as caught:
        raise Refusal(401, "log in first", headers={"WWW-Authenticate": "Bearer"})
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (204, "No Content"),
        (400, "Bad Request"),
        (HTTPStatus.UNAUTHORIZED, "Unauthorized"),
        (499, "Refused"),
        (599, "Refused"),
    ],
)
def test_a_refusal_has_a_status_that_refuses(status: int, title: str) -> None:
    assert (Refusal(status).status, Refusal(status).title) == (status, title)


@pytest.mark.parametrize("status", [200, 301, 399, 600, 0, True, 403.5, "403", None])
def test_other_statuses_raise(status: Any) -> None:
    with pytest.raises(ValueError, match="204 or from 400 to 599"):
        Refusal(status)


@pytest.mark.parametrize("seconds", [-1, 1.5, "5"])
def test_a_retry_after_that_no_client_reads_raises(seconds: Any) -> None:
    with pytest.raises(ValueError, match="a whole number of seconds"):
        Refusal(429, retry_after=seconds)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "ü", " a"])
def test_what_cannot_name_a_header_field_raises(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a header field"):
        Refusal(headers={name: "x"})


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b"])
def test_a_header_field_cannot_bring_another(value: str) -> None:
    with pytest.raises(ValueError, match="cannot hold line ends"):
        Refusal(headers={"x-a": value})


def test_a_header_field_is_latin1() -> None:
    assert Refusal(headers={"x-a": "grün"}).headers == {"x-a": "grün"}
    with pytest.raises(UnicodeEncodeError):
        Refusal(headers={"x-a": "€"})


def test_public_lets_everyone_in_and_says_so() -> None:
    authorize = public("news", "sport", slot_key="everyone")
    assert authorize(request()) == Grant(channels=("news", "sport"), slot_key="everyone")


def test_public_without_a_channel_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one channel"):
        public()
