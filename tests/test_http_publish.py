"""`push.publisher`: what a request publishes, what it is answered, and what it is refused for."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import anyio
import pytest
from starlette.exceptions import HTTPException

from livepush_asgi import (
    BrokerUnavailableError,
    LivePush,
    MemoryBroker,
    MockBroker,
    Position,
    PublishGrant,
    PublishRequest,
    Refusal,
    Timing,
    public,
)
from livepush_asgi.http.publish.content import MAX_DEPTH, MAX_KEY
from livepush_asgi.http.publish.request import BODIES
from livepush_asgi.runtime.asgi import ASGIApp, Message
from livepush_asgi.testing import Answer, Client, EventStreamParser, ParsedEvent
from livepush_asgi.testing.exchange import http_scope
from livepush_asgi.wire.event import from_payload

FORM = "application/x-www-form-urlencoded"


def everybody(request: PublishRequest) -> PublishGrant:
    return PublishGrant(channels=lambda channel: not channel.startswith("secret"))


class House:
    """A LivePush with history, its publisher, and what is in the logs."""

    def __init__(self, push: LivePush, app: ASGIApp) -> None:
        self.push = push
        self.client = Client(app)

    async def post(self, body: object, **headers: str) -> Answer:
        fields = {"content_type": "application/json", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        return await self.client.request("POST", "/", body=data, headers=named)

    async def log(self, channel: str) -> list[ParsedEvent]:
        page = await self.push.broker.read(channel, 0, 1000)  # type: ignore[attr-defined]
        parser = EventStreamParser()
        return [event for record in page.records for event in parser.feed(from_payload(record.payload))]

    async def data(self, channel: str = "news") -> list[str]:
        return [event.data for event in await self.log(channel)]


@asynccontextmanager
async def house(
    authorize_publish: Callable[[PublishRequest], object] = everybody,
    broker: object = None,
    settings: Mapping[str, object] | None = None,
    **options: object,
) -> AsyncIterator[House]:
    push = LivePush(broker or MemoryBroker(), public("news"), **(settings or {}))  # type: ignore[arg-type]
    async with push.lifespan():
        yield House(push, push.publisher(authorize_publish, **options))  # type: ignore[arg-type]


def told(answer: Answer) -> tuple[int, str]:
    """Return the status and the detail of a refusal, which is small problem details."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.body) < 600
    problem = answer.json()
    assert problem["status"] == answer.status
    return answer.status, problem.get("detail", "")


# What is published, and the answer.


async def test_one_event_for_one_channel() -> None:
    async with house() as h:
        answer = await h.post({"channel": "news", "data": {"a": 1}, "event": "paid", "retry": 7})
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        (event,) = await h.log("news")
        assert (event.event, event.data) == ("paid", '{"a":1}')
        # The id is one that a stream resumes from and `expected_position` takes.
        follows = {"channel": "news", "data": "next", "expected_position": answer.json()["id"]}
        assert (await h.post(follows)).status == 200
        again = await h.post(follows)
        assert told(again)[0] == 409
        last = again.json()["last"]
        assert (await h.post({**follows, "expected_position": last})).status == 200
        assert await h.data() == ['{"a":1}', "next", "next"]


async def test_an_event_of_its_own_id_keeps_it() -> None:
    async with house() as h:
        answer = await h.post({"channel": "news", "data": "", "id": 17})
        assert answer.json() == {"id": "17"}
        assert (await h.log("news"))[0].last_event_id == "17"


async def test_several_channels_get_the_event_once_each() -> None:
    async with house() as h:
        answer = await h.post({"channels": ["a", "b", "a"], "data": None})
        assert list(answer.json()["ids"]) == ["a", "b"]
        assert [await h.data("a"), await h.data("b")] == [["null"], ["null"]]


async def test_a_batch_is_published_in_order_and_each_item_is_answered() -> None:
    items: list[dict[str, object]] = [{"channel": "news", "data": n} for n in range(4)]
    items[2]["expected_position"] = "any.0"
    async with house() as h:
        answer = await h.post({"items": items})
        results = answer.json()["items"]
        assert answer.status == 200
        assert [list(result) for result in results] == [["id"], ["id"], ["error"], ["id"]]
        assert results[2]["error"]["code"] == "conflict"
        assert results[2]["error"]["last"] == results[1]["id"]
        assert await h.data() == ["0", "1", "3"]


