"""Users that may not do everything: an append is done whole or not at all, and what is missing is named."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import redis
from redis.asyncio import Redis

from livepush_asgi import BrokerUnavailableError, Grant, LivePush, RedisBroker, RedisStreamsBroker
from livepush_asgi.brokers.history import History
from livepush_asgi.testing import Client

from .valkey import ValkeyProcess

ALL = ["+@all", "~*", "&*"]
# What is taken from the user, and the rule that the error has to name.
MISSING = {
    "-xadd": "+xadd ~livepush:log:*",
    "-set": "+set ~livepush:log:*",
    "-get": "+get",
    "-publish": "+publish &news",
    "-xtrim": "+xtrim ~livepush:log:*",
    "-xrange": "+xrange ~livepush:log:*",
    "-pexpire": "+pexpire ~livepush:log:*",
    "-persist": "+persist ~livepush:log:*",
    "-info": "+info",
    "-time": "+time",
    "-evalsha": "+evalsha",
    "resetchannels": "+publish &news",
    # Without those that remember idempotency keys.
    "resetkeys ~livepush:log:{news} ~livepush:log:{news}:head": "~livepush:log:*",
    "resetkeys %R~*": "~livepush:log:*",
    "resetkeys": "~livepush:log:*",
}

pytestmark = pytest.mark.real_time


@pytest.fixture
def server(valkey: ValkeyProcess) -> Iterator[ValkeyProcess]:
    allow(valkey, *ALL)
    yield valkey
    with redis.Redis.from_url(valkey.url) as admin:
        admin.execute_command("ACL", "DELUSER", "web")


def allow(server: ValkeyProcess, *rules: str) -> None:
    with redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "web", "reset", "on", ">pw", *rules)


def user(server: ValkeyProcess) -> Redis:
    return Redis.from_url(server.url, username="web", password="pw")


@asynccontextmanager
async def stream_of(server: ValkeyProcess, history: History) -> AsyncIterator[tuple[LivePush, Client]]:
    async with server.client() as client:
        push = LivePush(
            RedisStreamsBroker(client, history=history), lambda request: Grant(channels=("news",))
        )
        async with push.lifespan(), Client(push) as pages:
            yield push, pages


HISTORIES = {
    "new": (History(), 0),
    "filled": (History(), 3),
    # Each append has to let go of something.
    "full": (History(size=40), 8),
    "endless": (History(age=None), 3),
}


@pytest.mark.parametrize("since", ["start", "later"])
@pytest.mark.parametrize("state", HISTORIES)
@pytest.mark.parametrize("missing", MISSING)
async def test_an_append_that_is_refused_leaves_nothing(
    server: ValkeyProcess, missing: str, state: str, since: str
) -> None:
    history, count = HISTORIES[state]
    async with user(server) as client, stream_of(server, history) as (push, pages), pages.open("/") as stream:
        acknowledged: list[tuple[str, str]] = []

        async def publish(to: LivePush, data: str, key: str | None = None) -> None:
            try:
                id = await to.publish("news", data, idempotency_key=key)
            except BrokerUnavailableError as error:
                refusals.append(str(error))
            else:
                assert id is not None
                acknowledged.append((data, id))

        refusals: list[str] = []
        assert (await stream.next_event(10, control=True)).event == "livepush.open"
        web = LivePush(RedisStreamsBroker(client, history=history), lambda request: Grant(channels=("news",)))
        if since == "later":
            await publish(web, "the first")
        if state == "new":
            with redis.Redis.from_url(server.url) as admin:
                admin.delete("livepush:log:{news}", "livepush:log:{news}:head")
        for number in range(count):
            await publish(push, f"before {number}")
        allow(server, *ALL, *missing.split(" "))
        for number in range(2):
            await asyncio.gather(
                publish(web, f"plain {number}"),
                publish(web, f"keyed {number}", f"key {number}"),
                publish(web, f"last {number}"),
            )
        rule = MISSING[missing]
        # A command that is not needed every time may be forbidden later without anybody noticing at once.
        needless = missing == ("-pexpire" if state == "endless" else "-persist")
        assert refusals or needless or since == "later"
        for refusal in refusals:
            command = rule.partition(" ")[0]
            assert f"; allow it: ACL SETUSER web {command}" in refusal
            assert since == "later" or refusal.endswith(rule)
            assert "permission" in refusal
        await publish(push, "by another user")
        allow(server, *ALL)
        await publish(web, "allowed")
        await publish(web, "keyed again", "key 1")
        kept = {data: id for data, id in acknowledged if data != "keyed again"}
        # A key whose append was refused is not taken; one whose append was not, is.
        again = dict(acknowledged)["keyed again"]
        if "keyed 1" in kept:
            assert again == kept["keyed 1"]
        else:
            kept["keyed again"] = again
        heard = [await stream.next_event(10) for _ in kept]
        if state == "new" and since == "later":
            # That log was deleted.
            assert heard.pop(0).data == "the first"
            del kept["the first"]
        assert sorted((event.data, event.id or "") for event in heard) == sorted(kept.items())
        offsets = [int((event.id or "").rpartition(".")[2]) for event in heard]
        assert offsets == list(range(1, len(kept) + 1))


@pytest.mark.parametrize("missing", [name for name in MISSING if name != "-publish"])
async def test_a_permission_that_is_missing_is_named_by_the_first_read_or_subscribe(
    server: ValkeyProcess, missing: str
) -> None:
    allow(server, *ALL, *missing.split(" "))
    if missing in ("-xadd", "-persist", "resetkeys ~livepush:log:{news} ~livepush:log:{news}:head"):
        return
    async with user(server) as client:
        broker = RedisStreamsBroker(client)

        async def begin() -> None:
            await broker.subscribe("news")
            await broker.read("news", 0, 10)

        with pytest.raises(BrokerUnavailableError, match="permission") as raised:
            await begin()
        rule = MISSING[missing]
        needed = "&news" if missing == "resetchannels" else rule
        assert str(raised.value).endswith(f"; allow it: ACL SETUSER web {needed}")


async def test_a_plain_publisher_is_told_what_it_needs(server: ValkeyProcess) -> None:
    async with user(server) as client:
        broker = RedisBroker(client)
        for rules, needed in [
            (["resetchannels"], "&news"),
            (["-publish"], "+publish"),
        ]:
            allow(server, *ALL, *rules)
            with pytest.raises(BrokerUnavailableError, match="permission") as raised:
                await broker.publish("news", "x")
            assert str(raised.value).endswith(f"; allow it: ACL SETUSER web {needed}")
