"""Encoding of data: what the default encoder takes, and an application's own `encode` on each way out."""

import json
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import NamedTuple
from uuid import UUID

import anyio.to_thread
import msgspec
import pytest
from django.core.serializers.json import DjangoJSONEncoder
from pydantic import BaseModel, Field, RootModel, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from livepush_asgi import Event, Grant, InvalidEventError, LivePush, MemoryBroker, Publisher, public
from livepush_asgi.testing import Client

from .valkey import ValkeyProcess

UNIQUE = UUID("12345678-1234-5678-1234-567812345678")
MOMENT = datetime(2026, 11, 29, 1, 2, 3, 450_000, tzinfo=UTC)


class Color(Enum):
    RED = "red"
    SINCE = date(2026, 1, 2)


class Level(IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: Decimal


@dataclass
class Part:
    price: Decimal
    made: date


@dataclass(frozen=True, slots=True)
class Order:
    number: UUID
    parts: list[Part] = field(default_factory=list)


class Person(BaseModel):
    name: str
    born: datetime
    balance: Decimal = Decimal("1.10")
    tags: set[str] = {"a"}
    member_id: int = Field(7, alias="memberId")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def initial(self) -> str:
        return self.name[0]


class Numbers(RootModel[list[int]]):
    pass


@pydantic_dataclass
class Checked:
    at: date


class Struct(msgspec.Struct):
    at: timedelta


PERSON = (
    '{"name":"Ada","born":"2026-11-29T01:02:03.450000Z","balance":"1.10","tags":["a"],"memberId":7,'
    '"initial":"A"}'
)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (MOMENT, '"2026-11-29T01:02:03.450000+00:00"'),
        (date(2026, 11, 29), '"2026-11-29"'),
        (time(1, 2), '"01:02:00"'),
        (UNIQUE, f'"{UNIQUE}"'),
        (Decimal("1.10"), '"1.10"'),
        (Color.RED, '"red"'),
        (Color.SINCE, '"2026-01-02"'),
        (Level.HIGH, "3"),
        (Point(1, Decimal(2)), '[1,"2"]'),
        (
            Order(UNIQUE, [Part(Decimal("9.90"), date(2026, 1, 2))]),
            f'{{"number":"{UNIQUE}","parts":[{{"price":"9.90","made":"2026-01-02"}}]}}',
        ),
        (Person(name="Ada", born=MOMENT, memberId=7), PERSON),
        ({"all": [Person(name="Ada", born=MOMENT, memberId=7)]}, f'{{"all":[{PERSON}]}}'),
        (Numbers([1, 2]), "[1,2]"),
        (Checked(date(2026, 1, 2)), '{"at":"2026-01-02"}'),
        ({"when": MOMENT, "who": UNIQUE}, f'{{"when":"{MOMENT.isoformat()}","who":"{UNIQUE}"}}'),
    ],
)
def test_the_default_encodes_what_applications_publish(data: object, text: str) -> None:
    assert Event(data).data == text


class Knot:
    """Refers to itself, in a dataclass."""

    def __init__(self) -> None:
        self.order = Order(UNIQUE)
        self.order.parts.append(self.order)  # type: ignore[arg-type]


class Failing(BaseModel):
    @computed_field  # type: ignore[prop-decorator]
    @property
    def broken(self) -> int:
        raise KeyError("secret")


@dataclass
class Unfinished:
    never_set: int = field(init=False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({1, 2}, "of type set .it has no order: make it a list.*encode="),
        ({"a": frozenset()}, "of type frozenset .it has no order"),
        ({"a": b"x"}, "of type bytes .encode it as base64"),
        (timedelta(1), "of type timedelta; LivePush.encode=.*Publisher.encode="),
        ({UNIQUE: 1}, "keys must be .* not UUID.*encode="),
        (Struct(timedelta(1)), "of type Struct;"),
        (Order, "of type type;"),
        (Person, "of type ModelMetaclass;"),
        ([object()], "of type object;"),
        (Decimal("NaN"), "Out of range"),
        (Decimal("-Infinity"), "Out of range"),
        (Order(math.nan), "Out of range"),  # type: ignore[arg-type]
        ({"a": math.inf}, "Out of range"),
        (Knot().order, "Circular"),
        (Failing(), "secret"),
        (Unfinished(), "never_set"),
    ],
)
def test_the_default_refuses_the_rest_and_says_what_to_do(data: object, words: str) -> None:
    with pytest.raises(InvalidEventError, match=words):
        Event(data)


def test_a_coroutine_is_a_forgotten_await() -> None:
    async def data() -> object:
        raise NotImplementedError

    forgotten = data()
    with pytest.raises(InvalidEventError, match="is an `await` missing"):
        Event([forgotten])
    forgotten.close()


