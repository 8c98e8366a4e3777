"""The in-memory client against small applications written by hand, each with one habit or fault."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from livepush_asgi import Grant, LivePush, MemoryBroker
from livepush_asgi.brokers import Subscription
from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from livepush_asgi.testing import Answer, Client, ParsedEvent, Stream, StreamEnded

from .serving import REPOSITORY
from .virtual_clock import let_pass

START: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"text/event-stream; charset=utf-8"), (b"x-a", b"1"), (b"X-A", b"2")],
}
END: Message = {"type": "http.response.body"}


def body(text: str, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def sends(*messages: Message) -> ASGIApp:
    """Make an application that sends these messages and then waits for the client to leave."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        while (await receive())["type"] != "http.disconnect":
            pass

    return app


@asynccontextmanager
async def opened(*messages: Message, window: float = 64) -> AsyncIterator[Stream]:
    async with Client(sends(START, *messages)) as client, client.open("/", window=window) as stream:
        yield stream


async def test_a_stream_is_read_while_the_application_runs() -> None:
    async with opened(body("data: 1\n\n"), body("id: a\nevent: e\nretry: 5\ndata: 2\n\n")) as stream:
        assert stream.status == 200
        assert stream.headers == {"content-type": "text/event-stream; charset=utf-8", "x-a": "1, 2"}
        assert await stream.next_event() == ParsedEvent(data="1")
        assert await stream.next_event() == ParsedEvent("e", "2", last_event_id="a", id="a", retry=5)
        assert (stream.retry, stream.last_event_id) == (5, "a")


async def test_events_of_one_message_are_given_one_by_one() -> None:
    async with opened(body("data: 1\n\ndata: 2\n\nda"), body("ta: 3\n\n")) as stream:
        assert [event.data for event in await stream.events(3)] == ["1", "2", "3"]


async def test_the_components_own_events_are_passed_over_and_recorded() -> None:
    async with opened(body('event: livepush.open\ndata: {"resumed":false}\n\ndata: 1\n\n')) as stream:
        assert await stream.next_event() == ParsedEvent(data="1")
        control = ParsedEvent("livepush.open", '{"resumed":false}')
        assert stream.control_events == [control]
        assert stream.received == [control, ParsedEvent(data="1")]


async def test_the_components_own_events_are_given_when_asked_for() -> None:
    async with opened(
        body("event: livepush.open\ndata: o\n\n"), body("event: livepush.gap\ndata: g\n\n")
    ) as stream:
        assert (await stream.next_event(control=True)).data == "o"
        assert (await stream.next_event(name="livepush.gap")).data == "g"


async def test_a_name_passes_over_other_events() -> None:
    async with opened(body("data: 1\n\nevent: wanted\ndata: 2\n\n")) as stream:
        assert (await stream.next_event(name="wanted")).data == "2"
        assert [event.data for event in stream.received] == ["1", "2"]


async def test_an_event_that_does_not_come_is_a_timeout_that_says_what_came() -> None:
    async with opened(body("event: other\ndata: 1\n\n")) as stream:
        began = anyio.current_time()
        with pytest.raises(TimeoutError, match=r"'wanted' did not come within 7 s .* 200 .*\['other'\]"):
            await stream.next_event(7, name="wanted")
        assert 7 <= anyio.current_time() - began < 8