async def test_an_application_encodes_the_data_in_its_way() -> None:
    async with house(settings={"encode": lambda data: f"<{data}>"}) as h:
        await h.post({"channel": "news", "data": [1]})
        await h.post({"channel": "news", "data": "text"})
        assert await h.data() == ["<[1]>", "text"]


# Mercure's form.


async def test_the_form_of_mercure() -> None:
    fields = [("topic", "https://x/1"), ("topic", "b"), ("data", "d\n+é"), ("type", "t"), ("private", "on")]
    async with house() as h:
        answer = await h.post(urlencode([*fields, ("ignored", "x")]).encode(), content_type=FORM)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        (event,) = await h.log("https://x/1")
        assert (event.event, event.data) == ("t", "d\n+é")
        assert await h.data("b") == ["d\n+é"]
        # The answer is the id of the canonical topic, and one that streams resume from.
        expected = {"channel": "https://x/1", "data": "", "expected_position": answer.body.decode()}
        assert (await h.post(expected)).status == 200
        own = await h.post(b"topic=b&id=urn:7&retry=5&data=&type=", content_type=f"{FORM}; charset=UTF-8")
        assert own.body == b"urn:7"


async def test_without_history_an_update_of_mercure_has_an_id_all_the_same() -> None:
    broker = MockBroker()
    async with house(broker=broker) as h:
        answer = await h.post(b"topic=news&data=x", content_type=FORM)
        assert answer.body.startswith(b"urn:uuid:")
        assert f"id: {answer.body.decode()}\n".encode() in broker.published[0][1]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"data=x", "channels is an array"),
        (b"topic=", "a channel name is not empty"),
        (b"topic=a&data=1&data=2", "data more than once"),
        (b"topic=a&retry=-1", "retry is a whole number"),
        (b"topic=a&id=a%0Ab", "line end"),
        (b"topic=a&data=%ff", "no form in UTF-8"),
        (b"topic=a&data=\xff", "no form in UTF-8"),
        (b"topic=livepush.commands&data=x", "the component's own"),
        (b"&".join([b"x=1"] * 500), "too many fields"),
    ],
)
async def test_a_form_that_is_none_is_refused(body: bytes, detail: str) -> None:
    async with house() as h:
        status, told_detail = told(await h.post(body, content_type=FORM))
        assert status == 400
        assert detail in told_detail


# What is refused.

