"""Tickets: each opens one stream, whoever has found it, wherever it is used and however often it is sent."""

import anyio
import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from livepush_asgi import (
    AuthorizationUnavailableError,
    Grant,
    LivePush,
    MemoryBroker,
    MemoryTickets,
    RedisTickets,
    Refusal,
    StreamRequest,
    Tickets,
)
from livepush_asgi.http.credentials.tickets import MAX_TICKETS
from livepush_asgi.testing import Client

from .valkey import ValkeyProcess


def request(ticket: str, method: str = "GET", **headers: str) -> StreamRequest:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    query = f"ticket={ticket}".encode()
    return StreamRequest({"type": "http", "method": method, "headers": fields, "query_string": query})


async def outcome(tickets: Tickets, ticket: str, **headers: str) -> object:
    """Return what a ticket was issued for, or the status that its client gets."""
    try:
        return await tickets.redeem(request(ticket, **headers))
    except Refusal as refusal:
        return refusal.status if refusal.headers == {"www-authenticate": "Ticket"} else refusal


class Counting(MemoryTickets):
    """Counts how often the store is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = 0

    async def take(self, key: str) -> str | None:
        self.takes += 1
        return await super().take(key)


async def test_a_ticket_opens_one_stream() -> None:
    tickets = MemoryTickets()
    first, second = [await tickets.issue("ada") for _ in range(2)]
    assert first != second
    assert await outcome(tickets, first) == "ada"
    # Whoever has read it in an access log, with whatever EventSource sends when it comes back.
    assert await outcome(tickets, first) == 401
    assert await outcome(tickets, first, **{"last-event-id": "x~e.1"}) == 401
    assert await outcome(tickets, second) == "ada"
    assert await outcome(MemoryTickets(), await tickets.issue("ada")) == 401


@pytest.mark.virtual_time
async def test_a_ticket_expires() -> None:
    tickets = MemoryTickets(ttl=5)
    early, late = [await tickets.issue("ada") for _ in range(2)]
    await anyio.sleep(4.9)
    assert await outcome(tickets, early) == "ada"
    await anyio.sleep(0.1)
    assert await outcome(tickets, late) == 401


async def test_what_is_no_ticket_asks_no_store() -> None:
    tickets = Counting()
    ticket = await tickets.issue("ada")
    wrong = ["", "x", ticket[:-1], ticket + "x", ticket[:-1] + "é", "../" + ticket[3:], "x" * 8_000]
    for each in [*wrong, f"{ticket}&ticket={ticket}", f"{ticket}&ticket=x"]:
        assert await outcome(tickets, each) == 401
    with pytest.raises(Refusal, match="401 Open the stream with"):
        await tickets.redeem(StreamRequest({"headers": [], "query_string": b""}))
    assert tickets.takes == 0
    assert await outcome(tickets, ticket) == "ada"


async def test_a_request_that_is_authorized_again_keeps_its_ticket() -> None:
    tickets = Counting()
    calls, redeemed, revoked = 0, anyio.Event(), anyio.Event()

    async def authorize(request: StreamRequest) -> Grant:
        nonlocal calls
        calls += 1
        user = await tickets.redeem(request)
        # An open stream is authorized again by its scope alone.
        assert await tickets.redeem(StreamRequest(request.scope)) == user
        redeemed.set()
        await revoked.wait()
        return Grant(channels="c", slot_key=user)

    async def revoke() -> None:
        await redeemed.wait()
        await push.disconnect(channel="c")
        revoked.set()

    push = LivePush(MemoryBroker(), authorize)
    path = f"/?ticket={await tickets.issue('ada')}"
    async with push.lifespan(), Client(push) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(revoke)
        async with client.open(path) as stream:
            assert stream.status == 200
            assert calls == 2
        assert (await client.request("GET", path)).status == 401
    assert tickets.takes == 2


@pytest.mark.virtual_time
async def test_a_process_keeps_a_bounded_number() -> None:
    tickets = MemoryTickets()
    first, second = [await tickets.issue("ada") for _ in range(2)]
    for number in range(MAX_TICKETS - 1):
        await tickets.put(str(number), "x")
    assert await outcome(tickets, first) == 401
    assert await outcome(tickets, second) == "ada"
    await anyio.sleep(31)
    last = await tickets.issue("ada")
    assert await outcome(tickets, last) == "ada"


async def test_a_wrong_argument_raises() -> None:
    for ttl in (0, 30_000):
        with pytest.raises(ValueError, match="ttl is in seconds"):
            MemoryTickets(ttl=ttl)
    for subject in ("", 7):
        with pytest.raises(ValueError, match="the id of a user"):
            await MemoryTickets().issue(subject)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"redis\.asyncio"):
        RedisTickets("redis://localhost")  # type: ignore[arg-type]


# On a server.


@pytest.mark.real_time
async def test_a_ticket_opens_one_stream_in_one_of_two_workers(valkey: ValkeyProcess) -> None:
    async with valkey.client() as one, valkey.client(decode_responses=True) as two:
        workers = [RedisTickets(one), RedisTickets(two)]
        issued = [await workers[number % 2].issue(f"user-{number}") for number in range(5)]
        found: dict[str, list[object]] = {ticket: [] for ticket in issued}

        async def use(worker: Tickets, ticket: str) -> None:
            found[ticket].append(await outcome(worker, ticket))

        async with anyio.create_task_group() as tasks:
            for ticket in issued:
                for worker in workers * 5:
                    tasks.start_soon(use, worker, ticket)
        assert [sorted(map(str, each)) for each in found.values()] == [
            ["401"] * 9 + [f"user-{number}"] for number in range(5)
        ]


@pytest.mark.real_time
async def test_a_wave_of_clients_waits_for_connections(valkey: ValkeyProcess) -> None:
    # The pool of the client is smaller than the wave.
    async with valkey.client() as client:
        tickets = RedisTickets(client)
        found: list[object] = []

        async def use() -> None:
            found.append(await outcome(tickets, await tickets.issue("ada")))

        async with anyio.create_task_group() as tasks:
            for _ in range(300):
                tasks.start_soon(use)
        assert found == ["ada"] * 300


@pytest.mark.real_time
async def test_the_server_has_no_ticket_that_could_be_used_and_forgets_them(valkey: ValkeyProcess) -> None:
    async with valkey.client() as client:
        tickets = RedisTickets(client, ttl=0.1, key_prefix="mine:")
        ticket = await tickets.issue("ada")
        (key,) = [key.decode() for key in await client.keys("*") if isinstance(key, bytes)]
        assert key.startswith("mine:")
        assert await outcome(tickets, key.removeprefix("mine:")) == 401
        assert 0 < await client.pttl(key) <= 100
        with anyio.fail_after(5):
            while await client.exists(key):
                pass
        assert await outcome(tickets, ticket) == 401


@pytest.mark.real_time
async def test_a_server_that_is_away_is_a_503() -> None:
    async with Redis(port=1, retry=Retry(NoBackoff(), 0)) as client:
        tickets = RedisTickets(client)
        with pytest.raises(AuthorizationUnavailableError):
            await tickets.issue("ada")

        async def authorize(request: StreamRequest) -> Grant:
            return Grant(channels=await tickets.redeem(request))

        push = LivePush(MemoryBroker(), authorize)
        async with push.lifespan(), Client(push) as client_of_streams:
            answer = await client_of_streams.request("GET", f"/?ticket={'x' * 43}")
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert b"edis" not in answer.body