async def test_a_timeout_loses_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(5):
            await let_pass(1)
            await send(body(f"data: {number}\n\n"))
        await send(END)

    async with Client(app) as client, client.open("/") as stream:
        seen: list[str] = []
        while len(seen) < 5:
            try:
                seen.append((await stream.next_event(0.3)).data)
            except TimeoutError:
                continue
        assert seen == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_read_that_asyncio_cancels_as_the_event_comes_loses_nothing(anyio_backend: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await due.wait()
        await send(body("data: 1\n\n"))
        reading.cancel()
        await receive()
        await receive()

    due = anyio.Event()
    async with Client(app) as client, client.open("/") as stream:
        reading = asyncio.create_task(stream.next_event())
        await anyio.wait_all_tasks_blocked()
        due.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert (await stream.next_event()).data == "1"


async def test_an_event_that_was_read_already_needs_no_time() -> None:
    async with opened(body("data: 1\n\ndata: 2\n\n")) as stream:
        await stream.next_event()
        assert (await stream.next_event(0)).data == "2"


async def test_comments_and_events_are_read_independently() -> None:
    async with opened(body(":\ndata: 1\n\n"), body(": ping\n"), body("data: 2\n\n")) as stream:
        assert await stream.next_comment() == ""
        assert await stream.next_comment() == " ping"
        assert [event.data for event in await stream.events(2)] == ["1", "2"]
        assert stream.comments == ["", " ping"]
        assert stream.empty_blocks == 0
        with pytest.raises(TimeoutError, match="a comment did not come"):
            await stream.next_comment()


async def test_what_a_stream_should_not_contain_can_be_seen() -> None:
    async with opened(body(": ping\n\nfoo: bar\ndata: 1\n\n")) as stream:
        await stream.next_event()
        assert (stream.empty_blocks, stream.ignored) == (1, ["foo: bar"])


CLOSE = 'event: livepush.close\nretry: 70\ndata: {"reason":"drain"}\n\n'


async def test_the_end_of_the_body_raises_with_the_end_reason() -> None:
    async with opened(body("data: 1\n\n"), body(CLOSE), END) as stream:
        assert (stream.status, stream.end_reason) == (200, None)
        assert (await stream.next_event()).data == "1"
        for _ in range(2):
            with pytest.raises(StreamEnded, match="with the reason 'drain'") as ended:
                await stream.next_event()
            assert ended.value.reason == "drain"
        assert (stream.end_reason, stream.retry) == ("drain", 70)


async def test_an_end_without_a_reason_is_told_as_such() -> None:
    async with opened(body("data: lost\n", more=False)) as stream:
        with pytest.raises(StreamEnded, match=r"without a livepush\.close event") as ended:
            await stream.next_comment()
        assert ended.value.reason is None


async def test_wait_ended_reads_the_rest_and_gives_the_reason() -> None:
    async with opened(body("data: 1\n\n"), body(CLOSE, more=False)) as stream:
        assert await stream.wait_ended() == "drain"
        assert [event.event for event in stream.received] == ["message", "livepush.close"]
        assert (await stream.next_event()).data == "1"


async def test_wait_ended_times_out_on_a_live_stream() -> None:
    async with opened(body("data: 1\n\n")) as stream:
        with pytest.raises(TimeoutError, match="the end of the stream did not come within 3 s"):
            await stream.wait_ended(3)


async def test_wait_ended_waits_for_the_application_itself() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(END)
        await let_pass(60)

    async with Client(app, deadline=90) as client, client.open("/") as stream:
        with pytest.raises(TimeoutError, match="has not returned within 1"):
            await stream.wait_ended()
        await stream.wait_ended(100)


async def test_disconnect_reaches_receive_and_waits_for_the_application() -> None:
    log: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        log.extend([(await receive())["type"], (await receive())["type"], (await receive())["type"]])
        await let_pass(2)
        log.append("returned")

    async with Client(app) as client, client.open("/") as stream:
        assert log == []
        await stream.disconnect()
        assert log == ["http.request", "http.disconnect", "http.disconnect", "returned"]
        with pytest.raises(StreamEnded):
            await stream.next_event()


async def test_a_response_that_is_complete_gives_http_disconnect_too() -> None:
    got: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(END)
        got.append(await receive())

    async with Client(app) as client, client.open("/") as stream:
        await stream.wait_ended()
    assert got == [{"type": "http.disconnect"}]


async def test_disconnect_raises_what_the_application_raises_and_only_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await receive()
        await receive()
        raise LookupError("in cleaning up")

    async with Client(app) as client, client.open("/") as stream:
        with pytest.raises(LookupError, match="in cleaning up"):
            await stream.disconnect()


def waits(seconds: float) -> ASGIApp:
    """Make an application that hears nothing for so long."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await anyio.sleep(seconds)

    return app


deaf = waits(float("inf"))


async def test_disconnect_does_not_wait_for_ever() -> None:
    began = anyio.current_time()
    async with Client(waits(6), deadline=4) as client, client.open("/") as stream:
        with pytest.raises(TimeoutError, match="has not returned within 4 s"):
            await stream.disconnect()
        assert 4 <= anyio.current_time() - began < 5


async def test_leaving_the_context_disconnects() -> None:
    ended = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sends(START)(scope, receive, send)
        ended.set()

    async with Client(app) as client, client.open("/"):
        assert not ended.is_set()
    assert ended.is_set()


async def test_leaving_does_not_wait_for_ever() -> None:
    began = anyio.current_time()
    with pytest.raises(TimeoutError, match="has not returned within 5"):
        async with Client(deaf) as client, client.open("/"):
            pass
    assert 5 <= anyio.current_time() - began < 6


async def test_an_application_that_sends_for_ever_can_be_left() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        while True:
            await send(body("data: 1\n\n"))

    with pytest.raises(RuntimeError, match="10000 messages were sent after the client had left"):
        async with Client(app) as client, client.open("/") as stream:
            await stream.events(100)


async def crashes(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(body("data: 1\n\n"))
    raise LookupError("in the middle")


async def test_a_crash_is_raised_where_the_next_event_was_expected() -> None:
    async with Client(crashes) as client, client.open("/") as stream:
        assert (await stream.next_event()).data == "1"
        with pytest.raises(LookupError, match="in the middle"):
            await stream.next_event()


async def test_a_crash_is_raised_on_leaving_if_nobody_heard_of_it() -> None:
    with pytest.raises(LookupError, match="in the middle"):
        async with Client(crashes) as client, client.open("/") as stream:
            assert (await stream.next_event()).data == "1"


@pytest.mark.parametrize("ending", [Stream.wait_ended, Stream.read_body, Stream.next_comment])
async def test_a_crash_is_raised_by_whatever_waits(ending: Callable[[Stream], Any]) -> None:
    async with Client(crashes) as client, client.open("/") as stream:
        with pytest.raises(LookupError, match="in the middle"):
            await ending(stream)


async def test_an_error_of_the_test_comes_out_as_it_is_with_the_crash_noted() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with Client(crashes) as client, client.open("/"):
            raise ZeroDivisionError
    assert caught.value.__notes__ == ["and on leaving: LookupError('in the middle')"]


async def test_an_error_of_the_test_comes_out_without_notes_if_all_else_is_well() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with opened():
            raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__")


async def test_a_failing_check_of_pytest_comes_out_as_it_is() -> None:
    with pytest.raises(pytest.fail.Exception, match="no good"):
        async with opened():
            pytest.fail("no good")


async def test_a_cancelled_test_leaves_at_once() -> None:
    began = anyio.current_time()
    with anyio.move_on_after(2) as scope:
        async with Client(deaf) as client, client.open("/"):
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert anyio.current_time() - began < 3


async def test_a_crash_before_the_start_is_raised_by_open() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("at once")

    with pytest.raises(LookupError, match="at once"):
        async with Client(app) as client, client.open("/"):
            pytest.fail("there is nothing to open")


async def test_an_application_that_does_not_start_is_a_timeout() -> None:
    with pytest.raises(TimeoutError, match="the start of the response did not come within 5"):
        async with Client(sends()) as client, client.open("/"):
            pytest.fail("there is nothing to open")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], r"returned without its 'http\.response\.start'"),
        ([START], r"returned without its 'http\.response\.body'"),
        ([START, body("data: 1\n\n")], r"returned without its 'http\.response\.body'"),
        ([END], r"'http\.response\.body' was sent where 'http\.response\.start' was due"),
        ([START, START], r"'http\.response\.start' was sent where 'http\.response\.body' was due"),
        ([START, END, END], r"'http\.response\.body' was sent after the response was complete"),
        ([START, {"type": "http.response.body", "body": "text"}], "a body is bytes, not str"),
        ([{"type": "http.response.start", "status": "200"}], "a status is an int, not '200'"),
        ([{"type": "http.response.start", "status": 200, "headers": [("a", "b")]}], "two byte strings"),
    ],
)
async def test_what_breaks_the_protocol_is_an_error(messages: list[Message], complaint: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    with pytest.raises(RuntimeError, match=complaint):
        async with Client(app) as client, client.open("/") as stream:
            await stream.wait_ended()


async def test_what_breaks_the_protocol_is_an_error_even_if_the_application_hides_it() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(END)
        with pytest.raises(RuntimeError):
            await send(END)

    with pytest.raises(RuntimeError, match="after the response was complete"):
        async with Client(app) as client, client.open("/"):
            pass


async def test_the_transcript_holds_every_message_as_it_was_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = dict(START)
        await send(message)
        message.clear()
        await send(body("data: 1\n\n"))
        await send(END)

    async with Client(app) as client, client.open("/") as stream:
        await stream.wait_ended()
        assert stream.messages == [START, body("data: 1\n\n"), END]


def counting(sent: list[int]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(100):
            await send(body(f"data: {number}\n\n"))
            sent.append(number)
        await send(END)

    return app


@pytest.mark.parametrize("window", [0, 1, 10])
async def test_a_slow_client_makes_send_wait(window: int) -> None:
    sent: list[int] = []
    async with Client(counting(sent)) as client, client.open("/", window=window) as stream:
        await anyio.wait_all_tasks_blocked()
        assert len(sent) == window
        assert [event.data for event in await stream.events(5)] == ["0", "1", "2", "3", "4"]
        await anyio.wait_all_tasks_blocked()
        assert len(sent) == window + 5


async def test_a_message_is_in_the_transcript_before_it_is_read() -> None:
    async with Client(counting([])) as client, client.open("/", window=0) as stream:
        await anyio.wait_all_tasks_blocked()
        assert stream.messages == [START, body("data: 0\n\n")]


async def test_a_send_that_the_application_gives_up_is_not_read() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        with anyio.move_on_after(1):
            await send(body("data: late\n\n"))
        await send(body("data: in time\n\n", more=False))

    async with Client(app) as client, client.open("/", window=0) as stream:
        await let_pass(2)
        assert (await stream.next_event()).data == "in time"


async def test_an_application_that_gave_up_a_send_may_return() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        with anyio.move_on_after(1):
            await send(body("data: late\n\n"))

    async with Client(app) as client, client.open("/", window=0) as stream:
        await let_pass(2)
        assert await stream.wait_ended() is None
        assert stream.received == []


async def test_after_the_disconnect_a_waiting_send_returns_and_later_ones_do_nothing() -> None:
    sent: list[int] = []
    async with Client(counting(sent)) as client, client.open("/", window=3) as stream:
        await anyio.wait_all_tasks_blocked()
        assert len(sent) == 3
        await stream.disconnect()
        assert len(sent) == 100
        assert len(stream.messages) == 102


async def test_after_the_disconnect_send_may_raise() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for _ in range(2):
            try:
                await send(body("data: 1\n\n"))
            except OSError as error:
                heard.append(str(error))

    async with Client(app, after_disconnect="raise") as client, client.open("/", window=0) as stream:
        await anyio.wait_all_tasks_blocked()
        await stream.disconnect()
    assert heard == ["the client has disconnected"] * 2


async def test_after_disconnect_is_one_of_two_words() -> None:
    with pytest.raises(ValueError, match="after_disconnect is 'ignore' or 'raise'"):
        async with Client(deaf, after_disconnect="explode").open("/"):  # type: ignore[arg-type]
            pass


PROBLEM: list[Message] = [
    {
        "type": "http.response.start",
        "status": 429,
        "headers": [(b"content-type", b"application/problem+json")],
    },
    body('{"status":'),
    body("429}", more=False),
]


async def test_a_finite_answer_is_read_whole() -> None:
    async with Client(sends(*PROBLEM)) as client, client.open("/") as stream:
        assert stream.status == 429
        assert await stream.read_body() == b'{"status":429}'
        await stream.wait_returned()


async def test_a_finite_answer_is_no_stream_of_events() -> None:
    async with Client(sends(*PROBLEM)) as client, client.open("/") as stream:
        with pytest.raises(
            ValueError, match=r"status 429 and application/problem\+json .* is not an event stream"
        ):
            await stream.next_event()


@pytest.mark.parametrize("status", [401, 500])
async def test_the_end_of_a_refused_stream_is_an_error(status: int) -> None:
    """Catches a test that takes a refusal for a stream that has ended."""

    async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/problem+json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    async with Client(refuses) as client, client.open("/") as stream:
        for wait in (stream.wait_ended, stream.next_event):
            with pytest.raises(ValueError, match=rf"status {status} and .* is not an event stream"):
                await wait()
        await stream.wait_returned()
        assert await stream.read_body() == b"{}"


async def test_request_returns_a_finite_answer() -> None:
    async with Client(sends(*PROBLEM)) as client:
        assert await client.request("GET", "/") == Answer(
            429, {"content-type": "application/problem+json"}, b'{"status":429}', PROBLEM
        )


async def test_request_does_not_wait_for_ever_for_an_endless_answer() -> None:
    with pytest.raises(TimeoutError, match="the end of the body did not come within 5"):
        async with Client(sends(START, body("data: 1\n\n"))) as client:
            await client.request("GET", "/")


def echo(seen: list[Scope], bodies: list[Message]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        bodies.append(await receive())
        await send({"type": "http.response.start", "status": 204})
        await send(END)

    return app


async def scope_of(client_options: dict[str, Any], path: str, **options: Any) -> Scope:
    seen: list[Scope] = []
    async with Client(echo(seen, []), **client_options) as client:
        await client.request("get", path, **options)
    return seen[0]


async def test_the_scope_is_complete() -> None:
    assert await scope_of({}, "/events") == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/events",
        "raw_path": b"/events",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"testserver"), (b"accept", b"text/event-stream")],
        "client": ("127.0.0.1", 50123),
        "server": ("testserver", 80),
    }


async def test_the_scope_can_be_chosen() -> None:
    scope = await scope_of(
        {"root_path": "/api", "spec_version": "2.4", "scope": {"scheme": "https", "extensions": {}}}, "/api/x"
    )
    assert (scope["root_path"], scope["path"]) == ("/api", "/api/x")
    assert scope["asgi"]["spec_version"] == "2.4"
    assert (scope["scheme"], scope["extensions"]) == ("https", {})


async def test_a_client_keeps_its_last_event_id_until_it_gets_another() -> None:
    async with Client(sends(START, body("data: 1\n\n"), body("id: 43\ndata: 2\n\n"))) as client:
        async with client.open("/", last_event_id="42") as stream:
            assert stream.last_event_id == "42"
            assert (await stream.next_event()).last_event_id == "42"
            assert (await stream.next_event()).last_event_id == stream.last_event_id == "43"
        async with client.open("/") as stream:
            assert stream.last_event_id == ""


async def test_headers_cookies_and_the_last_event_id_are_sent() -> None:
    scope = await scope_of(
        {},
        "/",
        headers={"Host": "example.org", "Accept": "*/*", "X-Word": "grün"},
        cookies={"a": "1", "b": "2"},
        last_event_id="42€",
    )
    assert scope["headers"] == [
        (b"host", b"example.org"),
        (b"accept", b"*/*"),
        (b"x-word", "grün".encode("latin-1")),
        (b"cookie", b"a=1; b=2"),
        (b"last-event-id", "42€".encode()),
    ]


async def test_a_header_may_be_repeated() -> None:
    scope = await scope_of({}, "/", headers=[("cookie", "a=1"), ("cookie", "b=2")])
    assert scope["headers"][1:3] == [(b"cookie", b"a=1"), (b"cookie", b"b=2")]


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/?a=1", "", b"a=1"),
        ("/", "a=1&b", b"a=1&b"),
        ("/", {"a": "x y", "ü": "&"}, b"a=x+y&%C3%BC=%26"),
        ("/", [("a", "1"), ("a", "2")], b"a=1&a=2"),
        ("/?a=1", {"b": "2"}, b"a=1&b=2"),
    ],
)
async def test_a_query_may_stand_in_the_path_or_beside_it(path: str, query: Any, expected: bytes) -> None:
    scope = await scope_of({}, path, query=query)
    assert (scope["path"], scope["query_string"]) == ("/", expected)


@pytest.mark.parametrize("path", ["/a b/grün", "/a%20b/gr%C3%BCn"])
async def test_a_path_is_decoded_and_its_raw_form_is_not(path: str) -> None:
    scope = await scope_of({}, path)
    assert (scope["path"], scope["raw_path"]) == ("/a b/grün", b"/a%20b/gr%C3%BCn")


async def test_the_body_of_the_request_is_received() -> None:
    bodies: list[Message] = []
    async with Client(echo([], bodies)) as client:
        answer = await client.request("POST", "/", body=b"hello")
    assert answer.status == 204
    assert bodies == [{"type": "http.request", "body": b"hello", "more_body": False}]


def with_lifespan(log: list[str], **faults: Any) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            log.append(f"request {json.dumps(scope['state'])}")
            scope["state"]["seen"] = True
            await sends(START)(scope, receive, send)
            return
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["db"] = 1
        await send({"type": "lifespan.startup.complete"} | faults.get("startup", {}))
        log.append("up")
        if "crash" in faults:
            raise faults["crash"]
        assert (await receive())["type"] == "lifespan.shutdown"
        log.append("down")
        await send({"type": "lifespan.shutdown.complete"} | faults.get("shutdown", {}))

    return app


async def test_the_lifespan_surrounds_the_requests_and_shares_its_state() -> None:
    log: list[str] = []
    async with Client(with_lifespan(log), lifespan=True) as client:
        for _ in range(2):
            async with client.open("/"):
                pass
    assert log == ["up", 'request {"db": 1}', 'request {"db": 1}', "down"]


async def test_the_shutdown_can_come_while_a_stream_is_open() -> None:
    log: list[str] = []
    async with Client(with_lifespan(log), lifespan=True) as client:
        async with client.open("/"):
            await client.shutdown()
            assert log[-1] == "down"
        await client.shutdown()
    assert log.count("down") == 1


async def test_without_lifespan_the_application_is_not_asked() -> None:
    log: list[str] = []
    async with Client(with_lifespan(log), scope={"state": {}}) as client:
        async with client.open("/"):
            pass
        await client.shutdown()
    assert log == ["request {}"]


@pytest.mark.parametrize("refuse", [ValueError("only http here"), None])
async def test_an_application_without_lifespan_goes_on_without(refuse: Exception | None) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await sends(START)(scope, receive, send)
        elif refuse is not None:
            raise refuse

    async with Client(app, lifespan=True) as client, client.open("/") as stream:
        assert stream.status == 200


async def test_a_client_that_was_not_entered_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"async with Client"):
        async with Client(with_lifespan([]), lifespan=True).open("/"):
            pytest.fail("the application has not started")


async def test_a_failed_startup_is_raised() -> None:
    app = with_lifespan([], startup={"type": "lifespan.startup.failed", "message": "no database"})
    with pytest.raises(RuntimeError, match=r"lifespan\.startup\.failed: no database"):
        async with Client(app, lifespan=True):
            pytest.fail("it did not start")


async def test_a_failed_shutdown_is_raised() -> None:
    app = with_lifespan([], shutdown={"type": "lifespan.shutdown.failed", "message": "still busy"})
    with pytest.raises(RuntimeError, match=r"lifespan\.shutdown\.failed: still busy"):
        async with Client(app, lifespan=True):
            pass


async def test_a_lifespan_that_crashes_after_its_start_is_raised() -> None:
    with pytest.raises(LookupError, match="worker"):
        async with Client(with_lifespan([], crash=LookupError("worker")), lifespan=True):
            pass


async def test_a_lifespan_that_does_not_answer_is_a_timeout() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    with pytest.raises(TimeoutError, match=r"has not answered lifespan\.startup within 5"):
        async with Client(app, lifespan=True):
            pytest.fail("it did not start")


def test_the_lifespan_alone_needs_a_library_and_names_it() -> None:
    program = """
import sys
sys.modules["asgi_lifespan"] = None
import anyio
from livepush_asgi.testing import Client

async def enter(**options):
    async with Client(None, **options):
        pass

anyio.run(enter)
try:
    anyio.run(lambda: enter(lifespan=True))
except ImportError as error:
    assert "pip install 'livepush_asgi[testing]'" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


async def test_many_streams_are_open_at_once() -> None:
    async with (
        Client(sends(START, body("data: 1\n\n"))) as client,
        client.open("/a") as first,
        client.open("/b") as second,
    ):
        assert (await first.next_event()).data == (await second.next_event()).data == "1"
        await first.disconnect()
        with pytest.raises(TimeoutError):
            await second.next_event()


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request's body, and with its content type in the header `x-kind`."""
    request = await receive()
    kind = dict(scope["headers"]).get(b"content-type", b"none")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", kind)]})
    await send({"type": "http.response.body", "body": request["body"]})


async def test_an_argument_of_another_test_client_raises() -> None:
    async with Client(mirror) as client:
        with pytest.raises(TypeError, match="takes headers, query, cookies, last_event_id, and no params"):
            await client.request("GET", "/", params={"token": "x"})  # type: ignore[call-arg]


async def test_a_request_with_a_body_says_how_long_it_is_and_accepts_any_answer() -> None:
    """Catches a 406, or empty data, of a framework that looks at them, such as Django REST framework."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async with Client(app) as client:
        await client.request("POST", "/", json={"a": 1})
        await client.request("POST", "/", body=b"ab", headers={"Accept": "text/html", "Content-Length": "1"})
        await client.request("GET", "/")
        async with client.open("/", method="POST", json=[1]):
            pass
    fields = [dict(scope["headers"]) for scope in scopes]
    assert [(each.get(b"accept"), each.get(b"content-length")) for each in fields] == [
        (b"*/*", b"8"),
        (b"text/html", b"1"),
        (b"text/event-stream", None),
        (b"text/event-stream", b"3"),
    ]


async def test_json_goes_out_and_comes_back() -> None:
    async with Client(mirror) as client:
        answer = await client.request("POST", "/", json={"a": [1, "ä"]})
        assert (answer.json(), answer.headers["x-kind"]) == ({"a": [1, "ä"]}, "application/json")
        answer = await client.request("POST", "/", json=0, headers={"Content-Type": "application/x"})
        assert (answer.json(), answer.headers["x-kind"]) == (0, "application/x")
        answer = await client.request("POST", "/", body=b"{")
        assert answer.headers["x-kind"] == "none"
        with pytest.raises(ValueError, match="Expecting"):
            answer.json()
        with pytest.raises(TypeError, match="one body"):
            await client.request("POST", "/", body=b"{", json={})
        async with client.open("/", method="POST", json=[1]) as stream:
            assert await stream.read_body() == b"[1]"


async def test_the_data_of_an_event_is_read_as_json() -> None:
    async with opened(body('data: {"a": 1}\n\n'), body("data: x\n\n")) as stream:
        assert (await stream.next_event()).json() == {"a": 1}
        with pytest.raises(ValueError, match="Expecting"):
            (await stream.next_event()).json()


class SlowBroker(MemoryBroker):
    """Takes a while to subscribe, as a server does."""

    async def subscribe(self, channel: str) -> Subscription:
        await let_pass(0.5)
        return await super().subscribe(channel)


async def test_a_stream_that_has_been_opened_is_live() -> None:
    push = LivePush(SlowBroker(), lambda request: Grant(channels=request.path))
    async with Client(push, lifespan=True) as client:
        for number in range(3):
            async with client.open(f"/{number}") as stream:
                await push.publish(f"/{number}", "at once")
                assert (await stream.next_event()).data == "at once"
