"""NATS users that may not do everything: an append is done whole or not at all."""

import json

import pytest

from livepush_asgi import BrokerTimeouts, BrokerUnavailableError, Grant, JetStreamBroker, LivePush
from livepush_asgi.testing import Client

from .nats_server import NatsProcess

USERS = """
authorization {{ users: [
  {{ user: admin, password: word }}
  {{ user: web, password: word, permissions: {{
    publish: {{ allow: [">"], deny: {publish} }}, subscribe: {{ allow: [">"], deny: {subscribe} }}
  }} }}
] }}
"""

pytestmark = pytest.mark.real_time


def broker_of(server: NatsProcess, user: str) -> JetStreamBroker:
    return JetStreamBroker(
        server.url,
        options={"user": user, "password": "word"},
        timeouts=BrokerTimeouts(publish=1.0, subscribe=1.0),
    )


@pytest.mark.parametrize(
    ("publish", "subscribe", "named"),
    [
        (["livepush-log.>"], [], "livepush-log.news"),
        (["$JS.API.STREAM.INFO.*"], [], "$JS.API.STREAM.INFO.livepush"),
        (["$JS.API.STREAM.MSG.GET.*"], [], "$JS.API.STREAM.MSG.GET.livepush"),
        (["$JS.API.DIRECT.GET.*"], [], ""),
        (["livepush.>"], [], ""),
        ([], ["_INBOX.>"], ""),
        ([], ["livepush.>"], ""),
    ],
    ids=["log", "info", "last", "get", "live", "answers", "listen"],
)
async def test_an_append_that_is_refused_leaves_nothing(
    own_nats: NatsProcess, publish: list[str], subscribe: list[str], named: str
) -> None:
    own_nats.kill()
    own_nats.configure(USERS.format(publish=json.dumps(publish), subscribe=json.dumps(subscribe)))
    own_nats.start()
    push = LivePush(broker_of(own_nats, "admin"), lambda request: Grant(channels=("news",)))
    web = broker_of(own_nats, "web")
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(5, name="livepush.open")
        acknowledged = [await push.publish("news", "first")]
        refusals: list[str] = []
        for number in range(2):
            try:
                position = await web.append("news", b"data: %d\n\n" % number, idempotency_key=f"key {number}")
            except BrokerUnavailableError as error:
                refusals.append(str(error).lower())
            else:
                acknowledged.append(str(position))
        assert all(named.lower() in refusal for refusal in refusals)
        assert bool(named) <= bool(refusals)
        acknowledged.append(await push.publish("news", "last"))
        heard = [await stream.next_event(5, control=True) for _ in acknowledged]
        assert [(event.id or "").rpartition(".")[2] for event in heard] == [
            str(number) for number in range(1, len(acknowledged) + 1)
        ]
        assert [event.data for event in heard][-1] == "last"