def test_pydantic_is_never_imported() -> None:
    program = (
        "import sys, livepush_asgi\n"
        "try: livepush_asgi.Event(object())\n"
        "except livepush_asgi.InvalidEventError: pass\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


def compact(data: object) -> str:
    return f"mine: {data!r}"


ENCODERS: dict[str, tuple[Callable[[object], str | bytes], object, str]] = {
    "text": (compact, {"a": 1}, "mine: {'a': 1}"),
    "msgspec": (msgspec.json.encode, Struct(timedelta(1)), '{"at":"P1D"}'),
    "django": (DjangoJSONEncoder().encode, {"at": timedelta(1)}, '{"at": "P1DT00H00M00S"}'),
    "unicode bytes": (lambda data: str(data).encode(), 5, "5"),
    "several lines": (lambda data: json.dumps(data, indent=1), [1], "[\n 1\n]"),
}


@pytest.mark.parametrize("name", ENCODERS)
async def test_an_encoder_of_the_application_encodes_data_of_every_kind(name: str) -> None:
    encode, data, text = ENCODERS[name]

    async def items() -> AsyncIterator[object]:
        yield data
        yield "text"
        yield Event({"of": "an event"}, "named")

    def authorize(_: object) -> Grant:
        return Grant(channels="news", snapshot=lambda: [data, "text", Event([1])])

    push = LivePush(MemoryBroker(), authorize, encode=encode)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        assert [event.data for event in await stream.events(3)] == [text, "text", "[1]"]
        await push.publish("news", data, event="named")
        await push.publish("news", "text")
        await push.publish("news", b"bytes")
        await push.publish("news", Event([1]))
        found = await stream.events(4)
        assert [event.data for event in found] == [text, "text", "bytes", "[1]"]
        assert found[0].event == "named"
        await push.publish_job("job", items(), event="piece")
    watching = LivePush(push.broker, lambda _: Grant(channels="job", replay="all"))
    async with watching.lifespan(), Client(watching) as client, client.open("/") as stream:
        found = await stream.events(5)
    assert [(event.event, event.data) for event in found] == [
        ("start", "{}"),
        ("piece", text),
        ("piece", "text"),
        ("named", '{"of":"an event"}'),
        ("end", '{"count":3,"error":null}'),
    ]


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (msgspec.json.encode, "encode cannot encode data of type object: Encoding objects of type object is"),
        (lambda data: None, "encode returned NoneType for data of type object"),
        (lambda data: "\ud800", "lone surrogate"),
        (lambda data: b"\xff", "UTF-8"),
    ],
)
async def test_an_encoder_that_fails_publishes_nothing(
    encode: Callable[[object], str | bytes], words: str
) -> None:
    push = LivePush(MemoryBroker(), public("news"), encode=encode)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        with pytest.raises(InvalidEventError, match=words):
            await push.publish("news", object())
        await push.publish("news", "next")
        assert (await stream.next_event()).data == "next"


async def test_a_snapshot_that_cannot_be_encoded_ends_its_stream(caplog: pytest.LogCaptureFixture) -> None:
    grant = Grant(channels="news", snapshot=object)
    push = LivePush(MemoryBroker(), lambda _: grant, encode=msgspec.json.encode)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        assert await stream.wait_ended() == "error"
    assert "encode cannot encode data of type object" in caplog.text


async def asynchronous(data: object) -> str:
    raise NotImplementedError


@pytest.mark.parametrize("encode", ["orjson", asynchronous])
def test_what_is_no_encoder_raises_at_once(encode: object) -> None:
    with pytest.raises(TypeError, match="encode is a function that makes text of data"):
        LivePush(MemoryBroker(), public("news"), encode=encode)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="encode is a function that makes text of data"):
        Publisher(MemoryBroker, encode=encode)  # type: ignore[arg-type]


@pytest.mark.real_time
async def test_a_publisher_encodes_too(valkey: ValkeyProcess) -> None:
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    def publish() -> None:
        def make() -> RedisStreamsBroker:
            return RedisStreamsBroker(Redis.from_url(valkey.url))

        with Publisher(make, encode=msgspec.json.encode) as publisher:
            publisher.publish("news", Struct(timedelta(1)))
        with Publisher(make) as publisher:
            publisher.publish("news", MOMENT)

    async with valkey.client() as redis:
        push = LivePush(RedisStreamsBroker(redis), public("news"))
        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            await anyio.to_thread.run_sync(publish)
            found = [event.data for event in await stream.events(2, timeout=10)]
    assert found == ['{"at":"P1D"}', f'"{MOMENT.isoformat()}"']