BAD: list[tuple[bytes, str]] = [
    (b"", "no JSON"),
    (b"{", "no JSON"),
    (b"\xff\xfe{\x00}\x00", "not UTF-8"),
    (b"[]", "no JSON object"),
    (b'"text"', "no JSON object"),
    (b"{}", "one of channel"),
    (b'{"channel":"a","channels":["b"],"data":1}', "one of channel"),
    (b'{"channel":"a"}', "no data"),
    (b'{"channel":"","data":1}', "not empty"),
    (b'{"channel":null,"data":1}', "a channel name is a str"),
    (b'{"channel":["a"],"data":1}', "a channel name is a str"),
    (b'{"channel":"livepush.commands","data":1}', "the component's own"),
    (b'{"channel":"\\ud800","data":1}', "lone surrogate"),
    (b'{"channel":"a","data":"\\ud800"}', "cannot have this data"),
    (b'{"channel":"a","data":1,"evnt":"x"}', "unknown member: 'evnt'"),
    (b'{"channel":"a","data":1,"channel":"b"}', "two members of the same name"),
    (b'{"channel":"a","data":{"x":{"y":1,"y":2}}}', "two members of the same name"),
    (b'{"channel":"a","data":NaN}', "no JSON"),
    (b'{"channel":"a","data":1e999}', "cannot have this data"),
    (b'{"channel":"a","data":' + b"9" * 5000 + b"}", "too long"),
    (b'{"channel":"a","data":1,"event":"a\\nb"}', "line end"),
    (b'{"channel":"a","data":1,"event":"livepush.gap"}', "the component's own"),
    (b'{"channel":"a","data":1,"event":""}', "empty event name"),
    (b'{"channel":"a","data":1,"event":7}', "an event name is a str"),
    (b'{"channel":"a","data":1,"id":true}', "a str or an int"),
    (b'{"channel":"a","data":1,"id":"' + b"x" * 5000 + b'\\n"}', "the event id"),
    (b'{"channel":"a","data":1,"retry":1.5}', "retry is"),
    (b'{"channel":"a","data":1,"retry":"5"}', "retry is"),
    (b'{"channel":"a","data":1,"expected_position":5}', "no id of an event"),
    (b'{"channel":"a","data":1,"expected_position":"x"}', "no id of an event"),
    (b'{"channels":["a","b"],"data":1,"expected_position":"x.1"}', "one channel"),
    (b'{"channels":[],"data":1}', "not empty"),
    (b'{"channels":"a","data":1}', "an array"),
    (b'{"items":[]}', "not empty"),
    (b'{"items":{}}', "an array"),
    (b'{"items":[1]}', "Item 0 is no JSON object"),
    (b'{"items":[{"data":1}]}', "Item 0 has no channel"),
    (b'{"items":[{"channel":"a","data":1}],"channel":"a"}', "unknown member"),
    (b'{"items":[{"channels":["a"],"data":1}]}', "unknown member"),
    (b'{"items":[{"channel":"a","data":1},{"channel":"a"}]}', "Item 1 has no data"),
    (b'{"channel":"a","data":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "nested deeper"),
    (b'{"channel":"a","data":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", "nested deeper"),
    (b"[" * 1_000_000, ""),
]


@pytest.mark.parametrize(("body", "detail"), BAD, ids=[body[:60].decode("latin-1") for body, _ in BAD])
async def test_what_is_no_event_is_a_400_and_nothing_is_published(body: bytes, detail: str) -> None:
    async with house() as h:
        status, told_detail = told(await h.post(body))
        assert status == 400
        assert detail in told_detail
        assert await h.data("a") == []


async def test_data_may_be_nested_as_deep_as_the_bound() -> None:
    # One level is the object of the body.
    deep = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    async with house() as h:
        assert (await h.post(b'{"channel":"a","data":' + deep + b"}")).status == 200
        assert (await h.post({"channel": "a", "data": [[]] * 1000})).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
async def test_a_method_other_than_post_is_a_405(method: str) -> None:
    async with house() as h:
        answer = await h.client.request(method, "/")
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        assert (answer.body == b"") == (method == "HEAD")
        options = await h.client.request("OPTIONS", "/")
        assert (options.status, options.headers["allow"]) == (204, "POST, OPTIONS")


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": ""},
        {"content_type": "text/plain"},
        {"content_type": "application/x-json"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_encoding": "gzip"},
    ],
)
async def test_another_type_or_coding_is_a_415_that_names_those_there_are(headers: dict[str, str]) -> None:
    async with house() as h:
        answer = await h.post({"channel": "a", "data": 1}, **headers)
        assert told(answer)[0] == 415
        assert answer.headers["accept"] == f"application/json, {FORM}"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site", "origin": "https://testserver"}, 403),
        ({"sec_fetch_site": "same-origin", "origin": "https://elsewhere"}, 200),
        ({"origin": "https://elsewhere"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[", "host": "x"}, 403),
        ({"origin": "https://app.example", "host": "app.example"}, 200),
    ],
)
async def test_a_page_of_another_origin_cannot_use_the_cookies_of_its_visitor(
    headers: dict[str, str], status: int
) -> None:
    async with house() as h:
        assert (await h.post(b"topic=a", content_type=FORM, **headers)).status == status


async def test_a_channel_that_is_not_granted_is_a_403_and_nothing_is_published() -> None:
    async with house(lambda request: PublishGrant(channels=["a", "b"])) as h:
        assert told(await h.post({"channel": "c", "data": 1})) == (403, "You may not publish to 'c'.")
        assert told(await h.post({"channels": ["a", "c"], "data": 1}))[0] == 403
        items = [{"channel": "a", "data": 1}, {"channel": "c" * 5000, "data": 1}]
        assert told(await h.post({"items": items}))[0] == 403
        assert await h.data("a") == []
        assert (await h.post({"channels": ["a", "b"], "data": 1})).status == 200


# `authorize_publish`.


async def test_what_authorize_publish_may_return_or_raise(caplog: pytest.LogCaptureFixture) -> None:
    decision: object = None

    def authorize_publish(request: PublishRequest) -> object:
        if isinstance(decision, BaseException) and not isinstance(decision, Refusal):
            raise decision
        return decision

    async def status_for(given: object) -> tuple[int, Mapping[str, str]]:
        nonlocal decision
        decision = given
        async with house(authorize_publish) as h:
            answer = await h.post({"channel": "a", "data": 1})
            assert await h.data("a") == (["1"] if answer.status == 200 else [])
            return answer.status, answer.headers

    assert (await status_for(PublishGrant(channels="a")))[0] == 200
    status, headers = await status_for(Refusal(401, headers={"WWW-Authenticate": "Bearer"}, retry_after=3))
    assert (status, headers["www-authenticate"], headers["retry-after"]) == (401, "Bearer", "3")
    # To a publisher these would be a success.
    assert (await status_for(Refusal(204)))[0] == 403
    assert (await status_for(Refusal(429, soft=True)))[0] == 429
    assert (await status_for(HTTPException(418)))[0] == 418
    assert caplog.records == []
    assert (await status_for(None))[0] == 500
    assert "authorize_publish returned NoneType, not a PublishGrant" in caplog.text
    caplog.clear()
    assert (await status_for(KeyError("secret")))[0] == 500
    assert "authorize_publish failed; the client got a 500" in caplog.text


@pytest.mark.virtual_time
async def test_an_authorize_publish_that_hangs_is_a_503(caplog: pytest.LogCaptureFixture) -> None:
    async def authorize_publish(request: PublishRequest) -> PublishGrant:
        await anyio.sleep_forever()
        raise AssertionError

    async with house(authorize_publish, settings={"timing": Timing(authorize_timeout=1)}) as h:
        h.client = Client(h.push.publisher(authorize_publish, body_timeout=2), deadline=10)
        begun = anyio.current_time()
        answer = await h.post({"channel": "a", "data": 1})
        assert (told(answer)[0], answer.headers["retry-after"]) == (503, "2")
        assert anyio.current_time() - begun == pytest.approx(3, abs=0.1)
    assert "authorize_publish took longer than Timing.authorize_timeout" in caplog.text


async def test_a_grant_whose_function_raises_is_a_500_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def raising(channel: str) -> bool:
        raise KeyError(channel)

    async with house(lambda request: PublishGrant(channels=raising)) as h:
        for _ in range(10):
            assert told(await h.post({"channel": "a", "data": 1})) == (500, "")
    assert [record.getMessage() for record in caplog.records] == [
        "publishing over HTTP failed; the publisher got a 500"
    ]


async def test_authorize_publish_reads_the_head_before_any_body_is_waited_for() -> None:
    async def receive() -> Message:
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async with house() as h:
        app = h.push.publisher(lambda request: Refusal(401))
        scope = http_scope("POST", "/", headers={"content-type": "application/json"})
        await app(scope, receive, send)
    assert sent[0]["status"] == 401


@pytest.mark.parametrize("channels", [[], "", "livepush.x", ["a", ""]])
def test_a_grant_without_a_channel_raises(channels: object) -> None:
    with pytest.raises(ValueError, match=r"channel"):
        PublishGrant(channels=channels)  # type: ignore[arg-type]


def test_what_cannot_be_given_raises_at_once() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    with pytest.raises(TypeError, match="channels is the name of a channel"):
        PublishGrant(channels=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="authorize_publish is a function"):
        push.publisher("secret")  # type: ignore[arg-type]
    for wrong in ({"max_body": 0}, {"max_batch": 0}, {"body_timeout": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            push.publisher(everybody, **wrong)


# Idempotency.


async def test_a_request_that_is_repeated_publishes_once() -> None:
    batch = {"items": [{"channel": "news", "data": n} for n in (1, 2)]}
    form = b"topic=news&topic=other&data=5"
    async with house() as h:
        for body, kind in [
            ({"channel": "news", "data": 0}, "application/json"),
            (batch, "application/json"),
            ({"channels": ["news", "other"], "data": 4}, "application/json"),
            (form, FORM),
        ]:
            key = f'"{len(str(body))}"'
            first = await h.post(body, idempotency_key=key, content_type=kind)
            # Quotes are not a part of the key.
            again = await h.post(body, idempotency_key=key.strip('"'), content_type=kind)
            assert (again.status, again.body) == (200, first.body)
        assert await h.data() == ["0", "1", "2", "4", "5"]
        assert await h.data("other") == ["4", "5"]


async def test_a_repeated_request_with_an_expected_position_is_no_conflict() -> None:
    body = {"channel": "news", "data": 1, "expected_position": "any.0"}
    async with house() as h:
        first = await h.post(body, idempotency_key="k")
        assert (await h.post(body, idempotency_key="k")).body == first.body


async def test_the_key_of_a_batch_is_never_that_of_another_request() -> None:
    async with house() as h:
        await h.post({"items": [{"channel": "news", "data": 1}]}, idempotency_key="k")
        for key in ("k", "k/0", "k0", '"k 0"'):
            await h.post({"channel": "news", "data": 2}, idempotency_key=key)
        assert await h.data() == ["1", "2", "2", "2", "2"]


@pytest.mark.parametrize("key", ["", '""', '"', "a b", "a,b", '"a", "b"', "é", "x" * (MAX_KEY + 1), '"a\\b"'])
async def test_a_key_that_is_none_is_a_400(key: str) -> None:
    async with house() as h:
        status, detail = told(await h.post({"channel": "a", "data": 1}, idempotency_key=key))
        assert status == 400
        assert "Idempotency-Key" in detail
        assert (await h.post({"channel": "a", "data": 1}, idempotency_key="x" * MAX_KEY)).status == 200
        assert (await h.post({"channel": "a", "data": 1}, idempotency_key='"a\\"b c"')).status == 200


async def test_without_history_what_it_would_need_is_refused_rather_than_ignored() -> None:
    async with house(broker=MockBroker()) as h:
        assert (await h.post({"channel": "a", "data": 1})).json() == {"id": None}
        for headers, more in (({"idempotency_key": "k"}, {}), ({}, {"expected_position": "x.1"})):
            status, detail = told(await h.post({"channel": "a", "data": 1, **more}, **headers))
            assert status == 400
            assert "no history" in detail


# A broker that is away, and a process that stops.


class Away(MemoryBroker):
    """Takes `left` more events, and then is away."""

    left = 0

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        if self.left == 0:
            raise BrokerUnavailableError("redis://secret-host:6379 is away")
        self.left -= 1
        return await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )


class Held(MemoryBroker):
    """Appends when it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = anyio.Event()

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        await self.released.wait()
        return await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )


async def test_a_broker_that_is_away_is_a_503_that_says_what_to_do() -> None:
    broker = Away()
    async with house(broker=broker) as h:
        answer = await h.post({"channel": "news", "data": 1}, idempotency_key="k")
        assert told(answer)[0] == 503
        assert "may have been published" in told(answer)[1]
        assert b"secret" not in answer.body
        assert answer.headers["retry-after"] == "2"


async def test_a_batch_stops_at_the_first_event_that_may_be_missing_and_completes_when_repeated() -> None:
    broker = Away()
    batch = {"items": [{"channel": "news", "data": n} for n in range(4)]}
    async with house(broker=broker) as h:
        broker.left = 2
        answer = await h.post(batch, idempotency_key="k")
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        results = answer.json()["items"]
        assert [result.get("error", {}).get("code") for result in results] == [
            None,
            None,
            "unavailable",
            "not_published",
        ]
        broker.left = 4
        assert (await h.post(batch, idempotency_key="k")).status == 200
        assert await h.data() == ["0", "1", "2", "3"]


async def test_after_the_stop_a_request_is_a_503() -> None:
    async with house() as h:
        await h.push.stop()
        answer = await h.post({"channel": "news", "data": 1})
        assert told(answer) == (503, "The server is restarting. Nothing was published.")
        assert answer.headers["retry-after"] == "1"


# Bodies: large, slow, left.


class Upload:
    """A request whose body comes in pieces, as a server would bring it."""

    def __init__(self, *pieces: bytes | None, every: float = 0.0, **headers: str) -> None:
        #: None stands for a disconnect; without it the body goes on for ever.
        self.pieces = list(pieces)
        self.every = every
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        fields = {"content-type": "application/json", **named}
        self.scope = http_scope("POST", "/", headers=fields)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await anyio.sleep(self.every)
        if not self.pieces:
            await anyio.sleep_forever()
        piece = self.pieces.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def through(self, app: ASGIApp) -> int:
        await app(self.scope, self.receive, self.send)
        return int(self.sent[0]["status"])


EVENT = b'{"channel":"news","data":1}'


async def test_a_body_is_refused_when_its_length_is_announced_and_while_it_arrives() -> None:
    async with house() as h:
        app = h.push.publisher(everybody, max_body=50)
        announced = Upload(b"x", content_length="51")
        assert await announced.through(app) == 413
        assert announced.pieces == [b"x"]
        huge = Upload(b"x", content_length="9" * 5000)
        assert await huge.through(app) == 413
        # Without a length, or with one that lies.
        chunked = Upload(*[b"x" * 10] * 50)
        assert await chunked.through(app) == 413
        assert len(chunked.pieces) == 44
        assert await Upload(*[bytes([byte]) for byte in EVENT]).through(app) == 200
        assert await Upload(EVENT + b" " * (50 - len(EVENT))).through(app) == 200
        assert await h.data() == ["1", "1"]


@pytest.mark.virtual_time
async def test_a_body_that_comes_too_slowly_is_a_408() -> None:
    async with house() as h:
        app = h.push.publisher(everybody, body_timeout=5)
        slow = Upload(*[b" "] * 100, every=0.5)
        begun = anyio.current_time()
        assert await slow.through(app) == 408
        assert anyio.current_time() - begun == pytest.approx(5)
        assert (b"connection", b"close") in slow.sent[0]["headers"]
        assert await Upload(EVENT[:5], EVENT[5:], every=2).through(app) == 200


@pytest.mark.parametrize("reads", [False, True])
async def test_a_publisher_that_leaves_before_its_request_is_whole_publishes_nothing(reads: bool) -> None:
    async def authorize_publish(request: PublishRequest) -> PublishGrant:
        if reads:
            await request.body()
        return PublishGrant(channels="news")

    async with house() as h:
        app = h.push.publisher(authorize_publish)
        assert await Upload(EVENT, None).through(app) == 499
        assert await Upload(EVENT, b"", b"").through(app) == 200
        assert await h.data() == ["1"]


@pytest.mark.virtual_time
async def test_what_all_bodies_hold_together_is_bounded() -> None:
    async with house() as h:
        app = h.push.publisher(everybody, max_body=1000, body_timeout=5)
        statuses: list[int] = []

        async def hang() -> None:
            statuses.append(await Upload(b" " * 999, b" ", every=4).through(app))

        async with anyio.create_task_group() as tasks:
            for _ in range(BODIES + 3):
                tasks.start_soon(hang)
        assert (statuses.count(503), statuses.count(408)) == (3, BODIES)
        # All is given back.
        assert await Upload(EVENT).through(app) == 200


@pytest.mark.virtual_time
async def test_bodies_count_until_their_events_are_published() -> None:
    """So a broker that is slow, or away, holds no more of them than slow clients do."""
    broker = Held()
    async with house(broker=broker) as h:
        app = h.push.publisher(everybody, max_body=1000)
        body = json.dumps({"channel": "news", "data": "x" * 900}).encode().ljust(1000)
        async with anyio.create_task_group() as tasks:
            for _ in range(BODIES):
                tasks.start_soon(Upload(body).through, app)
            await anyio.sleep(1)
            assert await Upload(EVENT).through(app) == 503
            broker.released.set()
        assert await Upload(EVENT).through(app) == 200
        assert len(await h.data()) == BODIES + 1


@pytest.mark.virtual_time
async def test_a_flood_of_large_bodies_that_stall_does_not_keep_out_a_small_one() -> None:
    async with house() as h:
        app = h.push.publisher(everybody, max_body=1000, body_timeout=5)
        statuses: list[int] = []

        async def stall() -> None:
            statuses.append(await Upload(b" " * 1000, b"", every=3).through(app))

        async with anyio.create_task_group() as tasks:
            for _ in range(BODIES + 20):
                tasks.start_soon(stall)
            # Each of them has sent all but the end, and has two seconds left for that.
            await anyio.sleep(4)
            assert statuses == [503] * 20
            for _ in range(50):
                assert await Upload(EVENT[:9], EVENT[9:]).through(app) == 200
        # One of them had to go.
        assert (statuses.count(503), statuses.count(408)) == (21, BODIES - 1)
        assert len(await h.data()) == 50


async def test_a_mount_that_matches_too_much_is_a_404() -> None:
    async with house() as h:
        scope = {**http_scope("POST", "/"), "path": "X/"}
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise AssertionError

        await h.push.publisher(everybody)(scope, receive, send)
        assert sent[0]["status"] == 404


async def test_it_serves_the_lifespan_when_it_is_served_alone() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with Client(push.publisher(everybody), lifespan=True) as client:
        answer = await client.request("POST", "/", json={"channel": "news", "data": 1})
        assert answer.status == 200
        assert push.statistics()["published"] == 1


async def test_abuse_leaves_no_line_at_warning_or_above(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "livepush_asgi")
    async with house(lambda request: PublishGrant(channels="a")) as h:
        for body, _ in BAD:
            await h.post(body)
        await h.post({"channel": "b", "data": 1})
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
